"""What a client has learned as whole numbers, whose sum is exact in any order, and back again.

Changes of parameters are rounded to a grid, up or down at random so that the mean is unbiased, and
multiplied by the client's weight; a mean of clients is off by less than one step of the grid.
Training scores go along as power sums, since moments about a client's own mean do not add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from affect.config import FederationConfig, SecureAggregationConfig
from affect.errors import UserError
from affect.federated.messages import Masked, Trained
from affect.federated.privacy import clipped

_TALLY_STEP = 2.0**-20
_LARGEST = 2.0**47
"""Of one client's number: the sum of 65,536 of them fits in 64 bits with its sign."""

_PER_DIMENSION = 7
"""A loss and six power sums."""

_KEY = "federation.privacy.secure_aggregation"


@dataclass(frozen=True)
class Pooled:
    """What a round's clients have learned, together.

    Attributes:
        change: weighted sum of the changes of the parameters.
        weight: sum of the weights.
        batches: of their training.
        losses: sum over all batches, in each dimension.
        moments: of all predictions against labels while they trained.
    """

    change: Float64[np.ndarray, " P"]
    weight: int
    batches: int
    losses: Float64[np.ndarray, " D"]
    moments: Float64[np.ndarray, "D 6"]


def step_of(config: SecureAggregationConfig) -> float:
    """The distance between two neighbours on the grid."""
    return config.range / 2 ** (config.bits - 1)


def contribution(
    trained: Trained,
    start: Float32[np.ndarray, " P"],
    config: FederationConfig,
    generator: np.random.Generator,
) -> Masked:
    """A client's numbers, not masked yet.

    Args:
        trained: what it has learned.
        start: the round's first model.
        config: weighting, range, and the norm of a `central` update.
        generator: of the rounding.

    Raises:
        UserError: a number is not finite or too large.
    """
    weight = _weight(trained, config)
    changes = weight * quantised(_change(trained, start, config), _secure(config), generator)
    sums = _power_sums(trained.moments) / _TALLY_STEP
    losses = trained.losses * trained.batches / _TALLY_STEP
    tallies = np.concatenate([[weight, trained.batches], losses, sums.ravel()])
    if not (np.abs(tallies) < _LARGEST).all():
        raise UserError("its training scores are too large to be summed: training diverged there")
    if not (np.abs(changes) < _LARGEST).all():
        raise UserError(f"its frames are too many for {_KEY}.bits {_secure(config).bits}: lower it")
    return Masked(changes.view(np.uint64), np.rint(tallies).astype(np.int64).view(np.uint64))


def masked_tallies(dimensions: int) -> int:
    """How many numbers go with a masked update: weight, batches, losses and power sums."""
    return 2 + _PER_DIMENSION * dimensions


def quantised(
    change: Float64[np.ndarray, " P"],
    config: SecureAggregationConfig,
    generator: np.random.Generator,
) -> Int64[np.ndarray, " P"]:
    """Changes in steps of the grid, rounded up or down at random.

    Raises:
        UserError: one is not finite or beyond the range.
    """
    if not np.isfinite(change).all():
        raise UserError("its parameters are not finite: training diverged there")
    if np.abs(change).max(initial=0.0) > config.range:
        raise UserError(
            f"a parameter changed by more than {_KEY}.range {config.range:g}: raise it, or lower "
            "the learning rate"
        )
    return np.floor(change / step_of(config) + generator.random(len(change))).astype(np.int64)


def pooled(total: Masked, clients: int, config: SecureAggregationConfig) -> Pooled:
    """What the sum of clients' numbers stands for, without its masks.

    Raises:
        UserError: masks are left in it.
    """
    tallies = total.tallies.view(np.int64)
    if not (tallies[:2] > 0).all() or not (np.abs(tallies) < clients * _LARGEST).all():
        raise UserError("the masks did not cancel: a client sent other numbers or pieces than due")
    dimensions = (len(tallies) - 2) // _PER_DIMENSION
    losses, sums = np.split(tallies[2:] * _TALLY_STEP, [dimensions])
    return Pooled(
        change=total.parameters.view(np.int64) * step_of(config),
        weight=int(tallies[0]),
        batches=int(tallies[1]),
        losses=losses,
        moments=_moments(sums.reshape(dimensions, 6)),
    )


def _secure(config: FederationConfig) -> SecureAggregationConfig:
    return config.privacy.secure_aggregation


def _weight(trained: Trained, config: FederationConfig) -> int:
    alike = config.privacy.mode == "central" or config.strategy.weighting == "uniform"
    return 1 if alike else trained.frames


def _change(
    trained: Trained, start: Float32[np.ndarray, " P"], config: FederationConfig
) -> Float64[np.ndarray, " P"]:
    """A client's update; under `central` so short that rounding leaves it within the norm.

    Raises:
        UserError: the grid is too coarse for the norm.
    """
    if config.privacy.mode != "central":
        return trained.parameters.astype(np.float64) - start
    norm = config.privacy.clipping_norm - step_of(_secure(config)) * len(start) ** 0.5
    if norm <= 0:
        raise UserError(
            f"rounding to {_KEY}.bits {_secure(config).bits} is longer than "
            "federation.privacy.clipping_norm: raise the bits, or lower the range"
        )
    return clipped(trained.parameters, start, norm)[0]


def _power_sums(moments: Float64[np.ndarray, "D 6"]) -> Float64[np.ndarray, "D 6"]:
    """Count, and the sums of x, y, x ** 2, y ** 2 and x * y; see `affect.metrics.moments`."""
    n, x, y, xx, yy, xy = moments.T
    return np.stack([n, n * x, n * y, xx + n * x * x, yy + n * y * y, xy + n * x * y], axis=1)


def _moments(sums: Float64[np.ndarray, "D 6"]) -> Float64[np.ndarray, "D 6"]:
    """What `_power_sums` was made of; without a sample, zero."""
    n = sums[:, 0]
    x, y, xx, yy, xy = (sums[:, 1:] / np.maximum(n, 1)[:, None]).T
    centred = [np.maximum(xx - x * x, 0), np.maximum(yy - y * y, 0), xy - x * y]
    return np.stack([n, x, y, *(n * item for item in centred)], axis=1)
