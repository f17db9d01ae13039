"""The backends of those who have OpenFace itself: its tables, and its program run on videos."""

import gzip
import json
import os
import resource
import signal
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from affect import store
from affect.cli import main
from affect.data import importing
from affect.data.timeline import Place
from affect.errors import UserError
from affect.extraction import pipeline
from affect.extraction.backends import choice
from affect.extraction.backends.choice import Options
from affect.extraction.openface import program as programs
from affect.extraction.video import Video
from affect.recording import OPENFACE_INTENSITIES
from tests import clips, corpora, openface_program

SHARED = Path(__file__).parents[2] / "shared"
FRAMES = 20


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where temporary files go; nothing may be left there. No OpenFace is found by chance."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("OPENFACE_HOME", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def program(tmp_path):
    return openface_program.install(tmp_path / "OpenFace" / "build" / "bin", corpora.faces(FRAMES))


@pytest.fixture
def core_dumps():
    """A shell in which a crash leaves the process's memory in a file."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


def film(path, frames=FRAMES, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    return clips.write(path, clips.grey(frames), **options)


def films(folder, *names):
    return {Place("c", "s", name): film(folder / f"{name}.mkv") for name in names}


def extracted(path, cache, options):
    """What became of a file, and its recording where there is one."""
    place = Place("c", "s", path.stem)
    (done,) = pipeline.extract({place: path}, cache, choice.make(options))
    return done, store.read(store.path_of(cache, *place)) if done.keys else None


def alive(pid):
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def none_survives(*pids):
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(alive, pids))


# --- the program: what it writes ------------------------------------------------------------------


def test_a_recording_is_openfaces_table_on_the_videos_clock(program, tmp_path):
    path = film(tmp_path / "a.mkv", rate=Fraction(24000, 1001))
    done, recording = extracted(path, tmp_path / "cache", Options(openface_bin=program))
    assert (done.error, done.notes, done.frames, done.faces) == ("", [], FRAMES, FRAMES - 1)
    store.verify(store.path_of(tmp_path / "cache", "c", "s", "a"))

    with Video(path) as video:
        time_s = np.concatenate([batch.time_s for batch in video])
        assert recording.rate_hz == video.rate_hz
    np.testing.assert_array_equal(recording.time_s, time_s)

    table = corpora.faces(FRAMES)
    seen = table["success"].to_numpy() == 1
    np.testing.assert_array_equal(recording.success, seen)
    intensity = table[list(OPENFACE_INTENSITIES)].to_numpy(np.float32)
    np.testing.assert_array_equal(recording.intensity[seen], intensity[seen])
    assert np.isnan(recording.intensity[~seen]).all()
    assert recording.presence[~seen].max() == 0

    provenance = recording.provenance
    assert (provenance.backend, provenance.parameters) == ("openface-bin", {"flags": ["-aus"]})
    assert provenance.source_sha256 == importing.sha256_of(path)


@pytest.mark.usefixtures("core_dumps")
def test_openface_writes_no_pixels_and_nothing_elsewhere(program, tmp_path, scratch, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    extracted(film(tmp_path / "a.mkv"), tmp_path / "cache", Options(openface_bin=program))
    (call,) = openface_program.calls(program)
    assert call["files"] == ["said.txt", "units.csv", "units_of_details.txt"]
    assert Path(call["folder"]).parent == scratch
    assert call["cwd"] == call["tmpdir"] == call["folder"]
    assert (call["threads"], call["core"]) == ("2", 0)


def test_rows_follow_the_frames_own_times(program, tmp_path):
    """A pause of four frames and a burst: the shades of decoded frames say what stands where."""
    times_ms = np.cumsum([0, *[40] * 6, 200, *[40] * 4, *[10] * 4, *[40] * 4]).tolist()
    path = film(tmp_path / "a.mkv", times_ms=times_ms)
    done, recording = extracted(path, tmp_path / "cache", Options(openface_bin=program))
    (note,) = done.notes
    assert not done.error
    assert note.startswith(f"{path}: 3 frames fell into the same tick as another at 25 frames")
    with Video(path) as video:
        pixels = torch.cat([batch.pixels for batch in video])
    frames = (pixels[:, 0, 0, 0].numpy().astype(int) - clips.shade(0)) // 2
    assert len(set(frames)) < len(frames) != FRAMES
    expected = corpora.faces(FRAMES)["AU12_r"].to_numpy(np.float32)[frames]
    expected[frames == 2] = np.nan
    np.testing.assert_array_equal(
        recording.intensity[:, OPENFACE_INTENSITIES.index("AU12_r")], expected
    )


def test_frames_that_openface_could_not_decode_are_told(program, tmp_path):
    path = film(tmp_path / "short.mkv")
    done, recording = extracted(path, tmp_path / "cache", Options(openface_bin=program))
    assert done.notes == [f"{path}: OpenFace read 15 of 20 frames: is it damaged?"]
    np.testing.assert_array_equal(recording.time_s, np.arange(15) / 25)


@pytest.mark.parametrize("name", ["-f.mkv", "-out_dir", "zwei Wörter.mkv", "%02d;'$(x).mkv"])
def test_any_name_will_do(program, tmp_path, monkeypatch, name):
    path = film(tmp_path / "a.mkv").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    done, _ = extracted(Path(name), tmp_path / "cache", Options(openface_bin=program))
    assert (done.error, done.frames) == ("", FRAMES)
    (call,) = openface_program.calls(program)
    assert call["video"] == str(path)


# --- the program: what goes wrong -----------------------------------------------------------------

FAILURES = {
    "crash": ("OpenFace crashed with signal 11", "it last said 'Starting tracking'"),
    "wrapped": ("OpenFace crashed with signal 11", "it last said 'Starting tracking'"),
    "fail": ("OpenFace ended with status 127", "shared libraries: libopencv_core.so'"),
    "nothing": ("OpenFace wrote no table", "it last said 'Failed to open the video file"),
    "truncated": ("OpenFace's table cannot be used", "cannot be used: line 21 has"),
    "faceless": ("no face", "none of its 20 frames shows one"),
}


def test_what_fails_says_why_and_stops_no_other(program, tmp_path):
    videos = films(tmp_path, *FAILURES, "good")
    (tmp_path / "broken.mkv").write_bytes(b"nothing")
    videos[Place("c", "s", "broken")] = tmp_path / "broken.mkv"
    backend = choice.make(Options(openface_bin=program))
    told = {done.path.stem: done for done in pipeline.extract(videos, tmp_path / "cache", backend)}
    assert told.pop("good").keys == ["c/s/good"]
    assert "no video" in told.pop("broken").error
    assert {name: done.cause for name, done in told.items()} == {
        name: cause for name, (cause, _) in FAILURES.items()
    }
    for name, (cause, detail) in FAILURES.items():
        assert told[name].error.startswith(f"{tmp_path / name}.mkv: {cause}: ")
        assert detail in told[name].error
    assert none_survives(*(call["pid"] for call in openface_program.calls(program)))


def test_one_that_hangs_is_killed_with_its_children(program, tmp_path):
    options = Options(openface_bin=program, timeout_s=3)
    done, _ = extracted(film(tmp_path / "hang.mkv"), tmp_path / "cache", options)
    assert done.cause == "OpenFace took longer than 3 s"
    assert "it last said 'Starting tracking'; give --timeout more" in done.error
    (call,) = openface_program.calls(program)
    assert none_survives(call["pid"], call["child"])


def test_a_file_that_is_no_program_is_told(program, tmp_path):
    program.write_bytes(b"\x7fELF for another machine")
    options = Options(openface_bin=program)
    done, _ = extracted(film(tmp_path / "a.mkv"), tmp_path / "cache", options)
    assert done.error == f"{tmp_path}/a.mkv: OpenFace cannot be started: Exec format error"


def stop_when_hanging(program, number, cache, waits_for):
    """Send this process a signal as soon as OpenFace hangs and what it waits for is there."""

    def watch():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            hangs = any("child" in call for call in openface_program.calls(program))
            if hangs and all((cache / "videos" / path).exists() for path in waits_for):
                break
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("number", "jobs", "others", "status"),
    [
        (signal.SIGINT, 1, [], 130),
        (signal.SIGTERM, 1, [], 75),
        (signal.SIGTERM, 2, ["good", "later"], 75),
    ],
)
def test_whatever_stops_the_command_stops_openface(
    program, tmp_path, capsys, monkeypatch, number, jobs, others, status
):
    """With several jobs: the one that hangs holds up no other."""
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    cache = tmp_path / "cache"
    paths = films(tmp_path, "hang", *others).values()
    thread = stop_when_hanging(program, number, cache, [f"{name}/{name}.h5" for name in others])
    arguments = ["--openface-bin", str(program), "--cache", str(cache), "--jobs", str(jobs)]
    assert main(["extract", *map(str, paths), *arguments]) == status
    thread.join()
    assert "the same command goes on" in capsys.readouterr().err
    calls = openface_program.calls(program)
    assert none_survives(*(call[key] for call in calls for key in ("pid", "child") if key in call))
    assert sorted(path.stem for path in cache.rglob("*.h5")) == others


# --- the program: which it is ---------------------------------------------------------------------


@pytest.mark.parametrize("place", ["bin", "build/bin", "."])
def test_it_is_found_in_openfaces_folder(tmp_path, place):
    program = openface_program.install(tmp_path / "home" / place, corpora.faces(FRAMES))
    assert programs.find(None, tmp_path / "home") == program
    other = openface_program.install(tmp_path / "other", corpora.faces(FRAMES))
    assert programs.find(other, tmp_path / "home") == other


def test_it_is_found_on_the_path(program, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "FeatureExtraction").symlink_to(program)
    monkeypatch.setenv("PATH", f"/bin:{tmp_path / 'bin'}")
    assert programs.find(None, None) == program  # beside whose models it lies


def test_without_a_program_nothing_starts(program, tmp_path, capsys):
    film(tmp_path / "a.mkv")

    def told(*arguments):
        cache = tmp_path / "cache"
        assert main(["extract", str(tmp_path / "a.mkv"), "--cache", str(cache), *arguments]) == 2
        assert not cache.exists()
        return capsys.readouterr().err

    assert "give --openface-bin, or --openface-home" in told("--backend", "openface-bin")
    assert "does not exist" in told("--openface-bin", str(tmp_path / "absent"))
    assert "is a folder" in told("--openface-bin", str(tmp_path))
    assert "--timeout 0: give seconds" in told("--openface-bin", str(program), "--timeout", "0")
    assert "leave out --faces all" in told("--openface-bin", str(program), "--faces", "all")
    program.chmod(0o644)
    assert "may not be executed" in told("--openface-bin", str(program))
    assert openface_program.calls(program) == []


PROGRAM = ("--openface-bin", "FeatureExtraction")
UNUSED = [
    (("--backend", "geometry", "--timeout", "9"), "--timeout is for the openface-bin backend"),
    (("--timeout", "0"), "--timeout is for the openface-bin backend"),
    (("--backend", "openface", "--timeout", "9"), "--timeout is for the openface-bin backend"),
    (("--backend", "openface-csv", "--timeout", "9"), "--timeout is for the openface-bin backend"),
    (("--backend", "geometry", *PROGRAM), "--openface-bin is for the openface-bin backend"),
    (("--backend", "openface-csv", *PROGRAM), "--openface-bin is for the openface-bin backend"),
    (("--backend", "openface-csv", "--gpu-decoding"), "--gpu-decoding is for videos that"),
    (("--backend", "openface-bin", "--gpu-decoding"), "--gpu-decoding is for videos that"),
    (("--device", "cpu", "--gpu-decoding"), "--gpu-decoding is for videos that"),
    (("--still", "--gpu-decoding"), "--gpu-decoding is for videos that"),
]


@pytest.mark.parametrize(("arguments", "message"), UNUSED)
def test_what_a_backend_has_no_use_for_is_refused(arguments, message, tmp_path, capsys):
    path, cache = film(tmp_path / "a.mkv"), tmp_path / "cache"
    assert main(["extract", str(path), "--cache", str(cache), *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"affect: error: {message}")
    assert (told.count("\n"), cache.exists()) == (1, False)


@pytest.mark.parametrize("changed", ["FeatureExtraction", "AU_predictors", "model"])
def test_other_models_are_another_identity(program, tmp_path, changed):
    path, cache, options = (
        film(tmp_path / "a.mkv"),
        tmp_path / "cache",
        Options(openface_bin=program),
    )
    assert not extracted(path, cache, options)[0].skipped
    assert extracted(path, cache, options)[0].skipped
    assert len(openface_program.calls(program)) == 1
    target = program.with_name(changed)
    target = next(target.iterdir()) if target.is_dir() else target
    target.write_text(target.read_text() + "\n# newer\n")
    assert not extracted(path, cache, options)[0].skipped


def test_installed_models_are_found(tmp_path):
    program = openface_program.install(tmp_path / "bin", corpora.faces(FRAMES))
    before = programs.weights_sha256(program)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "OpenFace").mkdir()
    for name in ("AU_predictors", "model"):
        (tmp_path / "bin" / name).rename(tmp_path / "etc" / "OpenFace" / name)
    assert programs.weights_sha256(program) == before
    assert before != importing.sha256_of(program)


@pytest.mark.parametrize(
    ("frames", "seconds"), [(1, 600), (1200, 600), (1201, 1200), (45_000, 22_800)]
)
def test_patience_grows_with_the_length(frames, seconds):
    assert programs.patience_s(frames) == seconds


# --- tables ---------------------------------------------------------------------------------------


def test_tables_become_recordings_and_a_broken_one_stops_no_other(tmp_path, capsys):
    folder = tmp_path / "processed"
    table = corpora.faces(FRAMES)
    for name in ("P1/a", "P1/b", "P2/a"):
        path = corpora.write_openface(folder / f"{name}.csv", table)
    lines = path.read_text().splitlines(keepends=True)
    for name, content in {
        "empty": "",
        "rowless": lines[0],
        "truncated": "".join(lines)[:-40],
        "unitless": "frame, face_id, timestamp, confidence, success\n1, 0, 0.0, 0.9, 1\n",
        "faceless": "".join([lines[0], *(line.replace(", 1, ", ", 0, ") for line in lines[1:])]),
    }.items():
        corpora.write(folder / "broken" / f"{name}.csv", content)
    (folder / "notes_of_details.txt").write_text("no table")
    arguments = ["--cache", str(tmp_path / "cache"), "--backend", "openface-csv", "--jobs", "1"]
    assert main(["extract", str(folder), *arguments, "--json"]) == 2
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert (summary["files"], summary["recordings"], summary["failed"]) == (8, 3, 5)
    assert (summary["frames"], summary["frames_with_a_face"]) == (3 * FRAMES, 3 * (FRAMES - 1))
    told = [line for line in output.err.splitlines() if "/broken/" in line]
    for name, reason in {
        "empty": "empty: copy it again",
        "rowless": "has no rows",
        "truncated": "line 21 has",
        "unitless": "has no AU columns (AU01_r ...): run FeatureExtraction with -aus",
        "faceless": "no frame with a face",
    }.items():
        (line,) = [line for line in told if f"{name}.csv" in line]
        assert reason in line
    assert "5 of 8 files failed" in output.err
    main(["extract", str(folder), *arguments, "--json"])
    assert json.loads(capsys.readouterr().out)["skipped"] == 3


def test_a_table_is_what_the_importer_makes_of_it(tmp_path):
    path = corpora.write_openface(tmp_path / "a.csv", corpora.faces(FRAMES))
    _, recording = extracted(path, tmp_path / "cache", Options("openface-csv"))
    (item,) = importing.find("openface-csv", path, {})
    imported = item.load()
    assert recording.provenance.backend == "openface-csv"
    assert recording.provenance.source_sha256 == imported.provenance.source_sha256
    for name in ("time_s", "intensity", "presence", "success", "confidence"):
        np.testing.assert_array_equal(getattr(recording, name), getattr(imported, name))


def test_tables_hold_one_face():
    with pytest.raises(UserError, match="leave out --faces all"):
        choice.make(Options("openface-csv", faces="all"))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "rate_hz", "frames"),
    [("single_face", 30.0, 72), ("WolfgangLanger_Pexels", 24000 / 1001, 472)],
)
def test_openfaces_own_rows_stand_on_the_clock_of_a_real_clip(tmp_path, name, rate_hz, frames):
    video = SHARED / "videos" / f"{name}.mp4"
    table = SHARED / "openface-reference" / f"{name}.csv.gz"
    if not (video.exists() and table.exists()):
        pytest.skip("no clips at ../shared/videos with OpenFace's output")
    program = openface_program.install(tmp_path / "OpenFace", corpora.faces(FRAMES))
    program.with_name("table.csv").write_bytes(gzip.decompress(table.read_bytes()))
    done, recording = extracted(video, tmp_path / "cache", Options(openface_bin=program))
    assert (done.error, done.notes, done.frames) == ("", [], frames)
    assert recording.rate_hz == pytest.approx(rate_hz, rel=1e-12)
    (item,) = importing.find("openface-csv", program.with_name("table.csv"), {})
    imported = item.load()
    np.testing.assert_array_equal(recording.intensity, imported.intensity)
    np.testing.assert_allclose(recording.time_s, imported.time_s, atol=6e-4)  # it rounds to 1 ms
