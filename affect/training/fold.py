"""One fold, from its recordings to a trained network on disk and its predictions."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning
import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from affect import store
from affect.config import TrainerConfig
from affect.data.datamodule import AffectDataModule
from affect.data.splits import Fold
from affect.errors import Preempted, UserError
from affect.files import write_whole
from affect.prediction import Prediction
from affect.store import Entry
from affect.training.module import AffectModule
from affect.training.run import Run, is_main_process
from affect.training.scores import MONITOR
from affect.training.signals import EndAtSignal
from affect.training.trained import PREDICTIONS, conclude


def train_fold(
    run: Run, entries: Sequence[Entry], fold: Fold, callbacks: Sequence[Callback]
) -> list[Prediction]:
    """Predictions of a fold's validation and test recordings; trained first where they lack.

    A fold that was interrupted goes on from its last checkpoint. Processes other than the main one
    train along and return nothing.

    Raises:
        UserError: the corpus or the configuration cannot be used.
    """
    folder = run.fold_folder(fold.index)
    path = folder / PREDICTIONS
    if path.exists():
        return store.read_predictions(path)
    experiment = run.experiment
    lightning.seed_everything(experiment.seed, verbose=False)
    data = AffectDataModule(entries, fold, experiment.data, experiment.seed)
    delays = dict(zip(experiment.data.dimensions, data.preparation.delay_s, strict=True))
    run.update({"delay_s": {**run.record.get("delay_s", {}), str(fold.index): delays}})
    module = AffectModule(experiment, data.preparation.features)
    _train(experiment.trainer, module, data, folder, callbacks)
    if not is_main_process():
        return []
    return conclude(experiment, module, data.entries, data.series, fold, folder)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, so that a full disk costs no earlier one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint in one step."""
        image = io.BytesIO()
        torch.save(checkpoint, image)
        write_whole(Path(path), image.getvalue())


def make_trainer(
    config: TrainerConfig, folder: Path, callbacks: Sequence[Callback], **options: Any
) -> Trainer:
    """Lightning's trainer for a configuration; it logs nothing and prints nothing by itself.

    Raises:
        UserError: this machine, or Lightning, does not have what is asked for.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    asked = {
        name: getattr(config, name)
        for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")
    }
    plugins: list[Any] = [WholeCheckpoints()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        return Trainer(
            **asked,
            max_epochs=config.max_epochs,
            gradient_clip_val=config.gradient_clip_val,
            accumulate_grad_batches=config.accumulate_grad_batches,
            deterministic=config.deterministic,
            default_root_dir=folder,
            callbacks=list(callbacks),
            plugins=plugins,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            **options,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        given = ", ".join(f"trainer.{name}={value!r}" for name, value in asked.items())
        raise UserError(f"Lightning refuses {given}: {error}") from error


def _train(
    config: TrainerConfig,
    module: AffectModule,
    data: AffectDataModule,
    folder: Path,
    callbacks: Sequence[Callback],
) -> None:
    """Train from the last checkpoint, if there is one, and load the weights to keep.

    Raises:
        Preempted: after SIGTERM or SIGUSR1; the last epoch is saved.
    """
    checkpoints = folder / "checkpoints"
    best = ModelCheckpoint(
        checkpoints, "best", monitor=MONITOR, mode="max", enable_version_counter=False
    )
    # one of its own: Lightning's save_last saves only in epochs in which the best one is saved
    latest = ModelCheckpoint(checkpoints, "last", enable_version_counter=False)
    stopping = EarlyStopping(MONITOR, mode="max", patience=config.patience or config.max_epochs)
    signals = EndAtSignal()
    trainer = make_trainer(config, folder, [best, latest, stopping, signals, *callbacks])
    last = checkpoints / "last.ckpt"
    if last.exists():
        data.first_epoch = _load_checkpoint(last)["epoch"] + 1
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C, and of a signal to give way
        asked = isinstance(stop.__context__, Preempted) or isinstance(stop, SIGTERMException)
        raise (Preempted if asked else KeyboardInterrupt) from stop
    except OSError as error:
        raise UserError(
            f"cannot write {checkpoints}: {error.strerror or error}; free space, then --resume"
        ) from error
    if signals.given_way:
        raise Preempted
    kept = _load_checkpoint(checkpoints / f"{config.keep}.ckpt")
    module.load_state_dict(kept["state_dict"])
    module.to(trainer.strategy.root_device)


def _load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        detail = " ".join(str(error).split())
        raise UserError(
            f"cannot read {path} ({detail}): remove it, and the fold is trained from its start"
        ) from error
