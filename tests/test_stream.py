import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from affect.extraction.stream import ahead, joined
from affect.extraction.video import FrameBatch

CPU = torch.device("cpu")


def batches(count, frames=3):
    for index in range(count):
        pixels = torch.full((frames, 2, 2, 3), index, dtype=torch.uint8)
        yield FrameBatch(pixels, index + np.arange(frames) / frames, np.ones(frames, bool))


@given(st.integers(0, 9), st.integers(1, 4))
def test_all_frames_come_once_in_order(count, together):
    found = list(joined(ahead(batches(count)), together, CPU))
    assert [len(batch.time_s) for batch in found[:-1]] == [3 * together] * (len(found) - 1)
    times = [time for batch in found for time in batch.time_s]
    assert times == [time for batch in batches(count) for time in batch.time_s]
    values = [int(pixels[0, 0, 0]) for batch in found for pixels in batch.pixels]
    assert values == [index for index in range(count) for _ in range(3)]


def test_one_batch_is_made_ahead_by_another_thread():
    made = []

    def slowly():
        for batch in batches(5):
            made.append(threading.current_thread())
            yield batch

    stream = ahead(slowly())
    next(stream)
    next(stream)
    stream.close()  # waits for the one under way
    assert len(made) == 3
    assert threading.current_thread() not in made


def test_an_error_of_the_decoder_comes_through():
    def broken():
        yield from batches(1)
        raise ValueError("damaged")

    stream = ahead(broken())
    with pytest.raises(ValueError, match="damaged"):
        list(stream)
