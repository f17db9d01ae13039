"""Clients on Ray's actors, over the cores and GPUs of one machine or of a cluster's nodes.

In plain form a message is one client's. In cohort form a message is a cohort's: the actor trains
all its clients, one after another unless `cohort_clients` are trained at once, and their replies
come together. The server sees the same
messages in the same order either way, and the same bits. Only messages travel, what they share
once a node; recordings and what clients keep are read by the actors, at the same paths everywhere.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
from flwr.app import ArrayRecord, Error, Message
from flwr.common.constant import ErrorCode
from ray.exceptions import RayActorError, RayError, RayTaskError

from affect.config import FederationConfig
from affect.errors import UserError
from affect.federated.answering import App, Task
from affect.federated.engines.cohorts import in_cohorts
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.engines.pool import Pool, Worker
from affect.federated.engines.ray_cluster import joined

_START_S = 300.0
"""What an actor gets to start: on a cluster it may have to wait for its resources."""
_PARTS = 10_000
"""Of a GPU: the smallest that Ray gives."""


@contextmanager
def engine(
    make_app: Callable[[int], App], nodes: int, config: FederationConfig
) -> Iterator[InProcessGrid]:
    """A grid of clients on Ray's actors.

    Args:
        make_app: makes the ClientApp in actor 0, 1, ...; must be picklable.
        nodes: how many there are.
        config: workers, time-out and Ray.

    Raises:
        UserError: there is no such cluster, it lacks what is asked for, or an app cannot be made.
    """
    with joined(config.ray.address, config.workers):
        gpus = gpus_each(config, ray.cluster_resources())
        together = config.cohort_clients or 1
        crew = Crew(make_app, config.workers, config.timeout_s, gpus, together)
        try:
            crew.start()
            yield InProcessGrid(lambda tasks: crew.replies(tasks, config.ray.cohorts), nodes)
        finally:
            crew.stop()


class Crew(Pool["_Actor", "_Piece", "list[Message] | _Lost"]):
    """Ray's actors, each of which answers one cohort's messages at a time.

    Args:
        make_app: makes the ClientApp in actor 0, 1, ...; must be picklable.
        workers: how many, 1 or more.
        timeout_s: what one message gets; None for ever.
        gpus: of each actor; a part of one is shared with others.
        together: clients of a cohort that are trained as one batched computation.
    """

    def __init__(
        self,
        make_app: Callable[[int], App],
        workers: int,
        timeout_s: float | None,
        gpus: float = 0.0,
        together: int = 1,
    ) -> None:
        self._make_app = ray.put(make_app)
        self._gpus = gpus
        self._together = together
        super().__init__(workers, timeout_s)

    def start(self) -> None:
        """Wait until all actors can work.

        Raises:
            UserError: one cannot start in time, or its app cannot be made.
        """
        for actor in self._workers:
            actor.start()

    def replies(self, tasks: Iterable[Task], cohorts: int | None = None) -> Iterator[Message]:
        """The replies in the order of the messages.

        Where an actor hangs or dies, its cohort's messages are answered last and one by one, so
        that it costs no other client than the one that it was busy with.

        Args:
            tasks: messages and contexts.
            cohorts: into how many they are divided; None for one a message.
        """
        packer, lost = _Packer(), list[Task]()
        for answer in self.answers(map(packer.packed, divided(tasks, cohorts))):
            if isinstance(answer, _Lost):
                lost += answer.tasks
            else:
                yield from answer
        if lost:
            yield from self.replies(lost)

    def _hired(self, number: int) -> _Actor:
        started = (self._make_app, number, str(Path.cwd()), self._together)
        return _Actor(number, self._gpus, self._timeout_s or 0.0, started)

    def _client(self, piece: _Piece) -> int:
        return piece.tasks[0][1].node_id

    def _ready(self, busy: Sequence[_Actor], limit_s: float | None) -> list[_Actor]:
        # not ray.wait, which makes a plain Ctrl-C of whatever a signal's handler raises
        coming = [actor.coming for actor in busy]
        done = futures.wait(coming, limit_s, return_when=futures.FIRST_COMPLETED).done
        return [actor for actor in busy if actor.coming in done]


def divided(tasks: Iterable[Task], cohorts: int | None) -> Iterator[list[Task]]:
    """The messages in so many cohorts of nearly one size, in their order.

    Args:
        tasks: messages and contexts.
        cohorts: how many; None for one a message.
    """
    if cohorts is None:
        yield from ([task] for task in tasks)
        return
    together = list(tasks)
    count = min(cohorts, len(together))
    bounds = [len(together) * index // count for index in range(count + 1)] if count else []
    for start, end in pairwise(bounds):
        yield together[start:end]


@dataclass(frozen=True)
class _Piece:
    """A cohort's messages, and the same as they travel."""

    tasks: list[Task]
    packed: bytes
    arrays: list[ray.ObjectRef]


@dataclass(frozen=True)
class _Lost:
    """Messages of a cohort whose actor has failed."""

    tasks: list[Task]


class _Packer:
    """Packs messages; arrays that they share go once into Ray's store of objects."""

    def __init__(self) -> None:
        self._stored: dict[int, tuple[ArrayRecord, ray.ObjectRef]] = {}

    def packed(self, tasks: list[Task]) -> _Piece:
        file = io.BytesIO()
        pickler = _Pickler(file, self._reference)
        pickler.dump(tasks)
        return _Piece(tasks, file.getvalue(), pickler.references)

    def _reference(self, record: ArrayRecord) -> ray.ObjectRef:
        if id(record) not in self._stored:
            self._stored[id(record)] = record, ray.put(record)
        return self._stored[id(record)][1]


class _Pickler(pickle.Pickler):
    """Writes the place of an array record among `references`, instead of the record."""

    def __init__(self, file: io.BytesIO, reference: Callable[[ArrayRecord], ray.ObjectRef]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._reference = reference
        self.references: list[ray.ObjectRef] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, ArrayRecord):
            return None
        reference = self._reference(obj)
        if reference not in self.references:
            self.references.append(reference)
        return self.references.index(reference)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, arrays: Sequence[ArrayRecord]) -> None:
        super().__init__(file)
        self._arrays = arrays

    def persistent_load(self, pid: int) -> ArrayRecord:
        return self._arrays[pid]


class _Place:
    """What an actor is: an app that answers messages."""

    def start(
        self, make_app: Callable[[int], App], number: int, folder: str, together: int
    ) -> None:
        """Make the app where paths mean what they mean to the server.

        Raises:
            UserError: the folder is not there.
        """
        try:
            os.chdir(folder)
        except OSError as error:
            raise UserError(
                f"{socket.gethostname()} has no folder {folder}: the nodes of a Ray cluster need "
                "the cache and the runs at the same paths"
            ) from error
        self._answers = in_cohorts(make_app(number), together)

    def answer(self, packed: bytes, *arrays: ArrayRecord) -> list[Message]:
        """The replies to a cohort's messages."""
        tasks: list[Task] = _Unpickler(io.BytesIO(packed), arrays).load()
        return list(self._answers(tasks))


class _Actor(Worker):
    """An actor, seen from the process that hands out messages."""

    def __init__(
        self, number: int, gpus: float, timeout_s: float, started: tuple[Any, ...]
    ) -> None:
        asked = {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        self._handle: Any = ray.remote(_Place).options(**asked).remote()
        self._started = self._handle.start.remote(*started).future()
        self._timeout_s = timeout_s
        self.number = number
        self.alive = True

    def start(self) -> None:
        try:
            self._started.result(_START_S)
        except TimeoutError:
            raise UserError(
                f"Ray has not started worker {self.number} within {_START_S:g} s: others may hold "
                "the cluster's cores or GPUs; wait, or lower federation.workers"
            ) from None
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise UserError(f"Ray cannot start worker {self.number}: {_reason(error)}") from error

    def take(self, index: int, piece: _Piece) -> None:
        self.start()
        self.index = index
        self._tasks = piece.tasks
        # the time-out is one message's, and the last one's begins after those of the others
        self.since_s = time.monotonic() + self._timeout_s * (len(piece.tasks) - 1)
        self.coming: futures.Future[list[Message]] = self._handle.answer.remote(
            piece.packed, *piece.arrays
        ).future()

    def hear(self) -> None:
        try:
            self.answer: list[Message] | _Lost = self.coming.result()
        except RayError as error:
            self.give_up(_reason(error))

    def give_up(self, reason: str) -> None:
        self.kill()
        if len(self._tasks) > 1:
            self.answer = _Lost(self._tasks)
            return
        error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
        self.answer = [Message(error, reply_to=message) for message, _ in self._tasks]

    def kill(self) -> None:
        self.alive = False
        ray.kill(self._handle)


def _reason(error: RayError) -> str:
    """Ray's message of many lines in one clause."""
    if isinstance(error, RayActorError):
        return "its node died" if "node has died" in str(error) else "its process died"
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"


def gpus_each(config: FederationConfig, has: Mapping[str, float]) -> float:
    """GPUs of each worker, at most one.

    Args:
        config: workers, and what they are to have.
        has: what Ray has, by Ray's names.

    Raises:
        UserError: there are not so many, or fewer cores than workers.
    """
    cores, gpus = int(has.get("CPU", 0)), has.get("GPU", 0.0)
    workers, asked = config.workers, config.ray.num_gpus
    if cores < workers:
        raise UserError(f"federation.workers is {workers}, Ray has {cores} cores here")
    if asked is None:
        return math.floor(_PARTS / math.ceil(workers / gpus)) / _PARTS if gpus else 0.0
    if asked * workers > gpus:
        raise UserError(
            f"federation.ray.num_gpus is {asked:g} for each of {workers} workers, Ray has "
            f"{gpus:g} GPUs here"
        )
    return asked
