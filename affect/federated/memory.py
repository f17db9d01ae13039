"""What clients keep between rounds: on their own disk, and never sent.

A client's state after a round has that round in its name. The server says after which round the
client was last heard of, and from that state it goes on: what it has learned in a round that the
server lost, or did not take, counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from affect.config import Experiment
from affect.errors import UserError
from affect.files import write_whole

_SUFFIX = ".safetensors"


def remember(experiment: Experiment) -> bool:
    """Whether the clients of an experiment keep anything between rounds."""
    federation = experiment.federation
    return federation.personalisation.local == "head" or federation.strategy.name == "scaffold"


class Memory:
    """States of the clients at one place.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after(self, client: int, round_: int | None) -> dict[str, np.ndarray]:
        """The client's state after a round; empty where there was none.

        Raises:
            UserError: it is not there, or cannot be read.
        """
        if round_ is None:
            return {}
        path = self._path(client, round_)
        try:
            return load(path.read_bytes())
        except FileNotFoundError:
            raise _lost(path) from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {path}: {error}") from error

    def keep(
        self, client: int, round_: int, state: dict[str, np.ndarray], before: int | None = None
    ) -> None:
        """Keep the client's state after a round, and no other but that from which it started.

        Args:
            client: its index.
            round_: which round.
            state: what to keep.
            before: the round after which it kept what it started from.

        Raises:
            UserError: the folder cannot be written, or a value is not finite; what was kept stays.
        """
        for name, values in state.items():
            if not np.isfinite(values).all():
                raise UserError(f"its {name} is not finite: training diverged there")
        path = self._path(client, round_)
        write_whole(path, save(state))
        for other in path.parent.glob(f"*{_SUFFIX}"):
            if other.stem.isdecimal() and int(other.stem) not in (round_, before):
                other.unlink()

    def refuse_missing(self, rounds: Mapping[int, int]) -> None:
        """Refuse to go on without what clients have kept.

        Args:
            rounds: after which each client kept its state.

        Raises:
            UserError: one is not there.
        """
        for client, round_ in rounds.items():
            if not self._path(client, round_).exists():
                raise _lost(self._path(client, round_))

    def _path(self, client: int, round_: int) -> Path:
        return self._folder / str(client) / f"{round_}{_SUFFIX}"


def _lost(path: Path) -> UserError:
    return UserError(
        f"{path} is not there, which its client kept to go on from: put it back, or begin a new run"
    )
