"""The progress line of a training on standard error: fold, epoch, validation CCC and time left."""

from __future__ import annotations

import sys
from typing import Any

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from affect.training.scores import MONITOR

_LOG_INTERVAL_S = 10.0
"""Between two states of the bar where standard error is a file."""


class ProgressLine(Callback):
    """One bar a fold, moved forward at each epoch's end.

    Args:
        title: such as `fold 2/5`.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the epoch from which training starts."""
        self._bar = tqdm(
            total=trainer.max_epochs,
            initial=trainer.current_epoch,
            desc=self._title,
            unit="epoch",
            file=sys.stderr,
            mininterval=0.1 if sys.stderr.isatty() else _LOG_INTERVAL_S,
            disable=not trainer.is_global_zero,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance by one epoch."""
        if self._bar is not None:
            ccc = float(trainer.callback_metrics.get(MONITOR, float("nan")))
            self._bar.set_postfix_str(f"val ccc {ccc:.3f}", refresh=False)
            self._bar.update()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that what is said next has a line of its own."""
        if self._bar is not None:
            self._bar.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
