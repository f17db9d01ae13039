"""Clients in worker processes: each takes one message, or one cohort's, at a time.

A worker that hangs or dies costs the clients that it was busy with, and another takes its place.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from affect.config import FederationConfig
from affect.federated.engines.cohorts import answered_together, cohorts, in_cohorts
from affect.federated.engines.inprocess import App, InProcessGrid, Task
from affect.stopping import deaf_to_interrupts

_AHEAD = 4
"""Cohorts a worker that may be answered before the first one that is not."""


class Team:
    """Worker processes that answer messages.

    Args:
        make_app: makes the ClientApp in worker 0, 1, ...; must be picklable.
        workers: how many, 1 or more.
        timeout_s: what one message gets; None for ever.
        cohort: messages to train that a worker answers together.
    """

    def __init__(
        self,
        make_app: Callable[[int], App],
        workers: int,
        timeout_s: float | None,
        cohort: int = 1,
    ) -> None:
        self._make_app = make_app
        self._timeout_s = timeout_s
        self._cohort = cohort
        self._workers = [_Worker(make_app, number) for number in range(workers)]

    def answers(self, tasks: Iterable[Task]) -> Iterator[Message]:
        """The replies in the order of the messages; those that fail are answered with an error."""
        coming = enumerate(cohorts(tasks, self._cohort))
        idle, busy = deque(self._workers), list[_Worker]()
        done: dict[int, list[Message]] = {}
        position = given = 0
        while True:
            while idle and given - position < _AHEAD * len(self._workers):
                index, cohort = next(coming, (0, None))
                if cohort is None:
                    break
                busy.append(idle.popleft())
                busy[-1].take(index, cohort, self._timeout_s)
                given += 1
            if not busy:
                return
            for worker in self._heard(busy):
                busy.remove(worker)
                done[worker.index] = worker.answers
                idle.append(worker if worker.alive else self._replaced(worker))
            while position in done:
                yield from done.pop(position)
                position += 1

    def stop(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.kill()

    def _heard(self, busy: list[_Worker]) -> list[_Worker]:
        """Those that have answered, died or taken too long; waits until there is one."""
        late = min(busy, key=lambda worker: worker.until_s)
        limit_s = None
        if self._timeout_s is not None:
            limit_s = max(late.until_s - time.monotonic(), 0.0)
        ready = wait([worker.connection for worker in busy], limit_s)
        heard = [worker for worker in busy if worker.connection in ready]
        for worker in heard:
            worker.hear()
        if heard or self._timeout_s is None:
            return heard
        late.give_up(f"it did not answer within {late.granted_s:g} s")
        return [late]

    def _replaced(self, worker: _Worker) -> _Worker:
        fresh = _Worker(self._make_app, worker.number)
        self._workers[self._workers.index(worker)] = fresh
        return fresh


@contextmanager
def engine(
    make_app: Callable[[int], App], nodes: int, config: FederationConfig
) -> Iterator[InProcessGrid]:
    """A grid of clients on this machine, in this process or in workers.

    Args:
        make_app: makes the ClientApp in worker 0, 1, ...; must be picklable.
        nodes: how many there are.
        config: workers, cohorts and time-out.
    """
    cohort = config.cohort_clients or 1
    if config.workers == 1 and config.timeout_s is None:
        yield InProcessGrid(in_cohorts(make_app(0), cohort), nodes)
        return
    team = Team(make_app, config.workers, config.timeout_s, cohort)
    try:
        yield InProcessGrid(team.answers, nodes)
    finally:
        team.stop()


class _Worker:
    """A process, seen from the one that hands out messages."""

    def __init__(self, make_app: Callable[[int], App], number: int) -> None:
        context = multiprocessing.get_context("forkserver")
        # the imports are shared by all workers, which start at once
        context.set_forkserver_preload([__name__, "affect.federated.site"])
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, make_app, number), daemon=True
        )
        with deaf_to_interrupts():
            self._process.start()
        theirs.close()
        self.number = number
        self.alive = True

    def take(self, index: int, tasks: Sequence[Task], timeout_s: float | None) -> None:
        """Hand it a cohort's messages, each of which may take so long."""
        self.index = index
        self.granted_s = math.inf if timeout_s is None else timeout_s * len(tasks)
        self.until_s = time.monotonic() + self.granted_s
        self._messages = [message for message, _ in tasks]
        with suppress(OSError):  # it died; `hear` tells
            self.connection.send(tasks)

    def hear(self) -> None:
        """Take its answers, or what its death means for the clients."""
        try:
            self.answers: list[Message] = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            ended = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            self.give_up(f"its process {ended}")

    def give_up(self, reason: str) -> None:
        """Kill it; its clients' answer is the reason."""
        self.kill()
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
        self.answers = [Message(error, reply_to=message) for message in self._messages]

    def kill(self) -> None:
        self.alive = False
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, make_app: Callable[[int], App], number: int) -> None:
    """Answer the messages that come until nobody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        app = make_app(number)
        while True:
            connection.send(answered_together(app, connection.recv()))
