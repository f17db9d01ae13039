"""Feature standardisation: statistics that merge, and the forms in which features are given.

Statistics are moments in float64 (count, mean, sum of squared deviations), merged by the update of
Chan, Golub and LeVeque (1983), so that they can be summed over recordings, subjects or clients
without bringing the data together.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

_SMALLEST_STD = 1e-6


@dataclass(frozen=True, eq=False)
class Statistics:
    """Per-feature moments over frames with a face.

    Attributes:
        count: frames that had a value.
        mean: their mean.
        deviations: sum of squared deviations from it.
    """

    count: Float64[np.ndarray, " F"]
    mean: Float64[np.ndarray, " F"]
    deviations: Float64[np.ndarray, " F"]

    @property
    def std(self) -> Float64[np.ndarray, " F"]:
        """Standard deviation, divided by N."""
        return np.sqrt(self.deviations / np.maximum(self.count, 1))


def statistics_of(features: Float32[np.ndarray, "T F"]) -> Statistics:
    """A recording's statistics; NaN frames are left out."""
    values = features.astype(np.float64)
    present = np.isfinite(values)
    count = present.sum(axis=0).astype(np.float64)
    mean = np.where(present, values, 0).sum(axis=0) / np.maximum(count, 1)
    deviations = (np.where(present, values - mean, 0) ** 2).sum(axis=0)
    return Statistics(count, mean, deviations)


def merge(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts' frames together; of one part, its own exactly."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    counts = np.stack([part.count for part in parts])
    means = np.stack([part.mean for part in parts])
    count = counts.sum(axis=0)
    mean = (counts * means).sum(axis=0) / np.maximum(count, 1)
    between = (counts * (means - mean) ** 2).sum(axis=0)
    return Statistics(count, mean, np.stack([p.deviations for p in parts]).sum(axis=0) + between)


def centred(features: Float32[np.ndarray, "T F"]) -> Float32[np.ndarray, "T F"]:
    """The features without the recording's own median, which is its face at rest."""
    seen = features[np.isfinite(features).any(axis=1)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        return features - np.nanmedian(seen, axis=0) if len(seen) else features


def standardise(
    forms: Sequence[tuple[Float32[np.ndarray, "T F"], Statistics | None]],
) -> Float32[np.ndarray, "T G"]:
    """Features side by side, each by its statistics; frames without a face become 0.

    Args:
        forms: features [T, F], NaN where the face was lost, and the statistics to standardise
            them with, or None to leave them as they are.

    Returns:
        [T, F * number of forms]. A feature that is constant in the statistics becomes 0.
    """
    columns = [values if item is None else _standardised(values, item) for values, item in forms]
    return np.nan_to_num(np.concatenate(columns, axis=1), copy=False, nan=0.0)


def _standardised(features: np.ndarray, statistics: Statistics) -> np.ndarray:
    std = statistics.std
    scale = np.where(std > _SMALLEST_STD, 1 / np.maximum(std, _SMALLEST_STD), 0)
    return ((features - statistics.mean) * scale).astype(np.float32)
