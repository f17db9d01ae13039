"""Recordings on a node's own disk: copied once, whole, and read to the same bits."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from affect import store
from affect.config import FederationConfig
from affect.data import staging
from affect.federated.federate import federate
from affect.training.fit import fit
from tests import builders

STAGE = """
import sys
from pathlib import Path
from affect import store
from affect.data import staging
found = staging.staged(store.entries(Path("cache")))
assert all(entry.path.is_relative_to(Path("disk").absolute()) for entry in found)
for entry in found:
    store.verify(entry.path)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / "disk"))
    return builders.cache(tmp_path / "cache", subjects=6)


def copies():
    return sorted(Path("disk").absolute().rglob("*.h5"))


def contents(paths):
    return [path.read_bytes() for path in paths]


def test_what_is_staged_is_copied_once_and_again_where_it_has_changed(cache):
    entries = store.entries(cache)
    found = staging.staged(entries)
    assert [entry.key for entry in found] == [entry.key for entry in entries]
    assert contents(e.path for e in found) == contents(e.path for e in entries)
    assert [entry.path for entry in found] == copies()
    first = [path.stat().st_ino for path in copies()]
    assert staging.staged(entries) == found
    assert [path.stat().st_ino for path in copies()] == first
    store.write(builders.recording("P0", frames=70), cache)
    again = staging.staged(store.entries(cache))
    assert [a.path.stat().st_ino == i for a, i in zip(again, first, strict=True)].count(False) == 1
    assert contents(e.path for e in again) == contents(e.path for e in entries)
    assert not (Path("disk").stat().st_mode & 0o077)


def test_many_processes_copy_once(cache, monkeypatch):
    """Each reads whole files; what one has laid there no other replaces."""
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    trace = "import sys; from affect.data import staging as s; c = s._copy\n"
    trace += "s._copy = lambda a, b: (sys.stderr.write(f'{b}\\n'), c(a, b))\n"
    every = [
        subprocess.Popen(
            [sys.executable, "-c", trace + STAGE], env=known, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [process.communicate()[1] for process in every]
    assert [process.returncode for process in every] == [0, 0, 0], said
    assert sorted("".join(said).split()) == [str(path) for path in copies()]


def test_a_copy_that_was_cut_is_made_again(cache):
    entries = store.entries(cache)
    (path, *_) = [entry.path for entry in staging.staged(entries)]
    whole, time_ns = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(whole[:100])
    os.utime(path, ns=(time_ns, time_ns))
    staging.staged(entries)
    assert path.read_bytes() == whole
    (path.parent / ".left-by-a-kill").write_bytes(whole[:100])
    assert [entry.path for entry in staging.staged(entries)] == copies()


def test_a_disk_that_changes_what_it_is_given_is_not_read(cache, monkeypatch, capsys):
    monkeypatch.setattr(staging, "_checksum", lambda path: 0)
    assert staging.staged(store.entries(cache)) == store.entries(cache)
    assert "does not read back as" in capsys.readouterr().err
    assert not copies()


@pytest.mark.parametrize("way", ["full", "a file"])
def test_where_there_is_no_room_recordings_are_read_where_they_are(cache, monkeypatch, capsys, way):
    if way == "full":
        monkeypatch.setattr(staging, "_SPARE", 2**60)
    else:
        Path("disk").write_text("")
    assert staging.staged(store.entries(cache)) == store.entries(cache)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"affect: cannot stage to {Path('disk').absolute()}: ")
    assert line.endswith("recordings are read where they are")
    assert way != "full" or "GB to spare there, 0.00 GB needed" in line


def test_a_disk_that_fills_up_meanwhile_leaves_no_half_copy(cache, capsys, tmp_path):
    """On a real file system of 256 KiB, where mounting is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        for number in range(40):
            store.write(builders.recording(f"Q{number}", frames=400), cache)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(staging, "_SPARE", -(2**40))
            assert staging.staged(store.entries(cache)) == store.entries(cache)
        assert "No space left on device" in capsys.readouterr().err
        for path in copies():
            store.verify(path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_caches_that_nobody_uses_are_forgotten(cache):
    (entry, *_) = staging.staged(store.entries(cache))
    used = entry.path.parents[2]
    long_ago = time.time() - 2 * staging._UNUSED_S
    for name in ("unused", "used-elsewhere"):
        (Path("disk") / name).mkdir()
        os.utime(Path("disk") / name, (long_ago, long_ago))
    other = (Path("disk/used-elsewhere") / staging._LOCK).open("w")
    fcntl.flock(other, fcntl.LOCK_SH)
    for name in ("used-elsewhere", used.name):
        os.utime(Path("disk") / name, (long_ago, long_ago))
    staging.staged([])
    left = {path.name for path in Path("disk").iterdir() if path.is_dir()}
    assert left == {"used-elsewhere", used.name}
    other.close()


@pytest.mark.parametrize("train", [fit, federate])
def test_runs_read_the_nodes_copy_to_the_same_bits(cache, tmp_path, monkeypatch, train):
    experiment = builders.experiment(tmp_path, federation=FederationConfig(rounds=1))
    read = []
    original = store._open
    monkeypatch.setattr(
        store, "_open", lambda path, **k: (read.append(path), original(path, **k))[1]
    )
    near = train(experiment, draw=lambda _: [])
    series = [path for path in read if path.suffix == ".h5" and path.name != "predictions.h5"]
    assert any(path.is_relative_to(tmp_path / "disk") for path in series)
    monkeypatch.delenv(staging.VARIABLE)
    read.clear()
    far = train(experiment, draw=lambda _: [])
    assert near.record["metrics"] == far.record["metrics"]
    assert not any(path.is_relative_to(tmp_path / "disk") for path in read)
    assert "disk" not in (near.folder / "config.yaml").read_text()
