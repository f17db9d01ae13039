"""Clients trained together: the same as one after another, to rounding, and failing alone."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from torch.nn.utils import parameters_to_vector

from affect import config, store
from affect.config import (
    FederationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PrivacyConfig,
    SchedulerConfig,
    StrategyConfig,
)
from affect.config import TrainerConfig as Trainer
from affect.data.preparation import prepare
from affect.federated.client import app_at
from affect.federated.engines.cohorts import cohorts
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.engines.workers import engine
from affect.federated.local import initial_module
from affect.federated.messages import Train, Trained, addressed
from tests import builders

FRAMES = (60, 15, 90, 40, 61)
"""Of the clients' recordings: 5, 1, 8, 3 and 6 windows, in batches of 2."""

CPU = {"accelerator": "cpu", "devices": 1, "progress": False}
ADAM = OptimizerConfig("adam", lr=0.01, weight_decay=0.1)
SGD = OptimizerConfig("sgd", lr=0.1, options={"momentum": 0.9, "nesterov": True})
BILSTM = ModelConfig("bilstm", hidden_size=6, layers=2)


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """The recordings of five clients."""
    cache = tmp_path_factory.mktemp("cohort") / "cache"
    for client, frames in enumerate(FRAMES):
        store.write(builders.recording(f"P{client}", frames=frames), cache)
    return {client: [entry] for client, entry in enumerate(store.entries(cache))}


def experiment(folder, federation=None, data=None, **sections):
    sections = {"model": BILSTM, "optimizer": ADAM, "trainer": Trainer(**CPU), **sections}
    made = builders.experiment(folder, **sections)
    short = {"window_frames": 20, "hop_frames": 10, "batch_size": 2, **(data or {})}
    return dataclasses.replace(
        made,
        federation=FederationConfig(**{"rounds": 2, **(federation or {})}),
        data=dataclasses.replace(made.data, **short),
    )


def rounds(held, asked, memory, cohort, accelerator="cpu", *, prepared=None, spoilt=None):
    """The clients' answers in two rounds of FedAvg, or why they gave none.

    Args:
        held: recordings of each client.
        asked: the experiment.
        memory: folder of what clients keep.
        cohort: clients trained together.
        accelerator: where.
        prepared: recordings from which the preparation is; None for those held.
        spoilt: a client whose first model is not finite.
    """
    entries = [entry for several in (prepared or held).values() for entry in several]
    preparation = prepare({"train": entries}, asked.data)
    vector = parameters_to_vector(initial_module(asked, 3).model.parameters()).detach().numpy()
    control = np.zeros_like(vector) if asked.federation.strategy.name == "scaffold" else None
    trainer = Trainer(**{**CPU, "accelerator": accelerator})
    chosen = dataclasses.replace(asked.federation, cohort_clients=cohort)
    about = (config.to_yaml(asked), "run", 0, "train", json.dumps(preparation.to_json()))
    with engine(partial(app_at, held, memory, trainer), len(held), chosen) as grid:
        for number in (1, 2):
            memory = None if control is None or number == 1 else 1
            request = Train(*about, number, vector, control, memory)
            spoiled = dataclasses.replace(request, parameters=vector * np.float32(np.nan))
            contents = [(spoiled if client == spoilt else request).encode() for client in held]
            messages = [
                Message(addressed(content, client, "train"), client + 1, Train.action)
                for client, content in enumerate(contents)
            ]
            replies = [told(reply) for reply in grid.send_and_receive(messages)]
            yield replies
            trained = [reply for reply in replies if isinstance(reply, Trained)]
            vector = np.mean([reply.parameters for reply in trained], axis=0, dtype=np.float32)
            if control is not None:
                control = control + np.mean([reply.control for reply in trained], axis=0)


def told(reply):
    return reply.error.reason if reply.has_error() else Trained.decode(reply.content)


def assert_alike(one, other):
    for name in ("parameters", "control", "losses"):
        found, expected = getattr(one, name), getattr(other, name)
        if expected is not None:
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(one.moments, other.moments, rtol=1e-4, atol=1e-5)
    for name in ("batches", "steps", "frames"):
        assert getattr(one, name) == getattr(other, name), name


SETTINGS = {
    "adam over passes in steps": {
        "federation": {"local_epochs": 2},
        "scheduler": SchedulerConfig("step", step_epochs=1),
    },
    "adamw, clipped, so many steps": {
        "optimizer": OptimizerConfig(),
        "trainer": Trainer(gradient_clip_val=0.05, **CPU),
        "federation": {"local_steps": 3},
        "scheduler": SchedulerConfig("cosine"),
    },
    "dropout, accumulated": {
        "model": dataclasses.replace(BILSTM, dropout=0.4, input_dropout=0.2),
        "trainer": Trainer(accumulate_grad_batches=3, gradient_clip_val=None, **CPU),
    },
    "dropout, one way, one_cycle": {
        "model": ModelConfig("lstm", 6, 3, dropout=0.4, options={"projection": 5}),
        "scheduler": SchedulerConfig("one_cycle"),
    },
    "fedprox, sgd, sequences": {
        "federation": {"strategy": StrategyConfig("fedprox", mu=0.5)},
        "optimizer": SGD,
        "loss": LossConfig(per="sequence"),
    },
    "scaffold, sgd": {"federation": {"strategy": StrategyConfig("scaffold")}, "optimizer": SGD},
    "local privacy, windows, rmsprop": {
        "federation": {"privacy": PrivacyConfig("local", noise_multiplier=0.1)},
        "optimizer": OptimizerConfig("rmsprop", lr=1e-3),
        "data": {"target": "window_mean"},
        "loss": LossConfig("ccc_mse"),
    },
    "whole recordings": {"data": {"window_frames": None, "hop_frames": None}},
}


@pytest.mark.parametrize("sections", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_cohort_learns_what_its_clients_learn_alone(held, tmp_path, sections):
    asked = experiment(tmp_path, **sections)
    alone = rounds(held, asked, tmp_path / "alone", None)
    together = rounds(held, asked, tmp_path / "together", 3)
    for one, other in zip(alone, together, strict=True):
        assert len(one) == len(other) == len(FRAMES)
        for expected, found in zip(one, other, strict=True):
            assert_alike(found, expected)


@pytest.mark.cuda
def test_a_cohort_on_a_gpu_learns_what_its_clients_learn_alone(held, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    asked = experiment(tmp_path, model=dataclasses.replace(BILSTM, dropout=0.4))
    for one, other in zip(
        rounds(held, asked, tmp_path / "alone", None, "gpu"),
        rounds(held, asked, tmp_path / "together", 5, "gpu"),
        strict=True,
    ):
        for expected, found in zip(one, other, strict=True):
            assert_alike(found, expected)


def test_a_client_that_fails_does_so_alone(held, tmp_path):
    asked = experiment(tmp_path)
    gone = dataclasses.replace(held[3][0], path=tmp_path / "gone.h5")
    some = {**held, 1: [], 3: [gone]}
    found = next(rounds(some, asked, tmp_path / "together", 5, prepared=held))
    expected = next(rounds(some, asked, tmp_path / "alone", None, prepared=held))
    assert found[1] == expected[1] == "there is no recording of client 1 at this place"
    assert found[3] == expected[3]
    assert "gone.h5" in found[3]
    for client in (0, 2, 4):
        assert_alike(found[client], expected[client])


def test_a_client_that_diverges_spoils_no_other(held, tmp_path):
    asked = experiment(tmp_path)
    one, other = (
        next(rounds(held, asked, tmp_path / str(cohort), cohort, spoilt=2)) for cohort in (None, 5)
    )
    assert np.isnan(other[2].parameters).any()
    for client in (0, 1, 3, 4):
        assert_alike(other[client], one[client])


def test_neighbours_that_train_are_a_cohort():
    kinds = ["query", "train", "train", "train", "evaluate", "train"]
    InProcessGrid(iter, 1)  # without a grid, Flower's messages have no sender
    context = Context(1, 1, {}, RecordDict(), {})
    tasks = [(Message(RecordDict(), 1, kind), context) for kind in kinds]
    found = list(cohorts(tasks, 2))
    assert [task for cohort in found for task in cohort] == tasks
    assert [len(cohort) for cohort in found] == [1, 2, 1, 1, 1]
