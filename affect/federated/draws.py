"""Where chance comes from: the experiment's seed, or the operating system, which none foresees.

Noise that hides a client hides nothing from whoever knows the seed; neither does a choice of
clients by which privacy is accounted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Draws = Callable[..., np.random.Generator]
"""The generator of a place in a run, such as `(round, purpose)`; each place has its own."""


def seeded(seed: int) -> Draws:
    """Generators that depend on the seed and the place alone."""
    return lambda *place: np.random.default_rng([seed, *place])


def unforeseeable(*_: int) -> np.random.Generator:
    """A generator that starts from the operating system's entropy."""
    return np.random.default_rng()
