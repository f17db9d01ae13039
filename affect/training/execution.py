"""A run from its start to its end: its folder, its record and what is reported of it.

How a fold is trained is the caller's: centralised and federated runs differ in nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from shutil import rmtree

from affect import claims, store
from affect.config import Experiment
from affect.data.corpus import entries_of, frames_by_subject
from affect.data.splits import Fold, refuse_missing, split
from affect.devices import refuse_crowd, use_threads
from affect.errors import Preempted, UserError
from affect.prediction import Prediction
from affect.store import Entry
from affect.tracking import Tracker
from affect.training import run as runs
from affect.training.inputs import refuse_other_configuration, refuse_other_recordings
from affect.training.run import Run, Stopwatch, is_main_process
from affect.training.scores import losses, scores
from affect.training.trained import PREDICTIONS

Draw = Callable[[Path], list[Path]]
"""Draws the figures of a run's folder and returns their paths."""

TrainFold = Callable[[Run, Sequence[Entry], Fold, Tracker | None], list[Prediction]]
"""Trains a fold where it is not finished, and returns its validation and test predictions."""


def execute(
    experiment: Experiment, kind: str, train_fold: TrainFold, *, draw: Draw, resume: Run | None
) -> Run:
    """Train, validate and test every fold of an experiment.

    Args:
        experiment: the configuration.
        kind: the command that goes on with such a run: `fit` or `federate`.
        train_fold: trains one fold.
        draw: draws figures.
        resume: an unfinished run, which goes on; a finished one is returned as it is.

    Returns:
        The finished run; its `record["metrics"]` holds the pooled validation and test metrics.

    Raises:
        UserError: the configuration, the corpus or the folder cannot be used.
        Preempted: a signal asked for the machine, and the run's state is saved.
    """
    if resume is not None:
        _refuse_other(resume, kind)
        if resume.record["status"] == "done":
            return resume
        refuse_other_configuration(resume.folder, experiment, kind)
    use_threads("trainer.threads", experiment.trainer.threads)
    refuse_crowd("data.workers", experiment.data.workers)
    entries = entries_of(experiment.data, progress=experiment.trainer.progress)
    if resume is None:
        folds = split(frames_by_subject(entries), experiment.data.split)
        run = runs.create(experiment, kind, folds)
    else:
        run = resume
    refuse_missing(run.folds, entries)
    if resume is not None:
        refuse_other_recordings(run.folder, run.folds, entries)
    begins_with = entries if resume is None else None
    with under_way(run, f"affect {kind} --resume {run.folder}", begins_with) as reported:
        tracker, stopwatch = reported
        predictions = [
            item for fold in run.folds for item in train_fold(run, entries, fold, tracker)
        ]
        if tracker is not None:
            if len(run.record["folds"]) > 1:
                store.write_predictions(run.folder / PREDICTIONS, predictions)
            finish(run, _metrics(run, predictions), tracker, stopwatch, draw)
    return run


@contextmanager
def under_way(
    run: Run, go_on: str, begins_with: Sequence[Entry] | None
) -> Iterator[tuple[Tracker | None, Stopwatch]]:
    """What reports a run while it is trained; whatever stops it is recorded.

    Args:
        run: a new one, or one that goes on.
        go_on: the command that goes on with the run.
        begins_with: recordings at hand where the run begins, which leaves nothing where it is
            refused before its first epoch; None where it goes on.

    Raises:
        UserError: another process has the run in hand, or the folder cannot be written.
        KeyboardInterrupt: of the same kind as came, saying how to go on.
    """
    with _in_hand(run):
        if begins_with is None:
            runs.go_on(run)
        else:
            runs.begin(run, begins_with)
        with _reported(run, go_on, fresh=begins_with is not None) as reported:
            yield reported


def _in_hand(run: Run) -> AbstractContextManager[None]:
    """The main process keeps all others out of a run's folder; those that train along are in it."""
    if not is_main_process():
        return nullcontext()
    return claims.held(run.folder / "owners", f"the run {run.folder}")


@contextmanager
def _reported(run: Run, go_on: str, *, fresh: bool) -> Iterator[tuple[Tracker | None, Stopwatch]]:
    stopwatch = Stopwatch(run)
    tracker = None
    try:
        if is_main_process():
            experiment, record = run.experiment, run.record
            config = dataclasses.asdict(experiment)
            tracker = Tracker(run.folder, record["id"], record["kind"], experiment, config)
        yield tracker, stopwatch
    except KeyboardInterrupt as stop:
        status = "preempted" if isinstance(stop, Preempted) else "interrupted"
        _stop(run, status, stopwatch, tracker)
        raise type(stop)(f"{status}: go on with `{go_on}`") from None
    except BaseException as error:
        _stop(run, "failed", stopwatch, tracker)
        if isinstance(error, UserError) and fresh:
            _discard_untrained(run)
        raise


def _stop(run: Run, status: str, stopwatch: Stopwatch, tracker: Tracker | None) -> None:
    with suppress(UserError):  # a full disk: what stopped the run is what must be told
        run.update({"status": status, **stopwatch.reading()})
    if tracker is not None:
        with suppress(OSError):
            tracker.finish(exit_code=1)


def _discard_untrained(run: Run) -> None:
    """Remove the folder of a run that was refused before its first epoch ended."""
    if is_main_process() and not (run.folder / "metrics.csv").exists():
        rmtree(run.folder, ignore_errors=True)
        with suppress(OSError):  # other runs of the experiment are there
            run.folder.parent.rmdir()


def finish(
    run: Run, metrics: Mapping[str, float], tracker: Tracker, stopwatch: Stopwatch, draw: Draw
) -> None:
    """Report what a run has come to, and that it is done.

    Args:
        run: with the files of all folds.
        metrics: of validation and test.
        tracker: takes metrics, figures and the model.
        stopwatch: of the run.
        draw: draws figures.
    """
    run.update({"metrics": metrics})
    tracker.show(draw(run.folder))
    tracker.summarise({**metrics, **stopwatch.reading()})
    run.update({"status": "done", **stopwatch.reading()})
    folders = [run.fold_folder(fold) for fold in run.record["folds"]]
    files = [f / name for f in folders for name in ("model.safetensors", "preparation.json")]
    files += [run.folder / name for name in ("config.yaml", "run.json", "clients.csv")]
    tracker.keep_model([file for file in files if file.exists()], metrics)
    tracker.finish()


def _metrics(run: Run, predictions: Sequence[Prediction]) -> dict[str, float]:
    return {
        name: value
        for part in ("val", "test")
        for found in (scores(predictions, part), losses(predictions, part, run.experiment.loss))
        for name, value in found.items()
    }


def _refuse_other(run: Run, kind: str) -> None:
    if run.record["kind"] != kind:
        other = run.record["kind"]
        raise UserError(f"{run.folder} is a run of `affect {other}`: use `affect {other} --resume`")
