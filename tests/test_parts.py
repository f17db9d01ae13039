import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from affect.errors import UserError
from affect.extraction.parts import InParts


@given(st.integers(1, 40), st.integers(1, 12))
def test_parts_change_no_result_and_none_is_larger(frames, size):
    lengths = []

    def summed(first, second):
        lengths.append(len(first))
        return first + second

    rows = torch.arange(frames)
    assert InParts(cpu=size)(summed, rows, rows).equal(2 * rows)
    assert max(lengths) <= size


class Device:
    """A device that holds so many frames at once; `meta` tensors are on no CPU."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.tried = []

    def __call__(self, frames):
        self.tried.append(len(frames))
        if len(frames) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return frames


@pytest.mark.parametrize("capacity", [1, 5, 100])
def test_parts_are_halved_where_memory_runs_out_and_stay_so(capacity):
    device, in_parts = Device(capacity), InParts(cpu=8, gpu=64)
    frames = torch.zeros(50, 3, device="meta")
    assert in_parts(device, frames).shape == (50, 3)
    assert in_parts.gpu == {1: 1, 5: 3, 100: 64}[capacity]
    device.tried.clear()
    in_parts(device, frames)
    assert max(device.tried) <= capacity


def test_memory_that_holds_no_frame_is_told():
    with pytest.raises(UserError, match="does not hold the work on one frame"):
        InParts(cpu=8)(Device(0), torch.zeros(4, device="meta"))
