"""Who takes part: each client is the people at one place, in training, validation or test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from affect.config import FederationConfig
from affect.data.splits import Fold
from affect.errors import UserError

Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Client:
    """One place.

    Attributes:
        index: its number in the population.
        part: what its people are there for.
        subjects: who they are.
    """

    index: int
    part: Part
    subjects: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its only subject's name, or that of its first and how many more there are."""
        more = len(self.subjects) - 1
        return self.subjects[0] + (f" and {more} more" if more else "")


def population(fold: Fold, config: FederationConfig) -> list[Client]:
    """The clients of a fold: those of training first, then validation, then test.

    Subjects in the order of their names go to clients, `subjects_per_client` to each.
    """
    clients: list[Client] = []
    for part in ("train", "val", "test"):
        subjects = getattr(fold, part)
        size = config.subjects_per_client or len(subjects)
        for start in range(0, len(subjects), size):
            clients.append(Client(len(clients), part, subjects[start : start + size]))
    return clients


def of_part(clients: Sequence[Client], part: Part) -> list[Client]:
    """The clients of one part."""
    return [client for client in clients if client.part == part]


def clients_per_round(count: int, config: FederationConfig) -> int:
    """How many of `count` training clients take part in a round, on average under `central` DP.

    Raises:
        UserError: more are asked for than there are.
    """
    asked = config.clients_per_round
    if asked is None:
        return max(round(config.client_fraction * count), 1)
    if asked > count:
        raise UserError(
            f"federation.clients_per_round is {asked}, there are {count} training clients"
        )
    return asked


def sample(
    clients: Sequence[Client], generator: np.random.Generator, config: FederationConfig
) -> list[Client]:
    """The clients of a round, in their order; it depends on the generator and clients alone.

    So many of them without replacement; under central differential privacy each with the same
    probability and independently of the others (Poisson sampling), as its accountant supposes.
    """
    count = clients_per_round(len(clients), config)
    if config.privacy.mode == "central":
        drawn = np.flatnonzero(generator.random(len(clients)) < count / len(clients))
    else:
        drawn = np.sort(generator.choice(len(clients), count, replace=False))
    return [clients[index] for index in drawn.tolist()]
