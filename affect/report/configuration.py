"""In which keys the experiments of several runs differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from affect.config import Experiment, FederationConfig, flat
from affect.training.run import Run

_NAMES = {"name", "runs"}
_SECTION = "federation."
_OF_NO_CONSEQUENCE = ("name", "runs", "seed", "federation.seed", "data.cache", "tracking.")


def differing(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Each key in which runs differ, with its values as texts, in the order of the runs.

    A run of `affect fit` does not read the section `federation`: its text is empty there. Beside
    such a run, those keys of it are told that are not left at their defaults.
    """
    read = [_read(run) for run in runs]
    centralised = any(run.record["kind"] == "fit" for run in runs)
    defaults = flat(FederationConfig(), _SECTION) if centralised else {}
    return {
        key: tuple(_text(keys[key]) if key in keys else "" for keys in read)
        for key in flat(Experiment())
        if key not in _NAMES and _differ([keys[key] for keys in (*read, defaults) if key in keys])
    }


def unlike(run: Run, other: Run) -> tuple[str, ...]:
    """Keys in which two runs are different experiments, of those that both of them read.

    Names, seeds, places and tracking make no other experiment.
    """
    one, another = _read(run), _read(other)
    shared = [key for key in one if key in another and not key.startswith(_OF_NO_CONSEQUENCE)]
    return tuple(key for key in shared if one[key] != another[key])


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read(run: Run) -> dict[str, Any]:
    """The dotted keys that a run reads, with their values."""
    values = flat(run.experiment)
    if run.record["kind"] == "federate":
        return values
    return {key: value for key, value in values.items() if not key.startswith(_SECTION)}
