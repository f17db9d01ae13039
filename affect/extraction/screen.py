"""Decoded frames as a viewer would see them: upright, of one size, blue, green, red."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from av.filter import Graph
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8
from torch import Tensor

from affect.extraction import surface

_UNNAMED = range(max(kind.value for kind in Type) + 1, 40)
"""Kinds of side data that FFmpeg may know and PyAV does not: EXIF is one of them."""


class Screen:
    """Shows decoded frames as a viewer would: upright, of one size, blue, green, red.

    Attributes:
        height, width: of what it shows, in pixels.
    """

    def __init__(self, first: VideoFrame) -> None:
        """Take the size and the display matrix of the first frame for all.

        `side_data` makes a frame part of a reference cycle, which would live until the garbage
        collector comes: hundreds of frames. Hence it is asked for once.
        """
        data = _display_matrix(first)
        matrix = np.eye(3) if data is None else np.frombuffer(memoryview(data), np.int32)
        # A step along a stored row goes (a, b) on the screen, one down a column (c, d). Signs are
        # enough: odd angles go to the nearest quarter.
        a, b, _, c, d = matrix.ravel()[:5].tolist()
        self._turned = abs(b) > abs(a)
        self._mirrored, self._upside_down = (c < 0, b < 0) if self._turned else (a < 0, d < 0)
        self._stored = first.height, first.width
        self.height, self.width = self._stored[::-1] if self._turned else self._stored
        self._converter = VideoReformatter()

    def takes(self, frame: VideoFrame) -> bool:
        """Whether the frame can be shown: in a GPU's memory, only some can."""
        if not surface.is_surface(frame):
            return True
        return surface.is_convertible(frame) and (frame.height, frame.width) == self._stored

    def show_on_gpu(self, frame: VideoFrame) -> UInt8[Tensor, "H W 3"]:
        """The pixels of a frame in a GPU's memory, there; of any other, on the CPU."""
        if not surface.is_surface(frame):
            return torch.from_numpy(self.show(frame).copy())
        pixels = surface.bgr(frame)
        if self._turned:
            pixels = pixels.transpose(0, 1)
        sides = [axis for axis, turned in enumerate((self._upside_down, self._mirrored)) if turned]
        return pixels.flip(sides)

    def show(self, frame: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        """A frame's pixels; they may be a view of its memory."""
        pixels = _bgr(self._converter, frame, self._stored)
        if self._turned:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if self._upside_down else 1, :: -1 if self._mirrored else 1]


def _display_matrix(frame: VideoFrame) -> SideData | None:
    try:
        return frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 gives up on a kind that it has no name for
        return _without_unnamed(frame).side_data.get("DISPLAYMATRIX")


def _without_unnamed(frame: VideoFrame) -> VideoFrame:
    """The frame without the kinds of side data that PyAV cannot name."""
    graph = Graph()
    start = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    removals = [graph.add("sidedata", f"mode=delete:type={kind}") for kind in _UNNAMED]
    graph.link_nodes(start, *removals, graph.add("buffersink")).configure()
    graph.push(frame)
    return cast("VideoFrame", graph.pull())


def _bgr(
    converter: VideoReformatter, frame: VideoFrame, size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    height, width = size
    # One thread: videos, not parts of a frame, are what runs side by side.
    picture = converter.reformat(
        frame, width, height, "bgr24", interpolation=Interpolation.BICUBIC, threads=1
    )
    plane = picture.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, abs(plane.line_size))
    if plane.line_size < 0:  # a bitmap's rows, from the bottom up
        rows = rows[::-1]
    return rows[:, : 3 * width].reshape(height, width, 3)
