"""Agreement between prediction and reference: CCC and its moments, the loss, and the metric.

A score is a function of moments, and moments merge exactly: those of batches, recordings, processes
or clients give the same score as their pooled samples. An average of scores does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torchmetrics import Metric

from affect.errors import UserError

_MINIMUM_FRAMES = 2
_EPSILON = 1e-12
"""Keeps the loss's gradient finite where both traces are constant; far below any real variance."""


def moments(
    prediction: Float[Tensor, "*batch D"],
    reference: Float[Tensor, "*batch D"],
    mask: Bool[Tensor, "*batch"],
) -> Float64[Tensor, "D 6"]:
    """Per dimension the moments (n, mean_x, mean_y, m2_x, m2_y, c_xy) of x against y.

    m2 is the sum of squared deviations from the mean, c_xy the sum of their products.

    Args:
        prediction: x.
        reference: y; a NaN is a missing label and is left out.
        mask: True at real frames; what the others hold is never looked at.
    """
    valid = (mask.unsqueeze(-1) & ~reference.isnan()).flatten(0, -2)  # K D
    if not len(valid):
        return valid.new_zeros((valid.shape[1], 6), dtype=torch.float64)
    weight = valid.double()
    values = torch.stack([prediction.flatten(0, -2), reference.flatten(0, -2)]).double()
    values = torch.where(valid, values, 0.0)  # 2 K D
    means = torch.stack([_weighted_mean(item, weight) for item in values])
    dx, dy = weight * (values - means.unsqueeze(1))
    sums = [(dx * dx).sum(0), (dy * dy).sum(0), (dx * dy).sum(0)]
    return torch.stack([weight.sum(0), *means, *sums], dim=-1)


def merge(moments: Float64[Tensor, "K *rest 6"]) -> Float64[Tensor, "*rest 6"]:
    """The moments of K groups pooled, in any order and partition; of no group, all zero.

    The K-fold form of the pairwise update of Chan, Golub and LeVeque (1983), "Algorithms for
    Computing the Sample Variance: Analysis and Recommendations", The American Statistician 37. No
    squares of raw values occur, so that a large offset costs no accuracy. A sample is a group of
    one.
    """
    if not len(moments):
        return moments.new_zeros(moments.shape[1:])
    n, mean_x, mean_y, m2_x, m2_y, c_xy = moments.unbind(-1)
    pooled_x, pooled_y = _weighted_mean(mean_x, n), _weighted_mean(mean_y, n)
    gap_x, gap_y = mean_x - pooled_x, mean_y - pooled_y
    pooled = [
        n.sum(0),
        pooled_x,
        pooled_y,
        (m2_x + n * gap_x.square()).sum(0),
        (m2_y + n * gap_y.square()).sum(0),
        (c_xy + n * gap_x * gap_y).sum(0),
    ]
    return torch.stack(pooled, dim=-1)


def ccc(moments: Float64[Tensor, "*rest 6"]) -> Float64[Tensor, "*rest"]:
    """Lin's concordance correlation coefficient, all moments divided by n.

    2 cov / (var_x + var_y + (mean_x - mean_y)^2), Lin (1989), "A Concordance Correlation
    Coefficient to Evaluate Reproducibility", Biometrics 45. A constant trace scores 0, also where
    both are the same constant (0/0); no sample at all scores NaN.
    """
    n, mean_x, mean_y, m2_x, m2_y, c_xy = moments.unbind(-1)
    return _ratio(2 * c_xy, m2_x + m2_y + n * (mean_x - mean_y).square(), n)


def pearson(moments: Float64[Tensor, "*rest 6"]) -> Float64[Tensor, "*rest"]:
    """Pearson's correlation; 0 where a trace is constant, NaN without a sample."""
    n, _, _, m2_x, m2_y, c_xy = moments.unbind(-1)
    return _ratio(c_xy, m2_x.sqrt() * m2_y.sqrt(), n)


def rmse(moments: Float64[Tensor, "*rest 6"]) -> Float64[Tensor, "*rest"]:
    """Root mean squared error, in the reference's unit; NaN without a sample.

    Errors below about 1e-8 of the traces' standard deviation are lost in rounding.
    """
    n, mean_x, mean_y, m2_x, m2_y, c_xy = moments.unbind(-1)
    squares = m2_x + m2_y - 2 * c_xy + n * (mean_x - mean_y).square()
    return (squares.clamp(min=0.0) / n).sqrt()


def scores(moments: Float64[Tensor, "*rest 6"]) -> dict[str, Float64[Tensor, "*rest"]]:
    """Every score of some moments by its name in metric keys: `ccc`, `rmse`, `pearson`."""
    return {"ccc": ccc(moments), "rmse": rmse(moments), "pearson": pearson(moments)}


def per_recording(moments: Sequence[Float64[Tensor, "D 6"]]) -> dict[str, Float64[Tensor, " D"]]:
    """The mean over recordings of each recording's own scores, as AVEC'18 ranks.

    Args:
        moments: one entry a recording, at least one. A recording without a valid frame in a
            dimension is left out there; where none is left the mean is NaN.
    """
    stacked = torch.stack(list(moments))
    used = stacked[..., 0] > 0
    return {
        name: torch.where(used, values, 0.0).sum(0) / used.sum(0)
        for name, values in scores(stacked).items()
    }


def affect_loss(
    prediction: Float[Tensor, "N T D"],
    reference: Float[Tensor, "N T D"],
    mask: Bool[Tensor, "N T"],
    *,
    name: Literal["ccc", "mse", "ccc_mse"] = "ccc",
    per: Literal["batch", "sequence"] = "batch",
    mix: float = 0.5,
) -> Float[Tensor, " D"]:
    """What training minimises, one value a dimension, in float32 at least.

    Args:
        prediction: the model's output.
        reference: labels; a NaN is left out of value and gradient.
        mask: True at real frames.
        name: `ccc` for 1 - CCC, `mse`, or `ccc_mse` for mix * (1 - CCC) + (1 - mix) * MSE.
        per: how CCC pools; see `ccc_loss`.
        mix: share of 1 - CCC in `ccc_mse`, 0 to 1.

    Raises:
        UserError: the name is unknown.
    """
    if name == "ccc":
        return ccc_loss(prediction, reference, mask, per)
    if name == "mse":
        return mse_loss(prediction, reference, mask)
    if name == "ccc_mse":
        concordance = ccc_loss(prediction, reference, mask, per)
        return mix * concordance + (1 - mix) * mse_loss(prediction, reference, mask)
    raise UserError(f"unknown loss {name!r}: choose ccc, mse or ccc_mse")


def ccc_loss(
    prediction: Float[Tensor, "N T D"],
    reference: Float[Tensor, "N T D"],
    mask: Bool[Tensor, "N T"],
    per: Literal["batch", "sequence"] = "batch",
) -> Float[Tensor, " D"]:
    """1 - CCC in each dimension, 0 to 2.

    Args:
        prediction: the model's output.
        reference: labels; a NaN is left out of value and gradient.
        mask: True at real frames.
        per: `batch` pools all frames; `sequence` is the mean over sequences of their own 1 - CCC.
            Fewer than two valid frames have no CCC: such a sequence, or batch, is left out, and
            where nothing is left the loss is 0 with a gradient of 0.
    """
    x, y, valid = _valid(prediction, reference, mask)
    if per == "batch":
        x, y, valid = (values.flatten(0, 1).unsqueeze(0) for values in (x, y, valid))
    count = valid.sum(1)
    weight = valid.to(x.dtype) / count.clamp(min=1).unsqueeze(1)
    mean_x, mean_y = (weight * x).sum(1), (weight * y).sum(1)
    dx, dy = x - mean_x.unsqueeze(1), y - mean_y.unsqueeze(1)
    covariance = (weight * dx * dy).sum(1)
    variances = (weight * (dx.square() + dy.square())).sum(1)
    loss = 1 - 2 * covariance / (variances + (mean_x - mean_y).square() + _EPSILON)
    used = count >= _MINIMUM_FRAMES
    return torch.where(used, loss, 0.0).sum(0) / used.sum(0).clamp(min=1)


def mse_loss(
    prediction: Float[Tensor, "N T D"],
    reference: Float[Tensor, "N T D"],
    mask: Bool[Tensor, "N T"],
) -> Float[Tensor, " D"]:
    """Mean squared error over all valid frames in each dimension; 0 where there is none."""
    x, y, valid = _valid(prediction, reference, mask)
    return (x - y).square().sum((0, 1)) / valid.sum((0, 1)).clamp(min=1)


class AffectMetrics(Metric):
    """Pooled CCC, RMSE and Pearson's correlation of everything seen, and the mean loss of batches.

    The state is moments and sums, in float64 whatever the model's precision; processes are joined
    by `merge`, so that a distributed result equals a single process's.

    Args:
        dimensions: D.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    moments: Tensor
    losses: Tensor
    batches: Tensor

    def __init__(self, dimensions: int, **options: Any) -> None:
        super().__init__(**options)
        empty = torch.zeros(dimensions, 6, dtype=torch.float64)
        self.add_state("moments", empty, dist_reduce_fx=merge)
        self.add_state("losses", empty[:, 0].clone(), dist_reduce_fx="sum")
        self.add_state("batches", empty[0, 0].clone(), dist_reduce_fx="sum")

    def update(
        self,
        prediction: Float[Tensor, "*batch D"],
        reference: Float[Tensor, "*batch D"],
        mask: Bool[Tensor, "*batch"],
        loss: Float[Tensor, " D"] | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            prediction: see `moments`.
            reference: see `moments`.
            mask: see `moments`.
            loss: the batch's, in each dimension.
        """
        seen = moments(prediction.detach(), reference, mask)
        first = self._update_count == 1
        self.moments = seen if first else merge(torch.stack([self.moments, seen]))
        if loss is not None:
            self.losses = self.losses + loss.detach()
            self.batches = self.batches + 1

    def compute(self) -> dict[str, Float64[Tensor, " D"]]:
        """The scores so far, by name: `ccc`, `rmse`, `pearson`, and `loss` where one was given."""
        mean = {"loss": self.losses / self.batches} if self.batches else {}
        return {**scores(self.moments), **mean}

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> torch.nn.Module:
        """Follow the model to its device, never to its precision: a count needs more than half."""
        return super()._apply(lambda state: state.to(fn(state).device), exclude_state)


def _weighted_mean(
    values: Float64[Tensor, "K ..."], weights: Float64[Tensor, "K ..."]
) -> Float64[Tensor, " ..."]:
    """The mean about the first value that has weight, so that equal values keep it exactly."""
    first = (weights > 0).int().argmax(0, keepdim=True)
    origin = values.gather(0, first)
    shift = (weights * (values - origin)).sum(0) / weights.sum(0).clamp(min=1.0)
    return origin.squeeze(0) + shift


def _ratio(
    numerator: Float64[Tensor, "*rest"],
    denominator: Float64[Tensor, "*rest"],
    n: Float64[Tensor, "*rest"],
) -> Float64[Tensor, "*rest"]:
    """The quotient with 0/0 = 0, and NaN where n is 0."""
    quotient = torch.where(denominator == 0, 0.0, numerator / denominator)
    return torch.where(n > 0, quotient, torch.nan)


def _valid(
    prediction: Float[Tensor, "N T D"],
    reference: Float[Tensor, "N T D"],
    mask: Bool[Tensor, "N T"],
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N T D"], Bool[Tensor, "N T D"]]:
    """Both traces in float32 at least, zero where a frame does not count, and where it does.

    Selecting before any arithmetic keeps a NaN out of the gradient, where 0 * NaN would be NaN.
    """
    valid = mask.unsqueeze(-1) & ~reference.isnan()
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    x = torch.where(valid, prediction.to(dtype), 0.0)
    y = torch.where(valid, reference.to(dtype), 0.0)
    return x, y, valid
