"""The LightningModule: one step for every phase, around any network of `affect.models`."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import lightning
import numpy as np
import torch
from jaxtyping import Bool, Float
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from affect import models
from affect.config import Experiment, OptimizerConfig, SchedulerConfig
from affect.data.windows import Batch
from affect.errors import UserError
from affect.metrics import AffectMetrics, affect_loss
from affect.training.scores import MONITOR, phase_scores

_OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


class AffectModule(lightning.LightningModule):
    """A network with its loss, metrics and optimiser.

    Metrics are logged once an epoch under `{train,val}/{ccc,rmse,pearson,loss}/<dimension>`.
    Dropout follows from seed, epoch and batch alone, so that a run that is resumed at an epoch's
    start continues to the same bits.

    Args:
        experiment: model, loss, optimiser, schedule and seed.
        features: number of input features, F.

    Raises:
        UserError: the model, or one of its options, is unknown.
    """

    def __init__(self, experiment: Experiment, features: int) -> None:
        super().__init__()
        config = experiment.model
        self._experiment = experiment
        self._dimensions = experiment.data.dimensions
        self._pools_windows = experiment.data.target == "window_mean"
        self.model = models.build(
            config.name,
            features=features,
            dimensions=len(self._dimensions),
            head="window" if self._pools_windows else "frame",
            hidden_size=config.hidden_size,
            layers=config.layers,
            dropout=config.dropout,
            input_dropout=config.input_dropout,
            **config.options,
        )
        self._metrics = nn.ModuleDict(
            {f"{phase}_metrics": AffectMetrics(len(self._dimensions)) for phase in ("train", "val")}
        )

    def forward(
        self, features: Float[Tensor, "N T F"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N S D"]:
        """Predictions of each frame (S = T), or of each window (S = 1) under `window_mean`."""
        return self.model(features, mask)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """The loss of a training batch."""
        return self._step("train", batch)

    def validation_step(self, batch: Batch, _index: int) -> Tensor:
        """The loss of a validation batch."""
        return self._step("val", batch)

    def predict_step(self, batch: Batch, _index: int = 0) -> Float[Tensor, "N S D"]:
        """Predictions of a batch."""
        return self(batch.features, batch.mask)

    def targets(self, batch: Batch) -> tuple[Float[Tensor, "N S D"], Bool[Tensor, "N S"]]:
        """What a batch's predictions are compared with, and where it counts."""
        if not self._pools_windows:
            return batch.labels, batch.mask
        return window_mean(batch.labels), batch.mask.any(dim=1, keepdim=True)

    def _step(self, phase: str, batch: Batch) -> Tensor:
        prediction = self(batch.features, batch.mask)  # N S D
        labels, mask = self.targets(batch)  # N S D, N S
        loss = affect_loss(
            prediction, labels, mask, **dataclasses.asdict(self._experiment.loss)
        )  # D
        self.metrics_of(phase).update(prediction.detach(), labels, mask, loss.detach())
        return loss.mean()

    def metrics_of(self, phase: str) -> AffectMetrics:
        """The metrics of `train` or `val` since they were last reset."""
        return cast("AffectMetrics", self._metrics[f"{phase}_metrics"])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout for this batch."""
        self.seed_dropout(self.current_epoch, batch_idx, self.global_rank)

    def seed_dropout(self, epoch: int, batch: int, place: int) -> None:
        """Seed dropout for a batch.

        Args:
            epoch: its number.
            batch: its number within the epoch.
            place: rank of the process, or index of the client, that trains on it.
        """
        numbers = [self._experiment.seed, epoch, batch, place]
        seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
        # torch.manual_seed looks at every kind of device, milliseconds a batch
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's metrics; validation follows the epoch's last training step."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._log_epoch("train")
        self._log_epoch("val")

    def _log_epoch(self, phase: str) -> None:
        metrics = self.metrics_of(phase)
        values = phase_scores(phase, metrics.compute(), self._dimensions)
        metrics.reset()
        self._refuse_unscored(values)
        self.log_dict({name: value.float() for name, value in values.items()})

    def _refuse_unscored(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            if not value.isfinite():
                raise UserError(
                    f"{name} is {float(value)} at epoch {self.current_epoch}: either no recording "
                    "of that split has such labels, or training diverged (lower optimizer.lr)"
                )

    def configure_optimizers(self) -> Any:
        """The optimiser of the configuration, and its schedule."""
        optimizer = make_optimizer(self.parameters(), self._experiment.optimizer)
        if self._experiment.scheduler.name == "constant":
            return optimizer
        total = int(self.trainer.estimated_stepping_batches)
        schedule = make_schedule(optimizer, self._experiment.scheduler, total)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def make_optimizer(parameters: Any, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration.

    Raises:
        UserError: it does not know one of the options.
    """
    make = _OPTIMIZERS[config.name]
    try:
        return make(parameters, lr=config.lr, weight_decay=config.weight_decay, **config.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.options: {error}") from error


def rewind(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser be as one that has taken no step."""
    if not isinstance(optimizer, torch.optim.Adam):
        optimizer.state.clear()
        return
    for state in optimizer.state.values():  # of zeros at first, in memory that is there
        for value in state.values():
            value.zero_()


def make_schedule(
    optimizer: torch.optim.Optimizer, config: SchedulerConfig, total_steps: int
) -> dict[str, Any]:
    """A schedule as Lightning takes it.

    Args:
        optimizer: whose learning rate changes.
        config: which schedule; not `constant`.
        total_steps: optimiser steps of the whole training.
    """
    schedules = torch.optim.lr_scheduler
    if config.name == "step":
        return {"scheduler": schedules.StepLR(optimizer, config.step_epochs, config.gamma)}
    if config.name == "plateau":
        plateau = schedules.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.gamma, patience=config.step_epochs
        )
        return {"scheduler": plateau, "monitor": MONITOR}
    if config.name == "one_cycle":
        highest = [group["lr"] for group in optimizer.param_groups]
        cycle = schedules.OneCycleLR(optimizer, highest, total_steps, pct_start=config.warmup)
        return {"scheduler": cycle, "interval": "step"}
    rise = max(round(config.warmup * total_steps), 1)
    warmup = schedules.LinearLR(optimizer, 1 / rise, total_iters=rise)
    fall = schedules.CosineAnnealingLR(optimizer, max(total_steps - rise, 1))
    return {
        "scheduler": schedules.SequentialLR(optimizer, [warmup, fall], [rise]),
        "interval": "step",
    }


def window_mean(labels: Float[Tensor, "N T D"]) -> Float[Tensor, "N 1 D"]:
    """Each window's mean label; NaN labels (missing or padded) are left out."""
    return labels.nanmean(dim=1, keepdim=True)
