"""The server's maths against Flower's own strategies and plain NumPy."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import strategies as st

from affect.config import StrategyConfig
from affect.errors import UserError
from affect.federated import strategy
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.strategy import Update, combine, krum, step

WIDTH = 7


def updates(count, seed=0):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, WIDTH)).astype(np.float32)
    return [
        Update(vector, float(weight))
        for vector, weight in zip(vectors, random.integers(1, 50, count), strict=True)
    ]


@pytest.fixture
def replies():
    """Flower's messages for some updates."""
    InProcessGrid(
        lambda message, _: message, 1
    )  # names the task, without which there is no Message

    def make(items):
        asked = Message(RecordDict(), 1, "train")
        return [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord({"w": Array(item.parameters.astype(np.float64))}),
                        "metrics": MetricRecord({"num-examples": item.weight}),
                    }
                ),
                reply_to=asked,
            )
            for item in items
        ]

    return make


def flowers_round(peer, current, items, replies, number=1):
    peer.current_arrays = ArrayRecord({"w": Array(current.astype(np.float64))})
    if hasattr(peer, "v_t"):  # what its configure_train would set
        peer.current_arrays = {"w": current.astype(np.float64)}
    arrays, _ = peer.aggregate_train(number, replies(items))
    return arrays["w"].numpy()


PLAIN = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


@pytest.mark.parametrize(
    ("name", "peer", "options"),
    [
        ("fedavg", flower.FedAvg(**PLAIN), {}),
        ("fedmedian", flower.FedMedian(**PLAIN), {}),
        ("trimmed_mean", flower.FedTrimmedAvg(beta=0.2, **PLAIN), {"trim": 0.2}),
        (
            "fedyogi",
            flower.FedYogi(eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3, **PLAIN),
            {"server_lr": 0.1},
        ),
        (
            "fedavgm",
            flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.9, **PLAIN),
            {"server_lr": 0.5, "momentum": 0.9},
        ),
    ],
)
def test_three_rounds_are_those_of_flowers_own_strategy(name, peer, options, replies):
    config = StrategyConfig(name=name, **options)
    ours = theirs = np.linspace(-1, 1, WIDTH).astype(np.float32)
    slots = {}
    for number in range(1, 4):
        items = updates(6, seed=number)
        ours, slots = step(ours, combine(iter(items), config), slots, config)
        theirs = flowers_round(peer, theirs, items, replies, number)
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)


def test_fedadam_is_the_papers_algorithm():
    config = StrategyConfig(name="fedadam", server_lr=0.1, betas=(0.8, 0.95), tau=0.01)
    ours = np.zeros(WIDTH, np.float32)
    slots, m, v, x = {}, np.zeros(WIDTH), np.zeros(WIDTH), np.zeros(WIDTH)
    for number in range(4):
        mean = combine(updates(5, seed=number), config)
        ours, slots = step(ours, mean, slots, config)
        delta = mean - x
        m = 0.8 * m + 0.2 * delta
        v = 0.95 * v + 0.05 * delta**2
        x = (x + 0.1 * m / (np.sqrt(v) + 0.01)).astype(np.float32)
        np.testing.assert_allclose(ours, x, rtol=1e-6)


def test_krum_takes_the_client_in_the_middle_of_the_crowd():
    crowd = np.random.default_rng(0).normal(size=(7, WIDTH)).astype(np.float32) * 0.1
    vectors = np.concatenate([crowd, np.full((2, WIDTH), 50, np.float32)])
    config = StrategyConfig(name="krum", malicious=2)
    chosen = krum(vectors, config)
    scores = [
        sum(sorted(((other - row) ** 2).sum() for j, other in enumerate(vectors) if j != i)[:5])
        for i, row in enumerate(vectors.astype(np.float64))
    ]
    np.testing.assert_array_equal(chosen, vectors[int(np.argmin(scores))])
    with pytest.raises(UserError, match="krum withstands 2 of at least 5 clients, the round has 4"):
        krum(vectors[:4], config)


@given(st.integers(0, 1000), st.floats(1, 1e6))
def test_one_clients_mean_is_its_own_model_to_the_bit(seed, weight):
    vector = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
    config = StrategyConfig()
    mean = combine([Update(vector, float(int(weight)))], config)
    np.testing.assert_array_equal(step(vector * 0, mean, {}, config)[0], vector)


@given(st.permutations(range(5)))
def test_weights_and_not_the_order_decide_a_mean(order):
    items = updates(5)
    shuffled = [items[index] for index in order]
    one, other = (strategy.weighted_mean(part, uniform=False) for part in (items, shuffled))
    np.testing.assert_allclose(one, other, rtol=1e-12)
    uniform = strategy.weighted_mean(items, uniform=True)
    np.testing.assert_allclose(uniform, np.mean([i.parameters for i in items], axis=0), rtol=1e-6)
