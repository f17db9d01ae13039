"""Clients in worker processes: each takes one message, or one cohort's, at a time.

A worker that hangs or dies costs the clients that it was busy with, and another takes its place.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from affect.config import FederationConfig
from affect.federated.answering import App, Task
from affect.federated.engines.channel import Channel, channel
from affect.federated.engines.cohorts import answered_together, cohorts, in_cohorts
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.engines.pool import Pool, Worker
from affect.stopping import deaf_to_interrupts


class Team(Pool["_Worker", "Sequence[Task]", "list[Message]"]):
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
        self._cohort = cohort
        super().__init__(workers, timeout_s)

    def replies(self, tasks: Iterable[Task]) -> Iterator[Message]:
        """The replies in the order of the messages; those that fail are answered with an error."""
        for answers in self.answers(cohorts(tasks, self._cohort)):
            yield from answers

    def _hired(self, number: int) -> _Worker:
        return _Worker(self._make_app, number, self._timeout_s or 0.0)

    def _client(self, piece: Sequence[Task]) -> int:
        return piece[0][1].node_id

    def _ready(self, busy: Sequence[_Worker], limit_s: float | None) -> list[_Worker]:
        ready = wait([worker.channel.connection for worker in busy], limit_s)
        return [worker for worker in busy if worker.channel.connection in ready]


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
        yield InProcessGrid(team.replies, nodes)
    finally:
        team.stop()


class _Worker(Worker):
    """A process, seen from the one that hands out messages."""

    def __init__(self, make_app: Callable[[int], App], number: int, timeout_s: float) -> None:
        context = multiprocessing.get_context("forkserver")
        # the imports are shared by all workers, which start at once
        context.set_forkserver_preload([__name__, "affect.federated.site"])
        self.channel, theirs = channel()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, make_app, number), daemon=True
        )
        with deaf_to_interrupts():
            self._process.start()
        theirs.close()
        self._timeout_s = timeout_s
        self.number = number
        self.alive = True
        self._started = False

    def take(self, index: int, tasks: Sequence[Task]) -> None:
        self.index = index
        if not self._started:  # its start is not the client's time
            with suppress(EOFError, OSError):  # it died; `hear` tells
                self._started = self.channel.receive()
        # the time-out is one message's, and the last one's begins after those of the others
        self.since_s = time.monotonic() + self._timeout_s * (len(tasks) - 1)
        self._messages = [message for message, _ in tasks]
        with suppress(OSError):  # it died; `hear` tells
            self.channel.send(tasks)

    def hear(self) -> None:
        """Take its answers, or what its death means for the clients."""
        try:
            self.answer: list[Message] = self.channel.receive()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            ended = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            self.give_up(f"its process {ended}")

    def give_up(self, reason: str) -> None:
        """Kill it; its clients' answer is the reason."""
        self.kill()
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
        self.answer = [Message(error, reply_to=message) for message in self._messages]

    def kill(self) -> None:
        self.alive = False
        self._process.kill()
        self._process.join()
        self.channel.close()


def _serve(channel: Channel, make_app: Callable[[int], App], number: int) -> None:
    """Answer the messages that come until nobody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        app = make_app(number)
        channel.send(True)
        while True:
            channel.send(answered_together(app, channel.receive()))
