"""What a run begins with and must find again when it goes on: its configuration and recordings.

`inputs.json` in the run's folder holds every key that the run reads, and each recording's checksum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from affect import config, store
from affect.config import Experiment
from affect.data.splits import Fold
from affect.errors import UserError
from affect.files import write_whole
from affect.store import Entry

INPUTS = "inputs.json"
_FREE = (
    *("name", "runs", "tracking.", "trainer.progress", "trainer.threads"),
    *("data.cache", "data.source.", "data.split.file", "data.workers", "data.memory_mb"),
    *("federation.engine", "federation.ray.", "federation.workers"),
    *("federation.timeout_s", "federation.failure_fraction"),
)
"""Keys that may change under way: where things are, what computes, what is shown and tolerated."""
_NAMED_AT_MOST = 3


def write_inputs(
    folder: Path, experiment: Experiment, kind: str, folds: Sequence[Fold], entries: Sequence[Entry]
) -> None:
    """Write what a run begins with.

    Args:
        folder: the run's.
        experiment: its configuration.
        kind: `fit` or `federate`.
        folds: that it trains.
        entries: recordings, among which are those of the folds' subjects.

    Raises:
        UserError: the folder cannot be written, or a recording cannot be read.
    """
    inputs = {
        "configuration": _configuration(experiment, kind),
        "recordings": _recordings(folds, entries),
    }
    write_whole(folder / INPUTS, (json.dumps(inputs, indent=2) + "\n").encode())


def refuse_other_configuration(folder: Path, experiment: Experiment, kind: str) -> None:
    """Refuse to go on with a run whose configuration has changed in what its results depend on.

    Raises:
        UserError: naming keys that differ.
    """
    began, now = _read(folder)["configuration"], _configuration(experiment, kind)
    other = [key for key in {**began, **now} if began.get(key) != now.get(key)]
    if other:
        changes = [
            f"{key} is {json.dumps(now.get(key))}, was {json.dumps(began.get(key))}"
            for key in other
        ]
        raise UserError(
            f"{folder / 'config.yaml'} is not what the run began with: {_listed(changes)}; put it "
            "back, or begin a new run"
        )


def refuse_other_recordings(folder: Path, folds: Sequence[Fold], entries: Sequence[Entry]) -> None:
    """Refuse to go on with a run of whose subjects other recordings are there now.

    Raises:
        UserError: naming recordings that differ.
    """
    began, now = _read(folder)["recordings"], _recordings(folds, entries)
    told = [
        (key, "has come" if key not in began else "is gone" if key not in now else "is another")
        for key in sorted({*began, *now})
        if began.get(key) != now.get(key)
    ]
    if told:
        changes = [f"{key} {how}" for key, how in told]
        raise UserError(
            f"the recordings are not those that the run {folder} began with: {_listed(changes)}; "
            "put them back, or begin a new run"
        )


def _configuration(experiment: Experiment, kind: str) -> dict[str, Any]:
    """The dotted keys that the results of a run depend on, as JSON values."""
    free = _FREE if kind == "federate" else (*_FREE, "federation.")
    keys = config.flat(experiment).items()
    read = {key: value for key, value in keys if not key.startswith(free)}
    return json.loads(json.dumps(read, default=str))


def _recordings(folds: Iterable[Fold], entries: Iterable[Entry]) -> dict[str, str]:
    """The checksum of each recording of the folds' subjects."""
    subjects = {name for fold in folds for name in (*fold.train, *fold.val, *fold.test)}
    return {e.key: store.stored_checksum(e.path) for e in entries if e.subject in subjects}


def _read(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    path = folder / INPUTS
    try:
        inputs = json.loads(path.read_text())
        parts = (inputs["configuration"], inputs["recordings"])
        if not all(isinstance(part, dict) for part in parts):
            raise TypeError("it holds no keys and values")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read {path}, which tells what the run began with ({error}): put it back, or "
            "begin a new run"
        ) from error
    return inputs


def _listed(changes: Sequence[str]) -> str:
    more = len(changes) - _NAMED_AT_MOST
    return ", ".join(changes[:_NAMED_AT_MOST]) + (f", and {more} more" if more > 0 else "")
