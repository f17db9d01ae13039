"""The server's maths: from the clients' models to the next one, on flat parameter vectors.

A strategy combines the clients' parameters (a mean, or something that few clients cannot spoil) and
takes a step towards the combination. Vectors are combined in float64 and in the order of the
clients, so that the result does not depend on who answers first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from affect.config import StrategyConfig
from affect.errors import UserError

MEANS = ("fedadam", "fedavg", "fedavgm", "fedprox", "fedyogi")
"""Strategies that need the mean of the clients' models and nothing else of them."""

Slots = dict[str, Float64[np.ndarray, " P"]]
"""What a strategy remembers from round to round, by name."""


@dataclass(frozen=True)
class Update:
    """One client's model: its parameters after training, weighted by its frames."""

    parameters: Float32[np.ndarray, " P"]
    weight: float


def combine(updates: Iterable[Update], config: StrategyConfig) -> Float64[np.ndarray, " P"]:
    """One vector of all clients' parameters.

    A mean looks at one client after another; the others need them all at once.

    Args:
        updates: at least one, in the order of the clients.
        config: which strategy.

    Raises:
        UserError: there are too few clients for the strategy.
    """
    robust = _ROBUST.get(config.name)
    if robust is None:
        return weighted_mean(updates, uniform=config.weighting == "uniform")
    return robust(np.stack([update.parameters for update in updates]), config)


def weighted_mean(updates: Iterable[Update], *, uniform: bool) -> Float64[np.ndarray, " P"]:
    """The mean of the parameters, weighted by frames or not; of one client, its own exactly.

    McMahan et al. (2017), "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS.
    """
    total = part = None
    weights = 0.0
    for update in updates:
        weight = 1.0 if uniform else update.weight
        # one array for all parts: to ask for memory again costs more than the sum
        part = np.multiply(update.parameters, weight, out=part, dtype=np.float64)
        total = part.copy() if total is None else np.add(total, part, out=total)
        weights += weight
    if total is None:
        raise ValueError("no update to average")
    return total / weights


def median(vectors: Float32[np.ndarray, "K P"], _: StrategyConfig) -> Float64[np.ndarray, " P"]:
    """The median of each parameter; Yin et al. (2018), "Byzantine-Robust Distributed Learning"."""
    return np.median(vectors.astype(np.float64), axis=0)


def trimmed_mean(
    vectors: Float32[np.ndarray, "K P"], config: StrategyConfig
) -> Float64[np.ndarray, " P"]:
    """The mean of each parameter without its lowest and highest values; Yin et al. (2018)."""
    cut = int(config.trim * len(vectors))
    ordered = np.sort(vectors.astype(np.float64), axis=0)
    return ordered[cut : len(vectors) - cut].mean(axis=0)


def krum(vectors: Float32[np.ndarray, "K P"], config: StrategyConfig) -> Float64[np.ndarray, " P"]:
    """The vector that is nearest to its K - f - 2 nearest neighbours.

    Blanchard et al. (2017), "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS.

    Raises:
        UserError: there are fewer than f + 3 clients.
    """
    neighbours = len(vectors) - config.malicious - 2
    if neighbours < 1:
        raise UserError(
            f"krum withstands {config.malicious} of at least {config.malicious + 3} clients, "
            f"the round has {len(vectors)}: take more clients, or lower "
            "federation.strategy.malicious"
        )
    values = vectors.astype(np.float64)
    distances = np.stack([np.square(values - row).sum(axis=1) for row in values])  # K K
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, :neighbours].sum(axis=1)
    return values[scores.argmin()]


def is_mean(config: StrategyConfig) -> bool:
    """Whether the strategy combines clients by their mean."""
    return config.name not in _ROBUST


_ROBUST: dict[str, Callable[[np.ndarray, StrategyConfig], Float64[np.ndarray, " P"]]] = {
    "fedmedian": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
}


def step(
    current: Float32[np.ndarray, " P"],
    combined: Float64[np.ndarray, " P"],
    slots: Slots,
    config: StrategyConfig,
) -> tuple[Float32[np.ndarray, " P"], Slots]:
    """The next model, and what the strategy remembers.

    `fedavgm` is Hsu, Qi and Brown (2019), "Measuring the Effects of Non-Identical Data
    Distribution for Federated Visual Classification"; `fedadam` and `fedyogi` are algorithm 2 of
    Reddi et al. (2021), "Adaptive Federated Optimization", ICLR, from second moments of 0.

    Args:
        current: the round's first model.
        combined: the clients' models in one.
        slots: what `step` returned a round ago; empty in the first round.
        config: which strategy.
    """
    plain = config.name not in {"fedavgm", "fedadam", "fedyogi"}
    if plain and config.server_lr == 1:
        return combined.astype(np.float32), slots
    update = combined - current
    if config.name == "fedavgm":
        update = update + config.momentum * slots.get("momentum", np.zeros_like(update))
        slots = {**slots, "momentum": update}
    elif not plain:
        update, slots = _adaptive(update, slots, config)
    return (current + config.server_lr * update).astype(np.float32), slots


def _adaptive(
    update: Float64[np.ndarray, " P"], slots: Slots, config: StrategyConfig
) -> tuple[Float64[np.ndarray, " P"], Slots]:
    none = np.zeros_like(update)
    first_decay, second_decay = config.betas
    first = first_decay * slots.get("first", none) + (1 - first_decay) * update
    second, square = slots.get("second", none), np.square(update)
    if config.name == "fedadam":
        second = second_decay * second + (1 - second_decay) * square
    else:
        second = second - (1 - second_decay) * square * np.sign(second - square)
    slots = {**slots, "first": first, "second": second}
    return first / (np.sqrt(second) + config.tau), slots
