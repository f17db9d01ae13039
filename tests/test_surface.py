"""A GPU's frames, NV12, against swscale's conversion of the same pixels as the CPU decodes them."""

import contextlib

import av
import numpy as np
import pytest
import torch
from av.error import FFmpegError

from affect.extraction import surface
from affect.extraction.screen import Screen
from affect.extraction.video import Video
from tests import clips


def frame_of(planes, pixel_format, matrix, limits):
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = matrix, limits
    return frame


@pytest.mark.parametrize("limits", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 2, 4, 5, 6, 7, 9])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (34, 50), (2, 2)])
def test_the_conversion_is_swscales_to_the_bit(height, width, matrix, limits):
    rng = np.random.default_rng(matrix)
    luma = rng.integers(0, 256, (height, width), np.uint8)
    u, v = rng.integers(0, 256, (2, height // 2, width // 2), np.uint8)
    decoded = frame_of((luma, u, v), "yuv420p", matrix, limits)
    chroma = np.stack([u, v], -1).reshape(height // 2, width)
    found = surface.bgr(frame_of((luma, chroma), "nv12", matrix, limits))
    np.testing.assert_array_equal(found.numpy(), Screen(decoded).show(decoded))


@pytest.mark.parametrize("matrix", range(18))
def test_what_swscale_refuses_is_not_converted_on_a_gpu_either(matrix):
    decoded = frame_of(np.full((3, 2, 2), 90, np.uint8), "yuv444p", matrix, 1)
    refused = contextlib.nullcontext()
    if matrix not in surface.CONVERTED:
        refused = pytest.raises(FFmpegError)
    with refused:
        Screen(decoded).show(decoded)


@pytest.mark.parametrize("rotation", [0, 90, 180])
def test_where_no_gpu_decodes_the_cpu_does(tmp_path, rotation):
    path = tmp_path / "a.mp4"
    options = {"codec": "libx264", "pixel_format": "yuv420p", "rotation": rotation}
    clips.write(path, clips.noise(20, 32, 48), **options)
    with Video(path) as plain, Video(path, gpu=torch.device("cpu")) as asked:
        for one, other in zip(plain, asked, strict=True):
            assert other.pixels.equal(one.pixels)
            assert (other.decoded == one.decoded).all()
        assert asked.errors == 0
