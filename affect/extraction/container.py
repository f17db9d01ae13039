"""Video files as FFmpeg opens them: the stream to decode, its rate, and what is no video."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.logging import set_level
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from affect.extraction import surface
from affect.extraction.failures import ExtractionError

_PROBE_PACKETS, _PROBE_BYTES = 600, 32 << 20
_RATE_AGREEMENT = 0.01
"""Share by which a header's rate may differ from the measured one and still be its exact form."""
_FASTER = 1.1
"""How much faster than its start a video may be on average before its start says little."""
_EMPTY_BYTES = 8
"""A packet no longer than this repeats the frame before: AVI's way to hold one."""
OPTIONS: Any = {
    # A playlist reaches no further than the disk.
    "container_options": {"protocol_whitelist": "file"},
    "metadata_errors": "replace",
}
_CONTAINERS = (b"ftyp", b"RIFF", b"\x1aE\xdf\xa3", b"moov", b"mdat", b"wide")
"""What stands in the first eight bytes of files that hold video."""


def require_content(path: Path) -> None:
    """Refuse a path that holds nothing to read.

    Raises:
        UserError: it is missing, a folder, no regular file, or empty.
    """
    if not path.exists():
        raise ExtractionError(path, "no such file", "check the name")
    if path.is_dir():
        raise ExtractionError(path, "a folder", "give a file")
    if not path.is_file():
        raise ExtractionError(path, "no regular file", "copy it to a disk first")
    if path.stat().st_size == 0:
        raise ExtractionError(path, "empty", "copy it again")


def opened(path: Path, gpu: torch.device | None = None) -> InputContainer:
    """The file's container, to be closed by the caller.

    Args:
        path: the file.
        gpu: decodes the video where it can; where it cannot, the CPU does.

    Raises:
        UserError: it cannot be read, or is no video.
    """
    require_content(path)
    set_level(None)  # FFmpeg's own remarks would go to standard error
    name = f"file:{path}"  # so a colon names no protocol
    if gpu is not None:
        with suppress(FFmpegError):  # no such decoder here, or the file is broken
            return av.open(name, "r", hwaccel=surface.accelerator(gpu), **OPTIONS)
    try:
        return av.open(name, "r", **OPTIONS)
    except PermissionError as error:
        raise ExtractionError(path, "cannot be read", "change its permissions") from error
    except FFmpegError as error:
        raise ExtractionError(path, *_why_not(path)) from error


def _why_not(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        start = file.read(8)
    if any(mark in start for mark in _CONTAINERS):
        return "cut off or damaged, its index cannot be read", "copy it again or repair it"
    return "no video", "give a video file such as .mp4, .mkv or .avi"


def video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The largest video stream; the cover picture of a piece of music is none."""
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        raise ExtractionError(
            path, "no video in it, only sound or data", "give the file with pictures"
        )
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise ExtractionError(path, "a codec that FFmpeg cannot decode", "convert it to H.264")
    return max(decodable, key=lambda stream: stream.width * stream.height)


def shows_nothing(packet: Packet) -> bool:
    """Whether it repeats the frame before, or an edit list cuts it away."""
    return packet.size <= _EMPTY_BYTES or packet.is_discard


def rate_of(path: Path, stream: VideoStream) -> float:
    """Frames a second: the header's figure that agrees with the first frames' times, or theirs.

    A header may be off by what an edit list cuts away, by a pause, or altogether, but it is exact
    (24000/1001) where times are rounded to milliseconds.

    Raises:
        UserError: the file holds a single picture, or neither times nor a rate.
    """
    packets, pts = _first_packets(path, stream.index)
    if packets < 2:  # noqa: PLR2004 - a step needs two times
        raise ExtractionError(
            path,
            "a single picture is no video, whatever its name",
            "give a video file (affect extract takes pictures with --still)",
        )
    named = [float(rate) for rate in (stream.guessed_rate, stream.average_rate) if rate]
    measured = _typical_rate(pts, float(stream.time_base or 1))
    if measured is None:
        if not named:
            raise ExtractionError(
                path, "neither frame times nor a frame rate", "convert it to .mp4"
            )
        return named[0]
    average = stream.average_rate
    # Only MP4 lists every frame's time; others guess an average from the start, and AVI counts
    # the empty packets of a pause.
    if "mp4" in stream.container.format.name and average and average > _FASTER * measured:
        return float(average)
    nearest = min(named, key=lambda rate: abs(rate - measured), default=measured)
    return nearest if abs(nearest / measured - 1) <= _RATE_AGREEMENT else measured


def _first_packets(path: Path, index: int) -> tuple[int, list[int]]:
    """How many packets with pictures were looked at from the start, and the times they have.

    They are read from a container of their own: to seek back is not possible in all.
    """
    count = size = 0
    pts: list[int] = []
    with opened(path) as container, suppress(FFmpegError):
        for packet in container.demux(container.streams[index]):
            if shows_nothing(packet):
                continue
            count, size = count + 1, size + packet.size
            if packet.pts is not None:
                pts.append(packet.pts)
            if count >= _PROBE_PACKETS or (count > 2 and size > _PROBE_BYTES):  # noqa: PLR2004
                break
    return count, pts


def _typical_rate(pts: list[int], time_base_s: float) -> float | None:
    """The inverse of the mean of those steps that are within half a median step of the median."""
    steps = np.diff(np.unique(pts))
    if len(steps) == 0:
        return None
    median = np.median(steps)
    return float(1 / (steps[np.abs(steps - median) <= median / 2].mean() * time_base_s))


def expected_frames(container: InputContainer, stream: VideoStream, rate_hz: float) -> int | None:
    """How many frames the header promises at a rate; None where it does not say."""
    if stream.duration is not None and stream.time_base is not None:
        return round(float(stream.duration * stream.time_base) * rate_hz)
    if container.duration is not None:
        return round(container.duration / av.time_base * rate_hz)
    return stream.frames or None
