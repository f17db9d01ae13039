"""Files extracted by several processes at once, each with a backend of its own.

A worker is handed one file at a time, so that one that dies takes no other file with it.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from affect.data.timeline import Place
from affect.extraction.backends import choice
from affect.extraction.backends.protocol import Listener
from affect.extraction.cached import Cached
from affect.extraction.pipeline import Extracted, extract_one
from affect.extraction.processor import settle
from affect.stopping import deaf_to_interrupts

_PATIENCE_S = 10.0
"""What a worker gets to end in, with its temporary files removed, before it is killed."""


@dataclass(frozen=True)
class Task:
    """What is the same for every file.

    Attributes:
        cache: the folder to fill.
        options: of each worker's backend.
        force: extract again what is cached under the same identity.
    """

    cache: Path
    options: choice.Options
    force: bool


def extract_in_processes(
    files: Mapping[Place, Path], task: Task, jobs: int, listener: Listener
) -> Iterator[Extracted]:
    """Put the recordings of each file into a cache, in the order in which they are done.

    Args:
        files: by their place in the cache.
        task: what to do with each.
        jobs: processes, 1 or more.
        listener: is told how it goes on.
    """
    waiting = deque(files.items())
    team: list[_Worker] = []
    try:
        while waiting or team:
            while waiting and len(team) < jobs:
                team.append(_Worker(task))
                team[-1].take(*waiting.popleft())
            for worker in _heard(team):
                done = worker.hear(listener)
                if done is None:
                    continue
                yield done
                if waiting and worker.alive:
                    worker.take(*waiting.popleft())
                else:
                    team.remove(worker)
                    worker.dismiss()
    finally:
        for worker in team:
            worker.stop()
        for worker in team:
            worker.join()


class _Worker:
    """A process, seen from the one that hands out files."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, task), daemon=True
        )
        with deaf_to_interrupts():
            self._process.start()
        theirs.close()
        self._path = Path()
        self.alive = True

    def take(self, place: Place, path: Path) -> None:
        self._path = path
        with suppress(OSError):  # it died; `hear` tells
            self.connection.send((place, path))

    def hear(self, listener: Listener) -> Extracted | None:
        """Its next message; where it has died, what that means for its file."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return self._lost()
        match message:
            case Extracted():
                return message
            case Path() as path, int(frames):
                listener.expect(path, frames)
            case int(frames):
                listener.advance(frames)
        return None

    def _lost(self) -> Extracted:
        self.join()
        self.alive = False
        code = self._process.exitcode
        cause = f"its process was killed by signal {-code}" if code and code < 0 else ""
        cause = cause or f"its process ended with status {code}"
        advice = "too little memory? try fewer --jobs"
        return Extracted(self._path, error=f"{self._path}: {cause}: {advice}", cause=cause)

    def dismiss(self) -> None:
        """Let it end by itself."""
        self.connection.close()
        self.join()

    def stop(self) -> None:
        self._process.terminate()

    def join(self) -> None:
        self._process.join(_PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _heard(team: list[_Worker]) -> list[_Worker]:
    """Those that have something to say."""
    ready = wait([worker.connection for worker in team])
    return [worker for worker in team if worker.connection in ready]


class _Telling(Listener):
    """Passes everything on to the process that hands out files."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def expect(self, path: Path, frames: int) -> None:
        self._connection.send((path, frames))

    def advance(self, frames: int) -> None:
        self._connection.send(frames)


def _serve(connection: Connection, task: Task) -> None:
    """Extract the files that come until no more do, or nobody listens."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # tidies up
    settle()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        backend = choice.make(task.options)
        listener, cached = _Telling(connection), Cached(task.cache)
        while True:
            place, path = connection.recv()
            done = extract_one(
                *(place, path, task.cache, backend),
                force=task.force,
                listener=listener,
                cached=cached,
            )
            connection.send(done)
