"""Personalised federated runs: what travels, what is kept, and what adapts to which labels."""

import csv
import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from affect import store
from affect.config import (
    DataConfig,
    EvaluationConfig,
    FederationConfig,
    PersonalisationConfig,
    PrivacyConfig,
    SchedulerConfig,
    SplitConfig,
    StrategyConfig,
)
from affect.config import TrainerConfig as Trainer
from affect.data.preparation import Preparation
from affect.errors import UserError
from affect.federated import federate as module
from affect.federated.draws import seeded
from affect.federated.engines.deployment import lead
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.federate import federate
from affect.federated.local import LocalTraining, initial_module
from affect.federated.memory import Memory
from affect.training import run as runs
from affect.training.inference import TrainedLevelTwo, predict_cache, score_run
from affect.training.trained import load_trained
from tests import builders, sites
from tests.test_deployment import grid

QUICK = {"accelerator": "cpu", "devices": 1, "progress": False}
FEDPER = PersonalisationConfig("head", steps=3, tune="head")
PLAIN = PersonalisationConfig()
TUNED = PersonalisationConfig(steps=3, lr=0.01)
CUT = 15  # a quarter of a recording's 60 frames


def nothing(_):
    return []


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("personal")
    builders.cache(folder / "cache", subjects=9)
    return folder


def experiment(corpus, personalisation, federation=None, *, share=0.25, **sections):
    """Three training clients, three of validation, three of test."""
    data = DataConfig(
        cache=str(corpus / "cache"),
        standardise=["train", "centred"],
        window_frames=20,
        hop_frames=10,
        batch_size=4,
        split=SplitConfig(val_fraction=0.5, test_fraction=0.34, calibration_fraction=share),
    )
    sections = {"data": data, "trainer": Trainer(keep="last", **QUICK), **sections}
    made = builders.experiment(corpus, **sections)
    settings = {"rounds": 2, "personalisation": personalisation, **(federation or {})}
    return dataclasses.replace(made, federation=FederationConfig(**settings))


def weights(run):
    return load_file(run.folder / "model.safetensors")


def assert_equal(one, other, names=""):
    assert one.keys() == other.keys()
    for name in one:
        if name.startswith(names):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def head_of(run):
    """The head beside a run's body."""
    return vector_of(load_trained(run).module.model.head)


def vector_of(part):
    return torch.nn.utils.parameters_to_vector(part.parameters()).detach().numpy()


def kept_heads(run):
    """Each client's head after each round that it still keeps."""
    files = sorted((run.folder / "clients").glob("*/*.safetensors"))
    return {f"{path.parent.name}/{path.stem}": load_file(path)["head"] for path in files}


def common_head(asked):
    return vector_of(initial_module(asked, 2 * len(builders.NAMES)).model.head)


@pytest.fixture(scope="module")
def run_of(corpus):
    """A run of two rounds by its personalisation, trained when it is first asked for."""
    found = {}

    def run(asked):
        key = repr(asked)
        if key not in found:
            found[key] = federate(experiment(corpus, asked), draw=nothing)
        return found[key]

    return run


def test_nothing_personal_is_the_plain_run_to_the_bit(run_of):
    one, other = run_of(PersonalisationConfig(tune="head", lr=0.5)), run_of(PLAIN)
    assert_equal(weights(one), weights(other))
    assert one.record["metrics"] == other.record["metrics"]


@pytest.mark.parametrize("server", [{}, {"name": "fedadam"}], ids=["fedavg", "fedadam"])
def test_a_client_that_holds_everything_learns_the_same_whether_its_head_travels(corpus, server):
    """Under FedAdam for one round: its step moves a head that travels, none that stays."""
    strategy = StrategyConfig(**server)
    settings = {"rounds": 1 if server else 3, "subjects_per_client": None, "strategy": strategy}
    plain, own = (
        federate(
            experiment(corpus, asked, settings, scheduler=SchedulerConfig("cosine")), draw=nothing
        )
        for asked in (PLAIN, FEDPER)
    )
    assert_equal(weights(plain), weights(own), "encoder.")
    np.testing.assert_array_equal(head_of(own), common_head(own.experiment))
    if not server:
        np.testing.assert_array_equal(kept_heads(own)["0/3"], head_of(plain))
    assert own.record["bytes_sent"] < plain.record["bytes_sent"]


STATEFUL = {
    "scaffold": {"strategy": StrategyConfig("scaffold"), "client_fraction": 0.67},
    "central": {"privacy": PrivacyConfig("central", noise_multiplier=0.3)},
}


@pytest.mark.parametrize("federation", STATEFUL.values(), ids=STATEFUL.keys())
def test_a_resumed_run_continues_to_the_same_bits(corpus, federation, monkeypatch):
    asked = experiment(corpus, FEDPER, {"rounds": 4, **federation})
    whole = federate(asked, draw=nothing)
    stop_in_the_third_round(monkeypatch)
    asked = dataclasses.replace(asked, runs=str(corpus / "stopped" / whole.record["id"]))
    with pytest.raises(KeyboardInterrupt):
        federate(asked, draw=nothing)
    monkeypatch.undo()
    (folder,) = (corpus / "stopped" / whole.record["id"] / "toy").iterdir()
    stopped = runs.open_run(folder)
    resumed = federate(stopped.experiment, draw=nothing, resume=stopped)
    assert_equal(weights(whole), weights(resumed))
    assert_equal(kept_heads(whole), kept_heads(resumed))
    assert whole.record["metrics"] == resumed.record["metrics"]


def stop_in_the_third_round(monkeypatch):
    """Ctrl-C after its first client has trained, and kept what the server then loses."""
    real, save = InProcessGrid.send_and_receive, module.save_state

    def interrupted(self, messages, *, timeout=None):
        yield next(iter(real(self, messages, timeout=timeout)))
        raise KeyboardInterrupt

    def saved(path, state, preparation):
        save(path, state, preparation)
        if state.round == 2:
            monkeypatch.setattr(InProcessGrid, "send_and_receive", interrupted)

    monkeypatch.setattr(module, "save_state", saved)


def test_no_byte_of_a_head_is_in_any_message(corpus, monkeypatch):
    seen = record_messages(monkeypatch)
    own = federate(experiment(corpus, FEDPER), draw=nothing)
    heads = [*kept_heads(own).values(), common_head(own.experiment)]
    assert len(heads) == 7  # of three clients after two rounds, and the one they began with
    arrays, lengths = arrays_of(seen)
    assert lengths == {sum(v.size for n, v in weights(own).items() if n.startswith("encoder."))}
    for head in heads:
        weight, bias = head[:-2], head[-2:]
        assert not any(part.tobytes() in text for part in (weight, bias) for text in arrays)
    seen.clear()
    plain = federate(experiment(corpus, PLAIN, {"rounds": 1}), draw=nothing)
    arrays, _ = arrays_of(seen)  # what is sought is found where it is sent
    assert any(common_head(plain.experiment).tobytes() in text for text in arrays)


def record_messages(monkeypatch):
    seen, real = [], InProcessGrid.send_and_receive

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        seen.extend(messages)
        for reply in real(self, messages, timeout=timeout):
            seen.append(reply)
            yield reply

    monkeypatch.setattr(InProcessGrid, "send_and_receive", send_and_receive)
    return seen


def arrays_of(messages):
    """The bytes of every array that travelled, and the lengths of the parameters among them."""
    arrays = [item for m in messages for item in m.content["arrays"].items()]
    lengths = {array.shape[0] for name, array in arrays if name == "parameters"}
    return [array.data for _, array in arrays], lengths


def local_training(corpus, run, folder):
    """What its three training clients train with, and the run's body."""
    entries = store.entries(corpus / "cache")
    held = {i: [e for e in entries if e.subject == s] for i, s in enumerate(run.folds[0].train)}
    trained = load_trained(run)
    local = LocalTraining(
        run.experiment,
        trained.preparation,
        held,
        Memory(folder),
        torch.device("cpu"),
        seeded(0),
    )
    return local, vector_of(trained.module.model.encoder)


def test_a_client_begins_with_the_common_head_and_goes_on_with_its_own(corpus, run_of, tmp_path):
    run = run_of(FEDPER)
    local, body = local_training(corpus, run, tmp_path)
    memory = Memory(tmp_path)
    first = local.train(0, 1, body)
    own = memory.after(0, 1)["head"]
    again = local.train(1, 9, body)  # sampled first in the ninth round
    began = memory.after(1, 9)["head"]
    memory.keep(1, 8, {"head": common_head(run.experiment)})
    np.testing.assert_array_equal(local.train(1, 9, body, memory=8).parameters, again.parameters)
    np.testing.assert_array_equal(memory.after(1, 9)["head"], began)
    local.train(0, 9, body, memory=1)
    assert (memory.after(0, 9)["head"] != own).any()
    memory.keep(1, 8, {"head": own})
    assert (local.train(1, 9, body, memory=8).parameters != again.parameters).any()
    assert first.parameters.shape == body.shape


def test_a_vector_that_holds_a_head_as_well_is_refused(corpus, run_of, tmp_path):
    local, body = local_training(corpus, run_of(FEDPER), tmp_path)
    for vector in (body[:-1], np.append(body, common_head(run_of(FEDPER).experiment))):
        for ask in (partial(local.train, 0, 1), partial(local.evaluate, 1)):
            with pytest.raises(UserError, match=f"{len(vector)} parameters .* {len(body)} are"):
                ask(vector)


@pytest.mark.parametrize("asked", [FEDPER, TUNED], ids=["fedper", "tuned"])
def test_calibration_is_never_scored_and_the_scored_rest_teaches_nothing(
    corpus, run_of, asked, tmp_path
):
    """A run on labels that differ in the rest alone has the same networks: the same predictions."""
    run = run_of(asked)
    with_other_rest(corpus / "cache", run.folds[0].train, tmp_path / "cache")
    other = federate(experiment(tmp_path, asked), draw=nothing)
    assert_equal(weights(run), weights(other))
    for one, two, common in zip(*(map(predictions, (run, other, run_of(PLAIN)))), strict=True):
        np.testing.assert_array_equal(one.prediction, two.prediction)
        assert (one.prediction != common.prediction).any()
        truth = store.read(store.path_of(corpus / "cache", "toy", one.subject, one.name))
        expected = np.stack([truth.annotations[d] for d in one.dimensions], axis=1)
        expected[:CUT] = np.nan
        for item, sign in ((one, 1), (common, 1), (two, -1)):
            np.testing.assert_array_equal(item.reference, sign * expected)


def with_other_rest(cache, train, folder):
    """The same recordings, but for the labels of validation and test people after their cut."""
    for entry in store.entries(cache):
        recording = store.read(entry.path)
        if entry.subject not in train:
            rest = np.arange(recording.frames) >= CUT
            changed = {n: np.where(rest, -v, v) for n, v in recording.annotations.items()}
            recording = dataclasses.replace(recording, annotations=changed)
        store.write(recording, folder)


def predictions(run):
    return store.read_predictions(run.folder / "predictions.h5")


def test_what_is_tuned_is_plain_training_on_the_calibration_part(corpus, run_of):
    """By hand: `fit`'s own loss, gradient and optimiser on the first quarter, for three steps."""
    run = run_of(TUNED)
    trained = load_trained(run)
    subject = run.folds[0].test[0]
    entries = [e for e in store.entries(corpus / "cache") if e.subject == subject]
    (item,) = [item for item in predictions(run) if item.subject == subject]
    features, labels = series_of(trained.preparation, entries[0])
    model = trained.module.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01)
    mask = torch.ones(1, CUT, dtype=torch.bool)
    for _ in range(3):
        optimizer.zero_grad()
        x, y = model(features[:, :CUT], mask)[0], labels[0, :CUT]
        dx, dy = x - x.mean(0), y - y.mean(0)
        gap = (x.mean(0) - y.mean(0)).square()
        ccc = 2 * (dx * dy).mean(0) / (dx.square().mean(0) + dy.square().mean(0) + gap)
        (1 - ccc).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    whole = torch.ones(1, 60, dtype=torch.bool)
    with torch.inference_mode():
        expected = model.eval()(features, whole)[0].numpy()
    np.testing.assert_allclose(item.prediction, expected, atol=1e-5)


def series_of(preparation: Preparation, entry):
    from affect.data.preparation import load_series

    series = load_series(entry, preparation)
    return torch.from_numpy(series.features)[None], torch.from_numpy(series.labels)[None]


def test_a_head_that_is_tuned_alone_leaves_the_body_as_it_came(corpus, run_of, tmp_path):
    run = run_of(FEDPER)
    local, body = local_training(corpus, run, tmp_path)
    adapted = local.personalised(2, body).model
    np.testing.assert_array_equal(vector_of(adapted.encoder), body)
    assert (vector_of(adapted.head) != common_head(run.experiment)).any()
    assert all(parameter.requires_grad for parameter in adapted.parameters())


@pytest.mark.parametrize("asked", [FEDPER, TUNED], ids=["fedper", "tuned"])
def test_rounds_are_validated_as_the_run_is_scored(run_of, asked):
    """Pooled by messages in the last round, and from the predictions: the same to rounding."""
    run = run_of(asked)
    *_, last = csv.DictReader((run.folder / "metrics.csv").read_text().splitlines())
    found = run.record["metrics"]["val/ccc/mean"]
    assert float(last["val/ccc/mean"]) == pytest.approx(found, abs=1e-6)


def test_workers_and_sites_change_no_bit(tmp_path):
    sites.caches(tmp_path)
    here = sites.experiment(tmp_path, personalisation=PersonalisationConfig("head", steps=2))
    split = dataclasses.replace(here.data.split, calibration_fraction=0.25)
    here = dataclasses.replace(here, data=dataclasses.replace(here.data, split=split))
    two = dataclasses.replace(here.federation, workers=2)
    one = federate(here, draw=nothing)
    other = federate(dataclasses.replace(here, federation=two), draw=nothing)
    deployed = lead(grid(tmp_path), here, 3)
    for run in (other, deployed):
        assert_equal(weights(one), weights(run))
    assert one.record["metrics"] == other.record["metrics"]
    for name, value in deployed.record["metrics"].items():
        if "/loss/" not in name:  # batches there, recordings here
            assert value == pytest.approx(one.record["metrics"][name], abs=1e-6), name


def test_such_runs_are_put_to_use_as_far_as_that_makes_sense(corpus, run_of, tmp_path):
    own, tuned = run_of(FEDPER), run_of(TUNED)
    with pytest.raises(UserError, match="stayed with its clients, and the one beside its body is"):
        TrainedLevelTwo(own, None, "cpu")
    out = tmp_path / "out.csv"
    written, _ = predict_cache(tuned, corpus / "cache", out, fold=None, device="cpu")
    assert written["recordings"] == 9
    for run in (own, tuned):
        with pytest.raises(UserError, match="were its clients' own and are not kept"):
            score_run(run, "test", cache=None, device="cpu")


BAD = {
    "no calibration": (TUNED, {"share": 0.0}, "give data.split.calibration_fraction"),
    "no steps": (PersonalisationConfig("head"), {}, "local head needs .*personalisation.steps"),
    "importance": (
        TUNED,
        {"evaluation": EvaluationConfig(importance_repeats=1)},
        "evaluation.importance_repeats is of one network",
    ),
    "short": (TUNED, {"share": 0.01}, "has 60 points with a label, of which .* takes none"),
}


@pytest.mark.parametrize(("asked", "changes", "said"), BAD.values(), ids=BAD.keys())
def test_what_does_not_go_together_is_refused_and_leaves_nothing(corpus, asked, changes, said):
    wanted = dataclasses.replace(experiment(corpus, asked, **changes), name="refused")
    with pytest.raises(UserError, match=said):
        federate(wanted, draw=nothing)
    assert not (corpus / "runs" / "refused").exists()
