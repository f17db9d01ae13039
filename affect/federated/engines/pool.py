"""Pieces of work handed to workers, one to each at a time; the answers come in the pieces' order.

A worker that hangs or dies costs the one piece that it was busy with, and another takes its place.
Pieces go to whoever is idle, by preference to the worker that had the same client's last one, which
still holds what it prepared for it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

_AHEAD = 4
"""Pieces a worker that may be taken before the first one is answered."""


class Worker(ABC):
    """Who works, seen from where the pieces are handed out.

    Attributes:
        number: 0, 1, ...; that of the worker whose place it takes.
        alive: whether it can take another piece.
        index: of the piece that it took last.
        since_s: from when on the time-out of that piece is counted.
        answer: to that piece, once it was heard or given up.
    """

    number: int
    alive: bool
    index: int
    since_s: float
    answer: Any

    @abstractmethod
    def take(self, index: int, piece: Any, /) -> None:
        """Begin a piece."""

    @abstractmethod
    def hear(self) -> None:
        """Take its answer, or what its death means."""

    @abstractmethod
    def give_up(self, reason: str) -> None:
        """Kill it; the answer is the reason."""

    @abstractmethod
    def kill(self) -> None:
        """End it."""


Hired = TypeVar("Hired", bound=Worker)
Piece = TypeVar("Piece")
Answer = TypeVar("Answer")


class Pool(ABC, Generic[Hired, Piece, Answer]):
    """Workers that answer.

    Args:
        workers: how many, 1 or more.
        timeout_s: what one piece gets; None for ever.
    """

    def __init__(self, workers: int, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._workers = [self._hired(number) for number in range(workers)]
        self._last: dict[Hashable, int] = {}

    @abstractmethod
    def _hired(self, number: int) -> Hired:
        """A new worker."""

    @abstractmethod
    def _client(self, piece: Piece) -> Hashable:
        """Whose a piece is."""

    @abstractmethod
    def _ready(self, busy: Sequence[Hired], limit_s: float | None) -> Sequence[Hired]:
        """Those that can be heard; waits until there is one, or for so long."""

    def answers(self, pieces: Iterable[Piece]) -> Iterator[Answer]:
        """The answers in the order of the pieces."""
        coming = enumerate(pieces)
        idle, busy = deque(self._workers), list[Hired]()
        waiting: dict[int, Piece] = {}
        done: dict[int, Answer] = {}
        position = 0
        while True:
            held = len(waiting) + len(busy) + len(done)
            waiting.update(islice(coming, _AHEAD * len(self._workers) - held))
            while idle and waiting:
                busy.append(idle.popleft())
                index = self._chosen(busy[-1].number, waiting)
                busy[-1].take(index, waiting.pop(index))
            if not busy:
                return
            for worker in self._heard(busy):
                busy.remove(worker)
                done[worker.index] = worker.answer
                idle.append(worker if worker.alive else self._replaced(worker))
            while position in done:
                yield done.pop(position)
                position += 1

    def stop(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.kill()

    def _chosen(self, worker: int, waiting: Mapping[int, Piece]) -> int:
        """The first waiting piece of a client that the worker, or nobody, had; else the first."""
        clients = {index: self._client(piece) for index, piece in waiting.items()}
        fit = (index for index in clients if self._last.get(clients[index], worker) == worker)
        index = next(fit, next(iter(waiting)))
        self._last[clients[index]] = worker
        return index

    def _heard(self, busy: Sequence[Hired]) -> Sequence[Hired]:
        """Those that have answered, died or taken too long; waits until there is one."""
        limit_s = None
        if self._timeout_s is not None:
            earliest_s = min(worker.since_s for worker in busy)
            limit_s = max(earliest_s + self._timeout_s - time.monotonic(), 0.0)
        heard = self._ready(busy, limit_s)
        for worker in heard:
            worker.hear()
        if heard or self._timeout_s is None:
            return heard
        late = min(busy, key=lambda worker: worker.since_s)
        late.give_up(f"it did not answer within {self._timeout_s:g} s")
        return [late]

    def _replaced(self, worker: Hired) -> Hired:
        fresh = self._hired(worker.number)
        self._workers[self._workers.index(worker)] = fresh
        return fresh
