"""Who makes masks with whom, and how many of them must stay to take the masks off."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from affect.config import SecureAggregationConfig

LEAST = 3
"""Clients in a sum: of two, each would find the other's update by taking off its own."""


def threshold_of(pieces: int, config: SecureAggregationConfig) -> int:
    """How many of the pieces of a secret give it back."""
    return max(math.floor(config.threshold * pieces) + 1, LEAST)


def neighbours_of(
    clients: Sequence[int], shares: int | None, generator: np.random.Generator
) -> dict[int, list[int]]:
    """Each client's neighbours: the nearest in a circle at random, or all.

    The graph of section 3.1 of Bell et al. (2020).

    Args:
        clients: their indices.
        shares: of a secret, one for the client itself; None for all.
        generator: of the circle.
    """
    count = len(clients)
    if shares is None or shares >= count:
        return {client: [other for other in clients if other != client] for client in clients}
    circle = [clients[place] for place in generator.permutation(count)]
    reach = [distance for distance in range(-(shares // 2), shares // 2 + 1) if distance]
    return {
        client: sorted(circle[(place + distance) % count] for distance in reach)
        for place, client in enumerate(circle)
    }


def hang_together(clients: Collection[int], neighbours: Mapping[int, Sequence[int]]) -> bool:
    """Whether masks tie all clients to one another; groups without a tie show their own sums.

    Args:
        clients: that are in the sum, at least one.
        neighbours: of each client.
    """
    there, reached = set(clients), set[int]()
    edge = {next(iter(there))}
    while edge:
        reached |= edge
        edge = {other for client in edge for other in neighbours[client]} & there - reached
    return reached == there
