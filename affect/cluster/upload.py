"""Offline W&B runs to W&B's server: what `wandb sync` does, with an end that tells how it went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from affect import tracking
from affect.errors import UserError

_TOGETHER = 20
"""Runs that one `wandb sync` gets: what it has uploaded is known after so many."""
_TRIES = {
    "WANDB__GRAPHQL_RETRY_MAX": "3",
    "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": "5",
    "WANDB__FILE_STREAM_RETRY_MAX": "3",
    "WANDB__FILE_TRANSFER_RETRY_MAX": "3",
}
"""W&B goes on trying for days otherwise, where the server has gone."""

_OF_A_RUN = {"WANDB_MODE", "WANDB_SERVICE", "WANDB_RUN_ID", "WANDB_SWEEP_ID"}


@dataclass(frozen=True)
class Uploaded:
    """What has become of runs.

    Attributes:
        uploaded: now.
        before: by an earlier call.
        running: left alone, as more is to come.
        failed: reasons by the runs' folders.
    """

    uploaded: list[str]
    before: list[str]
    running: list[str]
    failed: dict[str, str]


def upload(folders: Sequence[Path], *, running: bool, tell: Callable[[str], None]) -> Uploaded:
    """Upload all offline runs in folders, those of one run in their order, none of them twice.

    Args:
        folders: runs, folders of them, or sweeps.
        running: take runs too whose record says that they are running, as of one that was killed.
        tell: takes lines of progress.

    Raises:
        UserError: there is none, no server answers, or it does not take the key.
    """
    runs = found(folders)
    if not runs:
        raise UserError(f"no offline W&B run in {', '.join(map(str, folders))}: name runs' folders")
    before = [run for run, parts in runs.items() if all(map(_synced, parts))]
    waiting = [run for run in runs if run not in before]
    left = [] if running else [run for run in waiting if _running(run)]
    chosen = [run for run in waiting if run not in left]
    failed: dict[Path, str] = {}
    if chosen:
        tracking.require_server()
    for begin in range(0, len(chosen), _TOGETHER):
        some = chosen[begin : begin + _TOGETHER]
        said = _sync([part for run in some for part in runs[run] if not _synced(part)])
        failed |= {run: said for run in some if not all(map(_synced, runs[run]))}
        tell(f"{begin + len(some)} of {len(chosen)} runs, {len(failed)} failed")
    return Uploaded(
        [str(run) for run in chosen if run not in failed],
        [str(run) for run in before],
        [str(run) for run in left],
        {str(run): reason for run, reason in failed.items()},
    )


def found(folders: Iterable[Path]) -> dict[Path, list[Path]]:
    """The parts of each offline run, oldest first, by the run's folder.

    Raises:
        UserError: a folder does not exist.
    """
    runs: dict[Path, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: name runs' folders, or sweeps'")
        for part in (part for place in (folder, *_trials(folder)) for part in _parts(place)):
            parts = runs.setdefault(part.parent.parent, [])
            if part not in parts:
                parts.append(part)
    return {run: sorted(parts, key=lambda part: part.name) for run, parts in runs.items()}


def _trials(sweep: Path) -> Iterator[Path]:
    """The folders of a sweep's runs, where the folder is a sweep's."""
    for path in sorted(sweep.glob("trials/*/trial.json")):
        run = Path(json.loads(path.read_text())["run"])
        if run.is_dir():
            yield run


def _parts(folder: Path) -> Iterator[Path]:
    """W&B's folders below a folder; what else a run holds is not gone through."""
    for place, names, _ in os.walk(folder):
        offline = [name for name in names if name.startswith("offline-run-")]
        if Path(place).name == "wandb":
            yield from (Path(place) / name for name in offline)
            names.clear()
        elif "wandb" in names:
            names[:] = ["wandb"]


def _synced(part: Path) -> bool:
    return any(part.glob(f"*{tracking.SYNCED}"))


def _running(run: Path) -> bool:
    try:
        return json.loads((run / "run.json").read_text()).get("status") == "running"
    except (OSError, ValueError):
        return False


def _sync(parts: Sequence[Path]) -> str:
    """Upload with W&B's own command; what it says where that fails."""
    words = [sys.executable, "-m", "wandb", "sync", *map(str, parts)]
    known = {name: value for name, value in os.environ.items() if name not in _OF_A_RUN}
    known |= {**_TRIES, "WANDB_API_KEY": tracking.key()}
    done = subprocess.run(
        words, env=known, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
    errors = [line.partition(" ERROR ")[2] for line in lines if " ERROR " in line]
    return [f"wandb sync ended with status {done.returncode}", *lines, *errors][-1]
