"""AVEC's post-processing: median filter, bias and scale, each kept only where it raises the CCC.

Valstar et al., "AVEC 2016: Depression, Mood, and Emotion Recognition Workshop and Challenge"
(section on the baseline for the affect sub-challenge). Fitted on validation subjects alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from scipy.ndimage import median_filter

from affect import metrics

MEDIAN_CANDIDATES_S = (0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
_GROUPS = 5


@dataclass(frozen=True)
class Trace:
    """Post-processing of one dimension: y = centre + scale * (median(x) + bias - centre).

    Attributes:
        median_frames: length of the median filter, odd; 1 for none.
        bias: added to the prediction.
        scale: about the centre.
        centre: mean of the validation predictions after the bias.
    """

    median_frames: int = 1
    bias: float = 0.0
    scale: float = 1.0
    centre: float = 0.0

    def __call__(self, values: Float32[np.ndarray, " T"]) -> Float32[np.ndarray, " T"]:
        """The post-processed trace of one recording."""
        smooth = _median(values, self.median_frames)
        return (self.centre + self.scale * (smooth + self.bias - self.centre)).astype(np.float32)


@dataclass(frozen=True)
class Postprocessing:
    """Post-processing of every dimension."""

    traces: tuple[Trace, ...]

    def __call__(self, prediction: Float32[np.ndarray, "T D"]) -> Float32[np.ndarray, "T D"]:
        """The post-processed prediction of one recording."""
        columns = [trace(prediction[:, d]) for d, trace in enumerate(self.traces)]
        return np.stack(columns, axis=1)

    def to_json(self) -> list[dict[str, Any]]:
        """JSON values from which `from_json` makes the same post-processing."""
        return [asdict(trace) for trace in self.traces]

    @classmethod
    def from_json(cls, values: Sequence[dict[str, Any]]) -> Postprocessing:
        """The post-processing that `to_json` wrote."""
        return cls(tuple(Trace(**item) for item in values))


def fit(
    predictions: Sequence[Float32[np.ndarray, "_ D"]],
    references: Sequence[Float32[np.ndarray, "_ D"]],
    steps: Sequence[str],
    rate_hz: float,
) -> Postprocessing:
    """The post-processing that raises the pooled CCC of validation recordings.

    Args:
        predictions: of each validation recording, [T, D].
        references: their unshifted gold standard, [T, D], NaN where missing.
        steps: which of `median`, `bias` and `scale` may be used.
        rate_hz: predictions a second.
    """
    dimensions = predictions[0].shape[1]
    traces = [
        _fit_trace([p[:, d] for p in predictions], [r[:, d] for r in references], steps, rate_hz)
        for d in range(dimensions)
    ]
    return Postprocessing(tuple(traces))


def cross_fit(
    predictions: Sequence[Float32[np.ndarray, "_ D"]],
    references: Sequence[Float32[np.ndarray, "_ D"]],
    subjects: Sequence[str],
    steps: Sequence[str],
    rate_hz: float,
) -> list[Postprocessing]:
    """For each validation recording, the post-processing that other subjects' recordings ask for.

    Subjects are dealt into at most five groups, each of which is left out once. A single subject's
    recordings are not post-processed.

    Args:
        predictions: of each validation recording, [T, D].
        references: their unshifted gold standard, [T, D], NaN where missing.
        subjects: of each recording.
        steps: which of `median`, `bias` and `scale` may be used.
        rate_hz: predictions a second.
    """
    groups = {name: index % _GROUPS for index, name in enumerate(dict.fromkeys(subjects))}
    untouched = Postprocessing((Trace(),) * predictions[0].shape[1])
    fitted: dict[int, Postprocessing] = {}
    for group in set(groups.values()):
        others = [index for index, name in enumerate(subjects) if groups[name] != group]
        fitted[group] = (
            fit([predictions[i] for i in others], [references[i] for i in others], steps, rate_hz)
            if others
            else untouched
        )
    return [fitted[groups[name]] for name in subjects]


def _fit_trace(
    predictions: list[np.ndarray], references: list[np.ndarray], steps: Sequence[str], rate: float
) -> Trace:
    best, best_ccc = Trace(), _ccc(predictions, references)
    for step in ("median", "bias", "scale"):
        if step in steps:
            for candidate in _candidates(step, best, predictions, references, rate):
                ccc = _ccc([candidate(p) for p in predictions], references)
                if ccc > best_ccc:
                    best, best_ccc = candidate, ccc
    return best


def _candidates(
    step: str,
    trace: Trace,
    predictions: list[np.ndarray],
    references: list[np.ndarray],
    rate: float,
) -> list[Trace]:
    if step == "median":
        return [Trace(2 * int(rate * s / 2) + 1) for s in MEDIAN_CANDIDATES_S if rate * s >= 2]  # noqa: PLR2004
    reference = np.concatenate(references).astype(np.float64)
    known = np.isfinite(reference)
    current = np.concatenate([trace(p) for p in predictions]).astype(np.float64)[known]
    if not known.any():
        return []
    mean_gap = float(reference[known].mean() - current.mean())
    if step == "bias":
        return [Trace(trace.median_frames, mean_gap)]
    spread = float(current.std())
    scale = float(reference[known].std()) / spread if spread > 0 else 1.0
    return [Trace(trace.median_frames, trace.bias, scale, float(current.mean()))]


def _median(values: np.ndarray, frames: int) -> np.ndarray:
    return values if frames == 1 else median_filter(values, size=frames, mode="nearest")


def _ccc(predictions: list[np.ndarray], references: list[np.ndarray]) -> float:
    prediction = torch.from_numpy(np.concatenate(predictions))[:, None]
    reference = torch.from_numpy(np.concatenate(references))[:, None]
    everywhere = torch.ones(len(prediction), dtype=torch.bool)
    return float(metrics.ccc(metrics.moments(prediction, reference, everywhere))[0])
