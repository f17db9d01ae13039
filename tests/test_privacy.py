"""Differential privacy: clipping, noise, and what is spent against formulas worked out here."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import gammaln, logsumexp

from affect.config import FederationConfig, PrivacyConfig
from affect.errors import UserError
from affect.federated.draws import seeded
from affect.federated.population import Client, sample
from affect.federated.privacy import (
    calibrated,
    clipped,
    delta_of,
    doubt,
    noise_multipliers,
    noised,
    released,
    spent,
)
from affect.federated.strategy import Update

CENTRAL = PrivacyConfig("central", noise_multiplier=0.7, clipping_norm=2.0)
FLOATS = st.floats(-100, 100, width=32)


@given(arrays(np.float32, 6, elements=FLOATS), arrays(np.float32, 6, elements=FLOATS))
def test_an_update_is_scaled_to_the_norm_and_never_beyond(parameters, start):
    update, within = clipped(parameters, start, 1.5)
    change = parameters.astype(np.float64) - start
    length = np.linalg.norm(change)
    assert within == (length <= 1.5)
    assert np.linalg.norm(update) <= 1.5 * (1 + 1e-12)
    np.testing.assert_allclose(update * max(length / 1.5, 1.0), change, atol=1e-9)


def test_the_private_mean_counts_each_client_once_and_adds_noise_of_the_stated_size():
    width, expected = 200_000, 10
    start = np.zeros(width, np.float32)
    updates = [Update(np.full(width, 9, np.float32), weight) for weight in (1.0, 99.0)]
    generator = np.random.default_rng(0)
    found = released(updates, start, expected, 2.0, CENTRAL, generator)
    each = 2.0 / math.sqrt(width)
    noise = found.combined - 2 * each / expected
    assert noise.mean() == pytest.approx(0, abs=4 * 0.14 / math.sqrt(width))
    assert noise.std() == pytest.approx(0.7 * 2.0 / expected, rel=0.01)
    assert found.clipping_norm == 2.0


def test_a_round_without_a_client_releases_noise_alone():
    start = np.ones(1000, np.float32)
    found = released([], start, 5, 2.0, CENTRAL, np.random.default_rng(0))
    assert (found.combined - 1).std() == pytest.approx(0.7 * 2 / 5, rel=0.1)


def test_an_adaptive_norm_moves_towards_its_quantile():
    config = dataclasses.replace(CENTRAL, clipping="adaptive", quantile=0.5, clipping_lr=0.2)
    start = np.zeros(3, np.float32)
    small = [Update(np.full(3, 0.01, np.float32), 1.0)] * 1000
    large = [Update(np.full(3, 10.0, np.float32), 1.0)] * 1000
    shrunk = released(small, start, 1000, 2.0, config, np.random.default_rng(0)).clipping_norm
    grown = released(large, start, 1000, 2.0, config, np.random.default_rng(0)).clipping_norm
    assert shrunk == pytest.approx(2.0 * math.exp(-0.2 * 0.5), rel=0.05)
    assert grown == pytest.approx(2.0 * math.exp(0.2 * 0.5), rel=0.05)


def test_a_norm_that_runs_away_is_told():
    config = dataclasses.replace(CENTRAL, clipping="adaptive", noise_multiplier=900.0)
    wild = dataclasses.replace(config, clipping_lr=10.0)
    start = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"norm 2 would change by a factor .* lower .*clipping_lr"):
        released([], start, 1, 2.0, wild, np.random.default_rng(0))


@given(st.floats(0.1, 5), st.integers(1, 1000))
def test_both_releases_of_an_adaptive_norm_cost_what_one_costs(multiplier, expected):
    config = PrivacyConfig("central", noise_multiplier=multiplier, clipping="adaptive")
    updates, counting = noise_multipliers(config, expected)
    assert updates**-2 + (2 * counting) ** -2 == pytest.approx(multiplier**-2)


class NoNoise(np.random.Generator):
    """Draws the mean alone."""

    def normal(self, mean, deviation, size=None):
        return mean if size is None else np.full(size, mean)


@pytest.mark.parametrize("length", [0.01, 10.0])
@given(st.integers(1, 300), st.integers(0, 20), st.floats(0.1, 5))
def test_one_client_moves_an_adaptive_release_by_one_deviation_of_its_noise(
    length, expected, others, multiplier
):
    config = PrivacyConfig("central", noise_multiplier=multiplier, clipping="adaptive")
    start, norm = np.zeros(4, np.float32), 2.0
    update = Update(np.full(4, length, np.float32), 1.0)
    rest = [Update(np.full(4, 0.1, np.float32), 1.0)] * others
    found = [
        released(updates, start, expected, norm, config, NoNoise(np.random.PCG64(0)))
        for updates in (rest, [*rest, update])
    ]
    sums = [item.combined * expected for item in found]
    counts = [
        -math.log(item.clipping_norm / norm) / config.clipping_lr * expected for item in found
    ]
    noise, counting = noise_multipliers(config, expected)
    moved = math.hypot(
        np.linalg.norm(sums[1] - sums[0]) / (noise * norm), (counts[1] - counts[0]) / counting
    )
    assert moved <= (1 + 1e-6) / multiplier


def test_a_client_noises_its_own_update():
    config = PrivacyConfig("local", noise_multiplier=0.5, clipping_norm=2.0)
    start = np.zeros(100_000, np.float32)
    sent = noised(start + 1, start, config, np.random.default_rng(0))
    assert sent.dtype == np.float32
    assert sent.std() == pytest.approx(0.5 * 2.0, rel=0.01)
    assert sent.mean() == pytest.approx(2.0 / math.sqrt(100_000), abs=0.02)


def epsilon_of(divergence, delta):
    """The best conversion over orders, Canonne, Kamath and Steinke (2020), proposition 12."""
    return min(
        divergence(order) + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        for order in range(2, 256)
    )


def sampled_gaussian(order, multiplier, rate):
    """Mironov, Talwar and Zhang (2019), section 3.3, for whole orders."""
    k = np.arange(order + 1)
    chosen = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = chosen + (order - k) * math.log1p(-rate) + k * math.log(rate)
    return logsumexp(terms + (k * k - k) / (2 * multiplier**2)) / (order - 1)


@pytest.mark.parametrize(
    ("clients", "expected", "rounds", "multiplier"),
    [(80, 20, 40, 1.0), (1000, 50, 200, 0.8), (100, 90, 10, 20.0)],
)
def test_central_epsilon_is_that_of_the_sampled_gaussian_mechanism(
    clients, expected, rounds, multiplier
):
    privacy = PrivacyConfig("central", noise_multiplier=multiplier, delta=1e-5)
    found = spent(FederationConfig(privacy=privacy), clients, expected, rounds)
    oracle = epsilon_of(
        lambda order: rounds * sampled_gaussian(order, multiplier, expected / clients), 1e-5
    )
    assert found == pytest.approx(oracle, rel=0.02)
    assert found <= oracle * (1 + 1e-9)


def test_local_epsilon_is_that_of_replacing_all_that_a_client_has():
    privacy = PrivacyConfig("local", noise_multiplier=8.0, delta=1e-5)
    found = spent(FederationConfig(privacy=privacy), 50, 10, 30)
    oracle = epsilon_of(lambda order: 30 * order * 2**2 / (2 * 8.0**2), 1e-5)
    assert found == pytest.approx(oracle, rel=0.02)


def test_nothing_is_spent_before_the_first_round_or_without_privacy():
    assert spent(FederationConfig(privacy=CENTRAL), 50, 10, 0) == 0
    assert spent(FederationConfig(), 50, 10, 5) == 0
    assert delta_of(CENTRAL, 100) == pytest.approx(100**-1.1)


def test_a_delta_that_nobody_chose_is_doubted_where_it_is_large():
    assert "delta is 0.22 by default, with 4 training clients" in doubt(CENTRAL, 4)
    assert "\n" not in doubt(CENTRAL, 4)
    assert doubt(CENTRAL, 65) != ""  # 66 ** -1.1 is .00997
    silent = (CENTRAL, 66), (PrivacyConfig(), 4), (dataclasses.replace(CENTRAL, delta=0.2), 4)
    assert [doubt(config, clients) for config, clients in silent] == ["", "", ""]


def test_central_privacy_samples_each_client_on_its_own():
    clients = [Client(index, "train", (f"P{index}",)) for index in range(50)]
    config = FederationConfig(client_fraction=0.2, privacy=CENTRAL)
    drawn = [sample(clients, seeded(3)(number), config) for number in range(400)]
    sizes = [len(round_) for round_ in drawn]
    assert np.mean(sizes) == pytest.approx(10, abs=0.6)
    assert np.var(sizes) == pytest.approx(50 * 0.2 * 0.8, rel=0.25)
    fixed = dataclasses.replace(config, privacy=PrivacyConfig())
    assert {len(sample(clients, seeded(3)(number), fixed)) for number in range(50)} == {10}
    assert sample(clients, seeded(3)(7), config) == sample(clients, seeded(3)(7), config)


@pytest.mark.parametrize(("mode", "epsilon"), [("central", 1.0), ("central", 16.0), ("local", 8.0)])
def test_noise_is_chosen_so_that_all_rounds_spend_what_is_asked(mode, epsilon):
    privacy = PrivacyConfig(mode, epsilon=epsilon, delta=1e-3)
    asked = FederationConfig(rounds=40, privacy=privacy)
    found = calibrated(asked, 80, 40)
    assert spent(found, 80, 40, 40) == pytest.approx(epsilon, rel=1e-3)
    assert calibrated(found, 80, 40).privacy.noise_multiplier == pytest.approx(
        found.privacy.noise_multiplier, rel=1e-3
    )
    with pytest.raises(UserError, match=r"epsilon 1e\+09 cannot be had in 40 rounds"):
        calibrated(dataclasses.replace(asked, privacy=PrivacyConfig(mode, epsilon=1e9)), 80, 40)
