"""Federated training: every fold of an experiment by its clients, resumable after every round."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from affect import store
from affect.config import Experiment
from affect.data.calibration import calibration_frames
from affect.data.preparation import Preparation, SeriesCache
from affect.data.splits import Fold
from affect.data.staging import staged
from affect.errors import UserError
from affect.federated import cohort, personal
from affect.federated.client import app_at
from affect.federated.draws import seeded
from affect.federated.engines.choice import engine
from affect.federated.history import History
from affect.federated.local import LocalTraining, initial_module
from affect.federated.memory import Memory
from affect.federated.population import Client, population
from affect.federated.saving import load_state, save_state
from affect.federated.server import Round, Server, State
from affect.federated.site import device_for
from affect.prediction import Prediction
from affect.stopping import giving_way
from affect.store import Entry
from affect.tracking import Tracker
from affect.training.execution import Draw, execute
from affect.training.module import AffectModule
from affect.training.run import Run
from affect.training.scores import MONITOR
from affect.training.trained import PREDICTIONS, conclude

_log = logging.getLogger("affect.federated")
_MIB = 2**20
_LOG_INTERVAL_S = 10.0
"""Between two states of the progress line where standard error is a file."""


def federate(experiment: Experiment, *, draw: Draw, resume: Run | None = None) -> Run:
    """Train every fold of an experiment by its clients, then validate and test it.

    Args:
        experiment: the configuration, with its federation.
        draw: draws the figures of a run's folder and returns their paths.
        resume: an unfinished run, which goes on after its last finished round.

    Returns:
        The finished run, as `affect fit` leaves it.

    Raises:
        UserError: the configuration, the corpus, a client or the folder cannot be used.
        Preempted: after SIGTERM or SIGUSR1; the last finished round is saved.
    """
    refuse_unfit(experiment)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with giving_way():
        return execute(experiment, "federate", _train, draw=draw, resume=resume)


def _train(
    run: Run, entries: Sequence[Entry], fold: Fold, tracker: Tracker | None
) -> list[Prediction]:
    """See `TrainFold`."""
    folder = run.fold_folder(fold.index)
    if (folder / PREDICTIONS).exists():
        return store.read_predictions(folder / PREDICTIONS)
    experiment = run.experiment
    clients = population(fold, experiment.federation)
    memory = Memory(folder / "clients")
    make_app = partial(app_at, _held(clients, entries), folder / "clients", experiment.trainer)
    with engine(make_app, len(clients), experiment.federation) as grid:
        nodes = {client.index: client.index + 1 for client in clients}
        server = Server(grid, clients, nodes, experiment)
        state, preparation = trained_rounds(run, fold, server, tracker, memory)
    module = kept_module(experiment, preparation, state)
    entries = staged(entries)
    parts = _by_part(fold, entries)
    scored = [*parts["val"], *parts["test"]]
    series = SeriesCache(
        preparation.with_subjects(scored),
        experiment.data.memory_mb * _MIB,
        unscored=calibration_frames(scored, experiment.data),
    )
    device = device_for(experiment.trainer)
    predict = None
    if experiment.federation.personalisation.steps:
        held, draws = _held(clients, entries), seeded(experiment.seed)
        local = LocalTraining(experiment, preparation, held, memory, device, draws)
        network_of = partial(local.personalised, parameters=kept(experiment, state))
        tested = {c.index: held[c.index] for c in clients if c.part != "train"}
        predict = personal.predictor(experiment, tested, network_of, series)
    return conclude(experiment, module.to(device), parts, series, fold, folder, predict)


def trained_rounds(
    run: Run, fold: Fold, server: Server, tracker: Tracker | None, memory: Memory | None = None
) -> tuple[State, Preparation]:
    """The state after a fold's last round, and what the clients have agreed on.

    Each round is shown, reported and saved, in this order: a round that a kill leaves without a
    state is trained and reported again. Those that are saved already are not trained again.

    Args:
        run: whose folder takes the files.
        fold: which fold.
        server: leads its rounds.
        tracker: takes the metrics.
        memory: of the clients, where they are on this machine.

    Raises:
        UserError: as `Server.agree` and `Server.rounds`; or what was written before does not go
            with the state.
    """
    experiment = run.experiment
    path = run.fold_folder(fold.index) / "checkpoints" / "state.safetensors"
    if path.exists():
        state, preparation = load_state(path)
        if memory is not None:
            memory.refuse_missing(state.memories)
    else:
        preparation = server.agree()
        state = _initial(experiment, preparation)
    delays = dict(zip(experiment.data.dimensions, preparation.delay_s, strict=True))
    run.update({"delay_s": {**run.record.get("delay_s", {}), str(fold.index): delays}})
    if server.doubt and fold.index == run.record["folds"][0]:
        _log.warning("affect: %s", server.doubt)
    history = History(run, fold.index, state.round, tracker)
    _forget_failures(run, fold, state.round)
    for done in _shown(run, fold, server.rounds(state, preparation), state):
        history.add(done)
        _note_failures(run, fold, done)
        save_state(path, done.state, preparation)
        state = done.state
    _record(run, fold, server, state)
    return state, preparation


def kept_module(experiment: Experiment, preparation: Preparation, state: State) -> AffectModule:
    """The network with the weights that the experiment keeps: the best round's, or the last's."""
    module = initial_module(experiment, preparation.features)
    vector = torch.from_numpy(kept(experiment, state))
    vector_to_parameters(vector, personal.travelling(module.model, experiment))
    return module


def kept(experiment: Experiment, state: State) -> Float32[np.ndarray, " P"]:
    """The parameters that the experiment keeps."""
    best = experiment.trainer.keep == "best"
    return (state.best_parameters if best else state.parameters).copy()


def _initial(experiment: Experiment, preparation: Preparation) -> State:
    module = initial_module(experiment, preparation.features)
    travelling = personal.travelling(module.model, experiment)
    vector = parameters_to_vector(travelling).detach().numpy()
    return State(0, vector, vector, clipping_norm=experiment.federation.privacy.clipping_norm)


def _held(clients: Sequence[Client], entries: Sequence[Entry]) -> dict[int, list[Entry]]:
    """Each client's recordings, by its index and in the order of the cache."""
    owner = {subject: client.index for client in clients for subject in client.subjects}
    held: dict[int, list[Entry]] = {client.index: [] for client in clients}
    for entry in entries:
        if entry.subject in owner:
            held[owner[entry.subject]].append(entry)
    return held


def _by_part(fold: Fold, entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    return {
        part: [entry for entry in entries if entry.subject in set(getattr(fold, part))]
        for part in ("train", "val", "test")
    }


def _record(run: Run, fold: Fold, server: Server, state: State) -> None:
    """Add what a fold's rounds came to, from the clients' point of view."""
    parts = {
        **run.record.get("federation", {}),
        str(fold.index): {
            "rounds": state.round,
            "best_round": state.best_round,
            "bytes_sent": state.bytes_up,
            "bytes_received": state.bytes_down,
            **server.spent(state.round),
        },
    }
    totals = {
        name: sum(part[name] for part in parts.values())
        for name in ("bytes_sent", "bytes_received")
    }
    run.update({"federation": parts, **totals})


def _note_failures(run: Run, fold: Fold, done: Round) -> None:
    place = {"fold": fold.index, "round": done.state.round}
    failures = [
        {**place, "client": item.client.name, "reason": item.reason} for item in done.failures
    ]
    if failures:
        run.update({"failures": [*run.record.get("failures", []), *failures]})


def _forget_failures(run: Run, fold: Fold, finished: int) -> None:
    """Drop what failed in rounds that are trained again."""
    noted = run.record.get("failures", [])
    kept = [item for item in noted if item["fold"] != fold.index or item["round"] <= finished]
    if kept != noted:
        run.update({"failures": kept})


def _shown(run: Run, fold: Fold, rounds: Iterator[Round], state: State) -> Iterator[Round]:
    """The rounds, with a line of progress on standard error."""
    config = run.experiment
    folds = run.record["folds"]
    position = folds.index(fold.index)
    several = f"fold {fold.index} ({position + 1} of {len(folds)})"
    bar: tqdm[Any] = tqdm(
        total=config.federation.rounds,
        initial=state.round,
        desc=several if len(folds) > 1 else config.name,
        unit="round",
        file=sys.stderr,
        mininterval=0.1 if sys.stderr.isatty() else _LOG_INTERVAL_S,
        disable=not config.trainer.progress,
    )
    with bar:
        for done in rounds:
            bar.set_postfix_str(_postfix(done), refresh=False)
            bar.update()
            yield done


def _postfix(done: Round) -> str:
    said = f"val ccc {done.metrics.get(MONITOR, np.nan):.3f}"
    if done.epsilon:
        said += f", epsilon {done.epsilon:.2f}"
    return said + (f", {len(done.failures)} failed" if done.failures else "")


def refuse_unfit(experiment: Experiment) -> None:
    """Refuse what a federated run cannot do.

    Raises:
        UserError: naming the key.
    """
    personal.refuse_unfit(experiment)
    trainer = experiment.trainer
    refused: Mapping[str, bool] = {
        "scheduler.name plateau (it needs a validation after each local pass)": (
            (experiment.federation.scheduler or experiment.scheduler).name == "plateau"
        ),
        "trainer.precision 16-mixed (take bf16-mixed)": trainer.precision == "16-mixed",
        "trainer.num_nodes above 1": trainer.num_nodes > 1,
        "trainer.devices above 1 (each client trains on one)": trainer.devices
        not in ("auto", 1, "1"),
        "trainer.strategy": trainer.strategy != "auto",
    }
    for name, asked in refused.items():
        if asked:
            raise UserError(f"a federated run has no {name}")
    cohort.refuse_unfit(experiment)
