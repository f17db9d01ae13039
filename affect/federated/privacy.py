"""Differential privacy of clients: updates clipped and noised, and what is spent.

`central`: the server clips each update and adds Gaussian noise to their sum; the server sees
updates, whoever sees its models learns little of any one client. `local`: a client clips and noises
its own update, so that the server learns little as well. Sampling is Poisson under `central`, and
the mean is over the expected number of clients, as the accountant supposes: McMahan et al. (2018),
"Learning Differentially Private Recurrent Language Models", ICLR. An adaptive norm follows Andrew
et al. (2021), "Differentially Private Learning with Adaptive Clipping", NeurIPS.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    RdpAccountant,
    SamplingMethod,
)
from flwr.serverapp import PrivacyConfig as Accounted
from jaxtyping import Float32, Float64
from scipy.optimize import root_scalar

from affect.config import FederationConfig, PrivacyConfig
from affect.errors import UserError
from affect.federated.strategy import MEANS, Update

_ORDERS = tuple(float(order) for order in (*range(2, 33), 40, 48, 64, 96, 128, 192, 256, 512))
"""Of Renyi's divergence: whole ones, whose series are finite and always converge."""

_NOISE_MULTIPLIERS = (0.2, 1000.0)
"""Between these a noise multiplier is sought: with less, the accounting says nothing of worth."""

_LARGEST_DELTA = 0.01
"""Of a delta by default: with more, the chance that privacy fails is no small one."""

_LARGEST_LOGARITHM = 40.0
"""Of an adaptive clipping norm: beyond it, noise of that size leaves nothing of a network."""

_CENTRE = 0.5
"""Taken from each client's 0 or 1 before they are added: so one client moves the sum by 1/2."""


@dataclass(frozen=True)
class Released:
    """What a private round gives.

    Attributes:
        combined: the clients' parameters in one, noised.
        clipping_norm: of the next round.
    """

    combined: Float64[np.ndarray, " P"]
    clipping_norm: float


def refuse_unfit(config: FederationConfig) -> None:
    """Refuse strategies for which the privacy that is asked for would not hold.

    A control variate of SCAFFOLD tells the update from which it was made.

    Raises:
        UserError: naming the strategy.
    """
    name = config.strategy.name
    if config.privacy.mode == "local" and name == "scaffold":
        raise UserError(
            "federation.privacy.mode local puts noise on a client's model, and the control variate "
            "of scaffold would tell it without: choose another strategy"
        )
    if config.privacy.mode == "central" and name not in MEANS:
        raise UserError(
            f"federation.privacy.mode central holds for means of the clients, not for {name}: "
            f"choose one of {', '.join(MEANS)}"
        )


def clipped(
    parameters: Float32[np.ndarray, " P"], start: Float32[np.ndarray, " P"], norm: float
) -> tuple[Float64[np.ndarray, " P"], bool]:
    """An update of at most this L2 norm, and whether it was within it before."""
    update = parameters.astype(np.float64) - start
    length = float(np.linalg.norm(update))
    within = length <= norm
    return (update if within else update * (norm / length)), within


def released(
    updates: Iterable[Update],
    start: Float32[np.ndarray, " P"],
    expected: int,
    norm: float,
    config: PrivacyConfig,
    generator: np.random.Generator,
) -> Released:
    """The private mean of a round's updates; every client counts the same.

    Args:
        updates: of the clients that were sampled and answered, none perhaps.
        start: the round's first model.
        expected: clients a round, on average.
        norm: the round's clipping norm.
        config: noise and clipping.
        generator: of the noise.

    Raises:
        UserError: an adaptive norm leaves what numbers can hold.
    """
    total = np.zeros(len(start))
    within = 0.0
    for update in updates:
        change, small = clipped(update.parameters, start, norm)
        total += change
        within += small - _CENTRE
    combined = private_mean(total, start, expected, norm, config, generator)
    if config.clipping == "adaptive":
        _, counting_noise = noise_multipliers(config, expected)
        share = (within + generator.normal(0.0, counting_noise)) / expected + _CENTRE
        next_norm = _adapted(norm, share, config)
    else:
        next_norm = norm
    return Released(combined, next_norm)


def private_mean(
    total: Float64[np.ndarray, " P"],
    start: Float32[np.ndarray, " P"],
    expected: int,
    norm: float,
    config: PrivacyConfig,
    generator: np.random.Generator,
) -> Float64[np.ndarray, " P"]:
    """The model that clipped updates lead to, noised.

    Args:
        total: the sum of the updates.
        start: the round's first model.
        expected: clients a round, on average.
        norm: at which updates were clipped.
        config: the noise.
        generator: of the noise.
    """
    noise, _ = noise_multipliers(config, expected)
    return start + (total + generator.normal(0.0, noise * norm, len(start))) / expected


def _adapted(norm: float, share: float, config: PrivacyConfig) -> float:
    """The next clipping norm, where this share of the updates was within the last one.

    Raises:
        UserError: noise, or the rate, drives it out of all bounds.
    """
    exponent = -config.clipping_lr * (share - config.quantile)
    logarithm = math.log(norm) + exponent
    if abs(logarithm) > _LARGEST_LOGARITHM:
        raise UserError(
            f"the adaptive clipping norm {norm:g} would change by a factor of e^{exponent:.0f} in "
            "a round: lower federation.privacy.clipping_lr or noise_multiplier, or train with more "
            "clients"
        )
    return norm * math.exp(exponent)


def noise_multipliers(config: PrivacyConfig, expected: int) -> tuple[float, float]:
    """Of the updates' sum, and the deviation of the noise on the count of small updates.

    Both releases of an adaptive norm together cost what one with `noise_multiplier` costs: theorem
    1 of Andrew et al. (2021), where a client moves the count by 1/2.
    """
    asked = config.noise_multiplier
    if config.clipping == "fixed":
        return asked, 0.0
    counting = max(expected / 20, asked)
    return (asked**-2 - (2 * counting) ** -2) ** -0.5, counting


def noised(
    parameters: Float32[np.ndarray, " P"],
    start: Float32[np.ndarray, " P"],
    config: PrivacyConfig,
    generator: np.random.Generator,
) -> Float32[np.ndarray, " P"]:
    """What a client sends under `local`: its update clipped, with noise of its own."""
    update, _ = clipped(parameters, start, config.clipping_norm)
    noise = generator.normal(0.0, config.noise_multiplier * config.clipping_norm, len(start))
    return (start + update + noise).astype(np.float32)


def delta_of(config: PrivacyConfig, clients: int) -> float:
    """The delta that is asked for, or 1 / clients ** 1.1: below one client's share."""
    return config.delta if config.delta is not None else max(clients, 2) ** -1.1


def doubt(config: PrivacyConfig, clients: int) -> str:
    """A line on a delta that nobody chose and that means little; empty where there is none."""
    delta = delta_of(config, clients)
    if config.mode == "none" or config.delta is not None or delta <= _LARGEST_DELTA:
        return ""
    return (
        f"federation.privacy.delta is {delta:.2g} by default, with {clients} training clients: "
        "set it, and mind that no guarantee for so few clients means much"
    )


def calibrated(config: FederationConfig, clients: int, expected: int) -> FederationConfig:
    """The same federation with the noise with which its rounds spend the `epsilon` asked for.

    Args:
        config: the federation.
        clients: training clients.
        expected: clients a round, on average.

    Raises:
        UserError: no noise that makes sense spends so much.
    """
    target = config.privacy.epsilon
    if target is None or config.privacy.mode == "none":
        return config

    def with_noise(logarithm: float) -> FederationConfig:
        privacy = replace(config.privacy, noise_multiplier=math.exp(logarithm))
        return replace(config, privacy=privacy)

    def excess(logarithm: float) -> float:
        noise = with_noise(logarithm)
        return spent(noise, clients, expected, config.rounds) / target - 1

    low, high = (math.log(bound) for bound in _NOISE_MULTIPLIERS)
    if not excess(high) < 0 < excess(low):
        raise UserError(
            f"federation.privacy.epsilon {target:g} cannot be had in {config.rounds} rounds with a "
            f"noise multiplier from {_NOISE_MULTIPLIERS[0]:g} to {_NOISE_MULTIPLIERS[1]:g}"
        )
    return with_noise(root_scalar(excess, bracket=(low, high), xtol=1e-4).root)


def spent(config: FederationConfig, clients: int, expected: int, rounds: int) -> float:
    """The epsilon that so many rounds have spent at `delta_of`, by Renyi accounting.

    Under `central`: of adding or removing one client, with amplification by Poisson sampling. Under
    `local`: of replacing all that a client holds, which moves its update by up to two norms, in
    every round.

    Args:
        config: the federation.
        clients: training clients.
        expected: clients a round, on average.
        rounds: that have been released.
    """
    privacy = config.privacy
    if privacy.mode == "none" or rounds == 0:
        return 0.0
    central = privacy.mode == "central"
    accounted = Accounted(
        target_delta=delta_of(privacy, clients),
        population_size=clients,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.POISSON if central else SamplingMethod.NO_AMPLIFICATION,
    )
    multiplier = privacy.noise_multiplier if central else privacy.noise_multiplier / 2
    accountant = RdpAccountant(accounted, _ORDERS)
    accountant.compose(GaussianPrivacyEvent(multiplier, expected, clients), rounds)
    return accountant.get_epsilon(accounted.target_delta)
