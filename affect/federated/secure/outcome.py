"""What a round of secure aggregation has come to: the clients' models in one, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64

from affect import metrics
from affect.config import FederationConfig, SecureAggregationConfig
from affect.federated.messages import Masked
from affect.federated.population import Client
from affect.federated.privacy import private_mean
from affect.federated.secure.numbers import pooled
from affect.training.scores import phase_scores


class Outcome:
    """A sum of clients' numbers, as the server looks at a round.

    Args:
        total: the sum, without masks.
        clients: that are in it.
        failures: of clients, at any stage.
        dimensions: names of what is predicted.
        config: range and bits.
    """

    def __init__(
        self,
        total: Masked,
        clients: Sequence[Client],
        failures: Sequence[Any],
        dimensions: Sequence[str],
        config: SecureAggregationConfig,
    ) -> None:
        self._pooled = pooled(total, len(clients), config)
        self._clients = clients
        self._dimensions = dimensions
        self.failures = failures

    def combined(
        self,
        start: Float32[np.ndarray, " P"],
        expected: int,
        config: FederationConfig,
        generator: np.random.Generator,
    ) -> Float64[np.ndarray, " P"]:
        """The clients' models in one; under `central` noised.

        Args:
            start: the round's first model.
            expected: clients a round, on average.
            config: the federation.
            generator: of the noise.
        """
        if config.privacy.mode != "central":
            return start + self._pooled.change / self._pooled.weight
        norm, change = config.privacy.clipping_norm, self._pooled.change
        return private_mean(change, start, expected, norm, config.privacy, generator)

    def scores(self, phase: str) -> dict[str, float]:
        """Scores over all clients in the sum, under the keys that every mode shares."""
        moments = torch.from_numpy(self._pooled.moments)
        losses = torch.from_numpy(self._pooled.losses / self._pooled.batches)
        named = phase_scores(phase, {**metrics.scores(moments), "loss": losses}, self._dimensions)
        return {name: float(value) for name, value in named.items()}

    def rows(self) -> list[dict[str, float | str]]:
        """Who is in the sum: no more is known of one client."""
        return [{"client": client.name, "part": client.part} for client in self._clients]

    def drift(self, *_: Any) -> None:
        """Not known: it takes each client's distance from the mean."""
