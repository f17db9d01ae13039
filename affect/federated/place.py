"""One client's recordings as windows, batches and optimiser steps, as `affect fit` makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import DistributedSampler

from affect.config import Experiment
from affect.data.datamodule import evaluation_dataset, training_order
from affect.data.preparation import SeriesCache
from affect.data.windows import Batch, Window, WindowDataset, collate
from affect.store import Entry


@dataclass(frozen=True)
class Step:
    """An optimiser step: its pass, windows of each batch by its number, the optimiser's options."""

    epoch: int
    batches: Mapping[int, Sequence[int]]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Place:
    """The windows of one client."""

    def __init__(
        self, experiment: Experiment, entries: Sequence[Entry], series: SeriesCache
    ) -> None:
        self._experiment = experiment
        self._entries = entries
        self._series = series
        self.frames = sum(entry.frames for entry in entries)

    @cached_property
    def _windows(self) -> WindowDataset:
        config = self._experiment.data
        return WindowDataset(self._entries, self._series, config.window_frames, config.hop_frames)

    @cached_property
    def _order(self) -> DistributedSampler[Any]:
        return training_order(self._windows, self._experiment.seed)

    @property
    def labelled(self) -> bool:
        """Whether any frame has a label."""
        return any(np.isfinite(self._series[entry].labels).any() for entry in self._entries)

    @property
    def steps_per_pass(self) -> int:
        """Optimiser steps of a pass over all windows."""
        batches = -(-len(self._windows) // self._experiment.data.batch_size)
        return -(-batches // self._experiment.trainer.accumulate_grad_batches)

    def steps(self, epoch: int) -> Iterator[Step]:
        """The steps of this pass and all that follow."""
        size = self._experiment.data.batch_size
        together = self._experiment.trainer.accumulate_grad_batches
        while True:
            self._order.set_epoch(epoch)
            order = list(self._order)
            batches = [order[start : start + size] for start in range(0, len(order), size)]
            for start in range(0, len(batches), together):
                yield Step(epoch, dict(enumerate(batches[start : start + together], start)))
            epoch += 1

    def windows(self, numbers: Sequence[int]) -> list[Window]:
        """The windows with these numbers."""
        return [self._windows[number] for number in numbers]

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The same as a batch."""
        return collate(self.windows(numbers))

    def evaluation(self, size: int) -> Iterator[Batch]:
        """Each recording once; see `evaluation_dataset`."""
        dataset = evaluation_dataset(self._entries, self._series, self._experiment.data)
        for start in range(0, len(dataset), size):
            stop = min(start + size, len(dataset))
            yield collate([dataset[index] for index in range(start, stop)])
