"""Frames, their times and their colours against what the tests drew; bad input ends in one line."""

import gc
import itertools
import os
import resource
import struct
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from affect.errors import UserError
from affect.extraction import container
from affect.extraction.clock import Clock
from affect.extraction.ticks import ticks_of
from affect.extraction.video import SUFFIXES, Video, find_files
from tests import clips

LOSSY = {"codec": "libx264", "pixel_format": "yuv420p"}


def read(path, **options):
    """A whole clip: pixels, times, what was decoded, and the video itself."""
    with Video(path, **options) as source:
        batches = list(source)
    return (
        torch.cat([batch.pixels for batch in batches]).numpy(),
        np.concatenate([batch.time_s for batch in batches]),
        np.concatenate([batch.decoded for batch in batches]),
        source,
    )


def shown(path, **options):
    """Which of the frames that `clips.grey` drew stands on each tick."""
    pixels, *_ = read(path, **options)
    assert np.ptp(pixels.reshape(len(pixels), -1), axis=1).max() == 0
    return ((pixels[:, 0, 0, 0].astype(int) - clips.shade(0)) // 2).tolist()


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1), (17, 131)])
def test_lossless_pixels_come_back_to_the_bit(tmp_path, size):
    frames = clips.noise(5, *size)
    pixels, time_s, decoded, source = read(clips.write(tmp_path / "a.mkv", frames))
    np.testing.assert_array_equal(pixels, frames)
    np.testing.assert_allclose(time_s, np.arange(5) / 25, rtol=0, atol=1e-12)
    assert decoded.all()
    assert (source.height, source.width) == size
    assert (source.frames, source.rate_hz, source.errors, source.ended_early) == (5, 25, 0, False)


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_raw_video_in_avi_keeps_its_rows_in_order(tmp_path, size):
    frames = clips.noise(3, *size)
    path = clips.write(tmp_path / "a.avi", frames, codec="rawvideo", pixel_format="bgr24")
    np.testing.assert_array_equal(read(path)[0], frames)
    content = path.read_bytes()
    height = content.index(b"strf") + 16
    assert struct.unpack_from("<i", content, height) == (-size[0],)
    path.write_bytes(content[:height] + struct.pack("<i", size[0]) + content[height + 4 :])
    np.testing.assert_array_equal(read(path)[0], np.flip(frames, axis=1))


def test_grey_becomes_three_equal_channels(tmp_path):
    planes = np.random.default_rng(0).integers(0, 256, (3, 33, 47), np.uint8)
    pixels, *_ = read(clips.write_planes(tmp_path / "a.mkv", planes, "gray"))
    np.testing.assert_array_equal(pixels, np.repeat(planes[..., None], 3, axis=-1))


def test_ten_bits_lose_their_lowest_two(tmp_path):
    planes = np.random.default_rng(0).integers(0, 1024, (3, 32, 48), np.uint16)
    pixels, *_ = read(clips.write_planes(tmp_path / "a.mkv", planes, "gray10le"))
    expected = np.repeat(planes[..., None] / 1023 * 255, 3, axis=-1)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1.5)


@pytest.mark.parametrize("alpha", [0, 90, 255])
def test_transparency_is_ignored(tmp_path, alpha):
    frame = av.VideoFrame(48, 48, "yuva420p")
    for plane, value in zip(frame.planes, (126, 128, 128, alpha), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuva420p"
        for index in range(2):
            frame.pts = index
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    # BT.601: black is 16 and white 235, so that 126 is (126 - 16) * 255 / 219.
    np.testing.assert_allclose(read(path)[0], 128, rtol=0, atol=1)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_colours_survive_either_range(tmp_path, pixel_format, full_range, size):
    drawn = clips.corners(*size)
    path = clips.write(
        tmp_path / "a.mkv", [drawn] * 2, pixel_format=pixel_format, full_range=full_range
    )
    pixels, *_ = read(path)
    top, left = size[0] // 2, size[1] // 2
    inside = np.ones(size, bool)  # chroma of the quarters' borders is shared where it is halved
    inside[top - 2 : top + 3] = inside[:, left - 2 : left + 3] = False
    np.testing.assert_allclose(pixels[0][inside], drawn[inside], rtol=0, atol=6)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_rotation_is_applied_as_a_viewer_would(tmp_path, quarters, mirrored):
    drawn = clips.corners(32, 64)
    path = clips.write(
        tmp_path / "a.mp4", [drawn] * 3, **LOSSY, rotation=90 * quarters, mirrored=mirrored
    )
    pixels, _, _, source = read(path)
    upright = np.rot90(drawn, quarters)
    upright = upright[:, ::-1] if mirrored else upright
    assert pixels.shape[1:] == upright.shape == (source.height, source.width, 3)
    for row, column in itertools.product((4, -5), repeat=2):
        np.testing.assert_allclose(pixels[0, row, column], upright[row, column], rtol=0, atol=8)


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path):
    small = clips.write(tmp_path / "small.ts", clips.grey(30, 32, 48), **LOSSY)
    large = clips.write(tmp_path / "large.ts", clips.grey(30, 64, 96), **LOSSY)
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    pixels, _, decoded, source = read(both)
    assert pixels.shape == (60, 32, 48, 3)
    assert decoded.all()
    assert source.errors == 0


# --- the clock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(30000, 1001), 25, 60])
@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_every_frame_of_a_constant_rate_stands_once_at_its_time(tmp_path, rate, suffix):
    codec = {"codec": "mpeg4", "pixel_format": "yuv420p"} if suffix == ".mp4" else {}
    path = clips.write(tmp_path / f"a{suffix}", clips.noise(40, 32, 32), rate=rate, **codec)
    pixels, time_s, _, source = read(path)
    assert len(pixels) == source.frames == 40
    assert source.rate_hz == pytest.approx(float(rate), rel=1e-6)
    np.testing.assert_allclose(time_s, np.arange(40) / float(rate), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_jitter_neither_drops_nor_holds(tmp_path, seed):
    jitter = np.random.default_rng(seed).uniform(-0.24, 0.24, 90)
    times_ms = np.rint((np.arange(90) + jitter - jitter.min()) * 1001 / 29.97).astype(int).tolist()
    path = clips.write(tmp_path / "a.mkv", clips.grey(90, 16, 16), times_ms=times_ms)
    assert shown(path) == list(range(90))


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])  # AVI fills a pause with empty packets
def test_a_pause_holds_the_frame_before(tmp_path, suffix):
    times_ms = [40 * index + (160 if index >= 8 else 0) for index in range(20)]
    path = clips.write(tmp_path / f"a{suffix}", clips.grey(20), times_ms=times_ms)
    _, time_s, decoded, source = read(path)
    assert shown(path) == [*range(8), 7, 7, 7, 7, *range(8, 20)]
    assert decoded.all()
    assert source.rate_hz == 25
    np.testing.assert_allclose(np.diff(time_s), 0.04, rtol=0, atol=1e-9)


def test_a_burst_of_frames_is_thinned(tmp_path):
    steps = [40] * 20 + [10] * 8 + [40] * 20
    times_ms = np.cumsum([0, *steps]).tolist()
    path = clips.write(tmp_path / "a.mkv", clips.grey(49), times_ms=times_ms)
    frames = shown(path)
    assert read(path)[3].dropped == ticks_of(path).dropped == 49 - len(frames)
    assert len(frames) == times_ms[-1] // 40 + 1
    drift_ms = np.array([times_ms[frame] for frame in frames]) - 40 * np.arange(len(frames))
    assert np.abs(drift_ms).max() <= 30  # three quarters of a period
    assert len(set(frames)) == len(frames)


def test_the_clock_starts_at_the_first_frame_whatever_its_time(tmp_path):
    times_ms = [5000 + 40 * index for index in range(10)]
    _, time_s, _, _ = read(clips.write(tmp_path / "late.mkv", clips.grey(10), times_ms=times_ms))
    np.testing.assert_allclose(time_s, np.arange(10) / 25, rtol=0, atol=1e-9)
    assert len(time_s) == 10


CLOCKS = {
    "negative": ([-80, -40, 0, 40], [1, 1, 1, 1]),
    "without times": ([None, None, None], [1, 1, 1]),
    "partly without": ([0, None, 80, 120], [1, 1, 1, 1]),
    "twice": ([0, 40, 40, 80], [1, 1, 0, 1]),
    "backward": ([0, 40, 20, 80], [1, 1, 0, 1]),
    "begun anew": ([4000, 4040, 0, 40], [1, 1, 1, 1]),
    "absurd": ([0, 40, 10**8, 10**8 + 40], [1, 1, 1, 1]),
    "a pause": ([0, 40, 200, 240], [1, 1, 4, 1]),
    "jitter": ([0, 58, 78, 122], [1, 1, 1, 1]),
    "jitter midway": ([0, 58, 102, 138, 182], [1, 1, 1, 1, 1]),
}


@pytest.mark.parametrize(("pts", "ticks"), CLOCKS.values(), ids=CLOCKS)
def test_each_frame_ends_the_ticks_up_to_its_time(pts, ticks):
    clock = Clock(25, 0.001)
    assert [clock.advance(time) for time in pts] == ticks


def test_a_stream_without_times_is_read_in_order(tmp_path):
    path = clips.write(tmp_path / "a.h264", clips.noise(30, 32, 32), **LOSSY)
    pixels, time_s, decoded, source = read(path)
    assert len(pixels) == 30
    assert decoded.all()
    np.testing.assert_allclose(time_s, np.arange(30) / source.rate_hz)


def test_a_rate_that_the_times_contradict_is_not_believed(tmp_path):
    times_ms = [40 * index for index in range(30)]
    path = clips.write(tmp_path / "a.mkv", clips.grey(30), rate=100, times_ms=times_ms)
    _, _, _, source = read(path)
    assert source.rate_hz == pytest.approx(25)
    assert shown(path) == list(range(30))


def test_a_slow_start_does_not_set_the_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "_PROBE_PACKETS", 10)
    times_ms = np.cumsum([0] + [80] * 15 + [40] * 60).tolist()
    frames = clips.noise(76, 32, 32)
    path = clips.write(tmp_path / "a.mp4", frames, **LOSSY, times_ms=times_ms)
    _, time_s, _, source = read(path)
    assert source.rate_hz == pytest.approx(1000 * 76 / (times_ms[-1] + 80), rel=0.02)
    assert time_s[-1] == pytest.approx(times_ms[-1] / 1000, abs=0.05)


# --- batches and memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch_frames", [1, 3, 5, 64])
def test_batches_only_cut_the_stream(tmp_path, batch_frames):
    frames = clips.noise(10, 16, 24)
    path = clips.write(tmp_path / "a.mkv", frames)
    with Video(path, batch_frames=batch_frames) as source:
        sizes = [len(batch.pixels) for batch in source]
    assert sum(sizes) == 10
    assert set(sizes[:-1]) <= {batch_frames}
    pixels, time_s, *_ = read(path, batch_frames=batch_frames)
    np.testing.assert_array_equal(pixels, frames)
    np.testing.assert_allclose(np.diff(time_s), 0.04)


def test_a_batch_stays_within_its_bytes_but_holds_a_frame(tmp_path):
    path = clips.write(tmp_path / "a.mkv", clips.noise(10, 16, 24))
    for budget, sizes in ((4 * 16 * 24 * 3, [4, 4, 2]), (1, [1] * 10)):
        with Video(path, batch_bytes=budget) as source:
            assert [len(batch.pixels) for batch in source] == sizes


def test_no_batch_outlives_its_reader(tmp_path):
    path = clips.write(tmp_path / "a.mkv", clips.grey(60))
    alive = weakref.WeakSet()
    with Video(path, batch_frames=4) as source:
        for batch in source:
            alive.add(batch)
            assert len(alive) == 1
            del batch


def test_memory_does_not_grow_with_the_length(tmp_path):
    frames = clips.grey(20, 128, 128)
    path = clips.write(tmp_path / "a.mkv", frames, times_ms=[*range(0, 760, 40), 400_000])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Video(path) as source:
        count = sum(len(batch.pixels) for batch in source)
    assert count == 10_001  # 470 MiB of pixels
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_decoded_frames_are_let_go_without_the_garbage_collector(tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.noise(40, 32, 48), **LOSSY, rotation=90)
    gc.collect()
    gc.disable()
    try:
        with Video(path, batch_frames=4) as source:
            batches = iter(source)
            for _ in range(8):
                next(batches)
            frames = [thing for thing in gc.get_objects() if type(thing) is av.VideoFrame]
    finally:
        gc.enable()
    assert len(frames) <= 3  # the first, for its display matrix; the last; one at work


def test_reading_writes_and_prints_nothing(tmp_path, capfd):
    path = clips.damage(
        clips.write(tmp_path / "a.mp4", clips.noise(20, 32, 32), **LOSSY), range(15, 18)
    )
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    read(path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    assert capfd.readouterr() == ("", "")


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "mpeg4"), (".mp4", "libx264"), (".avi", "mpeg4"), (".mkv", "x")]
)
def test_damaged_frames_are_missing_at_their_time(tmp_path, suffix, codec, threads):
    codec = "mpeg4" if codec == "x" else codec
    frames = clips.noise(40, 32, 48)
    path = clips.write(
        tmp_path / f"a{suffix}", frames, codec=codec, pixel_format="yuv420p", options={"g": "1"}
    )
    whole, *_ = read(path)
    clips.damage(path, range(15, 18), share=0.8)
    pixels, time_s, decoded, source = read(path, threads=threads)
    expected = np.isin(np.arange(40), [15, 16, 17], invert=True)
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_allclose(time_s, np.arange(40) / 25, rtol=0, atol=1e-9)
    assert not pixels[~expected].any()
    np.testing.assert_array_equal(pixels[expected], whole[expected])
    assert (source.errors, source.ended_early) == (3, False)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_what_builds_on_a_damaged_frame_is_missing_up_to_the_next_key_frame(
    tmp_path, codec, threads
):
    clip = {"codec": codec, "pixel_format": "yuv420p", "options": {"g": "10", "bf": "0"}}
    path = clips.write(tmp_path / "a.mp4", clips.sliding(40, 32, 48), **clip)
    whole, *_ = read(path)
    clips.damage(path, range(13, 14), share=0.6)
    pixels, _, decoded, source = read(path, threads=threads)
    assert np.flatnonzero(~decoded).tolist() == [*range(13, 20)]
    np.testing.assert_array_equal(pixels[decoded], whole[decoded])
    assert source.errors == 7


def test_a_damaged_start_keeps_the_clock(tmp_path):
    path = clips.write(tmp_path / "a.mp4", clips.noise(20, 32, 48), **LOSSY, options={"g": "1"})
    clips.damage(path, range(2))
    _, time_s, decoded, source = read(path)
    assert decoded.tolist() == [False] * 2 + [True] * 18
    assert time_s[2] == pytest.approx(0.08)
    assert source.errors == 2


@pytest.mark.parametrize("threads", [1, 4])
def test_a_damaged_end_keeps_its_ticks(tmp_path, threads):
    path = clips.write(tmp_path / "a.mp4", clips.noise(20, 32, 48), **LOSSY, options={"g": "1"})
    clips.damage(path, range(18, 20))
    _, _, decoded, source = read(path, threads=threads)
    assert decoded.tolist() == [True] * 18 + [False] * 2
    assert (source.errors, source.ended_early) == (2, False)


@pytest.mark.parametrize(
    ("suffix", "container"), [(".mp4", {"movflags": "faststart"}), (".mkv", {}), (".avi", {})]
)
def test_a_file_cut_at_60_percent_gives_what_it_holds(tmp_path, suffix, container):
    path = clips.write(
        tmp_path / f"a{suffix}",
        clips.noise(100, 32, 48),
        codec="mpeg4",
        pixel_format="yuv420p",
        container=container,
    )
    whole, *_ = read(path)
    pixels, _, decoded, source = read(clips.cut(path, 0.6))
    assert 45 <= decoded.sum() <= 65
    np.testing.assert_array_equal(pixels[decoded], whole[: len(pixels)][decoded])
    assert source.ended_early is True


def test_sound_that_lasts_a_little_longer_is_no_early_end(tmp_path):
    path = clips.write(tmp_path / "a.mkv", clips.grey(25), sound_s=1.5)
    assert read(path)[3].ended_early is False


# --- bad input ------------------------------------------------------------------------------------


def empty(at):
    (at / "a.mp4").touch()


def text(at):
    (at / "a.mp4").write_text("frame, AU01_r\n1, 0.5\n" * 50)


def no_index(at):
    clips.cut(clips.write(at / "a.mp4", clips.noise(50, 32, 48), **LOSSY), 0.6)


def nothing_decodes(at):
    path = clips.write(at / "a.mp4", clips.noise(10, 32, 48), **LOSSY)
    clips.damage(path, range(10))


CASES = [
    ("missing", lambda at: None, "AT/a.mp4: no such file: check the name"),
    ("a folder", lambda at: (at / "a.mp4").mkdir(), "AT/a.mp4: a folder: give a file"),
    ("empty", empty, "AT/a.mp4: empty: copy it again"),
    ("text", text, "AT/a.mp4: no video: give a video file such as .mp4, .mkv or .avi"),
    ("sound", lambda at: clips.write_sound(at / "a.mp4"), "AT/a.mp4: no video in it, only sound"),
    (
        "a .png",
        lambda at: clips.write_picture(at / "a.mp4", clips.noise(1, 64, 96)[0]),
        "AT/a.mp4: a single picture is no video",
    ),
    (
        "a .jpg",
        lambda at: clips.write_picture(at / "a.mp4", clips.noise(1, 64, 96)[0], "mjpeg"),
        "AT/a.mp4: a single picture is no video",
    ),
    (
        "one frame",
        lambda at: clips.write(at / "a.mp4", clips.grey(1), **LOSSY),
        "AT/a.mp4: a single picture is no video",
    ),
    ("no index", no_index, "AT/a.mp4: cut off or damaged, its index cannot be read: copy it again"),
    ("nothing decodes", nothing_decodes, "AT/a.mp4: none of its frames can be decoded"),
]


@pytest.mark.parametrize(
    ("set_up", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input_ends_in_one_line(tmp_path, capfd, set_up, message):
    set_up(tmp_path)
    with pytest.raises(UserError) as error:
        Video(tmp_path / "a.mp4")
    said = str(error.value).replace(str(tmp_path), "AT")
    assert said.startswith(message)
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name",
    ["Gesicht ä ö 顔.mkv", os.fsdecode(b"\xff.mkv"), " blank .mkv", "a:b.mkv", "http:x%03d.mkv"],
)
def test_any_name_will_do(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    clips.write(tmp_path / "plain.mkv", clips.grey(3)).rename(tmp_path / name)
    assert shown(tmp_path / name) == shown(Path(name)) == [0, 1, 2]


# --- finding files --------------------------------------------------------------------------------


def test_folders_give_their_videos_in_order_once(tmp_path):
    names = [
        "b.MP4",
        "a.mkv",
        "sub/c.Avi",
        "sub/.hidden.mp4",
        ".git/d.mp4",
        "notes.txt",
        "clip.bin",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    found = find_files([tmp_path / "clip.bin", tmp_path, tmp_path / "sub" / ".." / "a.mkv"])
    expected = ["clip.bin", "a.mkv", "b.MP4", "sub/c.Avi"]
    assert [file.relative_to(tmp_path).as_posix() for file in found] == expected
    assert find_files([tmp_path / "sub" / ".hidden.mp4"]) == [tmp_path / "sub" / ".hidden.mp4"]
    assert {suffix.lower() for suffix in SUFFIXES} == SUFFIXES


def test_links_are_followed_and_no_circle_is(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.mp4").write_bytes(b"b")
    top = tmp_path / "top"
    top.mkdir()
    (top / "a.mp4").write_bytes(b"a")
    (top / "broken.mp4").symlink_to(tmp_path / "gone.mp4")
    (top / "linked").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(top)
    found = find_files([top])
    names = [path.relative_to(top).as_posix() for path in found]
    assert names == ["a.mp4", "broken.mp4", "linked/b.mp4"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [(["none.mp4"], "no such file or folder"), (["empty"], "nothing to extract"), ([], "no path")],
)
def test_finding_nothing_is_said(tmp_path, paths, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_files([tmp_path / path for path in paths])
