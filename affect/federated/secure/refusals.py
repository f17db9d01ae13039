"""What does not go together with secure aggregation, and why."""

from __future__ import annotations

from scipy.stats import binom

from affect.config import FederationConfig
from affect.errors import UserError
from affect.federated.secure.graph import LEAST
from affect.federated.strategy import MEANS

_KEY = "federation.privacy.secure_aggregation"
_CHANCE = 1e-6
"""Of a run whose sampling draws too few clients for a sum in some round."""


def refuse_unfit(config: FederationConfig, clients: int, expected: int) -> None:
    """Refuse what takes single updates, or rounds with too few of them.

    Args:
        config: the federation.
        clients: training clients.
        expected: clients a round, on average.

    Raises:
        UserError: naming the key.
    """
    if not config.privacy.secure_aggregation.enabled:
        return
    name = config.strategy.name
    if name not in MEANS:
        raise UserError(
            f"{_KEY} gives a mean alone, {name} takes more of each client: choose one of "
            f"{', '.join(MEANS)}"
        )
    if expected < LEAST:
        raise UserError(
            f"{_KEY} hides a client among {LEAST} or more a round, there are {expected}: raise "
            "federation.client_fraction or clients_per_round, or train with more clients"
        )
    shares = config.privacy.secure_aggregation.shares
    # under `central` chance may draw all clients
    most = clients if config.privacy.mode == "central" else expected
    if shares is not None and shares > most:
        raise UserError(
            f"{_KEY}.shares is {shares}, one for a client itself and each neighbour, and a round "
            f"has {most} clients: lower it, or null for one for every client"
        )
    if config.privacy.mode == "central":
        _refuse_unfit_central(config, clients, expected)


def _refuse_unfit_central(config: FederationConfig, clients: int, expected: int) -> None:
    privacy = config.privacy
    if privacy.clipping == "adaptive":
        raise UserError(
            "federation.privacy.clipping adaptive takes each update's norm, which "
            f"{_KEY} hides: choose fixed"
        )
    if privacy.clipping_norm > privacy.secure_aggregation.range:
        raise UserError(
            f"federation.privacy.clipping_norm {privacy.clipping_norm:g} is beyond {_KEY}.range "
            f"{privacy.secure_aggregation.range:g}: raise the range"
        )
    if config.rounds * binom.cdf(LEAST - 1, clients, expected / clients) > _CHANCE:
        raise UserError(
            f"federation.privacy.mode central draws each client by chance, and {expected} of "
            f"{clients} may turn out to be fewer than the {LEAST} that {_KEY} takes: raise "
            "federation.client_fraction"
        )
