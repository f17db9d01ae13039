"""Which configurations to try: every one of a grid, random ones, or those that Optuna proposes.

Bayesian search is Optuna's tree-structured Parzen estimator, which counts trials that are still
running as bad ones, so that parallel agents spread out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any

import numpy as np

from affect.errors import UserError
from affect.sweep.file import SweepFile
from affect.sweep.space import Parameter, Point, Space, drawn, grid, searched, size

_DRAWS = 200
_ASKED = 5
_ENUMERATED = 100_000
"""Spaces up to this size are gone through where draws find nothing new."""


@dataclass(frozen=True)
class Tried:
    """A configuration that has been tried, or is being tried.

    Attributes:
        point: its place in the space.
        status: `done`, `stopped`, `failed` or `running` (also: to be gone on with).
        value: of the metric, where it is known.
        logged: how often the metric was logged.
    """

    point: Point
    status: str
    value: float | None = None
    logged: int = 0


def proposals(file: SweepFile, seed: int, number: int, tried: Sequence[Tried]) -> Iterator[Point]:
    """Configurations for a trial, the one to take first; those that are taken are passed over.

    Args:
        file: the sweep.
        seed: of the sweep.
        number: of the trial, from 0.
        tried: all other trials.
    """
    if file.method == "grid":
        yield from islice(grid(file.space), number, None)
    if file.method == "bayes":
        for attempt in range(_ASKED):
            yield asked(file, [seed, number, attempt], tried)
    random = np.random.default_rng([seed, number])
    for _ in range(_DRAWS):
        yield drawn(file.space, random.random(len(searched(file.space))).tolist())
    if size(file.space) <= _ENUMERATED:
        yield from grid(file.space)


def asked(file: SweepFile, seed: Sequence[int], tried: Sequence[Tried]) -> Point:
    """What Optuna proposes after all trials so far."""
    optuna = require_optuna()
    state = int(np.random.default_rng(list(seed)).integers(2**31))
    study = study_of(file, tried, optuna.samplers.TPESampler(seed=state))
    trial = study.ask(distributions(file.space))
    return dict(trial.params)


def study_of(file: SweepFile, tried: Sequence[Tried], sampler: Any = None) -> Any:
    """Optuna's study of all trials so far, in memory.

    Raises:
        UserError: Optuna is not installed.
    """
    optuna = require_optuna()
    direction = "maximize" if file.metric.maximize else "minimize"
    study = optuna.create_study(direction=direction, sampler=sampler)
    space = distributions(file.space)
    states = optuna.trial.TrialState
    named = {"done": states.COMPLETE, "stopped": states.PRUNED, "failed": states.FAIL}
    for item in tried:
        value, state = item.value, named.get(item.status, states.RUNNING)
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value if state == states.COMPLETE else None,
                params=item.point,
                distributions=space,
                intermediate_values={} if value is None else {item.logged: value},
            )
        )
    return study


def distributions(space: Space) -> dict[str, Any]:
    """Optuna's distribution of each parameter's coordinate."""
    return {parameter.key: _distribution(parameter) for parameter in searched(space)}


def _distribution(parameter: Parameter) -> Any:
    optuna = require_optuna()
    if parameter.kind == "categorical":
        return optuna.distributions.CategoricalDistribution(
            range(len(parameter.settings["values"]))
        )
    if parameter.kind == "int_uniform":
        return optuna.distributions.IntDistribution(
            parameter.settings["min"], parameter.settings["max"]
        )
    return optuna.distributions.FloatDistribution(0.0, 1.0)


def require_optuna() -> Any:
    """Optuna, quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        optuna = import_module("optuna")
    except ImportError:
        raise UserError(
            "method bayes needs Optuna: pip install 'affect[sweep]', or choose grid or random"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
