"""How benchmarks measure: what an item reports, repeats after a warm-up, processes of their own."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

KIB_PER_MIB = 1024


@dataclass(frozen=True)
class Outcome:
    """What one item measured.

    Attributes:
        goal: what was asked for, in words.
        met: whether it was reached; None where it could not be measured.
        summary: the result in words.
        repeats: measurements behind a median.
        settings: sizes and conditions.
        median: the results by name; units are in the names.
        samples: every measurement by name.
    """

    goal: str
    met: bool | None
    summary: str
    repeats: int
    settings: dict[str, Any]
    median: dict[str, Any]
    samples: dict[str, Any]


def apart(place: str, *arguments: Any) -> Any:
    """The result of `module:function`, from a process of its own.

    Nothing is shared with what was measured before: neither imports, nor caches, nor a peak of
    memory. The caller imports nothing of the module, since a process's peak starts at its parent's.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_call, place, *arguments).result()


def seconds_of(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repeat, after one warm-up that does not count."""
    work()
    return [timed(work) for _ in range(repeats)]


def timed(work: Callable[[], object]) -> float:
    """Seconds of one execution."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def peak_memory_mib() -> float:
    """This process's peak of resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_MIB


def write_corpus(cache: Path, recordings: int, seconds: float) -> None:
    """Fill a cache with synthetic recordings at 25 frames a second, one a subject.

    Both ends of a recording have a frame: 300 s are 7501 frames.
    """
    from affect import store
    from affect.data import synthetic

    for item in synthetic.pending(recordings, seconds):
        store.write(item.load(), cache)


def _call(place: str, *arguments: Any) -> Any:
    module, function = place.split(":")
    return getattr(import_module(module), function)(*arguments)
