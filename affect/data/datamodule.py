"""The Lightning data module: one fold of a cache as training windows and whole recordings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, DistributedSampler

from affect.config import DataConfig
from affect.data.calibration import calibration_frames
from affect.data.preparation import Preparation, SeriesCache, prepare
from affect.data.splits import Fold
from affect.data.windows import Batch, Window, WindowDataset, collate
from affect.errors import UserError
from affect.stopping import heed_parent_alone
from affect.store import Entry

_MIB = 2**20
_SEED_STRIDE = 1_000_003
"""The sampler adds the epoch to its seed: seed 0's second epoch must not be seed 1's first."""


class AffectDataModule(lightning.LightningDataModule):
    """Batches of one fold.

    Training draws windows in an order that depends on seed and epoch alone; validation
    gives whole recordings (or, under the target `window_mean`, windows without overlap), each once.
    Where training is resumed, `first_epoch` must be set before.

    Args:
        entries: recordings of all subjects.
        fold: which subjects train, validate and test.
        config: preparation, windows and batches.
        seed: of the order of training windows.
        preparation: of an earlier run; None to derive it from the training subjects.

    Raises:
        UserError: as `prepare`, or where no training recording fills a window.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        fold: Fold,
        config: DataConfig,
        seed: int,
        preparation: Preparation | None = None,
    ) -> None:
        super().__init__()
        self._config = config
        self._seed = seed
        self.entries = {
            part: [entry for entry in entries if entry.subject in set(getattr(fold, part))]
            for part in ("train", "val", "test")
        }
        _refuse_short(self.entries["train"], config)
        self.preparation = preparation or prepare(self.entries, config)
        unscored = calibration_frames([*self.entries["val"], *self.entries["test"]], config)
        self.series = SeriesCache(self.preparation, config.memory_mb * _MIB, unscored=unscored)
        self.first_epoch = 0

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled training windows."""
        dataset = WindowDataset(
            self.entries["train"], self.series, self._config.window_frames, self._config.hop_frames
        )
        rank, world = self._place()
        sampler = training_order(dataset, self._seed, rank, world)
        # Lightning names the epoch itself, but only after workers have fetched its first batches
        sampler.set_epoch(self.first_epoch)
        return _loader(dataset, sampler, self._config.batch_size, self._config)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation recordings."""
        return self._evaluation_loader("val")

    def _evaluation_loader(self, part: str) -> DataLoader[Batch]:
        """Every recording once: ranks take turns, and none is repeated to even them out.

        Where there are fewer recordings than ranks, each rank takes all: repeating all samples
        alike changes no CCC, no correlation and no mean.
        """
        dataset = evaluation_dataset(self.entries[part], self.series, self._config)
        rank, world = self._place()
        if len(dataset) < world:
            rank, world = 0, 1
        mine = range(rank, len(dataset), world)
        return _loader(dataset, mine, self._config.eval_batch_size, self._config)

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def training_order(
    dataset: WindowDataset, seed: int, rank: int = 0, world: int = 1
) -> DistributedSampler[Any]:
    """The order of training windows, which `set_epoch` changes.

    Args:
        dataset: the windows.
        seed: the experiment's.
        rank: of the process that asks.
        world: how many processes share the windows.
    """
    return DistributedSampler(dataset, world, rank, shuffle=True, seed=seed * _SEED_STRIDE)


def evaluation_dataset(
    entries: Sequence[Entry], series: SeriesCache, config: DataConfig
) -> WindowDataset:
    """Whole recordings, or windows without overlap under the target `window_mean`."""
    window_frames = config.window_frames if config.target == "window_mean" else None
    return WindowDataset(entries, series, window_frames)


def _loader(
    dataset: WindowDataset, sampler: Iterable[int], batch_size: int, config: DataConfig
) -> DataLoader[Batch]:
    loader: DataLoader[Window] = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate,
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=config.workers > 0,
        worker_init_fn=heed_parent_alone,
    )
    return loader  # pyright: ignore[reportReturnType] - collate turns windows into batches


def _refuse_short(train: Sequence[Entry], config: DataConfig) -> None:
    longest = max((entry.frames for entry in train), default=0)
    if config.window_frames is not None and longest < config.window_frames:
        raise UserError(
            f"data.window_frames is {config.window_frames}, the longest training recording has "
            f"{longest} frames: choose a shorter window"
        )
