"""Steps 5 and 7: linear models of the descriptor, and what a whole video's scores become."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch import Tensor, nn

from affect.extraction.openface.weights import Regressors

HIGHEST = 5.0
"""The upper end of an intensity."""

_INTENSITY_SPAN = 3
_PRESENCE_SPAN = 7
_PRESENT = 0.5


class LinearScores(nn.Module):
    """Scores of descriptors in float64, before the person's median is taken off.

    The median enters a score linearly, so that it can be subtracted when it is known.

    Args:
        models: linear models, side by side.
    """

    weights: Tensor
    offset: Tensor
    dynamic: Tensor

    def __init__(self, models: Regressors) -> None:
        super().__init__()
        weights = torch.from_numpy(models.weights)
        means = torch.from_numpy(models.means)
        self.register_buffer("weights", weights)
        self.register_buffer("offset", torch.from_numpy(models.bias) - (means * weights).sum(0))
        self.register_buffer("dynamic", torch.from_numpy(models.dynamic))

    def forward(self, descriptors: Float[Tensor, "T 4702"]) -> Float64[Tensor, "T A"]:
        """The score of each frame and unit."""
        return descriptors.double() @ self.weights + self.offset

    def of_median(self, median: Float[Tensor, "*T 4702"]) -> Float64[Tensor, "*T A"]:
        """What the person's median takes off a score: 0 for static units."""
        return torch.where(self.dynamic, median.double() @ self.weights, 0.0)


def intensities(
    scores: Float64[np.ndarray, "T A"],
    success: Bool[np.ndarray, " T"],
    cutoff: Float64[np.ndarray, " A"],
) -> Float32[np.ndarray, "T A"]:
    """Intensities of a whole video, 0 to 5; 0 in frames that failed.

    Args:
        scores: without the person's median.
        success: whether a face was tracked.
        cutoff: the share of a unit's successful frames that lies below its zero; -1 for none.
    """
    seen = np.sort(scores[success], axis=0)
    zero = np.zeros(scores.shape[1])
    if len(seen):
        rank = (len(seen) * np.maximum(cutoff, 0)).astype(np.int64)
        zero = np.where(cutoff >= 0, seen[rank, np.arange(scores.shape[1])], 0)
    values = np.where(success[:, None], np.clip(scores - zero, 0, HIGHEST), 0)
    return moving_average(values, _INTENSITY_SPAN).astype(np.float32)


def presences(
    scores: Float64[np.ndarray, "T A"],
    success: Bool[np.ndarray, " T"],
    positive: Float64[np.ndarray, " A"],
    negative: Float64[np.ndarray, " A"],
) -> UInt8[np.ndarray, "T A"]:
    """Presences of a whole video, 0 or 1; frames that failed count as 0.

    Args:
        scores: without the person's median.
        success: whether a face was tracked.
        positive: the class of a score above 0.
        negative: the class of any other.
    """
    classes = np.where(scores > 0, positive, negative) * success[:, None]
    return (moving_average(classes, _PRESENCE_SPAN) >= _PRESENT).astype(np.uint8)


def moving_average(values: Float64[np.ndarray, "T A"], span: int) -> Float64[np.ndarray, "T A"]:
    """The mean of each frame and its neighbours; what lacks neighbours stays as it is."""
    if len(values) < span:
        return values
    windows = np.lib.stride_tricks.sliding_window_view(values, span, axis=0)
    smooth = values.copy()
    smooth[span // 2 : len(values) - span // 2] = windows.mean(-1)
    return smooth
