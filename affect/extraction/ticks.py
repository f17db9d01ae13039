"""Which frame stands on each tick of a video's clock, told from its packets: nothing is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from jaxtyping import Int

from affect.extraction.clock import Clock
from affect.extraction.container import opened, rate_of, shows_nothing, video_stream


@dataclass(frozen=True, eq=False)
class Ticks:
    """The clock that `video.Video` lays over a file's frames; T ticks.

    Attributes:
        rate_hz: ticks a second.
        frames: how many frames the file holds.
        shown: the frame on each tick, counted from 0 in the order of presentation.
    """

    rate_hz: float
    frames: int
    shown: Int[np.ndarray, " T"]

    @property
    def dropped(self) -> int:
        """How many frames fell into the tick of another."""
        return self.frames - len(np.unique(self.shown))


def ticks_of(path: Path) -> Ticks:
    """The ticks of a video file, for those who read all its frames but none of their times.

    Raises:
        UserError: the file cannot be read or is no video.
    """
    with opened(path) as container:
        stream = video_stream(path, container)
        rate_hz = rate_of(path, stream)
        times = _times(container, stream)
        clock = Clock(rate_hz, float(stream.time_base or 1))
    return Ticks(rate_hz, len(times), _shown(times, clock))


def _times(container: InputContainer, stream: VideoStream) -> list[int] | list[None]:
    """When each frame is presented, in order; None for all where the file does not say of one.

    Packets come in the order of decoding, whose clock goes back only where times start anew.
    """
    times: list[tuple[int, int | None]] = []
    part, latest = 0, None
    with suppress(FFmpegError):  # what lies behind the damage nobody reads
        for packet in container.demux(stream):
            if shows_nothing(packet):
                continue
            if packet.dts is not None:
                part += latest is not None and packet.dts < latest
                latest = packet.dts
            times.append((part, packet.pts))
    known = sorted((part, pts) for part, pts in times if pts is not None)
    return [pts for _, pts in known] if len(known) == len(times) else [None] * len(times)


def _shown(times: Sequence[int | None], clock: Clock) -> Int[np.ndarray, " T"]:
    shown: list[int] = []
    for frame, pts in enumerate(times):
        ticks = clock.advance(pts)
        if ticks:
            shown += shown[-1:] * (ticks - 1)
            shown.append(frame)
    return np.array(shown, np.int64)
