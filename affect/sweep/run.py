"""A sweep from its file to its summary: what `affect sweep` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affect.config import Experiment
from affect.errors import Preempted, UserError
from affect.stopping import giving_way
from affect.sweep import file as files
from affect.sweep.agent import Agent, limit
from affect.sweep.command import checked
from affect.sweep.file import SweepFile
from affect.sweep.folder import ENDED, Sweep, create, open_sweep
from affect.sweep.search import require_optuna


def run(
    file: Path | None,
    folder: Path | None,
    *,
    count: int | None,
    jobs: int,
    seed: int,
    agent: bool,
    tell: Callable[[str], None],
) -> tuple[Any, dict[str, Any]]:
    """Run a sweep's trials and summarise it.

    Args:
        file: W&B sweep file; None to go on with the sweep in the folder.
        folder: the sweep's; None for a new one.
        count: most trials in all; None for what the sweep was begun with.
        jobs: trials at a time.
        seed: of random draws.
        agent: run trials alone, and leave the summary to another call.
        tell: takes lines of progress.

    Returns:
        What to show, and the same as JSON values.

    Raises:
        UserError: the file, a parameter, the metric or the folder cannot be used, or no trial
            finished.
        Preempted: at SIGTERM or SIGUSR1; the sweep can be gone on with.
    """
    for name, given in (("count", count), ("jobs", jobs)):
        if given is not None and given < 1:
            raise UserError(f"--{name} must be at least 1, not {given}")
    if seed < 0:
        raise UserError(f"--seed must be 0 or more, not {seed}")
    sweep, experiment = _opened(file, folder, count=count, seed=seed)
    tell(f"sweep {sweep.folder}")
    with _stoppable(sweep.folder):
        ended = sum(trial.status in ENDED for trial in sweep.trials())
        Agent(sweep, experiment, jobs=jobs, most=count, alone=agent, tell=tell).work()
        if ended and ended == sum(trial.status in ENDED for trial in sweep.trials()):
            tell(f"nothing was left to run: all {ended} trials have ended (--count N for more)")
        if agent:
            return _counted(sweep)
        from affect.sweep.summary import summarise, to_table

        tell("the trials are ranked, and the best is tested once")
        summary = summarise(sweep)
    return to_table(summary), summary.to_json()


@contextmanager
def _stoppable(folder: Path) -> Iterator[None]:
    """Whatever stops the block says how to go on with the sweep."""
    try:
        with giving_way():
            yield
    except KeyboardInterrupt as stop:
        status = "preempted" if isinstance(stop, Preempted) else "interrupted"
        raise type(stop)(f"{status}: go on with `affect sweep --resume {folder}`") from None


def _opened(
    file: Path | None, folder: Path | None, *, count: int | None, seed: int
) -> tuple[Sweep, Experiment]:
    """The sweep and its first experiment; what cannot run leaves no folder."""
    if file is None:
        sweep = open_sweep(folder or Path())
        return sweep, _runnable(sweep.file, count or sweep.count)
    text, experiment = require_runnable(file, count)
    return create(folder, text, str(file), seed=seed, count=count), experiment


def require_runnable(file: Path, count: int | None) -> tuple[str, Experiment]:
    """A sweep file's text, and the experiment of its first configuration.

    Args:
        file: the sweep's.
        count: as in `run`.

    Raises:
        UserError: as `run`, of what the file alone tells.
    """
    text = _text(file)
    return text, _runnable(files.parse(text, str(file)), count)


def _runnable(file: SweepFile, count: int | None) -> Experiment:
    limit(file, count)
    if file.method == "bayes":
        require_optuna()
    return checked(file)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"sweep file {file} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error


def _counted(sweep: Sweep) -> tuple[str, dict[str, Any]]:
    counts = dict(Counter(trial.status for trial in sweep.trials()))
    said = ", ".join(f"{number} {status}" for status, number in counts.items())
    return f"{sweep.folder}: {said}", {"sweep": str(sweep.folder), **counts}
