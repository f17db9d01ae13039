"""The server's part: it leads a round's stages and finds the sum of the clients' numbers.

Keys are gathered and passed on, pieces of secrets, which it cannot open, are relayed, masked
numbers are added up as they come, and pieces of the secrets of those that are left, or were lost,
take the masks off. A client may be lost at any stage: before its numbers have come it is not in the
sum, after that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from jaxtyping import Float32, UInt64

from affect.config import SecureAggregationConfig
from affect.errors import UserError
from affect.federated.draws import unforeseeable
from affect.federated.exchange import Own
from affect.federated.messages import (
    Content,
    MakeKeys,
    Masked,
    Pieces,
    PublicKeys,
    SealedShares,
    ShareSecrets,
    TrainMasked,
    Unmask,
)
from affect.federated.population import Client
from affect.federated.secure.graph import LEAST, hang_together, neighbours_of, threshold_of
from affect.federated.secure.masks import pairwise, stream

_Reply = TypeVar("_Reply", bound=Content)
Ask = Callable[[Sequence[Client], Content, type[_Reply], Own], Iterator[tuple[Client, _Reply]]]
"""Asks clients, and gives the answers of those that answer as they should."""


@dataclass(frozen=True)
class Start:
    """What a round starts from.

    Attributes:
        about: experiment, run, and the places of client and part, as in `Request`.
        preparation: how to prepare recordings, as JSON.
        number: of the round.
        parameters: of the network.
        memories: the round of each client's memory, as in `Train`, by the client's index.
    """

    about: tuple[str, str, int, str]
    preparation: str
    number: int
    parameters: Float32[np.ndarray, " P"]
    memories: Mapping[int, int] = field(default_factory=dict)


class SecureRound:
    """One round's stages.

    Args:
        ask: reaches the clients.
        start: what the round starts from.
        config: shares and threshold.
    """

    def __init__(self, ask: Ask, start: Start, config: SecureAggregationConfig) -> None:
        self._ask = ask
        self._start = start
        self._config = config
        self._keys: dict[int, PublicKeys] = {}
        self._neighbours: dict[int, list[int]] = {}

    def summed(self, clients: Sequence[Client]) -> tuple[Masked, list[Client]]:
        """The sum of the clients' numbers without masks, and the clients that are in it.

        Raises:
            UserError: too few clients are left.
        """
        keyed = self._enough(self._public_keys(clients))
        sealed = self._sealed(keyed)
        sharing = self._enough([client for client in keyed if client.index in sealed])
        values, survivors = self._masked(sharing, sealed)
        self._enough(survivors)
        there = [client.index for client in survivors]
        self._refuse_groups(there)
        seeds, keys = self._secrets(survivors, sealed.keys() - set(there))
        for seed in seeds.values():
            values -= stream(seed, len(values))
        for client, key in keys.items():
            values += self._of_the_lost(client, key, there, len(values))
        return Masked(*np.split(values, [len(self._start.parameters)])), survivors

    def _public_keys(self, clients: Sequence[Client]) -> list[Client]:
        """Gather the public keys; the clients that have sent theirs."""
        request = MakeKeys(*self._start.about, self._start.number)
        answers = list(self._ask(clients, request, PublicKeys, {}))
        self._keys = {client.index: keys for client, keys in answers}
        generator = unforeseeable()
        self._neighbours = neighbours_of(list(self._keys), self._config.shares, generator)
        return [client for client, _ in answers]

    def _sealed(self, clients: Sequence[Client]) -> dict[int, dict[int, str]]:
        """What each client has sealed for each neighbour."""
        own = {
            client.index: {
                "neighbours": self._neighbours[client.index],
                "masking": [self._keys[n].masking for n in self._neighbours[client.index]],
                "sealing": [self._keys[n].sealing for n in self._neighbours[client.index]],
            }
            for client in clients
        }
        request = ShareSecrets(*self._start.about, self._start.number, [], [], [])
        answers = self._ask(clients, request, SealedShares, own)
        return {
            client.index: dict(zip(self._neighbours[client.index], reply.sealed, strict=True))
            for client, reply in answers
        }

    def _masked(
        self, clients: Sequence[Client], sealed: Mapping[int, Mapping[int, str]]
    ) -> tuple[UInt64[np.ndarray, " W"], list[Client]]:
        """The sum of all masked numbers, and whose they are."""
        start = self._start
        own = {
            client.index: {
                "sealed": [
                    sealed.get(neighbour, {}).get(client.index, "")
                    for neighbour in self._neighbours[client.index]
                ],
                "memory": start.memories.get(client.index),
            }
            for client in clients
        }
        request = TrainMasked(*start.about, start.preparation, start.number, start.parameters, [])
        values, survivors = np.zeros(0, np.uint64), []
        for client, reply in self._ask(clients, request, Masked, own):
            added = np.concatenate([reply.parameters, reply.tallies])
            values = added + values if len(values) else added
            survivors.append(client)
        return values, survivors

    def _secrets(
        self, survivors: Sequence[Client], lost: Set[int]
    ) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """The seeds of those whose numbers are in the sum, and the masking keys of the lost.

        Raises:
            UserError: too few pieces of one have come.
        """
        there = {client.index for client in survivors}
        own = {
            client: {
                "survivors": [client, *(n for n in self._neighbours[client] if n in there)],
                "dropped": [n for n in self._neighbours[client] if n in lost],
            }
            for client in there
        }
        request = Unmask(*self._start.about, self._start.number, [], [])
        seeds: dict[int, list[str]] = {client: [] for client in there}
        keys: dict[int, list[str]] = {client: [] for client in lost}
        for client, reply in self._ask(survivors, request, Pieces, own):
            asked = own[client.index]
            for owner, piece in zip(asked["survivors"], reply.survivors, strict=True):
                seeds[owner].append(piece)
            for owner, piece in zip(asked["dropped"], reply.dropped, strict=True):
                keys[owner].append(piece)
        return self._combined(seeds), self._combined(keys)

    def _combined(self, pieces: Mapping[int, list[str]]) -> dict[int, bytes]:
        combined = {}
        for client, found in pieces.items():
            count = len(self._neighbours[client]) + 1
            needed = threshold_of(count, self._config)
            if len(found) < needed:
                raise UserError(
                    f"{len(found)} of {count} pieces of a client's secrets came back in round "
                    f"{self._start.number}, {needed} take the masks off: go on when more clients "
                    "are there, or raise federation.privacy.secure_aggregation.shares"
                )
            try:
                combined[client] = combine_shares([bytes.fromhex(item) for item in found[:needed]])
            except ValueError as error:
                raise UserError(
                    f"pieces of client {client}'s secrets do not fit: {error}"
                ) from None
        return combined

    def _of_the_lost(
        self, client: int, key: bytes, there: Sequence[int], width: int
    ) -> UInt64[np.ndarray, " W"]:
        """A lost client's masks with those in the sum: what their own with it lack to cancel."""
        tied = set(there).intersection(self._neighbours[client])
        return pairwise(client, key, {n: self._keys[n].masking for n in tied}, width)

    def _refuse_groups(self, there: Sequence[int]) -> None:
        if not hang_together(there, self._neighbours):
            raise UserError(
                f"the clients left in round {self._start.number} fall into groups, whose sums "
                "would show: raise federation.privacy.secure_aggregation.shares"
            )

    def _enough(self, clients: list[Client]) -> list[Client]:
        """The clients that are left.

        Raises:
            UserError: too few to hide one another.
        """
        if len(clients) < LEAST:
            raise UserError(
                f"{len(clients)} clients are left in round {self._start.number}, a secure sum "
                f"takes {LEAST}, since of fewer one could tell another's part: go on when more "
                "clients are there"
            )
        return clients
