"""What has become of jobs: from SLURM where it knows them, and from what they wrote."""

from __future__ import annotations

import csv
import getpass
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from affect.cluster import slurm
from affect.cluster.submission import RECORD
from affect.errors import UserError

METRIC = "val/ccc/mean"
_SINCE = "now-30days"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP_OF = {
    "fit": ("epoch", "trainer", "max_epochs"),
    "federate": ("round", "federation", "rounds"),
}
_OVER = frozenset({"completed", "failed", "gone"})
"""States of SLURM of which the job itself has told more."""


@dataclass(frozen=True)
class Job:
    """A job or a task of an array.

    Attributes:
        id: such as `12` or `12_3`.
        name: of the job.
        state: in SLURM's words, or the job's own; `gone` where neither knows how it ended.
        restarts: how often it was started again.
        progress: of its run, such as `epoch 3 of 60`.
        metric: validation CCC of its run, so far or in the end.
        run: folder of its run.
        log: file of what it has printed.
    """

    id: str
    name: str
    state: str
    restarts: int = 0
    progress: str = ""
    metric: float | None = None
    run: str = ""
    log: str = ""


def jobs(folder: Path) -> list[Job]:
    """All jobs that have their states in a folder, or were submitted to do so; oldest first.

    Args:
        folder: as `jobs` of the profile, or `jobs` where the scripts were submitted by hand.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"no jobs in {folder}: run this where they were submitted, or give --folder"
        )
    numbers = {path.name for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()}
    queued = _queued(numbers)
    started = {number: place for n in numbers for number, place in _started(folder, n)}
    ids = sorted(started.keys() | queued.keys(), key=_order)
    bare = sorted(numbers - {number.partition("_")[0] for number in ids}, key=_order)
    return [
        _job(number, started.get(number), queued.get(number), _record(folder, number))
        for number in sorted([*ids, *bare], key=_order)
    ]


def _job(
    number: str,
    place: Path | None,
    queued: tuple[str, str] | None,
    record: Mapping[str, Any],
) -> Job:
    name, state = queued or ("", "gone")
    name = name or record.get("name", "")
    if place is None:
        return Job(number, name, state)
    own = _text(place / "state")
    run = Path(_text(place / "run") or place)
    restarts = _text(place / "restarts")
    progress, metric = _progress(run)
    return Job(
        id=number,
        name=name or _text(place / "name"),
        state=_state(state, own),
        restarts=int(restarts) if restarts.isdecimal() else 0,
        progress=progress,
        metric=metric,
        run=str(run) if run != place else "",
        log=_text(place / "log"),
    )


def _state(slurms: str, own: str) -> str:
    """The more telling of SLURM's word and the job's own."""
    if slurms in _OVER and own == "done":
        return "done"
    if slurms in _OVER and own.startswith("failed"):
        return own
    if slurms == "gone" and own:
        return f"gone (was {own})"
    return f"running, {own}" if slurms == "running" and own.startswith("giving way") else slurms


def _queued(numbers: set[str]) -> dict[str, tuple[str, str]]:
    """Names and states by SLURM, of accounting where it is on, else of what it still remembers."""
    if not slurm.present():
        return {}
    told = _accounted(numbers) | dict(_remembered())
    return {key: value for key, value in told.items() if key.partition("_")[0] in numbers}


def _remembered() -> Iterator[tuple[str, tuple[str, str]]]:
    form = "%i|%T|%r|%j"
    mine = ("--user", getpass.getuser(), "--states=all", "--array")
    for line in slurm.call("squeue", *mine, "--noheader", f"--format={form}").splitlines():
        number, state, reason, name = line.split("|", 3)
        waits = f" ({reason})" if state == "PENDING" and reason != "None" else ""
        yield number, (name, state.lower() + waits)


def _accounted(numbers: set[str]) -> dict[str, tuple[str, str]]:
    """What `sacct` says of jobs; nothing where the cluster keeps no accounts."""
    wanted = ("--allocations", "--parsable2", "--noheader", "--format=JobID,State,JobName")
    try:
        told = slurm.call("sacct", *wanted, f"--starttime={_SINCE}", f"--jobs={','.join(numbers)}")
    except UserError:
        return {}
    return dict(accounts(told))


def accounts(told: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Ids, names and states in what `sacct --parsable2` prints: `12_3|CANCELLED by 0|fit`."""
    for line in told.splitlines():
        number, state, name = line.split("|", 2)
        if "[" not in number:  # tasks that have not begun
            yield number, (name, state.partition(" ")[0].lower())


def _started(folder: Path, number: str) -> Iterator[tuple[str, Path]]:
    """The folders of a job, or of an array's tasks, that have begun."""
    place = folder / number
    if (place / "log").exists():
        yield number, place
    for path in place.iterdir():
        if path.name.isdecimal():
            yield f"{number}_{path.name}", path


def _record(folder: Path, number: str) -> Mapping[str, Any]:
    try:
        return json.loads((folder / number.partition("_")[0] / RECORD).read_text())
    except (OSError, ValueError):  # submitted by hand
        return {}


def _progress(run: Path) -> tuple[str, float | None]:
    """How far a run is, and its validation CCC; nothing while it has not begun."""
    with suppress(OSError, ValueError, KeyError, yaml.YAMLError):
        record = json.loads((run / "run.json").read_text())
        if "metrics" in record:
            return record["status"], record["metrics"].get(METRIC)
        with (run / "metrics.csv").open(newline="") as file:
            *_, last = csv.DictReader(file)
        unit, section, key = _STEP_OF[record["kind"]]
        total = yaml.load((run / "config.yaml").read_text(), _LOADER)[section][key]
        done = int(float(last[unit])) + (unit == "epoch")  # epochs count from 0, rounds from 1
        folds = record["folds"]
        fold = f"fold {folds.index(int(last['fold'])) + 1} of {len(folds)}, "
        metric = float(last[METRIC]) if last.get(METRIC) else None
        return f"{fold if len(folds) > 1 else ''}{unit} {done} of {total}", metric
    return "", None


def _order(number: str) -> tuple[int, int]:
    job, _, task = number.partition("_")
    return int(job), int(task or -1)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
