"""Federated runs: equal to centralised ones where they must be, resumable, and strict."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys
import time
from shutil import rmtree

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file

from affect import config, metrics, store
from affect.config import (
    DataConfig,
    FederationConfig,
    ModelConfig,
    OptimizerConfig,
    PrivacyConfig,
    SchedulerConfig,
    SplitConfig,
    StrategyConfig,
)
from affect.config import TrainerConfig as Trainer
from affect.data.preparation import Preparation, prepare
from affect.errors import UserError
from affect.federated import federate as module
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.federate import federate
from affect.training import run as runs
from affect.training.fit import fit
from tests import builders

QUICK = {"accelerator": "cpu", "devices": 1, "progress": False}
ONE = {"subjects_per_client": None}


def nothing(_):
    return []


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federated")
    builders.cache(folder / "cache", subjects=9)
    return folder


def experiment(corpus, federation=None, **sections):
    """Three training clients, three of validation, three of test."""
    data = DataConfig(
        cache=str(corpus / "cache"),
        standardise=["train", "centred"],
        window_frames=20,
        hop_frames=10,
        batch_size=4,
        split=SplitConfig(val_fraction=0.5, test_fraction=0.34),
    )
    sections = {"data": data, "trainer": Trainer(max_epochs=3, **QUICK), **sections}
    made = builders.experiment(corpus, **sections)
    chosen = FederationConfig(**{"rounds": 3, **(federation or {})})
    return dataclasses.replace(made, federation=chosen)


def weights(run):
    return load_file(run.folder / "model.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "sections",
    [
        {"scheduler": SchedulerConfig("cosine")},
        {"scheduler": SchedulerConfig("one_cycle"), "optimizer": OptimizerConfig("adam")},
        {"scheduler": SchedulerConfig("step", step_epochs=1)},
        {"optimizer": OptimizerConfig("sgd", lr=0.1, options={"momentum": 0.9})},
        {
            "trainer": Trainer(
                max_epochs=3,
                accumulate_grad_batches=2,
                gradient_clip_val=None,
                keep="last",
                **QUICK,
            )
        },
        {"model": ModelConfig("bilstm", hidden_size=8, layers=2, dropout=0.4, input_dropout=0.2)},
    ],
    ids=["cosine", "one_cycle", "step", "sgd", "accumulated", "dropout"],
)
def test_one_client_that_holds_everything_for_one_round_is_fit_to_the_bit(corpus, sections):
    sections = {"trainer": Trainer(max_epochs=3, keep="last", **QUICK), **sections}
    federation = {"rounds": 1, "local_epochs": 3, **ONE}
    asked = experiment(corpus, federation, **sections)
    central, federated = fit(asked, draw=nothing), federate(asked, draw=nothing)
    assert_equal(weights(central), weights(federated))
    for part in ("val", "test"):
        for name in ("ccc", "loss"):
            key = f"{part}/{name}/mean"
            assert central.record["metrics"][key] == federated.record["metrics"][key]
    epochs, rounds = (table(run.folder / "metrics.csv") for run in (central, federated))
    for name, value in epochs[-1].items():
        if name.startswith("val/"):
            assert float(rounds[-1][name]) == pytest.approx(float(value), abs=1e-6), name


def test_several_rounds_are_those_of_a_plain_loop(corpus):
    """FedAvg by hand: each client from the global model by `fit`, then the mean by frames."""
    asked = experiment(
        corpus,
        {"rounds": 1, "local_epochs": 3},
        scheduler=SchedulerConfig("cosine"),
        trainer=Trainer(max_epochs=3, keep="last", **QUICK),
    )
    run = federate(asked, draw=nothing)
    fold = run.folds[0]
    alone = []
    for subject in fold.train:
        split = SplitConfig("listed", train=[subject], val=list(fold.val), test=list(fold.test))
        data = dataclasses.replace(asked.data, split=split, standardise=["subject"])
        alone.append(fit(dataclasses.replace(asked, data=data), draw=nothing))
    by_subject = dataclasses.replace(asked.data, standardise=["subject"])
    together = federate(dataclasses.replace(asked, data=by_subject), draw=nothing)
    # seeds of dropout differ by client, and there is none: only the order of windows is left
    frames = [60.0, 60.0, 60.0]
    for name, value in weights(together).items():
        mean = np.average([weights(item)[name] for item in alone], axis=0, weights=frames)
        np.testing.assert_allclose(value, mean, atol=2e-6, err_msg=name)


def test_the_preparation_is_that_of_pooled_data(corpus):
    asked = experiment(corpus, {"rounds": 1})
    run = federate(asked, draw=nothing)
    found = Preparation.from_json(
        json.loads((run.folder / "preparation.json").read_text())["preparation"]
    )
    entries = store.entries(corpus / "cache")
    parts = {
        part: [entry for entry in entries if entry.subject in getattr(run.folds[0], part)]
        for part in ("train", "val", "test")
    }
    pooled = prepare(parts, asked.data)
    assert found.feature_names == pooled.feature_names
    for one, other in ((found.train, pooled.train), (found.train_centred, pooled.train_centred)):
        for name in ("count", "mean", "deviations"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)


def test_an_estimated_delay_comes_from_the_clients_moments(tmp_path):
    builders.cache(tmp_path / "cache", subjects=9, lag=5, frames=200)
    asked = experiment(tmp_path, {"rounds": 1})
    data = dataclasses.replace(asked.data, delay_s="auto", standardise=["none"])
    asked = dataclasses.replace(asked, data=data)
    central, federated = (step(asked, draw=nothing).record for step in (fit, federate))
    for name, delay_s in federated["delay_s"]["0"].items():
        assert delay_s == pytest.approx(1.0, abs=0.15)
        assert delay_s == pytest.approx(central["delay_s"]["0"][name], abs=1e-6)


def test_metrics_are_those_of_the_clients_moments(corpus):
    run = federate(experiment(corpus), draw=nothing)
    rows, clients = (table(run.folder / name) for name in ("metrics.csv", "clients.csv"))
    assert [row["round"] for row in rows] == ["1", "2", "3"]
    assert {row["client"] for row in clients if row["part"] == "train"} == set(run.folds[0].train)
    assert {row["client"] for row in clients if row["part"] == "val"} == set(run.folds[0].val)
    assert not [row for row in clients if row["part"] == "test"]
    norms = [float(r["update_norm"]) for r in clients if r["round"] == "2" and r["part"] == "train"]
    assert float(rows[1]["update_norm/max"]) == max(norms)
    best = max(rows, key=lambda row: float(row["val/ccc/mean"]))
    assert run.record["federation"]["0"]["best_round"] == int(best["round"])
    up, down = (sum(float(row[f"bytes/{way}"]) for row in rows) for way in ("up", "down"))
    assert (run.record["bytes_sent"], run.record["bytes_received"]) == (up, down)
    predictions = store.read_predictions(run.folder / "predictions.h5")
    val = [item for item in predictions if item.split == "val"]
    pooled = metrics.ccc(metrics.merge(np_stack([moments(item) for item in val])))
    assert float(best["val/ccc/mean"]) == pytest.approx(float(pooled.mean()), abs=1e-6)


def np_stack(items):
    import torch

    return torch.stack(items)


def moments(item):
    from affect.training.scores import moments_of

    return moments_of(item)


@pytest.mark.parametrize("mode", ["central", "local"])
def test_what_privacy_has_spent_is_recorded_for_each_fold(corpus, mode):
    private = PrivacyConfig(mode, noise_multiplier=0.3, delta=0.01)
    run = federate(experiment(corpus, {"rounds": 2, "privacy": private}), draw=nothing)
    spent = run.record["federation"]["0"]
    assert spent["delta"] == 0.01
    assert spent["epsilon"] == float(table(run.folder / "metrics.csv")[-1]["epsilon"]) > 0
    assert "epsilon" not in federate(experiment(corpus), draw=nothing).record["federation"]["0"]


STATEFUL = {
    "fedavgm": {"strategy": StrategyConfig("fedavgm", momentum=0.5)},
    "fedadam": {"strategy": StrategyConfig("fedadam", server_lr=0.05)},
    "scaffold": {"strategy": StrategyConfig("scaffold"), "client_fraction": 0.67},
    "central": {
        "privacy": PrivacyConfig("central", clipping="adaptive", noise_multiplier=0.3),
        "client_fraction": 0.67,
    },
    "local": {"privacy": PrivacyConfig("local", noise_multiplier=0.01)},
    "steps": {"local_steps": 2, "evaluate_every": 2},
}


@pytest.mark.parametrize("federation", STATEFUL.values(), ids=STATEFUL.keys())
def test_a_resumed_run_continues_to_the_same_bits(corpus, federation, monkeypatch):
    asked = experiment(corpus, {"rounds": 4, **federation}, scheduler=SchedulerConfig("cosine"))
    whole = federate(asked, draw=nothing)
    stop_in(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt, match="go on with `affect federate --resume"):
        federate(dataclasses.replace(asked, name="stopped"), draw=nothing)
    monkeypatch.undo()
    (folder,) = (corpus / "runs" / "stopped").iterdir()
    stopped = runs.open_run(folder)
    assert stopped.record["status"] == "interrupted"
    resumed = federate(stopped.experiment, draw=nothing, resume=stopped)
    assert_equal(weights(whole), weights(resumed))
    assert resumed.record["bytes_sent"] == whole.record["bytes_sent"]
    one, other = (table(run.folder / "metrics.csv") for run in (whole, resumed))
    for first, second in zip(one, other, strict=True):
        for name, value in first.items():
            if not name.startswith("seconds/"):
                assert second[name] == value, name
    rmtree(folder)


def stop_in(monkeypatch, round_):
    """Ctrl-C while a client of that round trains, after the state of the round before is saved."""
    real = module.save_state

    def save(path, state, preparation):
        real(path, state, preparation)
        if state.round == round_ - 1:
            monkeypatch.setattr(InProcessGrid, "send_and_receive", interrupted)

    monkeypatch.setattr(module, "save_state", save)


REAL = InProcessGrid.send_and_receive


def interrupted(self, messages, *, timeout=None):
    yield next(iter(REAL(self, messages, timeout=timeout)))
    raise KeyboardInterrupt


def broken(monkeypatch, mend):
    """The first training client of each round answers as `mend` says."""

    def send_and_receive(self, messages, *, timeout=None):
        for reply in REAL(self, messages, timeout=timeout):
            first = reply.metadata.message_type == "train" and reply.metadata.src_node_id == 1
            if not first:
                yield reply
            elif (mended := mend(reply)) is not None:
                yield mended

    monkeypatch.setattr(InProcessGrid, "send_and_receive", send_and_receive)


def with_parameters(change):
    def mend(reply):
        from flwr.app import Array

        arrays = reply.content["arrays"]
        arrays["parameters"] = Array(change(arrays["parameters"].numpy().copy()))
        return reply

    return mend


def raises(reply):
    from flwr.app import Error

    told = Error(4, "OSError: its disk is gone")
    return Message(told, reply_to=Message(reply.content, 1, "train", group_id="0"))


def not_finite(values):
    values[3] = np.nan
    return values


FAILURES = {
    "it raises": (raises, "OSError: its disk is gone"),
    "it is silent": (lambda _: None, "it did not answer in time"),
    "not a number": (with_parameters(not_finite), "its parameters are not finite"),
    "another shape": (with_parameters(lambda v: v[:-1]), "its parameters have shape"),
    "another type": (with_parameters(lambda v: v.astype(float)), "Trained.parameters is an array"),
}


@pytest.mark.parametrize(("mend", "reason"), FAILURES.values(), ids=FAILURES.keys())
def test_a_client_that_fails_ends_the_run_or_is_skipped_as_allowed(
    corpus, monkeypatch, mend, reason
):
    broken(monkeypatch, mend)
    with pytest.raises(UserError, match="1 of 3 clients failed") as told:
        federate(experiment(corpus), draw=nothing)
    first = "P"  # a subject's name stands before the reason
    assert f"({first}" in str(told.value)
    assert reason in str(told.value)
    run = federate(experiment(corpus, {"failure_fraction": 0.4}), draw=nothing)
    rows = table(run.folder / "metrics.csv")
    assert [row["clients/failed"] for row in rows] == ["1"] * 3
    assert [row["clients/trained"] for row in rows] == ["2"] * 3
    failed = run.record["failures"]
    assert [item["round"] for item in failed] == [1, 2, 3]
    assert reason in failed[0]["reason"]


def test_a_client_without_data_that_fits_is_named(tmp_path):
    builders.cache(tmp_path / "cache", subjects=9)
    asked = experiment(tmp_path)
    run = federate(asked, draw=nothing)
    odd = run.folds[0].train[1]
    names = ("AU01_r", "AU04_r", "AU99_r")
    replace(builders.recording(odd, intensity_names=names), tmp_path / "cache")
    with pytest.raises(UserError, match=f"client {odd} has the action units AU01_r, AU04_r, AU99"):
        federate(asked, draw=nothing)
    slow = builders.recording(odd, rate_hz=2.5, time_s=np.arange(60) / 2.5)
    replace(slow, tmp_path / "cache")
    with pytest.raises(UserError, match=f"client {odd} has 2.5 frames a second"):
        federate(asked, draw=nothing)


def replace(recording, cache):
    store.path_of(cache, recording.corpus, recording.subject, recording.name).unlink()
    store.write(recording, cache)


BAD = {
    "too many": ({"clients_per_round": 4}, {}, "clients_per_round is 4, there are 3 training"),
    "krum": (
        {"strategy": StrategyConfig("krum", malicious=1)},
        {},
        "krum withstands 1 of at least 4 clients, the round has 3",
    ),
    "local scaffold": (
        {"strategy": StrategyConfig("scaffold"), "privacy": PrivacyConfig("local")},
        {},
        "the control variate of scaffold would tell it without",
    ),
    "median": (
        {"strategy": StrategyConfig("fedmedian"), "privacy": PrivacyConfig("central")},
        {},
        "central holds for means of the clients, not for fedmedian",
    ),
    "plateau": ({}, {"scheduler": SchedulerConfig("plateau")}, "no scheduler.name plateau"),
    "ddp": (
        {},
        {"trainer": Trainer(strategy="ddp", accelerator="cpu", devices=1, progress=False)},
        "no trainer.strategy",
    ),
    "cohort of a gru": ({"cohort_clients": 3}, {}, "does not go with model.name gru: choose lstm"),
    "cohort in half": (
        {"cohort_clients": 3},
        {"model": ModelConfig("lstm"), "trainer": Trainer(precision="bf16-mixed", **QUICK)},
        "does not go with trainer.precision bf16-mixed: choose 32-true",
    ),
}


@pytest.mark.parametrize(("federation", "sections", "said"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_had_is_refused_and_leaves_nothing(corpus, federation, sections, said):
    asked = dataclasses.replace(experiment(corpus, federation, **sections), name="refused")
    with pytest.raises(UserError, match=said):
        federate(asked, draw=nothing)
    assert not (corpus / "runs" / "refused").exists()


def test_fit_and_federate_do_not_go_on_with_each_others_runs(corpus):
    asked = experiment(corpus, {"rounds": 1})
    one, other = fit(asked, draw=nothing), federate(asked, draw=nothing)
    with pytest.raises(UserError, match="is a run of `affect fit`: use `affect fit --resume`"):
        federate(asked, draw=nothing, resume=one)
    with pytest.raises(UserError, match="is a run of `affect federate`"):
        fit(asked, draw=nothing, resume=other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_last_round_and_ends_with_75(corpus, tmp_path, number):
    asked = experiment(corpus, {"rounds": 100_000, "local_epochs": 1})
    asked = dataclasses.replace(asked, runs=str(tmp_path / "runs"))
    (tmp_path / "e.yaml").write_text(config.to_yaml(asked))
    command = [sys.executable, "-m", "affect", "federate", "-c", str(tmp_path / "e.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/toy/*/checkpoints/state*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (75, ""), err
    (folder,) = (tmp_path / "runs" / "toy").iterdir()
    assert f"preempted: go on with `affect federate --resume {folder}`" in err
    assert json.loads((folder / "run.json").read_text())["status"] == "preempted"
    assert (folder / "checkpoints" / "state.safetensors").exists()


def test_folds_are_federated_one_after_another(corpus):
    asked = experiment(corpus, {"rounds": 2})
    split = SplitConfig("kfold", folds=3, val_fraction=0.34)
    asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, split=split))
    run = federate(asked, draw=nothing)
    assert run.record["status"] == "done"
    assert sorted(run.record["federation"]) == ["0", "1", "2"]
    rows = table(run.folder / "metrics.csv")
    assert [row["step"] for row in rows] == [str(step) for step in range(6)]
    assert (run.folder / "folds" / "2" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["fedavg", "fedavgm"])
def test_a_step_of_the_server_that_overflows_is_no_fault_of_a_client(corpus, monkeypatch, name):
    broken(monkeypatch, with_parameters(lambda values: np.full_like(values, 1e38)))
    wild = {"strategy": StrategyConfig(name, server_lr=1000)}
    with pytest.raises(UserError, match=r"server's step of round 1 .* lower .*server_lr"):
        federate(experiment(corpus, wild), draw=nothing)


def test_a_large_delta_that_nobody_chose_is_told_once(corpus, caplog):
    asked = {"rounds": 1, "privacy": PrivacyConfig("local", noise_multiplier=0.01)}
    federate(experiment(corpus, asked), draw=nothing)
    told = [record.message for record in caplog.records if "delta" in record.message]
    assert len(told) == 1
    assert told[0].startswith("affect: federation.privacy.delta is 0.3 by default, with 3 training")


def test_workers_change_no_bit(corpus):
    asked = experiment(corpus, {"rounds": 2}, scheduler=SchedulerConfig("cosine"))
    two = dataclasses.replace(asked.federation, workers=2)
    one, other = (
        federate(item, draw=nothing) for item in (asked, dataclasses.replace(asked, federation=two))
    )
    assert_equal(weights(one), weights(other))
    for name in ("ccc/mean", "loss/mean"):
        assert one.record["metrics"][f"test/{name}"] == other.record["metrics"][f"test/{name}"]


def test_a_cohort_changes_rounding_alone_in_processes_too(corpus):
    asked = experiment(corpus, {"rounds": 2}, model=ModelConfig("bilstm", 8, 1))
    chosen = [
        dataclasses.replace(asked.federation, cohort_clients=2, workers=workers)
        for workers in (1, 2)
    ]
    alone, one, other = (
        federate(dataclasses.replace(asked, federation=item), draw=nothing)
        for item in (asked.federation, *chosen)
    )
    assert_equal(weights(one), weights(other))
    for name, value in weights(alone).items():
        np.testing.assert_allclose(weights(one)[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_budget_ends_the_run_before_it_is_overdrawn(corpus):
    privacy = PrivacyConfig("central", noise_multiplier=3.0, delta=0.01, max_epsilon=2.0)
    run = federate(experiment(corpus, {"rounds": 50, "privacy": privacy}), draw=nothing)
    rows = table(run.folder / "metrics.csv")
    spent = [float(row["epsilon"]) for row in rows]
    assert 1 < len(spent) < 50
    assert spent == sorted(spent)
    assert spent[-1] <= 2.0
    assert run.record["federation"]["0"]["rounds"] == len(spent)
    assert run.record["status"] == "done"


def test_clients_may_have_an_optimiser_of_their_own(corpus):
    own = {"optimizer": OptimizerConfig("sgd", lr=0.1), "scheduler": SchedulerConfig("cosine")}
    asked = experiment(corpus, {"rounds": 2, **own}, optimizer=OptimizerConfig("adam", lr=0.7))
    same = experiment(
        corpus,
        {"rounds": 2},
        optimizer=own["optimizer"],
        scheduler=own["scheduler"],
    )
    assert_equal(*(weights(federate(item, draw=nothing)) for item in (asked, same)))
