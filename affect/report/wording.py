"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from affect.report.bootstrap import Interval
from affect.report.compare import Standing

_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEP = 1000
_MINUTE_S, _HOUR_S = 60, 3600
NONE = "-"
"""Stands where a run has no such number."""


def number(value: float, *, sign: bool = False) -> str:
    """Three decimals; without a value, a dash."""
    return NONE if math.isnan(value) else f"{value:+z.3f}" if sign else f"{value:z.3f}"


def bounds(item: Interval, *, sign: bool = False) -> str:
    """`low…high`; empty where there is no interval."""
    if math.isnan(item.low):
        return ""
    return f"{number(item.low, sign=sign)}…{number(item.high, sign=sign)}"


def share(value: float) -> str:
    """Per cent, with one decimal."""
    return f"{100 * value:.1f} %"


def size(count: float) -> str:
    """Bytes in powers of a thousand, three digits: `1.23 MB`."""
    power = 0
    while count >= _STEP - 0.5 and power < len(_UNITS) - 1:
        count, power = count / _STEP, power + 1
    return f"{count:.3g} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """`12.3 s`, `4 min 05 s` or `2 h 03 min`."""
    if seconds < _MINUTE_S - 0.05:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest_s = divmod(whole, _MINUTE_S)
    if whole < _HOUR_S:
        return f"{minutes} min {rest_s:02d} s"
    return f"{minutes // _MINUTE_S} h {minutes % _MINUTE_S:02d} min"


def passes(run: Standing) -> str:
    """How long a run has trained: `40 rounds`, or `31…40 epochs` where its folds differ."""
    low, high = min(run.trained), max(run.trained)
    counts = f"{low}" if low == high else f"{low}…{high}"
    return f"{counts} {unit_of(run)}{'' if high == 1 else 's'}"


def unit_of(run: Standing) -> str:
    """What a run trains by."""
    return "round" if run.kind == "federate" else "epoch"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
