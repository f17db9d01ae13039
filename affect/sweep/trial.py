"""A trial's process: the sweep file's own command, in the environment that W&B's agent gives."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from affect.files import write_whole
from affect.sweep.command import Command, command_of
from affect.sweep.file import SweepFile
from affect.sweep.folder import Sweep, Trial

KILL_AFTER_S = 30.0
"""From SIGTERM to SIGKILL, as in W&B's agent."""
_LOOK_S = 0.2
_AGENTS_OWN = {"WANDB_SERVICE", "AFFECT_RUN_POINTER", "AFFECT_RUN_ID"}
"""Variables that tell of the agent, or of its job, and not of a trial."""
_GAVE_WAY = {75, 130, -signal.SIGINT, -signal.SIGTERM}


@dataclass
class Process:
    """A trial that runs.

    Attributes:
        trial: its record.
        popen: its process.
        begun_s: when it began, monotonic.
        asked_s: when it was asked to end, monotonic; None while it may go on.
        brackets: how many of Hyperband's brackets it has passed.
        size: of its metrics file when it was read last, in bytes.
    """

    trial: Trial
    popen: subprocess.Popen[bytes]
    begun_s: float = field(default_factory=time.monotonic)
    asked_s: float | None = None
    brackets: int = 0
    size: int = -1

    def ask_to_end(self) -> None:
        """SIGTERM at first; SIGKILL where that has not helped for long."""
        with suppress(ProcessLookupError):
            if self.asked_s is None:
                self.asked_s = time.monotonic()
                os.killpg(self.popen.pid, signal.SIGTERM)
            elif time.monotonic() - self.asked_s > KILL_AFTER_S:
                os.killpg(self.popen.pid, signal.SIGKILL)


def start(sweep: Sweep, trial: Trial) -> Process:
    """Start a trial, or go on with its run where that has begun."""
    folder = sweep.trial_folder(trial.number)
    trial = sweep.write(trial, status="running")
    command = prepared(sweep, trial)
    run = Path(trial.run)
    words = command.resuming(run) if (run / "run.json").exists() else command.words
    with (folder / "log.txt").open("ab") as log:
        popen = subprocess.Popen(
            words,
            env=environment(sweep, trial),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    return Process(trial, popen)


def prepared(sweep: Sweep, trial: Trial) -> Command:
    """A trial's command, once the files that W&B's agent gives it are there."""
    folder = sweep.trial_folder(trial.number)
    values = {name: {"value": value} for name, value in trial.configuration.items()}
    text = "wandb_version: 1\n\n" + yaml.safe_dump(values, sort_keys=False)
    write_whole(folder / "config.yaml", text.encode())
    write_whole(folder / "config.json", json.dumps(trial.configuration).encode())
    return command_of(sweep.file, trial.configuration, str(folder / "config.json"))


def environment(sweep: Sweep, trial: Trial) -> dict[str, str]:
    """What W&B's agent sets, with W&B offline, and this `affect` first on the path."""
    known = {name: value for name, value in os.environ.items() if name not in _AGENTS_OWN}
    given = {"WANDB_PROJECT": sweep.file.project, "WANDB_ENTITY": sweep.file.entity}
    disabled = os.environ.get("WANDB_MODE") == "disabled"
    return {
        **known,
        **{name: value for name, value in given.items() if value},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "WANDB_MODE": "disabled" if disabled else "offline",
        "WANDB_SWEEP_ID": sweep.id,
        "WANDB_RUN_ID": trial.run_id,
        "WANDB_SWEEP_PARAM_PATH": str(sweep.trial_folder(trial.number) / "config.yaml"),
    }


def ended(sweep: Sweep, process: Process) -> Trial:
    """What a trial whose process has ended has come to, written down."""
    trial, code = process.trial, process.popen.returncode
    seconds = round(trial.seconds + time.monotonic() - process.begun_s, 3)
    logged = history(sweep.file, Path(trial.run))
    found = {"seconds": seconds, "logged": len(logged)}
    if code == 0:
        value = outcome(sweep.file, Path(trial.run))
        if value is not None:
            return sweep.write(trial, status="done", value=value, **found)
        reason = f"its run reports no finite {sweep.file.metric.name}"
        return sweep.write(trial, status="failed", reason=reason, **found)
    if process.asked_s is not None and logged:
        return sweep.write(trial, status="stopped", value=logged[-1], **found)
    if process.asked_s is not None or code in _GAVE_WAY:
        return put_down(sweep, trial, seconds)
    if code < 0:
        reason = f"killed by signal {-code}, as for want of memory"
        return sweep.write(trial, status="failed", reason=reason, **found)
    reason = _last_words(sweep.trial_folder(trial.number) / "log.txt") or f"exit status {code}"
    return sweep.write(trial, status="failed", reason=reason, **found)


def put_down(sweep: Sweep, trial: Trial, seconds: float) -> Trial:
    """Leave a trial for whoever goes on with the sweep."""
    changed = sweep.write(trial, status="interrupted", seconds=seconds)
    sweep.release(trial.number)
    return changed


def outcome(file: SweepFile, run: Path) -> float | None:
    """A finished run's metric."""
    try:
        record = json.loads((run / "run.json").read_text())
    except (OSError, ValueError):
        return None
    return _finite(record.get("metrics", {}).get(file.metric.name))


def history(file: SweepFile, run: Path) -> list[float]:
    """A run's metric, epoch by epoch or round by round."""
    try:
        with (run / "metrics.csv").open(newline="") as rows:
            values = [_finite(row.get(file.metric.name)) for row in csv.DictReader(rows)]
    except OSError:
        return []
    return [value for value in values if value is not None]


def end_survivor(trial: Trial) -> None:
    """End a trial's processes on this machine that have outlived the agent that started them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline_s = time.monotonic() + KILL_AFTER_S
        left = processes_of(trial.run_id)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        while left and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)
            left = processes_of(trial.run_id)


def processes_of(run_id: str) -> list[int]:
    """The processes of this machine that W&B's environment names as a run's."""
    mark = f"WANDB_RUN_ID={run_id}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def _finite(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _last_words(log: Path) -> str:
    """The last line that a program said."""
    with suppress(OSError):
        lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1].removeprefix("affect: ") if said else ""
    return ""
