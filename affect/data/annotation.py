"""Annotation traces: the gold standard of several raters, and the delay with which they react."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Shaped
from scipy.ndimage import uniform_filter1d

from affect.config import GoldStandard
from affect.errors import UserError

CANDIDATE_DELAYS_S: tuple[float, ...] = tuple(round(0.2 * step, 1) for step in range(41))
"""Delays that `estimate_delay` tries unless told: 0 to 8 s in steps of .2 s."""

SMOOTHING_S = 3.0
"""Width of the moving average over the features in `estimate_delay`: slow affect, not speech."""

_RIDGE = 1e-2

DelayMoments = tuple[
    Float64[np.ndarray, "F F"], Float64[np.ndarray, "F L"], Float64[np.ndarray, " L"]
]


def gold_standard(
    ratings: Float[np.ndarray, "R T"], method: GoldStandard = "avec"
) -> Float32[np.ndarray, " T"]:
    """One trace for R raters' traces, as the AVEC challenges made it.

    `avec`: a rater's weight is the mean of the pairwise CCCs with the other raters; each trace is
    moved so that its mean equals the weighted mean of the raters' means; then the traces are
    averaged with equal weights. A negative weight counts as 0, so that the trace stays within the
    raters'; where no weight is above 0, the means are averaged with equal weights instead.
    `mean`: the traces are averaged as they are.

    Args:
        ratings: one row a rater; NaN is missing. A row of NaNs alone is a rater who was absent.
        method: `avec` or `mean`.

    Returns:
        The gold standard; NaN in frames that nobody rated. One rater's trace comes back as is.

    Source: Valstar et al. 2016, "AVEC 2016 - Depression, Mood, and Emotion Recognition Workshop
    and Challenge", section 3 (gold standard of RECOLA).
    """
    traces = ratings[~np.isnan(ratings).all(axis=1)].astype(np.float64)
    if method == "avec" and len(traces) > 1:
        means = np.nanmean(traces, axis=1)
        traces += (_weighted_mean(means, agreement(traces)) - means)[:, None]
    average = np.ma.masked_invalid(traces).mean(axis=0)
    return np.ma.filled(average, np.nan).astype(np.float32)


def agreement(ratings: Float[np.ndarray, "R T"]) -> Float64[np.ndarray, " R"]:
    """Each rater's mean pairwise CCC with the other raters, -1 to 1; 0 for a lone rater.

    Args:
        ratings: one row a rater; each pair is compared on the frames that both rated.
    """
    count = len(ratings)
    pairwise = np.zeros((count, count))
    for one, other in combinations(range(count), 2):
        pairwise[one, other] = pairwise[other, one] = concordance(ratings[one], ratings[other])
    return pairwise.sum(axis=1) / max(count - 1, 1)


def concordance(x: Float[np.ndarray, " T"], y: Float[np.ndarray, " T"]) -> float:
    """The CCC over the frames where neither trace is NaN; 0 where there is none."""
    import torch  # here, so that making a synthetic corpus does not wait for it

    from affect import metrics

    one, other = torch.from_numpy(x), torch.from_numpy(y)
    moments = metrics.moments(one[:, None], other[:, None], ~one.isnan())
    return metrics.ccc(moments).nan_to_num().item()


def shift_back(
    labels: Shaped[np.ndarray, "T ..."], delay_s: float, rate_hz: float
) -> Shaped[np.ndarray, "T ..."]:
    """Labels moved earlier, so that the label given at `t + delay` stands at `t`.

    What a rater reports at `t + delay_s` answers what the face showed at `t`: labels are shifted
    back before training.

    Args:
        labels: time first.
        delay_s: 0 or more; rounded to whole frames.
        rate_hz: labels a second.

    Returns:
        As many labels; the last one is repeated at the end.
    """
    return _moved(labels, round(delay_s * rate_hz))


def shift_forward(
    predictions: Shaped[np.ndarray, "T ..."], delay_s: float, rate_hz: float
) -> Shaped[np.ndarray, "T ..."]:
    """Predictions moved later, to stand where raters gave their labels: undoes `shift_back`.

    Args:
        predictions: time first.
        delay_s: 0 or more; rounded to whole frames.
        rate_hz: predictions a second.

    Returns:
        As many predictions; the first one is repeated at the start.
    """
    return _moved(predictions, -round(delay_s * rate_hz))


def estimate_delay(
    features: Sequence[Float[np.ndarray, "_ F"]],
    labels: Sequence[Float[np.ndarray, " _"]],
    rate_hz: float,
    candidates_s: Sequence[float] = CANDIDATE_DELAYS_S,
) -> float:
    """The delay in seconds at which the labels follow the features best.

    For each candidate, the labels are shifted back and regressed on the features by ridge
    regression; each recording is predicted from the others. The candidate with the highest
    correlation, pooled over recordings, is refined by the parabola through it and its neighbours.
    Features are standardised and labels centred per recording, features smoothed by a moving
    average of `SMOOTHING_S`; what is missing counts as the recording's mean. All candidates are
    judged on the same frames: those that the longest delay leaves.

    Args:
        features: one array a recording; NaN is missing.
        labels: one trace a recording, as long as its features; NaN is missing.
        rate_hz: frames a second of both.
        candidates_s: delays to try, 0 or more; each is rounded to whole frames.

    Raises:
        UserError: there are fewer than two recordings, one is not longer than the longest
            candidate, or features and labels do not go together.
    """
    lags = lags_of(rate_hz, candidates_s)
    _check_recordings(features, labels, int(lags[-1]))
    moments = [
        delay_moments(x, y, rate_hz, candidates_s) for x, y in zip(features, labels, strict=True)
    ]
    return delay_from_moments(moments, rate_hz, candidates_s)


def delay_moments(
    features: Float[np.ndarray, "T F"],
    labels: Float[np.ndarray, " T"],
    rate_hz: float,
    candidates_s: Sequence[float] = CANDIDATE_DELAYS_S,
) -> DelayMoments:
    """All that `estimate_delay` needs of one recording, which is longer than every candidate.

    Returns:
        X'X [F, F], X'Y [F, L] and the diagonal of Y'Y [L], with one column of Y a candidate. They
        add up over recordings.
    """
    return _moments(
        features, labels, lags_of(rate_hz, candidates_s), max(round(SMOOTHING_S * rate_hz), 1)
    )


def delay_from_moments(
    moments: Sequence[DelayMoments],
    rate_hz: float,
    candidates_s: Sequence[float] = CANDIDATE_DELAYS_S,
) -> float:
    """The delay in seconds, as `estimate_delay`, from two or more recordings' or places' moments.

    Raises:
        UserError: the features or the labels never change.
    """
    correlation = _held_out_correlation(*(np.stack(part) for part in zip(*moments, strict=True)))
    return _peak(lags_of(rate_hz, candidates_s) / rate_hz, correlation)


def lags_of(
    rate_hz: float, candidates_s: Sequence[float] = CANDIDATE_DELAYS_S
) -> Int[np.ndarray, " L"]:
    """The delays to try, in whole frames."""
    return np.unique(np.round(np.asarray(candidates_s) * rate_hz).astype(int))


def _weighted_mean(
    values: Float64[np.ndarray, " R"], weights: Float64[np.ndarray, " R"]
) -> np.float64:
    positive = np.maximum(weights, 0)
    return np.average(values, weights=positive) if positive.any() else values.mean()


def _moved(values: Shaped[np.ndarray, "T ..."], frames: int) -> Shaped[np.ndarray, "T ..."]:
    last = len(values) - 1
    return values[np.clip(np.arange(len(values)) + frames, 0, last)]


def _check_recordings(
    features: Sequence[np.ndarray], labels: Sequence[np.ndarray], longest: int
) -> None:
    lengths = [len(trace) for trace in labels]
    if lengths != [len(array) for array in features]:
        raise UserError("cannot estimate a delay: features and labels differ in length")
    if len(lengths) < 2:  # noqa: PLR2004 - one to learn from, one to judge
        raise UserError(
            f"cannot estimate a delay from {len(lengths)} recording(s): give two or more"
        )
    if min(lengths) <= longest + 1:
        raise UserError(
            f"cannot try delays of up to {longest} frames on a recording of {min(lengths)}: "
            "leave it out or lower the longest candidate"
        )


def _moments(
    features: Float[np.ndarray, "T F"],
    labels: Float[np.ndarray, " T"],
    lags: Int[np.ndarray, " L"],
    width: int,
) -> DelayMoments:
    """A recording's X'X, X'Y and the diagonal of Y'Y, with one column of Y a lag."""
    kept = len(labels) - int(lags[-1])
    standardised = _centred(features, scale=True)
    x = _centred(uniform_filter1d(standardised, width, axis=0, mode="nearest")[:kept])
    y = _centred(np.stack([labels[lag : lag + kept] for lag in lags], axis=1))
    return x.T @ x, x.T @ y, (y**2).sum(axis=0)


def _centred(
    values: Float[np.ndarray, "T F"], *, scale: bool = False
) -> Float64[np.ndarray, "T F"]:
    """Columns of mean 0, and of deviation 1 if asked; 0 where a value is missing or constant."""
    known = np.ma.masked_invalid(values.astype(np.float64))
    known = known - known.mean(axis=0)
    # A masked division masks what it would divide by 0.
    return np.ma.filled(known / known.std(axis=0) if scale else known, 0.0)


def _held_out_correlation(
    xx: Float64[np.ndarray, "N F F"],
    xy: Float64[np.ndarray, "N F L"],
    yy: Float64[np.ndarray, "N L"],
) -> Float64[np.ndarray, " L"]:
    """Per lag, the pooled correlation of labels with predictions learned from other recordings.

    The recordings' moments suffice: their difference from the sum is what the others hold.
    """
    power = np.trace(xx.sum(axis=0)) / xx.shape[1]
    if power == 0 or not yy.sum(axis=0).all():
        raise UserError("cannot estimate a delay: the features or the labels never change")
    rest = xx.sum(axis=0) - xx + _RIDGE * power * np.eye(xx.shape[1])
    weights = np.linalg.solve(rest, xy.sum(axis=0) - xy)
    common = (weights * xy).sum(axis=(0, 1))
    predicted = np.einsum("nfl,nfg,ngl->l", weights, xx, weights, optimize=True)
    return common / np.sqrt(np.maximum(predicted, np.finfo(float).tiny) * yy.sum(axis=0))


def _peak(positions: Float64[np.ndarray, " L"], heights: Float64[np.ndarray, " L"]) -> float:
    """Where the parabola through the highest point and its neighbours has its top."""
    top = int(heights.argmax())
    if top in {0, len(heights) - 1}:
        return float(positions[top])
    around = slice(top - 1, top + 2)
    curvature, slope, _ = np.polyfit(positions[around] - positions[top], heights[around], 2)
    refined = positions[top] - slope / (2 * curvature) if curvature else positions[top]
    return float(np.clip(refined, positions[top - 1], positions[top + 1]))
