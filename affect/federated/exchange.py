"""Questions to clients over any Flower Grid: their answers, their failures, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from affect.config import FederationConfig
from affect.errors import UserError
from affect.federated.messages import Content, MessageError, addressed, size_of
from affect.federated.population import Client

Own = Mapping[int, Mapping[str, Any]]
"""Fields of a request that differ from client to client, by the client's index."""

_NAMED_AT_MOST = 3
_Reply = TypeVar("_Reply", bound=Content)


@dataclass(frozen=True)
class Failure:
    """A client that gave no answer that can be used, and why."""

    client: Client
    reason: str


@dataclass
class Cost:
    """What an exchange costs.

    Attributes:
        bytes_down: sent to clients.
        bytes_up: received from them.
        waited_s: seconds of waiting for them.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    waited_s: float = 0.0

    def timing(self, replies: Iterable[Message]) -> Iterator[Message]:
        """The replies, whose waiting counts."""
        coming = iter(replies)
        while True:
            start_s = time.perf_counter()
            message = next(coming, None)
            self.waited_s += time.perf_counter() - start_s
            if message is None:
                return
            yield message


class Exchange:
    """Asks clients and reads what they answer.

    Args:
        grid: reaches them.
        node_of: the node of each client, by the client's index.
        config: how long to wait, and how many may fail.
        sizes: see below.

    Attributes:
        sizes: of the axes of arrays in answers, by their letters, as far as they are known.
        cost: since it was last set anew.
    """

    def __init__(
        self,
        grid: Grid,
        node_of: Mapping[int, int],
        config: FederationConfig,
        sizes: Mapping[str, int],
    ) -> None:
        self._grid = grid
        self._node_of = node_of
        self._config = config
        self.sizes = dict(sizes)
        self.cost = Cost()

    def answers(
        self,
        clients: Sequence[Client],
        request: Content,
        reply: type[_Reply],
        own: Own | None = None,
    ) -> Iterator[tuple[Client, _Reply | Failure]]:
        """Each client's answer, in their order, whoever answers first.

        Args:
            clients: whom to ask.
            request: what all are asked.
            reply: the kind of an answer.
            own: fields of the request that differ from client to client.
        """
        records, own = request.encode(), own or {}
        # a list, since Flower's own grids go through the messages twice
        messages = [
            self._addressed(records, request.action, client, own.get(client.index, {}))
            for client in clients
        ]
        waiting = {client.index: client for client in clients}
        early: dict[int, Message] = {}
        replies = self._grid.send_and_receive(messages, timeout=self._config.timeout_s)
        for message in self.cost.timing(replies):
            if message.metadata.group_id:  # Flower's own complaints may come without
                early[int(message.metadata.group_id)] = message
            while waiting and (first := next(iter(waiting))) in early:
                client = waiting.pop(first)
                asked = replace(request, **own.get(first, {}))
                yield client, self._read(client, early.pop(first), asked, reply)
        for client in waiting.values():
            if client.index in early:
                asked = replace(request, **own.get(client.index, {}))
                yield client, self._read(client, early[client.index], asked, reply)
            else:
                yield client, Failure(client, "it did not answer in time")

    def tolerated(
        self,
        clients: Sequence[Client],
        request: Content,
        reply: type[_Reply],
        own: Own | None = None,
    ) -> Iterator[tuple[Client, _Reply | Failure]]:
        """Each client's answer as in `answers`, among which are no more failures than may be.

        Raises:
            UserError: naming the clients that failed, after the last answer.
        """
        failures: list[Failure] = []
        for client, answer in self.answers(clients, request, reply, own):
            if isinstance(answer, Failure):
                failures.append(answer)
            yield client, answer
        self.refuse_failures(failures, len(clients))

    def refuse_failures(self, failures: Sequence[Failure], asked: int) -> None:
        """Refuse that so many of the clients that were asked fail.

        Raises:
            UserError: naming the clients.
        """
        fraction = self._config.failure_fraction
        if len(failures) > fraction * asked:
            raise UserError(
                f"{len(failures)} of {asked} clients failed ({_named(failures)}); "
                f"federation.failure_fraction allows {fraction:g}"
            )

    def _addressed(
        self, records: RecordDict, action: str, client: Client, own: Mapping[str, Any]
    ) -> Message:
        content = addressed(records, client.index, client.part, own)
        self.cost.bytes_down += size_of(content)
        return Message(
            content,
            self._node_of[client.index],
            action,
            ttl=self._config.timeout_s,  # who returns later does not work for nobody
            group_id=str(client.index),
        )

    def _read(
        self, client: Client, message: Message, request: Content, reply: type[_Reply]
    ) -> _Reply | Failure:
        if message.has_error():
            reason = message.error.reason or "it failed without a reason"
            return Failure(client, " ".join(reason.split()))
        self.cost.bytes_up += size_of(message.content)
        try:
            content = reply.decode(message.content)
            content.refuse_unfit(request, self.sizes)
        except MessageError as error:
            return Failure(client, str(error))
        return content


def complete(
    answers: Iterable[tuple[Client, _Reply | Failure]],
) -> Iterator[tuple[Client, _Reply]]:
    """The answers, of which none may be missing.

    Raises:
        UserError: naming the first client that failed.
    """
    for client, reply in answers:
        if isinstance(reply, Failure):
            raise UserError(f"client {client.name}: {reply.reason}")
        yield client, reply


def _named(failures: Sequence[Failure]) -> str:
    named = [f"{item.client.name}: {item.reason}" for item in failures[:_NAMED_AT_MOST]]
    more = len(failures) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")
