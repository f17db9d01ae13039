"""Centralised training: from an experiment to a finished run folder, fold by fold, resumable."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

from lightning import Callback, LightningModule, Trainer

from affect import store
from affect.config import Experiment
from affect.data.corpus import entries_of, frames_by_subject
from affect.data.splits import refuse_missing, split
from affect.errors import UserError
from affect.prediction import Prediction
from affect.tracking import Tracker
from affect.training import run as runs
from affect.training.fold import train_fold
from affect.training.progress import ProgressLine
from affect.training.run import Run, Stopwatch, is_main_process
from affect.training.scores import losses, scores

Draw = Callable[[Path], list[Path]]


def fit(experiment: Experiment, *, draw: Draw, resume: Run | None = None) -> Run:
    """Train, validate and test every fold of an experiment.

    Args:
        experiment: the configuration.
        draw: draws the figures of a run's folder and returns their paths.
        resume: an unfinished run: finished folds are kept, the others go on from their last
            checkpoint; a finished run is returned as it is.

    Returns:
        The finished run; its `record["metrics"]` holds the pooled validation and test metrics.

    Raises:
        UserError: the configuration, the corpus or the folder cannot be used.
    """
    if resume is not None and resume.record["status"] == "done":
        return resume
    _quieten()
    entries = entries_of(experiment.data, progress=experiment.trainer.progress)
    if resume is None:
        run = runs.create(
            experiment, "fit", split(frames_by_subject(entries), experiment.data.split)
        )
    else:
        run = resume
    folds = run.folds
    refuse_missing(folds, entries)
    stopwatch = Stopwatch(run)
    run.update({"status": "running"})
    tracker = None
    try:
        if is_main_process():
            config = dataclasses.asdict(experiment)
            tracker = Tracker(run.folder, run.record["id"], "fit", experiment, config)
        predictions = [
            item
            for position, fold in enumerate(folds)
            for item in train_fold(run, entries, fold, _callbacks(run, position, tracker))
        ]
        if tracker is not None:
            _finish(run, predictions, tracker, stopwatch, draw)
    except KeyboardInterrupt:
        _stop(run, "interrupted", stopwatch, tracker)
        advice = f"interrupted: go on with `affect fit --resume {run.folder}`"
        raise KeyboardInterrupt(advice) from None
    except BaseException as error:
        _stop(run, "failed", stopwatch, tracker)
        if isinstance(error, UserError) and resume is None:
            _discard_untrained(run)
        raise
    return run


class _EpochRows(Callback):
    """Hands each epoch's metrics to the tracker, one row an epoch over all folds."""

    def __init__(self, tracker: Tracker, fold: int, first_step: int) -> None:
        self._tracker = tracker
        self._fold = fold
        self._first_step = first_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the row."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        row = {"fold": self._fold, "epoch": trainer.current_epoch, "lr": learning_rate, **values}
        self._tracker.log(self._first_step + trainer.current_epoch, row)


def _callbacks(run: Run, position: int, tracker: Tracker | None) -> list[Callback]:
    config, folds = run.experiment.trainer, run.record["folds"]
    callbacks: list[Callback] = []
    if tracker is not None:
        callbacks.append(_EpochRows(tracker, folds[position], position * config.max_epochs))
    if config.progress:
        several = f"fold {folds[position]} ({position + 1} of {len(folds)})"
        title = several if len(folds) > 1 else run.experiment.name
        callbacks.append(ProgressLine(title))
    return callbacks


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


def _finish(
    run: Run,
    predictions: Sequence[Prediction],
    tracker: Tracker,
    stopwatch: Stopwatch,
    draw: Draw,
) -> None:
    if len(run.record["folds"]) > 1:
        store.write_predictions(run.folder / "predictions.h5", predictions)
    metrics: dict[str, float] = {}
    for part in ("val", "test"):
        metrics |= {
            **scores(predictions, part),
            **losses(predictions, part, run.experiment.loss),
        }
    run.update({"metrics": metrics})
    tracker.show(draw(run.folder))
    tracker.summarise({**metrics, **stopwatch.reading()})
    run.update({"status": "done", **stopwatch.reading()})
    folders = [run.fold_folder(fold) for fold in run.record["folds"]]
    files = [f / name for f in folders for name in ("model.safetensors", "preparation.json")]
    tracker.keep_model([*files, run.folder / "config.yaml", run.folder / "run.json"], metrics)
    tracker.finish()


def _quieten() -> None:
    """Silence Lightning's hints; what a user must know is said by this program itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    hints = (
        ".*sync_dist=True.*",
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists.*",
        ".*LeafSpec.*",
    )
    for message in hints:
        warnings.filterwarnings("ignore", message)
