"""Work on many frames in parts that fit: the processor's cache, or what a GPU has left."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from affect.errors import UserError


class InParts:
    """Applies functions of frames to parts of them; each frame's result is its own.

    Where a GPU's memory runs out, parts are halved, and stay so.

    Args:
        cpu: frames of a part on the CPU, 1 or more.
        gpu: likewise.
    """

    def __init__(self, cpu: int, gpu: int = 256) -> None:
        self.cpu = cpu
        self.gpu = gpu

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The function's results of all frames.

        Args:
            function: of tensors with one row a frame, to such a tensor.
            inputs: with one row a frame, all of one length, at least 1.

        Raises:
            UserError: the memory does not hold a single frame's work.
        """
        if inputs[0].device.type == "cpu":
            return _applied(function, inputs, self.cpu)
        while True:
            try:
                return _applied(function, inputs, self.gpu)
            except torch.OutOfMemoryError as error:
                if self.gpu == 1:
                    raise UserError(
                        "the GPU's memory does not hold the work on one frame: free it, or give "
                        "--device cpu"
                    ) from error
            # Beyond the handler, where the error no longer holds what the function had made.
            self.gpu = max(1, min(self.gpu, len(inputs[0])) // 2)
            torch.cuda.empty_cache()


def _applied(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], frames: int) -> Tensor:
    parts = zip(*(rows.split(frames) for rows in inputs), strict=True)
    results = [function(*part) for part in parts]
    return torch.cat(results) if len(results) > 1 else results[0]
