"""Test scores with uncertainty: a bootstrap over subjects.

Frames of one person depend on one another, so whole subjects are drawn: with replacement, as many
as there are. Runs that see the same draws have paired differences. The intervals hold for the
networks as they were trained; what another seed would change is not in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from affect import metrics
from affect.prediction import Prediction
from affect.training.scores import moments_of

_BOUNDS = (0.025, 0.975)

Replicates = Mapping[str, Float64[Tensor, " R"]]
"""A score's value in each resample, by the metric key."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; bounds that cannot be had, as of one subject, are NaN."""

    value: float
    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan, math.nan)
"""Of a run that has no such score."""


def multiplicities(subjects: int, resamples: int, seed: int) -> Float64[Tensor, "R S"]:
    """How often each subject is drawn in each resample; every row sums to the subjects."""
    chances = np.full(subjects, 1 / subjects)
    counts = np.random.default_rng(seed).multinomial(subjects, chances, size=resamples)
    return torch.from_numpy(counts).double()


def replicates(predictions: Sequence[Prediction], counts: Float64[Tensor, "R S"]) -> Replicates:
    """The test scores of every resample, under the keys of `affect.training.scores.scores`.

    Args:
        predictions: of the test, sorted by corpus and subject.
        counts: of those subjects, in that order; see `multiplicities`.

    Returns:
        All NaN where there is one subject, which shows no spread.
    """
    recordings = [[moments_of(item) for item in items] for items in _by_subject(predictions)]
    pooled = torch.stack([metrics.merge(torch.stack(parts)) for parts in recordings])
    values = metrics.scores(resampled(pooled, counts))
    values["ccc_per_recording"] = _mean_over_recordings(recordings, counts)
    single = len(recordings) == 1
    named: dict[str, Float64[Tensor, " R"]] = {}
    for score, columns in values.items():
        known = torch.full_like(columns, math.nan) if single else columns  # R D
        for name, column in zip(predictions[0].dimensions, known.T, strict=True):
            named[f"test/{score}/{name}"] = column
        named[f"test/{score}/mean"] = known.mean(dim=1)
    return named


def resampled(
    moments: Float64[Tensor, "S D 6"], counts: Float64[Tensor, "R S"]
) -> Float64[Tensor, "R D 6"]:
    """The moments of each resample, in which subject s occurs counts[r, s] times."""
    grows = torch.tensor([True, False, False, True, True, True])  # n, m2_x, m2_y, c_xy; no mean
    factors = counts.T[:, :, None, None]  # S R 1 1
    repeated = torch.where(grows, factors * moments[:, None], moments[:, None])  # S R D 6
    return metrics.merge(repeated)


def interval(value: float, drawn: Float64[Tensor, " R"]) -> Interval:
    """A value between the 2.5th and the 97.5th percentile of its replicates.

    Percentile bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
    13. A resample without a value, one in which nobody has labels, is left out.
    """
    levels = torch.tensor(_BOUNDS, dtype=torch.float64)
    low, high = torch.nanquantile(drawn, levels).tolist()
    return Interval(value, low, high)


def ratio(
    values: tuple[float, float], drawn: tuple[Float64[Tensor, " R"], Float64[Tensor, " R"]]
) -> Interval:
    """The first score as a share of the second; NaN where the second is not above 0.

    Args:
        values: both scores.
        drawn: their replicates. Where the second is not above 0 in all of them, there are no
            bounds.
    """
    (above, below), (drawn_above, drawn_below) = values, drawn
    if not below > 0:
        return UNKNOWN
    shares = drawn_above / drawn_below
    positive = bool((drawn_below.isnan() | (drawn_below > 0)).all())
    return interval(above / below, shares if positive else torch.full_like(shares, math.nan))


def _by_subject(predictions: Sequence[Prediction]) -> list[list[Prediction]]:
    groups = groupby(predictions, key=attrgetter("corpus", "subject"))
    return [list(items) for _, items in groups]


def _mean_over_recordings(
    recordings: Sequence[Sequence[Float64[Tensor, "D 6"]]], counts: Float64[Tensor, "R S"]
) -> Float64[Tensor, "R D"]:
    """Each resample's mean of the recordings' own CCC; see `affect.metrics.per_recording`.

    Args:
        recordings: moments of each subject's recordings.
        counts: of the subjects.
    """
    sums, numbers = [], []
    for parts in recordings:
        cccs = metrics.ccc(torch.stack(list(parts)))  # NaN without a label
        sums.append(cccs.nansum(dim=0))
        numbers.append((~cccs.isnan()).double().sum(dim=0))
    return (counts @ torch.stack(sums)) / (counts @ torch.stack(numbers))
