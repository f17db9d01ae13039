"""Still images: their pixels, and each as a video of one frame."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.logging import set_level
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from torch import Tensor

from affect.extraction.container import OPTIONS, require_content, video_stream
from affect.extraction.failures import ExtractionError
from affect.extraction.screen import Screen
from affect.extraction.video import FrameBatch

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What a folder's still images are known by, in lower case."""

_JPEG = b"\xff\xd8\xff"


class Still:
    """A still image, to be read as if it were a `Video` of one frame.

    Attributes:
        path: the file.
        rate_hz: 1, since a frame must last for some time.
        frames, batch_frames, dropped, errors, ended_early: as of a video that is whole.
    """

    rate_hz = 1.0
    frames = 1
    batch_frames = 1
    dropped = 0
    errors = 0
    ended_early = False

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            UserError: it is missing, no image, or a video.
        """
        self.path = path
        self._pixels = read_image(path)

    def __enter__(self) -> Still:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to let go of: the file is closed."""

    def __iter__(self) -> Iterator[FrameBatch]:
        """Its one frame."""
        yield FrameBatch(self._pixels[None], np.zeros(1), np.ones(1, bool))


def read_image(path: Path) -> UInt8[Tensor, "H W 3"]:
    """The pixels of a still image: blue, green, red; upright.

    JPEG is decoded by FFmpeg, whose inverse DCT is not to the bit that of OpenCV's `imread`.

    Raises:
        UserError: the file is missing, no image, or a video.
    """
    require_content(path)
    set_level(None)
    try:
        # Given as bytes, no part of its name is taken for a protocol or a pattern.
        content = path.read_bytes()
    except PermissionError as error:
        raise ExtractionError(path, "cannot be read", "change its permissions") from error
    frames = _decoded(path, content)
    # FFmpeg fills what a cut JPEG lacks with grey, and says so to nobody.
    if content.startswith(_JPEG) and not _decoded(path, content, err_detect="explode"):
        raise ExtractionError(path, "a damaged picture", "copy it again, or save it anew")
    if not frames:
        raise ExtractionError(path, "no image", "give a picture such as a .png or .jpg")
    if len(frames) > 1:
        raise ExtractionError(path, "a video, not a still image", "give it without --still")
    return torch.from_numpy(Screen(frames[0]).show(frames[0]).copy())


def _decoded(path: Path, content: bytes, **options: str) -> list[VideoFrame]:
    """The picture, or the first two of several; none where FFmpeg cannot decode it."""
    try:
        with av.open(io.BytesIO(content), "r", **OPTIONS) as container:
            stream = video_stream(path, container)
            stream.codec_context.options = options
            # Phones append a depth or gain map to a JPEG, which then looks like several.
            enough = 1 if container.format.name == "mjpeg" else 2
            return list(islice(container.decode(stream), enough))
    except FFmpegError:
        return []
