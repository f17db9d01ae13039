"""What a declared field of a message may hold: types, sizes of arrays, finite numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin

import numpy as np


@cache
def check_of(declared: Any) -> Callable[[Any], bool]:
    """Tells whether a value is of a declared type."""
    if isinstance(declared, UnionType):
        checks = [check_of(kind) for kind in get_args(declared)]
        return lambda value: any(fits(value) for fits in checks)
    if get_origin(declared) is list:
        fits_item = check_of(*get_args(declared))
        return lambda value: isinstance(value, list) and all(map(fits_item, value))
    if declared in (int, float):
        return lambda value: isinstance(value, declared) and not isinstance(value, bool)
    return lambda value: isinstance(value, declared)


@cache
def axes_of(declared: Any) -> tuple[str, ...]:
    """The axes of a declared array, each a letter or a number; of anything else none."""
    if isinstance(declared, UnionType):
        return max((axes_of(kind) for kind in get_args(declared)), key=len)
    return tuple(getattr(declared, "dim_str", "").split())


def finite(array: np.ndarray) -> bool:
    """Whether all its numbers are finite."""
    with np.errstate(all="ignore"):  # numbers that are finite may add up to one that is not
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())
