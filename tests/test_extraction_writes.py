"""What an extraction leaves on a disk, as the kernel sees it: recordings, and never a pixel.

strace shows the calls of every library and of every process, where an audit hook of Python's shows
its own alone. It can also end a process in the middle of a call.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from affect.cli import main
from tests import clips, openface_models

pytestmark = pytest.mark.strace

VIDEOS = Path(__file__).parents[2] / "shared" / "videos"
OPENING = ("open", "openat", "openat2", "creat")
NAMING = ("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat")
MAKING = ("mkdir", "mkdirat", "mknod", "mknodat", "truncate", "memfd_create", "connect")
CALLS = ",".join((*OPENING, *NAMING, *MAKING))
FOR_WRITING = r"\bO_(WRONLY|RDWR|CREAT)\b"

# Random models are not OpenFace's own files.
UNVERIFIED = """
import functools, sys
from affect.extraction.openface import weights
weights.load = functools.partial(weights.load, verify=False)
from affect.cli import main
sys.exit(main())
"""


@pytest.fixture
def strace():
    """The command, where it is there and may trace."""
    if shutil.which("strace") is None:
        pytest.skip("no strace: apt-get install strace")
    if subprocess.run(["strace", "-o", os.devnull, "true"], check=False).returncode:
        pytest.skip("strace may not trace here: allow ptrace")
    return "strace"


@pytest.fixture
def videos(tmp_path):
    """Two videos with a face, and one without."""
    folder = tmp_path / "videos"
    folder.mkdir()
    points, pictures = openface_models.poses(40)
    for name in ("a", "b"):
        clips.lay_landmarks(clips.write(folder / f"{name}.mkv", list(pictures)), points)
    clips.write(folder / "grey.mkv", clips.grey(12))
    real = VIDEOS / "single_face.mp4"  # shows the landmark network a face, where it is there
    if real.is_file():
        (folder / "real.mp4").symlink_to(real)
    return folder


def traced(options, program, *arguments):
    """A finished Python process under strace; it keeps no compiled code."""
    command = ["strace", "-f", *options, sys.executable, "-B", *program, "extract", *arguments]
    return subprocess.run(
        [*map(str, command)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )


def made(logs):
    """Call and path of whatever was opened for writing, made, named or connected to."""
    for line in (line for log in logs for line in log.read_text().splitlines()):
        call, _, rest = line.partition("(")
        succeeded = re.search(r" = \d+(<(?P<path>.*)>(\(deleted\))?)?$", rest)
        if call == "connect" and "AF_UNIX" not in rest:
            yield call, rest
        elif call in OPENING and succeeded and (call == "creat" or re.search(FOR_WRITING, rest)):
            yield "open", succeeded["path"]
        elif call in (*NAMING, *MAKING) and succeeded:
            yield call.removesuffix("2").removesuffix("at"), re.findall(r'"(.*?)"', rest)[-1]


def test_the_watch_sees_each_way_to_write(strace, tmp_path):
    act = (
        "import os, pathlib, socket\n"
        "pathlib.Path('a').write_text('x'); pathlib.Path('a').read_text()\n"
        "os.mkdir('d'); os.rename('a', 'd/b'); os.link('d/b', 'c'); os.symlink('c', 's')\n"
        "os.memfd_create('m')\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))\n"
        "os.fork() or open('child', 'a')\n"
    )
    command = ["strace", "-ff", "-y", "-e", f"trace={CALLS}", "-o", tmp_path / "log"]
    subprocess.run([*command, sys.executable, "-B", "-c", act], cwd=tmp_path, check=True)
    calls = [(call, Path(path).name) for call, path in made(sorted(tmp_path.glob("log.*")))]
    named = [("open", "a"), ("mkdir", "d"), ("rename", "b"), ("link", "c"), ("symlink", "s")]
    assert calls[:6] == [*named, ("memfd_create", "m")]
    assert calls[6][0] == "connect"
    assert calls[7:] == [("open", "child")]


@pytest.mark.parametrize(("backend", "jobs"), [("geometry", 1), ("geometry", 2), ("openface", 1)])
def test_no_file_but_recordings_is_written_by_any_library(backend, jobs, videos, strace, tmp_path):
    cache, logs = tmp_path / "cache", tmp_path / "logs"
    logs.mkdir()
    home = openface_models.write_folder(tmp_path / "openface")
    run = traced(
        ["-ff", "-y", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", logs / "log"],
        ["-c", UNVERIFIED] if backend == "openface" else ["-m", "affect"],
        *(videos, "--cache", cache, "--backend", backend, "--openface-home", home),
        *("--device", "cpu", "--jobs", jobs),
    )
    assert run.returncode == 2  # one has no face
    assert "1 of " in run.stderr
    calls = list(made(sorted(logs.iterdir())))
    explained = {
        "open": [
            re.escape(os.devnull),
            rf"{cache}/(#\d+|\.\w+)",  # asks whether the cache can be written; has no name
            r"/dev/shm/sem\.\w+",  # the lock of the progress bar
        ],
        "link": [r"/dev/shm/sem\.[\w-]+"],
        "mkdir": [rf"{cache}(/videos(/\w+)?)?"],
    }
    left = [
        (call, path)
        for call, path in calls
        if not any(re.fullmatch(pattern, path) for pattern in explained.get(call, ()))
    ]
    recordings = sorted(cache.rglob("*.h5"))
    assert len(recordings) == len(list(videos.glob("*.m*"))) - 1
    assert sorted(Path(path) for call, path in left if call == "rename") == recordings
    written = [path for call, path in left if call == "open"]
    assert sorted(re.sub(r"\.\w+\.tmp$", "", path) for path in written) == [
        f"{recording.parent}/" for recording in recordings
    ]
    assert {call for call, _ in left} == {"open", "rename"}


def test_a_run_that_dies_while_it_writes_leaves_a_hidden_file_alone(strace, tmp_path, capsys):
    paths = [clips.face(tmp_path / f"{name}.mkv", clips.grey(12)) for name in "ab"]
    cache = tmp_path / "cache"
    arguments = (*paths, "--cache", cache, "--backend", "geometry", "--device", "cpu")
    kill = ["-e", "trace=fsync", "-e", "inject=fsync:signal=KILL:when=2", "-o", os.devnull]
    run = traced(kill, ["-m", "affect"], *arguments, "--jobs", 1)
    assert run.returncode == -9
    found = sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
    assert len(found) == 2
    assert found[0] == "videos/a/a.h5"
    assert re.fullmatch(r"videos/b/\.\w+\.tmp", found[1])
    assert main(["verify", str(cache)]) == main(["info", str(cache)]) == 0
    assert "all 1 recordings are whole" in capsys.readouterr().out
    assert main(["extract", *map(str, arguments), "--json"]) == 0
    assert main(["verify", str(cache)]) == 0


def test_a_disk_that_fails_at_the_last_moment_costs_one_recording(strace, tmp_path):
    paths = [clips.face(tmp_path / f"{name}.mkv", clips.grey(12)) for name in "ab"]
    cache = tmp_path / "cache"
    arguments = (*paths, "--cache", cache, "--backend", "geometry", "--device", "cpu")
    full = ["-e", "trace=fsync", "-e", "inject=fsync:error=ENOSPC:when=1", "-o", os.devnull]
    run = traced(full, ["-m", "affect"], *arguments, "--jobs", 1)
    assert run.returncode == 2
    assert f"cannot write {cache}/videos/a/a.h5: No space left on device; free" in run.stderr
    found = [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()]
    assert found == ["videos/b/b.h5"]
