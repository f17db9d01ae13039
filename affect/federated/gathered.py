"""What clients' answers add up to: pooled scores, a row a client, drift, and control variates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from affect import metrics
from affect.config import FederationConfig
from affect.federated import strategy
from affect.federated.exchange import Failure
from affect.federated.messages import Evaluated, Trained
from affect.federated.population import Client
from affect.training.scores import phase_scores

_Scored = TypeVar("_Scored", Trained, Evaluated)


class Gathered:
    """Scores of clients' answers, taken in while the answers pass through.

    Args:
        dimensions: names of what is predicted.
        start: the round's first model, to which clients' models are compared.

    Attributes:
        failures: of clients that gave no answer.
    """

    def __init__(self, dimensions: Sequence[str], start: np.ndarray | None = None) -> None:
        self._dimensions = dimensions
        self._start = start
        self._replies: list[tuple[Client, dict[str, float]]] = []
        self._moments: list[np.ndarray] = []
        self._losses: list[np.ndarray] = []
        self._batches: list[int] = []
        self.failures: list[Failure] = []

    def taking(self, answers: Iterable[tuple[Client, _Scored | Failure]]) -> Iterator[_Scored]:
        """The answers, without the failures."""
        for client, reply in answers:
            if isinstance(reply, Failure):
                self.failures.append(reply)
                continue
            self._replies.append((client, self._effort(reply)))
            self._moments.append(reply.moments)
            self._losses.append(reply.losses)
            self._batches.append(reply.batches)
            yield reply

    def scores(self, phase: str) -> dict[str, float]:
        """Over all clients, from their merged moments, under the keys of a phase."""
        if not self._moments:
            return {}
        moments = torch.from_numpy(np.stack(self._moments))  # K D 6
        losses = np.average(self._losses, axis=0, weights=self._batches)
        pooled = {**metrics.scores(metrics.merge(moments)), "loss": torch.from_numpy(losses)}
        named = phase_scores(phase, pooled, self._dimensions)
        return {name: float(value) for name, value in named.items()}

    def rows(self) -> list[dict[str, float | str]]:
        """What each client did."""
        if not self._moments:
            return []
        cccs = metrics.ccc(torch.from_numpy(np.stack(self._moments))).tolist()  # K D
        rows = []
        for (client, effort), ccc, loss in zip(self._replies, cccs, self._losses, strict=True):
            scored = {"ccc": ccc, "loss": loss.tolist()}
            named = {
                f"{name}/{dimension}": value
                for name, values in scored.items()
                for dimension, value in zip(self._dimensions, values, strict=True)
            }
            rows.append({"client": client.name, "part": client.part, **named, **effort})
        return rows

    def _effort(self, reply: Trained | Evaluated) -> dict[str, float]:
        if not isinstance(reply, Trained) or self._start is None:
            return {}
        with np.errstate(over="ignore"):  # of a training that diverges: it is infinite
            change = reply.parameters - self._start
            square = float(change @ change)
        return {
            "update_norm": square**0.5,
            "frames": reply.frames,
            "steps": reply.steps,
            "seconds": reply.seconds,
        }

    def drift(self, combined: np.ndarray, config: FederationConfig) -> float | None:
        """Root mean square distance of the clients' models from their mean; None without one.

        The mean squared distance from the mean is that from the start, less the mean's own.
        """
        if config.privacy.mode == "central" or not strategy.is_mean(config.strategy):
            return None
        efforts = [effort for _, effort in self._replies]
        squares = [effort["update_norm"] ** 2 for effort in efforts]
        uniform = config.strategy.weighting == "uniform"
        weights = None if uniform else [effort["frames"] for effort in efforts]
        change = combined - self._start
        return max(float(np.average(squares, weights=weights) - change @ change), 0.0) ** 0.5


class ControlSum:
    """How control variates change, added up while replies pass through.

    Attributes:
        total: None while no reply has had one.
    """

    def __init__(self) -> None:
        self.total: np.ndarray | None = None

    def taking(self, replies: Iterable[Trained]) -> Iterator[Trained]:
        """The replies, as they come."""
        for reply in replies:
            if reply.control is not None:
                self.total = reply.control.astype(np.float64) + (
                    0.0 if self.total is None else self.total
                )
            yield reply
