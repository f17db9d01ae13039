"""Secure aggregation: sums against integers added by hand, lost clients, what the server sees."""

import dataclasses
import math
import threading

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from affect import metrics
from affect.config import (
    FederationConfig,
    PrivacyConfig,
    SecureAggregationConfig,
    SplitConfig,
    StrategyConfig,
    to_yaml,
)
from affect.errors import UserError
from affect.federated import federate as federating
from affect.federated.client import enrolled_app
from affect.federated.engines import service
from affect.federated.engines.cohorts import in_cohorts
from affect.federated.engines.deployment import lead
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.federate import federate
from affect.federated.messages import (
    MakeKeys,
    ShareSecrets,
    Train,
    Trained,
    TrainMasked,
    Unmask,
    addressed,
)
from affect.federated.population import Client
from affect.federated.privacy import released
from affect.federated.secure.client import Masking
from affect.federated.secure.graph import hang_together, neighbours_of, threshold_of
from affect.federated.secure.leader import SecureRound, Start
from affect.federated.secure.masks import new_secret, pairwise, public_of, stream
from affect.federated.secure.numbers import contribution, pooled, quantised, step_of
from affect.federated.secure.outcome import Outcome
from affect.federated.secure.refusals import refuse_unfit
from affect.federated.server import shared
from affect.federated.strategy import Update
from affect.training import run as runs
from tests import builders, sites
from tests.test_deployment import place
from tests.test_federate import assert_equal, experiment, nothing, table, weights

RULES = SecureAggregationConfig(enabled=True)
SECURE = PrivacyConfig(secure_aggregation=RULES)
START = Start(("experiment", "run", 0, "train"), "{}", 4, np.linspace(-1, 1, 40, dtype=np.float32))


def trained(client, start=START.parameters):
    """What a client might have learned: other numbers for each."""
    rng = np.random.default_rng([7, client])
    traces = torch.from_numpy(rng.normal(size=(2, 30, 2)))
    return Trained(
        parameters=(start + 0.1 * rng.normal(size=len(start))).astype(np.float32),
        control=None,
        moments=metrics.moments(*traces, torch.ones(30, dtype=torch.bool)).numpy(),
        losses=rng.random(2),
        batches=client + 1,
        steps=client + 1,
        frames=100 * client + 57,
        seconds=0.5,
    )


class Parties:
    """Clients that mask what they have `trained`, and the way to them.

    Args:
        folder: of their secrets.
        lost: clients that give no answer, by the message's type.
        start: what the round starts from.
    """

    def __init__(self, folder, lost=None, start=START, federation=None):
        self.masking = Masking(folder)
        self.lost = lost or {}
        self.start = start
        self.federation = federation or FederationConfig(privacy=SECURE)
        self.replies = []

    def numbers(self, client):
        generator = np.random.default_rng(client)
        learned = trained(client, self.start.parameters)
        return contribution(learned, self.start.parameters, self.federation, generator)

    def exchange(self, clients, request, reply, own):
        records = request.encode()
        for client in clients:
            if client.index in self.lost.get(request.action, ()):
                continue
            sent = addressed(records, client.index, "train", own.get(client.index))
            asked = type(request).decode(sent)
            answer = self.answer(asked).encode()
            self.replies.append(answer)
            found = reply.decode(answer)
            found.refuse_unfit(asked, {})
            yield client, found

    def answer(self, asked):
        rules = self.federation.privacy.secure_aggregation
        if isinstance(asked, MakeKeys):
            return self.masking.keys(asked)
        if isinstance(asked, ShareSecrets):
            return self.masking.shares(asked, rules)
        if isinstance(asked, TrainMasked):
            return self.masking.masked(asked, lambda: self.numbers(asked.client), rules)
        return self.masking.pieces(asked, rules)

    def summed(self, count=6):
        clients = [Client(index, "train", (f"P{index}",)) for index in range(count)]
        rules = self.federation.privacy.secure_aggregation
        total, survivors = SecureRound(self.exchange, self.start, rules).summed(clients)
        return total, [client.index for client in survivors]


def by_hand(clients, start=START.parameters, rules=RULES):
    """The weighted sum of rounded changes in Python's own integers, and the weights' sum."""
    step = rules.range / 2 ** (rules.bits - 1)
    totals = [0] * len(start)
    for client in clients:
        learned, generator = trained(client, start), np.random.default_rng(client)
        change = learned.parameters.astype(float) - start.astype(float)
        for place_, (value, chance) in enumerate(
            zip(change, generator.random(len(start)), strict=True)
        ):
            totals[place_] += learned.frames * math.floor(value / step + chance)
    return totals, sum(trained(client).frames for client in clients)


LOST = {
    "nobody": ({}, range(6)),
    "keys": ({"query.keys": [2]}, [0, 1, 3, 4, 5]),
    "shares": ({"query.shares": [5]}, [0, 1, 2, 3, 4]),
    "masked": ({"train.masked": [0, 3]}, [1, 2, 4, 5]),
    "unmask": ({"query.unmask": [1]}, range(6)),
    "everywhere": (
        {"query.keys": [0], "train.masked": [4], "query.unmask": [2]},
        [1, 2, 3, 5],
    ),
}


@pytest.mark.parametrize(("lost", "left"), LOST.values(), ids=LOST.keys())
@pytest.mark.parametrize("shares", [None, 5])
def test_the_sum_is_that_of_the_whole_numbers_of_those_that_are_left(tmp_path, lost, left, shares):
    rules = dataclasses.replace(RULES, shares=shares)
    federation = FederationConfig(privacy=PrivacyConfig(secure_aggregation=rules))
    total, survivors = Parties(tmp_path, lost, federation=federation).summed()
    assert survivors == list(left)
    totals, weight = by_hand(left)
    assert total.parameters.view(np.int64).tolist() == totals
    assert total.tallies[0] == weight
    assert not list(tmp_path.rglob("*.new"))
    gone = {client for clients in lost.values() for client in clients}
    assert {int(path.parent.name) for path in tmp_path.rglob("secrets.json")} <= gone


def test_the_mean_and_the_scores_are_those_of_the_clients_but_for_rounding(tmp_path):
    total, _ = Parties(tmp_path).summed()
    found = pooled(total, 6, RULES)
    learned = [trained(client) for client in range(6)]
    frames = [item.frames for item in learned]
    mean = np.average([item.parameters.astype(float) for item in learned], 0, frames)
    np.testing.assert_allclose(
        START.parameters + found.change / found.weight, mean, rtol=0, atol=step_of(RULES)
    )
    losses = np.average([item.losses for item in learned], 0, [item.batches for item in learned])
    np.testing.assert_allclose(found.losses / found.batches, losses, atol=1e-5)
    moments = metrics.merge(torch.from_numpy(np.stack([item.moments for item in learned])))
    np.testing.assert_allclose(found.moments, moments, atol=1e-4)
    assert (found.weight, found.batches) == (sum(frames), 21)


@given(st.integers(8, 32), st.floats(0.01, 100), st.integers(0, 1000))
def test_rounding_stays_within_a_step_and_is_right_on_average(bits, range_, seed):
    rules = SecureAggregationConfig(range=range_, bits=bits)
    rng = np.random.default_rng(seed)
    change = rng.uniform(-range_, range_, 400)
    error = quantised(change, rules, rng) * step_of(rules) - change
    assert np.abs(error).max() <= step_of(rules) * (1 + 1e-6)
    assert abs(error.mean()) < 6 * step_of(rules) / math.sqrt(6 * 400)


def test_what_one_client_sends_is_uniform_and_has_nothing_of_its_parameters(tmp_path):
    start = dataclasses.replace(START, parameters=np.zeros(50_000, np.float32))
    parties = Parties(tmp_path, start=start)
    parties.summed(3)
    sent = [records for records in parties.replies if records["arrays"]]
    assert len(sent) == 3
    plain = trained(0, start.parameters).parameters
    values = np.frombuffer(sent[0]["arrays"]["parameters"].numpy().tobytes(), np.uint8)
    counts = np.bincount(values, minlength=256)
    expected = len(values) / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 8 * math.sqrt(2 * 255)
    masked = sent[0]["arrays"]["parameters"].numpy().astype(float)
    for other in (plain, np.abs(plain)):
        assert abs(np.corrcoef(masked, other)[0, 1]) < 6 / math.sqrt(len(masked))
    again = Parties(tmp_path / "again", start=start)
    again.summed(3)
    one, other = (
        next(r for r in party.replies if r["arrays"])["arrays"]["parameters"].numpy()
        for party in (parties, again)
    )
    assert (one == other).mean() < 0.001
    assert abs(np.corrcoef(one.astype(float), other.astype(float))[0, 1]) < 6 / math.sqrt(len(one))


def test_masks_of_two_cancel_and_a_stream_has_every_number():
    secrets = [new_secret(), new_secret()]
    publics = [public_of(secret) for secret in secrets]
    one = pairwise(3, secrets[0], {8: publics[1]}, 100)
    other = pairwise(8, secrets[1], {3: publics[0]}, 100)
    assert not (one + other).any()
    assert len(set(one.tolist())) == 100
    # the first block of AES-256 in counter mode under this key, NIST SP 800-38A F.1.5's ECB of zero
    assert stream(bytes(32), 2).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def lone(tmp_path, count=4):
    """A client that has keys, three neighbours, and their sealed pieces."""
    parties = Parties(tmp_path)
    about = ("experiment", "run")
    keys = {i: parties.masking.keys(MakeKeys(*about, i, "train", 4)) for i in range(count)}
    asked = {
        i: ShareSecrets(
            *(*about, i, "train", 4, [n for n in keys if n != i]),
            [keys[n].masking for n in keys if n != i],
            [keys[n].sealing for n in keys if n != i],
        )
        for i in keys
    }
    sealed = {i: parties.masking.shares(asked[i], RULES).sealed for i in keys}
    mine = [dict(zip(asked[n].neighbours, sealed[n], strict=True))[0] for n in range(1, count)]
    train = TrainMasked(*about, 0, "train", "{}", 4, START.parameters, mine)
    return parties, asked[0], train


def unmask(survivors, dropped):
    return Unmask("experiment", "run", 0, "train", 4, survivors, dropped)


def test_a_client_answers_each_stage_once_and_never_with_both_kinds_of_pieces(tmp_path):
    parties, share, train = lone(tmp_path)
    assert (tmp_path / "0" / "secrets.json").stat().st_mode & 0o777 == 0o600
    parties.answer(train)
    with pytest.raises(UserError, match="would show a single update"):
        parties.answer(unmask([0, 1, 2, 3], [3]))
    with pytest.raises(UserError, match="no secrets of client 0 in round 4"):
        parties.answer(unmask([0, 1, 2], [3]))
    for again in (TrainMasked, ShareSecrets):
        parties, share, train = lone(tmp_path)
        parties.answer(train)
        with pytest.raises(UserError, match=r"one update a round|are not different"):
            parties.answer(train if again is TrainMasked else share)


def changed(train, **fields):
    return dataclasses.replace(train, **fields)


def test_a_client_refuses_what_would_not_hide_it(tmp_path):
    parties, share, train = lone(tmp_path)
    with pytest.raises(UserError, match="2 of 4 neighbours are left, 3 are needed"):
        parties.answer(changed(train, sealed=[train.sealed[0], "", ""]))
    parties, share, train = lone(tmp_path)
    with pytest.raises(UserError, match="what client 1 sealed cannot be opened"):
        parties.answer(changed(train, sealed=[train.sealed[1], train.sealed[0], train.sealed[2]]))
    parties, share, train = lone(tmp_path)
    parties.answer(train)
    with pytest.raises(UserError, match="would show a single update"):
        parties.answer(unmask([0, 1, 9], []))
    parties, share, train = lone(tmp_path)
    parties.answer(train)
    with pytest.raises(UserError, match="2 of 4 neighbours are left"):
        parties.answer(unmask([0, 1], [2, 3]))
    keys = parties.masking.keys(MakeKeys("experiment", "run", 0, "train", 4))
    for twice in ([keys.masking, *share.masking[1:]], [share.masking[1], *share.masking[1:]]):
        parties.masking.keys(MakeKeys("experiment", "run", 0, "train", 4))
        with pytest.raises(UserError, match="are not different"):
            parties.answer(changed(share, masking=[*twice[1:], twice[1]]))


TOO_FEW = {
    "keys": ({"query.keys": [0, 1, 2, 3]}, "2 clients are left in round 4, a secure sum takes 3"),
    "shares": ({"query.shares": [0, 1, 2, 3]}, "2 of 6 neighbours|2 clients are left"),
    "unmask": ({"query.unmask": [0, 1, 2]}, "3 of 6 pieces of a client's secrets came back"),
}


@pytest.mark.parametrize(("lost", "said"), TOO_FEW.values(), ids=TOO_FEW.keys())
def test_too_few_clients_are_told(tmp_path, lost, said):
    with pytest.raises(UserError, match=said):
        Parties(tmp_path, lost).summed()


def test_a_sum_with_masks_left_in_it_is_refused(tmp_path):
    total, _ = Parties(tmp_path).summed()
    odd = dataclasses.replace(total, tallies=total.tallies + stream(bytes(32), 16))
    with pytest.raises(UserError, match="the masks did not cancel"):
        pooled(odd, 6, RULES)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 9.0])
def test_a_client_refuses_numbers_that_do_not_fit(bad):
    learned = trained(0)
    learned.parameters[3] = bad
    said = "secure_aggregation.range 8" if bad == 9 else "its parameters are not finite"
    with pytest.raises(UserError, match=said):
        contribution(
            learned, START.parameters, FederationConfig(privacy=SECURE), np.random.default_rng(0)
        )


def test_too_many_frames_and_scores_that_diverged_are_refused():
    federation = FederationConfig(privacy=SECURE)
    for change, said in (
        ({"frames": 2**40}, "its frames are too many"),
        ({"losses": np.array([np.inf, 0.0])}, "its training scores are too large"),
        ({"moments": trained(0).moments * 1e12}, "its training scores are too large"),
    ):
        learned = dataclasses.replace(trained(0), **change)
        with pytest.raises(UserError, match=said):
            contribution(learned, START.parameters, federation, np.random.default_rng(0))


@given(st.integers(3, 40), st.sampled_from([None, 3, 5, 7]), st.integers(0, 99))
def test_neighbours_are_mutual_and_hang_together(count, shares, seed):
    clients = list(range(10, 10 + count))
    found = neighbours_of(clients, shares, np.random.default_rng(seed))
    for client, others in found.items():
        assert len(set(others) - {client}) == len(others) == min(shares or count, count) - 1
        assert all(client in found[other] for other in others)
    assert hang_together(clients, found)


def test_groups_without_a_tie_are_found():
    ring = {place: [(place - 1) % 8, (place + 1) % 8] for place in range(8)}
    assert hang_together([0, 1, 2, 3, 4, 5, 6], ring)
    assert not hang_together([0, 1, 2, 4, 5, 6], ring)


@pytest.mark.parametrize(
    ("pieces", "threshold", "needed"), [(3, 0.5, 3), (4, 0.5, 3), (5, 0.5, 3), (9, 0.66, 6)]
)
def test_a_majority_gives_a_secret_back(pieces, threshold, needed):
    assert threshold_of(pieces, SecureAggregationConfig(threshold=threshold)) == needed


def test_a_central_update_is_within_the_norm_after_rounding():
    private = dataclasses.replace(SECURE, mode="central", clipping_norm=0.3)
    coarse = dataclasses.replace(RULES, bits=12)
    private = dataclasses.replace(private, secure_aggregation=coarse)
    for client in range(20):
        found = contribution(
            trained(client),
            START.parameters,
            FederationConfig(privacy=private),
            np.random.default_rng(client),
        )
        length = np.linalg.norm(found.parameters.view(np.int64) * step_of(coarse))
        assert 0.2 < length <= 0.3
        assert found.tallies[0] == 1
    none = dataclasses.replace(private, secure_aggregation=dataclasses.replace(coarse, bits=8))
    with pytest.raises(UserError, match="raise the bits"):
        contribution(
            trained(0), START.parameters, FederationConfig(privacy=none), np.random.default_rng(0)
        )


REFUSED = {
    **{
        name: ({"strategy": StrategyConfig(name)}, f"gives a mean alone, {name} takes more")
        for name in ("scaffold", "fedmedian", "trimmed_mean", "krum")
    },
    "adaptive": (
        {"privacy": dataclasses.replace(SECURE, mode="central", clipping="adaptive")},
        "adaptive takes each update's norm",
    ),
    "range": (
        {"privacy": dataclasses.replace(SECURE, mode="central", clipping_norm=9.0)},
        "clipping_norm 9 is beyond",
    ),
    "shares": (
        {"privacy": PrivacyConfig(secure_aggregation=dataclasses.replace(RULES, shares=11))},
        r"shares is 11, .* a round has 10 clients: lower it",
    ),
}


@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_takes_single_updates_is_refused(changes, said):
    config = FederationConfig(**{"privacy": SECURE, **changes})
    with pytest.raises(UserError, match=said):
        refuse_unfit(config, 10, 10)
    off = dataclasses.replace(config.privacy, secure_aggregation=SecureAggregationConfig())
    refuse_unfit(dataclasses.replace(config, privacy=off), 10, 10)


def test_rounds_with_too_few_clients_are_refused():
    central = FederationConfig(privacy=dataclasses.replace(SECURE, mode="central"))
    with pytest.raises(UserError, match="among 3 or more a round, there are 2"):
        refuse_unfit(FederationConfig(privacy=SECURE), 10, 2)
    with pytest.raises(UserError, match="central draws each client by chance, and 5 of 10"):
        refuse_unfit(central, 10, 5)
    refuse_unfit(central, 10, 10)
    refuse_unfit(central, 100, 50)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi"])
def test_means_go_together_with_masks(name):
    refuse_unfit(FederationConfig(strategy=StrategyConfig(name), privacy=SECURE), 5, 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    builders.cache(folder / "cache", subjects=9)
    sites.caches(folder / "sites")
    return folder


def asked(corpus, **federation):
    """Five training clients, two of validation, two of test."""
    made = experiment(corpus, {"rounds": 2, "privacy": SECURE, **federation})
    split = SplitConfig(val_fraction=0.25, test_fraction=0.2)
    return dataclasses.replace(made, data=dataclasses.replace(made.data, split=split))


@pytest.fixture(scope="module")
def masked(corpus):
    return federate(asked(corpus), draw=nothing)


def test_a_masked_run_learns_what_an_open_one_learns(corpus, masked):
    plain = federate(asked(corpus, privacy=PrivacyConfig()), draw=nothing)
    assert len(plain.folds[0].train) == 5
    for name, value in weights(plain).items():
        np.testing.assert_allclose(weights(masked)[name], value, atol=1e-3, err_msg=name)
    one, other = (table(run.folder / "metrics.csv") for run in (plain, masked))
    for key in ("train/ccc/mean", "train/loss/mean", "val/ccc/mean"):
        assert float(one[-1][key]) == pytest.approx(float(other[-1][key]), abs=1e-3)
    assert other[0]["clients/trained"] == "5"
    rows = [row for row in table(masked.folder / "clients.csv") if row["part"] == "train"]
    told = {name for row in rows for name, value in row.items() if value}
    assert told == {"fold", "round", "client", "part"}
    assert not list(masked.folder.rglob("secrets*"))


def test_a_run_that_worker_processes_go_on_with_continues_to_the_same_bits(
    corpus, masked, monkeypatch
):
    real = federating.save_state

    def save(path, state, preparation):
        real(path, state, preparation)
        monkeypatch.setattr(InProcessGrid, "send_and_receive", until_masked)

    monkeypatch.setattr(federating, "save_state", save)
    with pytest.raises(KeyboardInterrupt):
        federate(dataclasses.replace(asked(corpus), name="stopped"), draw=nothing)
    monkeypatch.undo()
    (folder,) = (corpus / "runs" / "stopped").iterdir()
    stopped = runs.open_run(folder)
    assert list(folder.rglob("secrets.json"))  # the round was under way
    stopped.experiment.federation.workers = 2
    resumed = federate(stopped.experiment, draw=nothing, resume=stopped)
    assert_equal(weights(resumed), weights(masked))
    assert not list(folder.rglob("secrets*"))


REAL = InProcessGrid.send_and_receive


def until_masked(self, messages, *, timeout=None):
    """Ctrl-C while clients send what they have masked."""
    messages = list(messages)
    replies = REAL(self, messages, timeout=timeout)
    if messages[0].metadata.message_type != "train.masked":
        return replies
    next(iter(replies))
    raise KeyboardInterrupt


def test_lost_clients_are_named_and_end_the_run_or_are_skipped_as_allowed(corpus, monkeypatch):
    lost = [("train.masked", 1), ("query.unmask", 2)]

    def send_and_receive(self, messages, *, timeout=None):
        for reply in REAL(self, messages, timeout=timeout):
            if (reply.metadata.message_type, reply.metadata.src_node_id) not in lost:
                yield reply

    monkeypatch.setattr(InProcessGrid, "send_and_receive", send_and_receive)
    with pytest.raises(UserError, match=r"1 of 5 clients failed \(P\d: it did not answer in time"):
        federate(asked(corpus, rounds=1), draw=nothing)
    run = federate(asked(corpus, rounds=1, failure_fraction=0.4), draw=nothing)
    names = run.folds[0].train
    assert [item["client"] for item in run.record["failures"]] == list(names[:2])
    (row,) = table(run.folder / "metrics.csv")
    assert (row["clients/trained"], row["clients/failed"]) == ("4", "2")


def test_local_noise_and_adaptive_strategies_go_together_with_masks(corpus):
    local = dataclasses.replace(SECURE, mode="local", noise_multiplier=0.01)
    plain = dataclasses.replace(local, secure_aggregation=SecureAggregationConfig())
    adam = {"rounds": 1, "strategy": StrategyConfig("fedadam", server_lr=0.05, tau=0.1)}
    one, other = (
        federate(asked(corpus, privacy=privacy, **adam), draw=nothing) for privacy in (local, plain)
    )
    for name, value in weights(other).items():
        np.testing.assert_allclose(weights(one)[name], value, atol=1e-4, err_msg=name)
    spent = [run.record["federation"]["0"]["epsilon"] for run in (one, other)]
    assert spent[0] == spent[1] > 0


def test_the_central_mean_is_that_of_clipped_updates_with_the_same_noise(tmp_path):
    private = dataclasses.replace(SECURE, mode="central", clipping_norm=0.3, noise_multiplier=0.5)
    federation = FederationConfig(privacy=private)
    total, survivors = Parties(tmp_path, federation=federation).summed()
    clients = [Client(index, "train", (f"P{index}",)) for index in survivors]
    outcome = Outcome(total, clients, [], ["valence", "arousal"], RULES)
    found = outcome.combined(START.parameters, 8, federation, np.random.default_rng(1))
    updates = [Update(trained(index).parameters, 1.0) for index in survivors]
    oracle = released(updates, START.parameters, 8, 0.3, private, np.random.default_rng(1))
    np.testing.assert_allclose(found, oracle.combined, rtol=0, atol=1e-5)


def test_no_message_of_a_run_holds_an_update_in_clear(corpus, monkeypatch):
    replies, sent = [], []

    def send_and_receive(self, messages, *, timeout=None):
        for reply in REAL(self, messages, timeout=timeout):
            replies.append(reply)
            yield reply

    real = Trained.__init__

    def learned(self, **fields):
        sent.append(fields["parameters"])
        real(self, **fields)

    monkeypatch.setattr(InProcessGrid, "send_and_receive", send_and_receive)
    monkeypatch.setattr(Trained, "__init__", learned)
    federate(asked(corpus, rounds=1), draw=nothing)
    kinds = {reply.metadata.message_type for reply in replies}
    assert kinds == {
        *("query.survey", "query.keys", "query.shares", "train.masked", "query.unmask"),
        "evaluate",
    }
    assert len(sent) == 5
    carried = [
        (reply.metadata.message_type, name, array.numpy())
        for reply in replies
        for name, array in reply.content["arrays"].items()
    ]
    big = [(kind, name) for kind, name, array in carried if array.size >= sent[0].size]
    assert big == [("train.masked", "parameters")] * 5
    for kind, _, array in carried:
        if kind == "train.masked":
            assert array.dtype == np.uint64
            assert array.view(np.int64).astype(float).std() > 2.0**60  # no small number is there
    assert len({array.tobytes() for kind, _, array in carried if kind == "train.masked"}) == 10


def test_sites_behind_their_services_learn_what_one_machine_learns(corpus, tmp_path):
    InProcessGrid(in_cohorts(nothing), 1)  # without a grid, Flower's messages have no sender
    folder = corpus / "sites"
    order = ("west", "east", "north")
    sockets = [tmp_path / site for site in order]
    for site, socket in zip(order, sockets, strict=True):
        app = enrolled_app(place(folder, site))
        threading.Thread(target=service.serve, args=(app, socket), daemon=True).start()

    def asks(message: Message, context):
        while True:
            try:
                return service.ask(sockets[context.node_id - 1], message)
            except OSError:  # it does not listen yet
                continue

    made = sites.experiment(folder, rounds=1, privacy=SECURE)
    deployed = lead(InProcessGrid(in_cohorts(asks), 3), made, 3)
    assert_equal(weights(deployed), weights(federate(made, draw=nothing)))
    assert not list((folder / "states").rglob("secrets*"))


def test_a_site_shows_no_update_in_a_secure_run(corpus):
    made = sites.experiment(corpus / "sites", privacy=SECURE)
    request = Train(*(to_yaml(shared(made)), "run", 0, "train", "{}", 1), np.zeros(3, np.float32))
    here = place(corpus / "sites", "west")
    with pytest.raises(UserError, match="asked for an update without masks"):
        here.site_of(request).train(request)
    masked = TrainMasked(*(request.experiment, "run", 0, "test", "{}", 1), request.parameters, [])
    with pytest.raises(UserError, match="asked to train on the test part"):
        place(corpus / "sites", "west").site_of(masked)
