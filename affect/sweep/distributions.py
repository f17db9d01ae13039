"""W&B's distributions: from a quantile to a parameter's value.

Definitions are those of W&B's own engine (PyPI `sweeps` 0.3.0, `params.py`): the value at quantile
u is the inverse of the distribution function, rounded to a multiple of q where the name says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

_EDGE = 1e-12
"""Least distance of a quantile from 0 and 1, where unbounded distributions end in infinity."""

Settings = Mapping[str, Any]
"""What a sweep file says of a parameter, with defaults filled in."""


def value_at(kind: str, settings: Settings, quantile: float) -> Any:
    """The value below which a share `quantile` of the distribution lies.

    Args:
        kind: W&B's name of the distribution, such as `q_log_uniform_values`.
        settings: its `min`, `max`, `mu`, `sigma`, `a`, `b`, `q`, `value`, `values` or
            `probabilities`.
        quantile: 0 to 1.
    """
    if kind in _DISCRETE:
        return _DISCRETE[kind](settings, quantile)
    inside = min(max(quantile, _EDGE), 1 - _EDGE)
    value = float(_CONTINUOUS[kind.removeprefix("q_")](settings, inside))
    return rounded(value, settings["q"]) if kind.startswith("q_") else value


def rounded(value: float, q: float) -> float:
    """The multiple of q next to a value; an integer where q is one."""
    return round(value / q) * q


def place(quantile: float, count: int) -> int:
    """Which of `count` equally likely things lies at a quantile, 0 to count - 1."""
    return min(int(quantile * count), count - 1)


def _between(low: float, high: float, quantile: float) -> float:
    return low + quantile * (high - low)


def _logarithmic(settings: Settings, quantile: float) -> float:
    """`log(value)` is uniform between the logarithms of the limits."""
    return math.exp(_between(math.log(settings["min"]), math.log(settings["max"]), quantile))


def _normal(settings: Settings, quantile: float) -> float:
    return settings["mu"] + settings["sigma"] * NormalDist().inv_cdf(quantile)


def _beta(settings: Settings, quantile: float) -> float:
    from scipy.special import betaincinv

    return float(betaincinv(settings["a"], settings["b"], quantile))


def _weighted(settings: Settings, quantile: float) -> Any:
    below = 0.0
    for value, probability in zip(settings["values"], settings["probabilities"], strict=True):
        below += probability
        if quantile < below:
            return value
    return settings["values"][-1]


_CONTINUOUS: Mapping[str, Callable[[Settings, float], float]] = {
    "uniform": lambda s, u: _between(s["min"], s["max"], u),
    "log_uniform": lambda s, u: math.exp(_between(s["min"], s["max"], u)),
    "log_uniform_values": _logarithmic,
    "inv_log_uniform": lambda s, u: math.exp(-_between(s["min"], s["max"], 1 - u)),
    "inv_log_uniform_values": _logarithmic,  # log(1 / value) is uniform: the same values
    "normal": _normal,
    "log_normal": lambda s, u: math.exp(_normal(s, u)),
    "beta": _beta,
}
_DISCRETE: Mapping[str, Callable[[Settings, float], Any]] = {
    "constant": lambda s, _: s["value"],
    "categorical": lambda s, u: s["values"][place(u, len(s["values"]))],
    "categorical_w_probabilities": _weighted,
    "int_uniform": lambda s, u: s["min"] + place(u, s["max"] - s["min"] + 1),
}
