"""Recordings copied to a node's own disk, once a node, for all jobs that read them there.

`AFFECT_STAGE` names the folder, `<folder>/<digest of the cache's path>/` holds a copy of a cache.
A copy is a file's only once it is whole: written to a temporary neighbour, read back against the
source's checksum, given the source's time and renamed. One process copies at a time, under a lock
that is as local as the disk; those that wait find the files there. Copies stay for the node's next
job; those of a cache that no process uses and nobody has staged for days are removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from affect.store import Entry

VARIABLE = "AFFECT_STAGE"
_CHUNK = 1 << 22
_COPIERS = 4
_SPARE = 1 << 28
"""What is left free on the disk, bytes."""
_UNUSED_S = 3 * 86_400
_LOCK = ".lock"
_in_use: dict[Path, IO[str]] = {}
"""Open files of caches that this process reads, which keep others from removing them."""


def staged(entries: Sequence[Entry]) -> list[Entry]:
    """The same recordings on this node's disk.

    Where no disk is named they are as they were; also where it is full or broken, which is told in
    a line on standard error.

    Args:
        entries: of caches on any file system.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return list(entries)
    folder = Path(named)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder):
            _forget_unused(folder)
            return _copied(entries, folder)
    except OSError as error:
        reason = error.strerror or error
        sys.stderr.write(
            f"affect: cannot stage to {folder}: {reason}; recordings are read where they are\n"
        )
    return list(entries)


def _copied(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    pairs = [(entry.path, _place(entry.path, folder)) for entry in entries]
    missing = [pair for pair in pairs if not _same(*pair)]
    if missing:
        _require_room(folder, sum(source.stat().st_size for source, _ in missing))
        with ThreadPoolExecutor(_COPIERS) as pool:
            list(pool.map(_copy, *zip(*missing, strict=True)))
    for cache in {copy.parents[2] for _, copy in pairs}:
        _use(cache)
    return [replace(e, path=copy) for e, (_, copy) in zip(entries, pairs, strict=True)]


def _place(source: Path, folder: Path) -> Path:
    """Where a recording's copy lies: `<digest of the cache>/<corpus>/<subject>/<name>.h5`."""
    path = source.absolute()
    cache = hashlib.sha256(str(path.parents[2].resolve()).encode()).hexdigest()[:16]
    return folder / cache / path.relative_to(path.parents[2])


def _same(source: Path, copy: Path) -> bool:
    """Whether a copy is that of the source as it is now."""
    try:
        there = copy.stat()
    except FileNotFoundError:
        return False
    here = source.stat()
    return (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free - _SPARE
    if needed > free:
        raise OSError(
            f"{max(free, 0) / 1e9:.2f} GB to spare there, {needed / 1e9:.2f} GB needed (free some, "
            "or name another folder as scratch in the profile)"
        )


def _copy(source: Path, copy: Path) -> None:
    """Copy a file, whole and as it was, or not at all."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    before = source.stat()
    descriptor, name = tempfile.mkstemp(dir=copy.parent, prefix=".")
    temporary = Path(name)
    try:
        with source.open("rb", buffering=0) as read, os.fdopen(descriptor, "wb") as written:
            checksum = 0
            while chunk := read.read(_CHUNK):
                checksum = zlib.crc32(chunk, checksum)
                written.write(chunk)
        if _checksum(temporary) != checksum or temporary.stat().st_size != before.st_size:
            raise OSError(f"{copy} does not read back as {source} (a broken disk, or a change)")
        os.utime(temporary, ns=(before.st_atime_ns, before.st_mtime_ns))
        temporary.replace(copy)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Until the block ends no other process of this node stages here."""
    with (folder / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the file is closed, also by a kill
        yield


def _use(cache: Path) -> None:
    """Keep a cache's copies for as long as this process lives."""
    if cache not in _in_use:
        _in_use[cache] = (cache / _LOCK).open("a")
        fcntl.flock(_in_use[cache], fcntl.LOCK_SH)
    os.utime(cache)


def _forget_unused(folder: Path) -> None:
    for cache in folder.iterdir():
        if cache.is_dir() and time.time() - cache.stat().st_mtime > _UNUSED_S:
            with suppress(BlockingIOError), (cache / _LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(cache, ignore_errors=True)
