"""A run's folder: what is in it and where.

`config.yaml` (resolved), `run.json` (kind, seed, versions, status, restarts, metrics),
`inputs.json` (what it began with), `metrics.csv`, `predictions.h5`, `owners/` (who works in it,
see `affect.claims`), and for each fold `model.safetensors`, `preparation.json` and `checkpoints/`:
in the run's folder itself where there is one fold, else in `folds/<index>/`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from affect import __version__, config
from affect.config import Experiment
from affect.data.splits import Fold
from affect.errors import UserError
from affect.files import finite, write_whole
from affect.store import Entry
from affect.training.inputs import write_inputs

_VERSIONS_OF = ("torch", "lightning", "torchmetrics", "flwr", "wandb", "h5py", "numpy")
_FORM: Mapping[str, Any] = {
    **dict.fromkeys(("id", "kind", "experiment", "status"), str),
    **dict.fromkeys(("seed", "bytes_sent", "bytes_received"), int),
    "wall_time_s": int | float,
    "folds": [int],
    "splits": [{"index": int, "train": [str], "val": [str], "test": [str]}],
}
"""What `run.json` holds of every run; a list's one item stands for all."""
_FORM_LATER: Mapping[str, Any] = {
    "restarts": int,
    "peak_memory_mib": int | float,
    **dict.fromkeys(("delay_s", "metrics"), dict),
    **{name: {...: dict} for name in ("federation", "sites")},
    "failures": [{"fold": int, "round": int, "client": str, "reason": str}],
}
"""What it may hold besides; `...` stands for any name."""
_RUN_ID_VARIABLE = "AFFECT_RUN_ID"
_POINTER_VARIABLE = "AFFECT_RUN_POINTER"
"""Names a file that takes the run's folder, by which a job that starts again finds it."""


@dataclass
class Run:
    """One execution and its folder.

    Attributes:
        folder: `<runs>/<experiment>/<run id>`.
        experiment: the resolved configuration.
        record: what `run.json` holds.
    """

    folder: Path
    experiment: Experiment
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def folds(self) -> list[Fold]:
        """The folds as they were split when the run began; a cache that has grown changes none."""
        return [Fold.from_json(fold) for fold in self.record["splits"]]

    def fold_folder(self, fold: int) -> Path:
        """Where a fold keeps its model and checkpoints."""
        folds: Sequence[int] = self.record["folds"]
        return self.folder if len(folds) == 1 else self.folder / "folds" / str(fold)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set fields of `run.json`; the main process alone writes them."""
        self.record.update(values)
        if is_main_process():
            text = json.dumps(finite(self.record), indent=2, allow_nan=False) + "\n"
            write_whole(self.folder / "run.json", text.encode())


def create(experiment: Experiment, kind: str, folds: Sequence[Fold]) -> Run:
    """A new run with a folder of its own, in which nothing is until `begin`.

    The processes of a distributed run share it, see `_run_id`.

    Args:
        experiment: the resolved configuration.
        kind: `fit` or `federate`.
        folds: the folds that the run trains.
    """
    run_id = _run_id()
    record = {
        "id": run_id,
        "kind": kind,
        "experiment": experiment.name,
        "seed": experiment.seed,
        "folds": [fold.index for fold in folds],
        "splits": [asdict(fold) for fold in folds],
        "status": "running",
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "restarts": 0,
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "wall_time_s": 0.0,
        "bytes_sent": 0,
        "bytes_received": 0,
    }
    return Run(Path(experiment.runs) / experiment.name / run_id, experiment, record)


def begin(run: Run, entries: Sequence[Entry]) -> None:
    """Write a new run's configuration and record, and tell a job where they are.

    Args:
        run: from `create`.
        entries: the recordings at hand.

    Raises:
        UserError: the folder cannot be written, or a recording cannot be read.
    """
    if is_main_process():
        write_whole(run.folder / "config.yaml", config.to_yaml(run.experiment).encode())
        write_inputs(run.folder, run.experiment, run.record["kind"], run.folds, entries)
    run.update({})
    pointer = os.environ.get(_POINTER_VARIABLE)
    if pointer and is_main_process():
        write_whole(Path(pointer), f"{run.folder.resolve()}\n".encode())


def go_on(run: Run) -> None:
    """Count one more start of a run, as its folder has it now.

    Raises:
        UserError: the folder holds no run any more, or cannot be written.
    """
    run.record = open_run(run.folder).record
    run.update({"status": "running", "restarts": run.record.get("restarts", 0) + 1})


def open_run(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        UserError: the folder holds no run, or `run.json` is none of a run.
    """
    try:
        record = json.loads((folder / "run.json").read_text())
    except OSError:
        raise UserError(f"no run at {folder}: a run's folder holds run.json") from None
    except ValueError as error:
        raise UserError(f"{folder / 'run.json'} is not JSON: {error}") from error
    _refuse_other_form(record, folder / "run.json")
    return Run(folder, config.load(folder / "config.yaml"), record)


def _refuse_other_form(record: Any, path: Path) -> None:
    """Refuse what is no record of a run.

    Raises:
        UserError: naming the file and the field.
    """
    held = record if isinstance(record, dict) else {}
    needed = {*_FORM, *(["peak_memory_mib"] if held.get("status") == "done" else [])}
    if missing := needed - held.keys():
        raise UserError(f"{path} lacks {min(missing)!r}: it is no record of a run")
    odd = [
        name
        for name, form in {**_FORM, **_FORM_LATER}.items()
        if name in held and not _has_form(held[name], form)
    ]
    if not odd and held["folds"] != [split["index"] for split in held["splits"]]:
        odd = ["folds"]
    if odd:
        raise UserError(f"{path} has an odd {odd[0]!r}, which no run wrote: put the file back")


def _has_form(value: Any, form: Any) -> bool:
    """Whether a JSON value is of a type, a list of one form, or a mapping with such values."""
    if isinstance(form, list):
        return isinstance(value, list) and all(_has_form(item, form[0]) for item in value)
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return False
        wanted = dict.fromkeys(value, form[...]) if ... in form else form
        return all(name in value and _has_form(value[name], kind) for name, kind in wanted.items())
    return isinstance(value, form) and not isinstance(value, bool)


class Stopwatch:
    """Wall time of a run over all its restarts, and its peak memory."""

    def __init__(self, run: Run) -> None:
        self._before_s = float(run.record["wall_time_s"])
        self._start_s = time.monotonic()

    def reading(self) -> dict[str, float]:
        """`wall_time_s` so far and `peak_memory_mib` of this process, without its workers."""
        elapsed_s = self._before_s + time.monotonic() - self._start_s
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"wall_time_s": round(elapsed_s, 3), "peak_memory_mib": round(peak_kib / 1024, 1)}


def versions() -> dict[str, str]:
    """The versions of Python, affect and what the numbers depend on."""
    known = {name: version(name) for name in _VERSIONS_OF}
    return {"python": platform.python_version(), "affect": __version__, **known}


def git_commit() -> str:
    """The commit of affect's own checkout, `+` where files differ from it; empty outside one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    """What git says; it takes no lock, which all jobs of a cluster would share."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def is_main_process() -> bool:
    """Whether this is rank 0 of a distributed run, or the only process."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in ranks if rank), 0)) == 0


def _run_id() -> str:
    """A name that all processes of a run agree on; that of the agent which runs a sweep's trial.

    Lightning starts the others of a machine from the main process, whose environment they inherit;
    the tasks of a SLURM step share the step's id.
    """
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        return os.environ["WANDB_RUN_ID"]
    job = os.environ.get("SLURM_JOB_ID")
    if job and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return f"slurm-{job}-{os.environ.get('SLURM_STEP_ID', '0')}"
    if is_main_process():
        # of a thousand tasks that an array starts in one second no two may share a folder
        os.environ[_RUN_ID_VARIABLE] = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
    try:
        return os.environ[_RUN_ID_VARIABLE]
    except KeyError:
        raise UserError(
            f"a process other than the first has no {_RUN_ID_VARIABLE}: export the same for all"
        ) from None
