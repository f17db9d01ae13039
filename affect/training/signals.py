"""What a signal does to a training."""

from __future__ import annotations

import signal
from types import FrameType

from lightning import Callback, LightningModule, Trainer

from affect.errors import Preempted


class EndAtSignal(Callback):
    """SIGTERM and SIGUSR1 end training after the epoch under way, whose checkpoint stays.

    All processes of a training end after the same epoch. A second SIGTERM does not wait for that:
    the epoch under way is given up.

    Attributes:
        given_way: whether training has ended for that.

    Lightning's own handler broadcasts while other collectives may be under way, which hangs
    processes that train together. Lightning restores SIGTERM's handler of before; SIGUSR1's is
    restored here.
    """

    def __init__(self) -> None:
        self.given_way = False
        self._asked = False
        self._before = signal.getsignal(signal.SIGUSR1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over."""
        self._before = signal.signal(signal.SIGUSR1, self._ask)
        signal.signal(signal.SIGTERM, self._ask)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End, where any process was asked to."""
        self.given_way = trainer.strategy.reduce_boolean_decision(self._asked, all=False)
        if self.given_way:
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give SIGUSR1 back."""
        signal.signal(signal.SIGUSR1, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGTERM:
            raise Preempted
        self._asked = True
