"""What goes wrong with one video is told in one line and costs no other; nothing half-done stays.

Each row of the tables makes real files; the real command extracts them beside a good video. `AT` in
what a row expects stands for its own folder.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from affect import store
from affect.cli import main
from affect.extraction import progress
from affect.extraction.backends.frames import FrameBackend
from affect.extraction.ticks import ticks_of
from tests import clips, openface_models

VIDEOS = Path(__file__).parents[2] / "shared" / "videos"
LOSSY = {"codec": "libx264", "pixel_format": "yuv420p"}
PLAIN = ("--backend", "geometry", "--device", "cpu", "--jobs", "1")


@pytest.fixture
def good(tmp_path):
    """A video without fault."""
    return clips.face(tmp_path / "good.mkv", clips.grey(12))


def extract(cache, *arguments, options=PLAIN):
    """The command's exit status."""
    return main(["extract", *map(str, arguments), "--cache", str(cache), *options])


def recordings(cache):
    """Every file of a cache, hidden ones as well, by its path in it."""
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def managed(*command):
    """Whether a command of the system's is there and succeeds."""
    found = shutil.which(command[0])
    return found and not subprocess.run(command, check=False, capture_output=True).returncode


def lines(text):
    return [line for line in re.split(r"[\r\n]+", text) if line.startswith("affect: ")]


# --- one video of a batch fails ------------------------------------------------------------------


def missing(at):
    return at / "a.mp4"


def empty(at):
    (at / "a.mp4").touch()


def text(at):
    (at / "a.mp4").write_text("frame, AU01_r\n1, 0.5\n" * 50)


def link_to_nothing(at):
    (at / "a.mp4").symlink_to(at / "none.mp4")


def pipe(at):
    os.mkfifo(at / "a.mp4")


def picture(at):
    clips.write_picture(at / "a.mp4", clips.noise(1, 64, 96)[0])


def photograph(at):
    clips.write_picture(at / "a.mp4", clips.noise(1, 64, 96)[0], "mjpeg")


def cut_off(at):
    clips.cut(clips.write(at / "a.mp4", clips.noise(50, 32, 48), **LOSSY), 0.6)


def all_damaged(at):
    clips.damage(clips.write(at / "a.mp4", clips.noise(10, 32, 48), **LOSSY), range(10))


def constant_luminance(at):
    clips.face(at / "a.mp4", clips.grey(12), **LOSSY, matrix=10)  # of BT.2020


def short_table(at):
    clips.face(at / "a.mp4", clips.grey(12), rows=11, **LOSSY)


def damaged_table(at):
    clips.face(at / "a.mp4", clips.grey(12), **LOSSY)
    content = (at / "a.csv").read_bytes()
    (at / "a.csv").write_bytes(content[:-40] + b"\xff" * 40)


FAILED = [
    ("missing", missing, "no such file", "AT/a.mp4: no such file: check the name"),
    ("empty", empty, "empty", "AT/a.mp4: empty: copy it again"),
    ("text", text, "no video", "AT/a.mp4: no video: give a video file such as"),
    ("a link to nothing", link_to_nothing, "no such file", "AT/a.mp4: no such file: check"),
    ("a named pipe", pipe, "no regular file", "AT/a.mp4: no regular file: copy it to a disk"),
    (
        "sound alone",
        lambda at: clips.write_sound(at / "a.mp4"),
        "no video in it, only sound or data",
        "AT/a.mp4: no video in it, only sound or data: give the file with pictures",
    ),
    (
        "a picture",
        picture,
        "a single picture is no video, whatever its name",
        "AT/a.mp4: a single picture is no video, whatever its name: give",
    ),
    (
        "a photograph",
        photograph,
        "a single picture is no video, whatever its name",
        "AT/a.mp4: a single picture is no video, whatever its name: give",
    ),
    (
        "cut off",
        cut_off,
        "cut off or damaged, its index cannot be read",
        "AT/a.mp4: cut off or damaged, its index cannot be read: copy it again",
    ),
    (
        "damaged from its start to its end",
        all_damaged,
        "none of its frames can be decoded",
        "AT/a.mp4: none of its frames can be decoded: get an undamaged",
    ),
    (
        "without a face",
        lambda at: clips.write(at / "a.mp4", clips.grey(12), **LOSSY),
        "no face",
        "AT/a.mp4: no face: none of its 12 frames shows one",
    ),
    (
        "colours of constant luminance",
        constant_luminance,
        "colours that FFmpeg cannot convert",
        "AT/a.mp4: colours that FFmpeg cannot convert: Operation not supported: make them BT.709",
    ),
    (
        "a table too short",
        short_table,
        "landmarks that do not fit",
        "AT/a.csv: landmarks that do not fit: it has 11 rows, its video 12 frames",
    ),
    ("a damaged table", damaged_table, "other", "cannot read AT/a.csv: 'utf-8' codec can't"),
]


@pytest.mark.parametrize(
    ("set_up", "cause", "line"), [pytest.param(*row[1:], id=row[0]) for row in FAILED]
)
def test_a_video_that_fails_is_told_and_costs_no_other(set_up, cause, line, good, tmp_path, capfd):
    set_up(tmp_path)
    cache = tmp_path / "cache"
    status = extract(cache, tmp_path / "a.mp4", good, options=(*PLAIN, "--json"))
    out, err = capfd.readouterr()
    told, last = lines(err)
    assert told.startswith("affect: " + line.replace("AT", str(tmp_path)))
    assert (status, last) == (2, "affect: error: 1 of 2 files failed")
    counts = json.loads(out)
    assert (counts["failed"], counts["failures"]) == (1, {cause: 1})
    assert "Traceback" not in err
    assert recordings(cache) == ["videos/good/good.h5"]
    assert main(["verify", str(cache)]) == 0


OTHER_TABLES = {
    "empty": b"",
    "blank lines": b"\n\n",
    "ratings": b"time,valence\n0,1\n",
    "not UTF-8": "time;Gefühl\n0;1\n".encode("latin-1"),
    "UTF-16": "time,valence\n0,1\n".encode("utf-16"),
    "no text": bytes(range(256)) * 1000,
    "action units alone": b"frame, timestamp, confidence, success, AU01_r\n1, 0, .9, 1, .5\n",
    "its header cut": b"frame, face_id, timestamp, confi",
}


@pytest.mark.parametrize("content", OTHER_TABLES.values(), ids=OTHER_TABLES)
def test_a_table_of_something_else_is_told_and_the_network_looks(content, good, tmp_path, capfd):
    clips.write(tmp_path / "a.mp4", clips.grey(12), **LOSSY)
    (tmp_path / "a.csv").write_bytes(content)
    assert extract(tmp_path / "cache", tmp_path / "a.mp4", good) == 2
    note, failure, _ = lines(capfd.readouterr().err)
    assert note.startswith(f"affect: {tmp_path}/a.csv: holds no landmarks of OpenFace: ")
    assert failure.startswith(f"affect: {tmp_path}/a.mp4: no face: none of its 12 frames")


@pytest.mark.real_data
def test_ratings_beside_a_real_clip_change_nothing(tmp_path):
    if not VIDEOS.is_dir():
        pytest.skip("no clips at ../shared/videos")
    (tmp_path / "a.mp4").symlink_to(VIDEOS / "single_face.mp4")
    assert extract(tmp_path / "alone", tmp_path / "a.mp4") == 0
    (tmp_path / "a.csv").write_bytes(OTHER_TABLES["ratings"])
    assert extract(tmp_path / "beside", tmp_path / "a.mp4") == 0
    one, other = (store.path_of(tmp_path / c, "videos", "a", "a") for c in ("alone", "beside"))
    assert one.read_bytes() == other.read_bytes()


UNSTORABLE = {
    "a line break": ("a\nb.mkv", (), "its subject 'a\\nb' is empty or not printable"),
    "no text": (os.fsdecode(b"\xff.mkv"), (), r"its subject '\udcff' is empty or not printable"),
    "too long for a disk": ("%" * 90 + ".mkv", (), "' is longer than 255 bytes"),
    "no subject": ("a.mkv", ("--pattern", "(?P<subject>x)?.*"), "its subject '' is empty or not"),
    "no corpus": ("a.mkv", ("--corpus", ""), "its corpus '' is empty or not printable"),
}


@pytest.mark.parametrize(("name", "options", "line"), UNSTORABLE.values(), ids=UNSTORABLE)
def test_a_name_that_cannot_be_stored_is_told_before_decoding(
    name, options, line, tmp_path, capfd, monkeypatch
):
    clips.face(tmp_path / name, clips.grey(12))
    decoded = []
    monkeypatch.setattr(FrameBackend, "recordings", lambda *given: decoded.append(given) or [])
    assert extract(tmp_path / "cache", tmp_path, options=(*PLAIN, "--json", *options)) == 2
    out, err = capfd.readouterr()
    assert json.loads(out)["failures"] == {"a name that cannot be stored": 1}
    assert line in lines(err)[0]
    assert (decoded, recordings(tmp_path / "cache")) == ([], [])


def test_a_file_that_the_user_may_not_read_is_told(good, tmp_path, capsys):
    secret = clips.write(tmp_path / "a.mp4", clips.grey(12), **LOSSY)
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        pytest.skip("root may read everything")
    assert extract(tmp_path / "cache", secret, good) == 2
    assert f"{secret}: Permission denied" in capsys.readouterr().err
    assert recordings(tmp_path / "cache") == ["videos/good/good.h5"]


# --- a video with peculiarities is extracted -----------------------------------------------------


def damaged(at):
    path = clips.face(at / "a.mp4", clips.noise(40, 32, 48), **LOSSY, options={"g": "1"})
    return clips.damage(path, range(15, 18), share=0.8)


def damaged_between_key_frames(at):
    options = {"g": "10", "bf": "0"}
    path = clips.face(at / "a.mp4", clips.sliding(40, 32, 48), **LOSSY, options=options)
    return clips.damage(path, range(13, 14), share=0.6)


def two_in_a_tick(at):
    return clips.face(at / "a.mkv", clips.grey(90), rate=2000)  # .mkv counts milliseconds


def shortened(suffix, **container):
    """A clip of 100 frames of which the last two fifths are lost."""

    def set_up(at):
        options = {"codec": "mpeg4", "pixel_format": "yuv420p", "container": container}
        path = clips.write(at / f"a{suffix}", clips.noise(100, 32, 48), **options)
        frames = ticks_of(clips.cut(path, 0.6)).frames
        return clips.lay_landmarks(path, openface_models.poses(frames)[0])

    return set_up


def paused(at):
    times_ms = [40 * index + (160 if index >= 8 else 0) for index in range(20)]
    return clips.face(at / "a.mkv", clips.grey(20), times_ms=times_ms)


def turned(at):
    return clips.face(at / "a.mp4", clips.grey(12), **LOSSY, rotation=90)


def planes(pixel_format, dtype):
    def set_up(at):
        path = clips.write_planes(at / "a.mkv", np.full((12, 32, 48), 90, dtype), pixel_format)
        return clips.lay_landmarks(path, openface_models.poses(12)[0])

    return set_up


def huge(at):
    frames = [np.full((4320, 7680, 3), 90, np.uint8)] * 2
    return clips.face(at / "a.mp4", frames, **LOSSY, options={"preset": "ultrafast"})


def away(at):
    path = clips.write(at / "a.mkv", clips.grey(12))
    success = np.isin(np.arange(12), [4, 5, 6, 7], invert=True)
    return clips.lay_landmarks(path, openface_models.poses(12)[0], success)


def named(name):
    return lambda at: clips.face(at / name, clips.grey(12))


EXTRACTED = [
    ("damaged in the middle", damaged, 40, 37, "AT/a.mp4: 3 of 40 frames could not be decoded"),
    (
        "damaged between key frames",
        damaged_between_key_frames,
        *(40, 33),
        "AT/a.mp4: 7 of 40 frames could not be decoded",
    ),
    (
        "two frames in a tick",
        two_in_a_tick,
        *(46, 46),
        "AT/a.mkv: 44 frames fell into the same tick as another at 1000 frames a second",
    ),
    ("cut off, .mkv", shortened(".mkv"), None, None, "AT/a.mkv: ends after "),
    ("cut off, .avi", shortened(".avi"), None, None, "AT/a.avi: ends after "),
    (
        "cut off, .mp4 with its index in front",
        shortened(".mp4", movflags="faststart"),
        None,
        None,
        "AT/a.mp4: ends after ",
    ),
    ("a variable rate", paused, 24, 24, ""),
    ("turned by its metadata", turned, 12, 12, ""),
    ("grey", planes("gray", np.uint8), 12, 12, ""),
    ("ten bits", planes("gray10le", np.uint16), 12, 12, ""),
    ("8K", huge, 2, 2, ""),
    ("a face that leaves and returns", away, 12, 8, ""),
    ("blanks in its name", named(" first day .mkv"), 12, 12, ""),
    ("letters beyond ASCII", named("Gesicht ä ö 顔.mkv"), 12, 12, ""),
    ("what only some disks can store", named("a:b*c?.mkv"), 12, 12, ""),
]


@pytest.mark.parametrize(
    ("set_up", "frames", "faces", "note"), [pytest.param(*row[1:], id=row[0]) for row in EXTRACTED]
)
def test_a_peculiar_video_is_extracted(set_up, frames, faces, note, good, tmp_path, capfd):
    path = set_up(tmp_path)
    cache = tmp_path / "cache"
    status = extract(cache, path, good, options=(*PLAIN, "--json"))
    out, err = capfd.readouterr()
    assert (status, json.loads(out)["failed"]) == (0, 0)
    told = lines(err)
    assert bool(told) == bool(note)
    assert "".join(told[-1:]).startswith(note and f"affect: {note.replace('AT', str(tmp_path))}")
    recording = store.read(store.path_of(cache, "videos", path.stem, path.stem))
    if frames is None:
        assert 45 <= recording.frames <= 65
    else:
        assert (recording.frames, recording.success.sum()) == (frames, faces)
    assert len(recordings(cache)) == 2
    assert main(["verify", str(cache)]) == 0


@pytest.mark.real_data
def test_a_real_face_is_found_in_8k(tmp_path):
    if not VIDEOS.is_dir():
        pytest.skip("no clips at ../shared/videos")
    from affect.extraction.video import Video

    with Video(VIDEOS / "single_face.mp4", batch_frames=2) as video:
        (frame, _) = next(iter(video)).pixels.numpy()
    times = -(-4320 // frame.shape[0])
    large = frame.repeat(times, axis=0).repeat(times, axis=1)[
        :, : 2 * (frame.shape[1] * times // 2)
    ]
    path = clips.write(tmp_path / "a.mp4", [large] * 2, **LOSSY, options={"preset": "ultrafast"})
    assert extract(tmp_path / "cache", path) == 0
    (entry,) = store.entries(tmp_path / "cache")
    assert (entry.frames, entry.faces) == (2, 1.0)


# --- what is refused before anything is extracted ------------------------------------------------


def folder(at, name="folder"):
    (at / name).mkdir()
    return at / name


def openface(spoil):
    """The openface backend with a folder of random models that `spoil(folder)` has spoilt."""

    def set_up(at):
        home = openface_models.write_folder(at / "openface")
        spoil(home / "AU_predictors")
        return ["--backend", "openface", "--openface-home", home]

    return set_up


def twins(*names):
    def set_up(at):
        for name in names:
            (at / name).parent.mkdir(exist_ok=True)
            clips.face(at / name, clips.grey(3), **LOSSY)
        return [at / name for name in names]

    return set_up


def twins_in_a_folder(at):
    folder(at)
    twins("folder/a.mp4", "folder/a.mkv")(at)
    return [at / "folder"]


def cache_below_a_file(at):
    (at / "file").touch()
    return ["--cache", at / "file" / "cache"]


def cache_that_is_a_file(at):
    (at / "file").touch()
    return ["--cache", at / "file"]


REFUSED = [
    ("no jobs", lambda at: ["--jobs", 0], "--jobs 0: give 1 or more"),
    ("jobs in words", lambda at: ["--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
    (
        "a shard in words",
        lambda at: ["--shard", "half"],
        "--shard takes I/N such as 1/4, not 'half'",
    ),
    ("a shard from 0", lambda at: ["--shard", "0/2"], "shard 0/2: the first number must be from 1"),
    (
        "a shard too far",
        lambda at: ["--shard", "3/2"],
        "shard 3/2: the first number must be from 1",
    ),
    ("a folder without videos", lambda at: [folder(at)], "AT/folder: nothing to extract: give"),
    ("an empty path", lambda at: [""], "argument videos: the path is empty"),
    (
        "two of one name",
        twins("a.mp4", "a.mkv"),
        "AT/a.mp4 and AT/a.mkv are both recording 'a' of 'a': rename one",
    ),
    (
        "two of one name in two folders",
        twins("x/a.mp4", "y/a.mp4"),
        "AT/x/a.mp4 and AT/y/a.mp4 are both recording 'a' of 'a': rename one, or give the folder "
        "above both",
    ),
    (
        "two of one name in a folder",
        twins_in_a_folder,
        "AT/folder/a.mkv and AT/folder/a.mp4 are both recording 'a' of 'a': rename one",
    ),
    ("a pattern", lambda at: ["--pattern", "(?P<subject>x)"], "pattern '(?P<subject>x)' does not"),
    ("a GPU that is not there", lambda at: ["--device", "cuda:99"], "no device 'cuda:99' here"),
    ("an unknown device", lambda at: ["--device", "quantum"], "no device 'quantum' here"),
    ("an unknown backend", lambda at: ["--backend", "openfac"], "unknown backend 'openfac': did"),
    (
        "no OpenFace folder",
        lambda at: ["--backend", "openface", "--openface-home", at / "none"],
        "no OpenFace folder at AT/none: give one with --openface-home",
    ),
    (
        "another folder for OpenFace's",
        lambda at: ["--backend", "openface", "--openface-home", folder(at)],
        "AT/folder holds no AU_predictors folder: give OpenFace's own folder",
    ),
    (
        "an incomplete OpenFace folder",
        openface(lambda home: (home / "In-the-wild_aligned_PDM_68.txt").unlink()),
        "AT/openface/AU_predictors/In-the-wild_aligned_PDM_68.txt is missing: the OpenFace folder",
    ),
    (
        "a foreign OpenFace folder",
        openface(lambda home: None),
        "AT/openface/AU_predictors/In-the-wild_aligned_PDM_68.txt is not the file of OpenFace 2.2",
    ),
    ("a cache below a file", cache_below_a_file, "cannot write to AT/file/cache: Not a directory"),
    ("a file for a cache", cache_that_is_a_file, "cannot write to AT/file: File exists; choose"),
]


@pytest.mark.parametrize(("set_up", "line"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_what_cannot_be_done_is_refused_at_once(set_up, line, good, tmp_path, capfd):
    arguments = [str(argument) for argument in set_up(tmp_path)]
    cache = tmp_path / "cache"
    before = sorted(tmp_path.rglob("*"))
    status = main(["extract", "--cache", str(cache), *PLAIN, *arguments, str(good)])
    out, err = capfd.readouterr()
    (told,) = lines(err)
    assert told.startswith("affect: error: " + line.replace("AT", str(tmp_path)))
    assert (status, out) == (2, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cache_that_cannot_be_changed_is_refused(good, tmp_path, capsys):
    cache = folder(tmp_path, "cache")
    cache.chmod(0o500)
    frozen = managed("chattr", "+i", cache)
    try:
        if os.access(cache, os.W_OK) and not frozen:
            pytest.skip("root may write everywhere, and this disk knows no `chattr +i`")
        assert extract(cache, good) == 2
    finally:
        managed("chattr", "-i", cache)
        cache.chmod(0o700)
    assert re.search(f"cannot write to {cache}: (Operation not p|P)ermi", capsys.readouterr().err)
    assert recordings(cache) == []


# --- the whole batch -----------------------------------------------------------------------------


def test_a_video_that_is_given_twice_is_extracted_once(tmp_path, capsys):
    videos = folder(tmp_path, "videos")
    path = clips.face(videos / "a.mkv", clips.grey(12))
    clips.face(folder(videos, "sub") / "b.mkv", clips.grey(12))
    (tmp_path / "link.mkv").symlink_to(path)
    twice = (path, path, videos / "sub" / ".." / "a.mkv", tmp_path / "link.mkv", videos)
    assert extract(tmp_path / "cache", *twice, options=(*PLAIN, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 2
    assert recordings(tmp_path / "cache") == ["videos/a/a.h5", "videos/sub/b.h5"]


def test_a_shard_without_videos_is_done(good, tmp_path, capsys):
    assert extract(tmp_path / "c", good, options=(*PLAIN, "--shard", "2/2", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 0


def test_failures_are_counted_by_cause(good, tmp_path, capfd):
    for index in range(2):
        clips.write(tmp_path / f"grey{index}.mkv", clips.grey(12))
    (tmp_path / "empty.mkv").touch()
    damaged(tmp_path)
    assert extract(tmp_path / "cache", tmp_path, options=(*PLAIN, "--json")) == 2
    (counts,) = map(json.loads, capfd.readouterr().out.splitlines())
    assert (counts["files"], counts["recordings"], counts["failed"]) == (5, 2, 3)
    assert counts["failures"] == {"empty": 1, "no face": 2}
    assert extract(tmp_path / "cache", tmp_path, options=PLAIN) == 2
    out, err = capfd.readouterr()
    table = dict(re.findall(r"│ +(.*?) +│ +([\d.,]+) │", out))
    assert (table["failed"], table["empty"], table["no face"], table["skipped"]) == (
        *("3", "1", "2"),
        "2",
    )
    assert len(lines(err)) == 4  # one a failure, and their number; what is skipped is not read
    assert "5/5 files" in err


def test_a_file_that_is_alone_and_fails_is_one_line(tmp_path, capfd):
    assert extract(tmp_path / "cache", tmp_path / "a.mp4") == 2
    line = f"affect: error: {tmp_path}/a.mp4: no such file: check the name\n"
    assert capfd.readouterr() == ("", line)
    assert extract(tmp_path / "cache", tmp_path / "a.mp4", options=(*PLAIN, "--json")) == 2
    assert json.loads(capfd.readouterr().out)["failures"] == {"no such file": 1}


def test_a_file_of_progress_holds_plain_lines(good, tmp_path, capfd, monkeypatch):
    assert extract(tmp_path / "one", good) == 0
    err = capfd.readouterr().err
    assert re.fullmatch(r"1/1 files, 12 frames, \d+ frames/s\n", err)
    assert extract(tmp_path / "one", good) == 0
    assert capfd.readouterr().err == ""  # nothing was read
    monkeypatch.setattr(progress, "_LINE_S", 0.0)
    long = clips.face(tmp_path / "long.mkv", clips.grey(100))
    assert extract(tmp_path / "two", good, long) == 0
    told = re.findall(
        r"(\d)/2 files, (\d+) frames, \d+ frames/s(, \d\d:\d\d left)?\n", capfd.readouterr().err
    )
    frames = [int(number) for _, number, _ in told]
    assert frames == [12, 44, 76, 108, 112, 112]
    assert [files for files, *_ in told] == [*"011112"]
    assert [bool(left) for *_, left in told] == [True, True, True, True, False, False]


def test_a_terminal_gets_a_bar(good, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert extract(tmp_path / "cache", good) == 0
    assert re.search(r"\r1/1 files: 100%.* 12.0/12.0 .*frame/s\]\n$", capfd.readouterr().err)


# --- a full disk ---------------------------------------------------------------------------------


@contextlib.contextmanager
def largest_file(cache, size):
    """No file of this process may grow larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def small_disk(cache, size):
    """The cache is a disk of this size in memory."""
    cache.mkdir()
    if not managed("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", cache):
        pytest.skip("only root may mount a small disk")
    try:
        yield
    finally:
        assert managed("umount", cache)


@pytest.mark.parametrize(
    ("limited", "reason"),
    [(largest_file, "File too large"), (small_disk, "No space left on device")],
)
def test_what_does_not_fit_a_full_disk_costs_no_other(limited, reason, good, tmp_path, capfd):
    long = clips.face(tmp_path / "a.mkv", clips.grey(2000, 16, 16))
    cache = tmp_path / "cache"
    with limited(cache, 64 << 10):
        status = extract(cache, long, good, options=(*PLAIN, "--json"))
        out, err = capfd.readouterr()
        assert recordings(cache) == ["videos/good/good.h5"]
        assert main(["verify", str(cache)]) == 0
    assert status == 2
    told, _ = lines(err)
    assert told == (
        f"affect: cannot write {cache}/videos/a/a.h5: {reason}; free space or choose another folder"
    )
    assert json.loads(out)["failures"] == {"cannot be written": 1}


# --- runs and processes that are killed ----------------------------------------------------------


def long_clip(path):
    """Some frames and long pauses: an hour of work in a small file."""
    times_ms = [*range(0, 2000, 40), *range(500_000, 20_000_000, 500_000)]
    return clips.write(path, clips.grey(len(times_ms), 128, 128), times_ms=times_ms)


def begin(cache, *arguments):
    """The command as a process of its own, and of its own session."""
    command = [sys.executable, "-m", "affect", "extract", *arguments, "--cache", cache]
    options = ["--backend", "geometry", "--device", "cpu"]
    return subprocess.Popen(
        [*map(str, command), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
    )


def processes(session):
    """The processes of a session, by their number: what each was started with."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, _, _, owner = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            if int(owner) == session and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode()
    return found


def opens(process, path):
    """Whether a process has a file open."""
    with contextlib.suppress(OSError):
        return path in {file.resolve() for file in Path(f"/proc/{process}/fd").iterdir()}
    return False


def wait_for(condition, seconds=60.0):
    """What the condition gives, once it is true."""
    for _ in range(int(seconds * 50)):
        if value := condition():
            return value
        time.sleep(0.02)
    raise TimeoutError(condition)


@contextlib.contextmanager
def ended(run):
    """Whatever happens, no process of the run survives the test."""
    try:
        yield
    finally:
        for process in processes(run.pid):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        run.communicate()


@pytest.mark.parametrize(
    ("kind", "jobs"),
    [
        ("SIGINT", 1),
        ("SIGINT", 2),
        ("SIGTERM", 1),
        ("SIGUSR1", 2),
        ("SIGKILL", 1),
        ("SIGKILL", 2),
    ],
)
def test_a_run_that_is_killed_keeps_what_is_finished(kind, jobs, good, tmp_path):
    long = [long_clip(tmp_path / f"{name}.mkv") for name in "ab"]
    cache = tmp_path / "cache"
    run = begin(cache, good, *long, "--jobs", jobs)
    with ended(run):
        finished = store.path_of(cache, "videos", "good", "good")
        wait_for(finished.exists)
        busy = wait_for(lambda: [p for p in processes(run.pid) if opens(p, long[0])])
        assert (busy == [run.pid]) == (jobs == 1)
        # A terminal sends Ctrl-C to all processes, SLURM SIGUSR1; `kill` reaches the first alone.
        (os.killpg if kind in {"SIGINT", "SIGUSR1"} else os.kill)(run.pid, signal.Signals[kind])
        out, err = run.communicate(timeout=30)
        wait_for(lambda: not processes(run.pid), 30)
    assert (run.returncode, out) == ({"SIGKILL": -9, "SIGINT": 130}.get(kind, 75), "")
    if kind != "SIGKILL":
        assert lines(err) == [
            f"affect: stopped: what is finished is in {cache}, and the same command goes on"
        ]
    assert "Traceback" not in err
    assert recordings(cache) == ["videos/good/good.h5"]
    assert main(["verify", str(cache)]) == 0


def test_an_interrupt_is_for_the_first_process_to_hear(good, tmp_path):
    """A terminal sends it to all, those that still start as well."""
    other = clips.face(tmp_path / "other.mkv", clips.grey(12))
    run = begin(tmp_path / "cache", good, other, "--jobs", 2)
    with ended(run):
        wait_for(lambda: len(processes(run.pid)) > 1)
        for _ in range(20):
            for process in processes(run.pid).keys() - {run.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGINT)
            time.sleep(0.05)
        _, err = run.communicate(timeout=60)
    assert (run.returncode, lines(err)) == (0, [])
    assert "Traceback" not in err


def test_a_process_that_is_killed_costs_its_own_file_alone(good, tmp_path):
    long = long_clip(tmp_path / "a.mkv")
    others = [clips.face(tmp_path / f"{name}.mkv", clips.grey(12)) for name in "bcd"]
    cache = tmp_path / "cache"
    run = begin(cache, long, good, *others, "--jobs", 2, "--json")
    with ended(run):
        (worker,) = wait_for(lambda: [p for p in processes(run.pid) if opens(p, long)])
        os.kill(worker, signal.SIGKILL)
        out, err = run.communicate(timeout=60)
        wait_for(lambda: not processes(run.pid), 30)
    assert run.returncode == 2
    counts = json.loads(out)
    assert (counts["files"], counts["recordings"], counts["failed"]) == (5, 4, 1)
    assert counts["failures"] == {"its process was killed by signal 9": 1}
    assert lines(err)[0].startswith(f"affect: {long}: its process was killed by signal 9: ")
    assert recordings(cache) == [f"videos/{name}/{name}.h5" for name in ("b", "c", "d", "good")]
    assert main(["verify", str(cache)]) == 0


def test_what_a_killed_run_left_is_passed_over_and_removed_once_it_is_old(good, tmp_path, capsys):
    cache = tmp_path / "cache"
    assert extract(cache, good) == 0
    old, new = (cache / "videos" / "good" / f".{name}.tmp" for name in ("old", "new"))
    for left in (old, new):
        left.write_bytes(b"half a recording")
    os.utime(old, (time.time() - 7200,) * 2)
    assert main(["verify", str(cache)]) == main(["info", str(cache)]) == 0
    assert "all 1 recordings are whole" in capsys.readouterr().out
    assert extract(cache, good, options=(*PLAIN, "--force")) == 0
    assert recordings(cache) == ["videos/good/.new.tmp", "videos/good/good.h5"]


# --- one process or several ----------------------------------------------------------------------


def test_several_processes_give_the_same_to_the_byte(good, tmp_path):
    """With one thread each: how torch parts its sums among threads decides on their last bits."""
    sources = [
        good,
        *(clips.face(tmp_path / f"{name}.mkv", clips.noise(40, 32, 48)) for name in "ab"),
    ]
    real = VIDEOS / "single_face.mp4"
    sources += [real] if real.is_file() else []
    held = []
    for jobs in (1, 2):
        cache = tmp_path / f"jobs{jobs}"
        run = begin(cache, *sources, "--jobs", jobs)
        with ended(run):
            run.communicate(timeout=60)
        assert run.returncode == 0
        held.append({name: (cache / name).read_bytes() for name in recordings(cache)})
    assert len(held[0]) == len(sources)
    assert held[0] == held[1]
