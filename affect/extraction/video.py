"""Videos as batches of frames on a constant clock: decoded as a stream, in bounded memory.

Pixels are to the bit what OpenCV's `VideoCapture` (4.14, 5.0) gives, through which OpenFace reads
frames: blue, green, red, by swscale's bicubic conversion with the matrix and the range that the
file names. OpenCV 4.8 read every file as BT.601. Nothing here writes to a disk.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Bool, Float64, UInt8
from torch import Tensor

from affect.errors import UserError
from affect.extraction.clock import Clock
from affect.extraction.container import (
    expected_frames,
    opened,
    rate_of,
    shows_nothing,
    video_stream,
)
from affect.extraction.failures import ExtractionError
from affect.extraction.screen import Screen

SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv"}
)
"""What a folder's videos are known by, in lower case."""

_BATCH_BYTES = 64 << 20
_DECODER_BYTES = 256 << 20
"""What frames in the hands of decoding threads may take: each thread holds some of its own."""

_READ_ATTEMPTS = 100
_CUT_FRAMES, _CUT_S = 3, 1.0
"""What may lack at the end: of a stream, and besides where only the container has a duration."""


@dataclass(frozen=True, eq=False)
class FrameBatch:
    """N frames that follow one another on the video's clock.

    Attributes:
        pixels: blue, green, red; upright; zeros where `decoded` is False.
        time_s: seconds since the first frame: index / rate.
        decoded: False where the file holds a frame that could not be decoded.
    """

    pixels: UInt8[Tensor, "N H W 3"]
    time_s: Float64[np.ndarray, " N"]
    decoded: Bool[np.ndarray, " N"]


class _Event(NamedTuple):
    """A frame, or the place of one that could not be decoded; `pts` None: it follows the last."""

    pts: int | None
    frame: VideoFrame | None


class Video:
    """A video file, to be read once from its first frame to its last.

        with Video(path) as video:
            for batch in video:
                ...

    A clock with a constant rate is laid over the frames' own times, from the first of them. Every
    frame of a video with a constant rate stands on it once. Of one with a variable rate, a tick
    without a frame holds the frame before, and a frame whose tick is taken is dropped; jitter up
    to three quarters of a period does neither. Frames without times follow one another.

    Attributes:
        path: the file.
        rate_hz: frames a second of the clock.
        frames: how many to expect, from the header; None where it does not say.
        height, width: of the upright picture, in pixels; frames of another size are scaled to it.
        batch_frames: frames a batch; only the last may have fewer.
        dropped: frames so far that fell into the tick of another.
        errors: frames so far that could not be decoded, or only by patching holes, or from such.
    """

    def __init__(
        self,
        path: Path,
        *,
        batch_frames: int = 64,
        batch_bytes: int = _BATCH_BYTES,
        threads: int = 0,
        gpu: torch.device | None = None,
    ) -> None:
        """Open the file and decode up to its first good frame.

        Args:
            path: a video file.
            batch_frames: frames a batch at most, 1 or more.
            batch_bytes: what a batch's pixels may take; a batch has one frame at least.
            threads: decoding threads, within a memory budget; 0 for as many as there are cores.
            gpu: decodes what it can, and holds the pixels of all; None for the CPU.

        Raises:
            UserError: the file is missing, no video, or none of its frames can be decoded.
        """
        self.path = path
        self.dropped = 0
        self._ticks = 0
        self._finished = False
        self._gpu = gpu
        if not self._open(gpu, threads):
            self.close()
            self._open(None, threads)
        self.height, self.width = self._screen.height, self._screen.width
        affordable = batch_bytes // (self.height * self.width * 3)
        self.batch_frames = max(1, min(batch_frames, affordable))
        self._pictures = self._on_clock()

    def _open(self, gpu: torch.device | None, threads: int) -> bool:
        """Open the file up to its first good frame; tells whether its frames can be shown."""
        self.errors = 0
        self._container = opened(self.path, gpu)
        try:
            self._stream = video_stream(self.path, self._container)
            self.rate_hz = rate_of(self.path, self._stream)
            self.frames = expected_frames(self._container, self._stream, self.rate_hz)
            _set_threads(self._stream, threads)
            first, self._coming = self._start()
            self._screen = Screen(first)
        except BaseException:
            self.close()
            raise
        return self._screen.takes(first)

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; batches that were handed out stay."""
        self._container.close()

    @property
    def ended_early(self) -> bool | None:
        """Whether the file holds less than its header promises; None where that is not known.

        Known after the last batch.
        """
        if not self._finished or self.frames is None:
            return None
        own = self._stream.duration is not None or len(self._container.streams) == 1
        slack = _CUT_FRAMES + (0 if own else _CUT_S * self.rate_hz)
        return self._ticks < self.frames - slack

    def __iter__(self) -> Iterator[FrameBatch]:
        """Batches, each in memory of its own; the video itself keeps none of them."""
        while (batch := self._batch()) is not None:
            yield batch
            del batch  # else it would live on while the next one is filled

    def _batch(self) -> FrameBatch | None:
        """The next frames; None after the last."""
        decoded = np.zeros(self.batch_frames, bool)
        pixels = self._blank()
        count = 0
        for picture in islice(self._pictures, self.batch_frames):
            if picture is not None:
                decoded[count] = self._paint(pixels, count, picture)
            count += 1
        if count == 0:
            return None
        first, self._ticks = self._ticks, self._ticks + count
        time_s = np.arange(first, self._ticks) / self.rate_hz
        return FrameBatch(pixels[:count], time_s, decoded[:count])

    def _blank(self) -> UInt8[Tensor, "N H W 3"]:
        shape = self.batch_frames, self.height, self.width, 3
        if self._gpu is not None:
            return torch.zeros(shape, dtype=torch.uint8, device=self._gpu)
        # NumPy's zeros cost nothing until they are touched, and stay where a frame is missing.
        return torch.from_numpy(np.zeros(shape, np.uint8))

    def _paint(self, pixels: UInt8[Tensor, "N H W 3"], row: int, picture: VideoFrame) -> bool:
        """Show a picture in a row; tells whether it could be.

        Raises:
            UserError: nobody can show it, nor then the rest of the video.
        """
        if not self._screen.takes(picture):
            self.errors += 1
            return False
        try:
            if self._gpu is None:
                pixels.numpy()[row] = self._screen.show(picture)
            else:
                pixels[row] = self._screen.show_on_gpu(picture)
        except FFmpegError as error:  # such as BT.2020 with constant luminance
            raise ExtractionError(
                self.path,
                "colours that FFmpeg cannot convert",
                f"{error.strerror}: make them BT.709, such as by ffmpeg's -vf zscale=matrix=709",
            ) from error
        return True

    def _start(self) -> tuple[VideoFrame, Iterator[_Event]]:
        """The first good frame, and all events."""
        events = self._events()
        head = []
        for event in events:
            head.append(event)
            if event.frame is not None:
                return event.frame, chain(head, events)
        raise ExtractionError(
            self.path,
            "none of its frames can be decoded",
            "get an undamaged, unprotected copy or convert it to H.264",
        )

    def _on_clock(self) -> Iterator[VideoFrame | None]:
        """One picture a tick; None where the one that belongs there could not be decoded."""
        clock = Clock(self.rate_hz, float(self._stream.time_base or 1))
        last: VideoFrame | None = None
        for pts, frame in self._coming:
            ticks = clock.advance(pts)
            if ticks == 0:
                self.dropped += frame is not None
                continue
            yield from repeat(last, ticks - 1)
            last = frame
            yield last
        self._finished = True

    def _events(self) -> Iterator[_Event]:
        """Frames in the order of presentation, and the places of those that could not be decoded.

        Such a place is known by the time of a packet whose frame never came. Some packets hold no
        frame to show, so only those count that were under way when the decoder reported an error.
        Frames that build on a damaged one are damaged too: decoders hide that up to the next key
        frame.
        """
        due: set[int] = set()
        suspect: set[int] = set()
        spoilt = False
        for packet in self._packets():
            if packet is not None and packet.pts is not None and not shows_nothing(packet):
                due.add(packet.pts)
            try:
                frames = self._stream.codec_context.decode(packet)
            except FFmpegError:
                frames = []
                suspect |= due
                if packet is not None and packet.pts is None:
                    spoilt = True
                    yield self._lost(None)
            for frame in frames:
                passed = set() if frame.pts is None else {pts for pts in due if pts < frame.pts}
                missing = passed & suspect
                yield from map(self._lost, sorted(missing))
                due -= passed | {frame.pts}
                suspect &= due
                spoilt = frame.is_corrupt or ((spoilt or bool(missing)) and not frame.key_frame)
                yield self._lost(frame.pts) if spoilt else _Event(frame.pts, frame)
        # PyAV swallows an error while it drains the decoder: whatever has not come is lost.
        yield from map(self._lost, sorted(due))

    def _lost(self, pts: int | None) -> _Event:
        self.errors += 1
        return _Event(pts, None)

    def _packets(self) -> Iterator[Packet | None]:
        """The stream's packets, over damage that the container recovers from; None at the end."""
        failures = 0
        while failures < _READ_ATTEMPTS:
            try:
                for packet in self._container.demux(self._stream):
                    failures = 0
                    if packet.size:  # an empty one would drain the decoder
                        yield packet
                break
            except FFmpegError:
                failures += 1
        yield None


def find_files(paths: Iterable[Path], suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """Files, each once: those that are named, and those that folders hold at any depth.

    A named file is taken whatever its suffix; in folders, what is hidden is left out. The files of
    a folder are in order, those of several arguments in theirs.

    Args:
        paths: files and folders.
        suffixes: of the files to take from folders, in lower case.

    Raises:
        UserError: a path is missing, or there is no such file at all.
    """
    paths = list(paths)
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder: check the name")
        for file in _files_below(path, suffixes) if path.is_dir() else [path]:
            found.setdefault(file.resolve(), file)
    if not found:
        raise UserError(
            f"{', '.join(map(str, paths)) or 'no path'}: nothing to extract: give files, "
            f"or folders with any of {' '.join(sorted(suffixes))}"
        )
    return list(found.values())


def _files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files and links to files, below folders and links to folders; a broken link counts too."""
    found: list[Path] = []
    entered: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        folders[:] = [name for name in folders if not name.startswith(".") and real not in entered]
        files = [Path(place, name) for name in names if not name.startswith(".")]
        if real not in entered:
            found += [file for file in files if file.suffix.lower() in suffixes]
        entered.add(real)
    return sorted(found)


def _set_threads(stream: VideoStream, threads: int) -> None:
    context = stream.codec_context
    affordable = max(1, _DECODER_BYTES // max(1, stream.width * stream.height * 3))
    context.thread_type = "AUTO"
    # A GPU's decoder works by itself, and has few surfaces for frames that wait.
    wanted = 1 if context.is_hwaccel else threads or len(os.sched_getaffinity(0))
    context.thread_count = min(wanted, affordable, 16)
