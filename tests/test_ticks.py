"""Which frame stands on each tick, told from packets, against the frames that `Video` decodes."""

import av
import numpy as np
import pytest
import torch

from affect.extraction.ticks import ticks_of
from affect.extraction.video import Video
from tests import clips

# Lossless, and decoded in another order than shown.
REORDERED = {"codec": "libx264rgb", "options": {"qp": "0", "bf": "3", "b_strategy": "0"}}
YUV = {"pixel_format": "yuv420p"}
FRAMES = 49
TIMES_MS = {
    "constant": [40 * frame for frame in range(FRAMES)],
    "late": [5000 + 40 * frame for frame in range(FRAMES)],
    "a pause": [40 * frame + (160 if frame >= 8 else 0) for frame in range(FRAMES)],
    "a burst": np.cumsum([0, *[40] * 20, *[10] * 8, *[40] * 20]).tolist(),
}


def decoded(path):
    """The frames that `clips.grey` drew, by their shade on each tick."""
    with Video(path) as source:
        pixels = torch.cat([batch.pixels for batch in source])
    return (pixels[:, 0, 0, 0].numpy().astype(int) - clips.shade(0)) // 2, source.rate_hz


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mkv", {}), (".mkv", REORDERED), (".mp4", REORDERED), (".avi", {})],
    ids=["mkv", "mkv reordered", "mp4 reordered", "avi"],
)
@pytest.mark.parametrize("times_ms", TIMES_MS.values(), ids=TIMES_MS)
def test_ticks_show_the_frames_of_the_video(tmp_path, times_ms, suffix, codec):
    path = clips.write(tmp_path / f"a{suffix}", clips.grey(FRAMES), times_ms=times_ms, **codec)
    ticks = ticks_of(path)
    shown, rate_hz = decoded(path)
    assert (ticks.frames, ticks.rate_hz) == (FRAMES, rate_hz)
    assert ticks.shown.tolist() == shown.tolist()


def test_times_that_begin_anew_go_on(tmp_path):
    part = clips.write(tmp_path / "part.ts", clips.grey(40), codec="libx264", **YUV)
    path = tmp_path / "both.ts"
    path.write_bytes(part.read_bytes() * 2)
    with av.open(str(path)) as both:
        assert min(np.diff([packet.dts for packet in both.demux(video=0) if packet.size])) < 0
    with Video(path) as source:
        assert sum(len(batch.time_s) for batch in source) == 80
    assert ticks_of(path).shown.tolist() == list(range(80))


def test_a_stream_without_times_is_counted(tmp_path):
    path = tmp_path / "a.h264"
    clips.write(path, clips.grey(30), codec="libx264", **YUV)
    ticks = ticks_of(path)
    assert ticks.shown.tolist() == list(range(30))
    with Video(path) as source:
        assert ticks.rate_hz == source.rate_hz
