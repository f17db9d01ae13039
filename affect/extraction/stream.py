"""Batches of frames on their way from the decoder to the networks."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from affect.extraction.video import FrameBatch


def ahead(batches: Iterable[FrameBatch]) -> Generator[FrameBatch, None, None]:
    """The same batches, the next one decoded by a thread while this one is worked on.

    Closed early, it waits for the thread.
    """
    iterator = iter(batches)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield batch
            del batch  # else it would live on while the next one is waited for


def joined(batches: Iterable[FrameBatch], count: int, device: torch.device) -> Iterator[FrameBatch]:
    """The frames of `count` batches as one, on a device; in the end of what is left."""
    iterator = iter(batches)
    while part := list(islice(iterator, count)):
        yield _one(part, device)
        part.clear()


def _one(batches: Sequence[FrameBatch], device: torch.device) -> FrameBatch:
    if len(batches) == 1 and batches[0].pixels.device == device:
        return batches[0]
    return FrameBatch(
        torch.cat([batch.pixels.to(device) for batch in batches]),
        np.concatenate([batch.time_s for batch in batches]),
        np.concatenate([batch.decoded for batch in batches]),
    )
