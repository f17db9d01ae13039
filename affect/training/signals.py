"""What a signal does to a training."""

from __future__ import annotations

import signal

from lightning import Callback, LightningModule, Trainer


class EndOnSigterm(Callback):
    """SIGTERM ends training as Ctrl-C does; the last epoch's checkpoint stays.

    Lightning's own handler broadcasts while other collectives may be under way, which hangs
    processes that train together. Lightning restores the handler that was there before.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
