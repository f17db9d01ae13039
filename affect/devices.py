"""Where to compute: devices by the names that users give, and how much a machine takes."""

from __future__ import annotations

import os

import torch

from affect.errors import UserError

_MOST_PER_CORE = 8
"""Threads or processes: with many thousands, a machine or torch itself gives up."""


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # unknown, absent, another build's
        raise UserError(f"no device {name!r} here: choose auto or cpu") from error
    return device


def refuse_crowd(name: str, count: int) -> None:
    """Refuse so many threads or processes that this machine's cores could not run them.

    Args:
        name: the key that asks for them.
        count: how many.

    Raises:
        UserError: saying how many cores there are.
    """
    cores = len(os.sched_getaffinity(0))
    if count > _MOST_PER_CORE * cores:
        raise UserError(
            f"{name} is {count}, and there are {cores} cores here: give at most "
            f"{_MOST_PER_CORE * cores}"
        )


def use_threads(name: str, count: int) -> None:
    """Let torch compute with so many threads on the CPU.

    Args:
        name: the key that asks for them.
        count: how many.

    Raises:
        UserError: as `refuse_crowd`, or it is none.
    """
    if count < 1:
        raise UserError(f"{name} must be at least 1")
    refuse_crowd(name, count)
    torch.set_num_threads(count)
