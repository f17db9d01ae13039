"""Work on many frames in parts that fit: the processor's cache, or what a GPU has left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Halving:
    """How much to work on at once: halved where a GPU's memory runs out, and it stays so.

    Args:
        size: at first, 1 or more.

    Attributes:
        size: now.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, work: Callable[[int], Made], most: int | None = None) -> Made:
        """What the work makes, begun again with half as much until it fits.

        Args:
            work: takes how much to do at once.
            most: how much there is; None for more than enough.

        Raises:
            torch.OutOfMemoryError: the memory does not hold the least.
        """
        while True:
            try:
                return work(self.size)
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
            # Beyond the handler, where the error no longer holds what the work had made.
            self.size = max(1, min(self.size, most or self.size) // 2)
            torch.cuda.empty_cache()


class InParts:
    """Applies functions of frames to parts of them; each frame's result is its own.

    Where a GPU's memory runs out, parts are halved, and stay so.

    Args:
        cpu: frames of a part on the CPU, 1 or more.
        gpu: likewise.
    """

    def __init__(self, cpu: int, gpu: int = 256) -> None:
        self._cpu, self._gpu = Halving(cpu), Halving(gpu)

    @property
    def gpu(self) -> int:
        """Frames of a part on a GPU now."""
        return self._gpu.size

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The function's results of all frames.

        Args:
            function: of tensors with one row a frame, to such a tensor.
            inputs: with one row a frame, all of one length, at least 1.

        Raises:
            torch.OutOfMemoryError: the memory does not hold a single frame's work.
        """
        halving = self._cpu if inputs[0].device.type == "cpu" else self._gpu
        return halving(lambda frames: _applied(function, inputs, frames), len(inputs[0]))


def _applied(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], frames: int) -> Tensor:
    parts = zip(*(rows.split(frames) for rows in inputs), strict=True)
    results = [function(*part) for part in parts]
    return torch.cat(results) if len(results) > 1 else results[0]
