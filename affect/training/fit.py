"""Centralised training: every fold of an experiment on pooled data."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from lightning import Callback, LightningModule, Trainer

from affect.config import Experiment
from affect.data.splits import Fold
from affect.data.staging import staged
from affect.prediction import Prediction
from affect.store import Entry
from affect.tracking import Tracker
from affect.training.execution import Draw, execute
from affect.training.fold import train_fold
from affect.training.progress import ProgressLine
from affect.training.run import Run


def fit(experiment: Experiment, *, draw: Draw, resume: Run | None = None) -> Run:
    """Train, validate and test every fold of an experiment on pooled data.

    Args:
        experiment: the configuration.
        draw: draws the figures of a run's folder and returns their paths.
        resume: an unfinished run: finished folds are kept, the others go on from their last
            checkpoint; a finished run is returned as it is.

    Returns:
        The finished run; its `record["metrics"]` holds the pooled validation and test metrics.

    Raises:
        UserError: the configuration, the corpus or the folder cannot be used.
        Preempted: after SIGTERM or SIGUSR1 while it trains; the last finished epoch is saved.
    """
    _quieten()
    return execute(experiment, "fit", _train, draw=draw, resume=resume)


def _train(
    run: Run, entries: Sequence[Entry], fold: Fold, tracker: Tracker | None
) -> list[Prediction]:
    position = run.record["folds"].index(fold.index)
    return train_fold(run, staged(entries), fold, _callbacks(run, position, tracker))


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


def _quieten() -> None:
    """Silence Lightning's hints; what a user must know is said by this program itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    hints = (
        ".*sync_dist=True.*",
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists.*",
        ".*LeafSpec.*",
        ".*`srun` command is available.*",  # on a cluster's login node, which is not a mistake
    )
    for message in hints:
        warnings.filterwarnings("ignore", message)
