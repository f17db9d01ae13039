"""Rounds of a federation as `affect federate` does them, and by a plain loop."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Outcome, apart, peak_memory_mib, timed, write_corpus
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from affect.config import (
    DataConfig,
    Experiment,
    FederationConfig,
    ModelConfig,
    TrainerConfig,
)
from affect.data.corpus import entries_of
from affect.data.datamodule import training_order
from affect.data.preparation import Preparation, SeriesCache, prepare
from affect.data.windows import Batch, Window, WindowDataset, collate
from affect.federated.client import app_at
from affect.federated.engines.choice import engine
from affect.federated.local import initial_module
from affect.federated.population import Client
from affect.federated.server import Round, Server, State
from affect.metrics import affect_loss
from affect.store import Entry
from affect.training.module import make_optimizer

GOAL_RATIO, GOAL_TWO, GOAL_MEMORY = 1.1, 0.65, 1.5
GOAL_COHORT, EXACT = 20.0, 1e-5
ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Size:
    """Clients of one recording each, cut into windows."""

    clients: int
    seconds: float
    window_frames: int

    def shrunk(self) -> Size:
        """The same in tiny."""
        return Size(3, 10.0, 100)


FEW, MANY, COHORT = Size(9, 300.0, 750), Size(1000, 4.0, 100), Size(100, 4.0, 100)
TINY = Size(1000, 1.0, 25)


def measure_few(folder: Path, quick: bool) -> Outcome:
    """Seconds a round of 9 clients of 7500 frames: the loop, one worker, two workers."""
    size = FEW.shrunk() if quick else FEW
    found = apart("federating:rounds", folder, size, 2 if quick else ROUNDS, (1, 2))
    ratios = {f"ratio_{workers}": found[f"ratio_{workers}"] for workers in (1, 2)}
    return Outcome(
        goal=f"at most {GOAL_RATIO} of a plain loop with one worker, {GOAL_TWO} with two",
        met=ratios["ratio_1"] <= GOAL_RATIO and ratios["ratio_2"] <= GOAL_TWO and found["equal"],
        summary=f"{ratios['ratio_1']:.2f} and {ratios['ratio_2']:.2f} of the loop's "
        f"{found['loop_s']:.2f} s a round; models {'equal' if found['equal'] else 'differ'}",
        repeats=ROUNDS,
        settings=dataclasses.asdict(size),
        median={"loop_s": found["loop_s"], **ratios, "equal_models": found["equal"]},
        samples=found["samples"],
    )


def measure_many(folder: Path, quick: bool) -> Outcome:
    """Seconds a round of 1000 tiny clients, and memory."""
    size = MANY.shrunk() if quick else MANY
    found = apart("federating:rounds", folder, size, 2 if quick else ROUNDS, (1,))
    memory = {name: apart("federating:peak", folder, size, name) for name in ("loop", "federation")}
    growth = memory["federation"] / memory["loop"]
    ratio = found["ratio_1"]
    return Outcome(
        goal=f"at most {GOAL_RATIO} of a plain loop's time, {GOAL_MEMORY} of its memory",
        met=ratio <= GOAL_RATIO and growth <= GOAL_MEMORY and found["equal"],
        summary=f"{ratio:.2f} of the loop's {found['loop_s']:.2f} s a round, {growth:.2f} of its "
        f"{memory['loop']:.0f} MiB; models {'equal' if found['equal'] else 'differ'}",
        repeats=ROUNDS,
        settings=dataclasses.asdict(size),
        median={
            "loop_s": found["loop_s"],
            "ratio": ratio,
            "equal_models": found["equal"],
            "memory_ratio": growth,
            **{f"{name}_mib": value for name, value in memory.items()},
        },
        samples=found["samples"],
    )


def measure_cohort(folder: Path, quick: bool) -> Outcome:
    """Rounds a second of 100 clients trained together against one after another."""
    size = COHORT.shrunk() if quick else COHORT
    found = apart("federating:cohort_rounds", folder, size, 2 if quick else ROUNDS)
    fit = found["ratio"] >= GOAL_COHORT and found["difference"] <= EXACT
    return Outcome(
        goal=f"on a GPU at least {GOAL_COHORT:g} times the rounds, models equal within {EXACT:g}",
        met=fit if found["device"] == "cuda" else None,
        summary=f"on {found['device']} {found['ratio']:.2f} times the {1 / found['alone_s']:.2f} "
        f"rounds a second of one client after another; models differ by {found['difference']:.0e}",
        repeats=ROUNDS,
        settings={**dataclasses.asdict(size), "device": found["device"]},
        median={name: found[name] for name in ("alone_s", "cohort_s", "ratio", "difference")},
        samples=found["samples"],
    )


def cohort_rounds(folder: Path, size: Size, repeats: int) -> dict[str, Any]:
    """Seconds of rounds, one client after another and all together, in turns; the first warms up.

    Models are compared after the first round: later ones start from models that differ.
    """
    experiment, held, preparation = prepared(folder, size)
    gpu = torch.cuda.is_available()
    trainer = dataclasses.replace(experiment.trainer, accelerator="gpu" if gpu else "cpu")
    samples: dict[str, list[float]] = {"alone": [], "cohort": []}
    firsts = []
    with ExitStack() as stack:
        coming = {}
        for name, clients in (("alone", None), ("cohort", size.clients)):
            federation = dataclasses.replace(experiment.federation, cohort_clients=clients)
            asked = dataclasses.replace(experiment, trainer=trainer, federation=federation)
            place = folder / name
            coming[name] = stack.enter_context(federation_of(1, place, asked, held, preparation))
            firsts.append(next(coming[name]).state.parameters)
        for _ in range(repeats):
            for name, seconds in samples.items():
                seconds.append(timed(partial(next, coming[name])))
    alone_s, cohort_s = (statistics.median(seconds) for seconds in samples.values())
    pairs = zip(*samples.values(), strict=True)
    return {
        "device": "cuda" if gpu else "cpu",
        "alone_s": alone_s,
        "cohort_s": cohort_s,
        "ratio": statistics.median(alone / together for alone, together in pairs),
        "difference": float(np.abs(firsts[0] - firsts[1]).max()),
        "samples": samples,
    }


def rounds(folder: Path, size: Size, repeats: int, workers: Sequence[int]) -> dict[str, Any]:
    """Seconds of rounds in turns, so that a busy neighbour meets all alike; the first warms up."""
    experiment, held, preparation = prepared(folder, size)
    loop = PlainLoop(experiment, held, preparation)
    with ExitStack() as stack:
        federations = {
            count: stack.enter_context(federation_of(count, folder, experiment, held, preparation))
            for count in workers
        }
        turns = [_turn(loop, federations) for _ in range(repeats + 1)]
        models = [next(rounds).state.parameters for rounds in federations.values()]
        loop.round()
    samples = {name: [turn[name] for turn in turns[1:]] for name in turns[0]}
    return {
        "loop_s": statistics.median(samples["loop"]),
        **{f"ratio_{count}": _ratio(samples, str(count)) for count in workers},
        "equal": all(np.array_equal(model, loop.parameters) for model in models),
        "samples": samples,
    }


def _turn(loop: PlainLoop, federations: Mapping[int, Iterator[Round]]) -> dict[str, float]:
    """Seconds of one round of each."""
    taken = {"loop": timed(loop.round)}
    for count, coming in federations.items():
        taken[str(count)] = timed(partial(next, coming))
    return taken


def _ratio(samples: Mapping[str, Sequence[float]], name: str) -> float:
    pairs = zip(samples[name], samples["loop"], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def peak(folder: Path, size: Size, name: str) -> float:
    """Peak memory of three rounds in a process of its own, MiB."""
    experiment, held, preparation = prepared(folder, size)
    if name == "loop":
        loop = PlainLoop(experiment, held, preparation)
        for _ in range(3):
            loop.round()
        return peak_memory_mib()
    with federation_of(1, folder, experiment, held, preparation) as federation:
        for _ in range(3):
            next(federation)
    return peak_memory_mib()


class PlainLoop:
    """FedAvg as anyone would write it: one client after another, and the mean by frames."""

    def __init__(
        self, experiment: Experiment, held: dict[int, list[Entry]], preparation: Preparation
    ) -> None:
        config = experiment.data
        self.experiment = experiment
        self.features = preparation.features
        self._model = initial_module(experiment, self.features).model
        self._parameters = list(self._model.parameters())
        series = SeriesCache(preparation, 2**32)
        self.windows = [
            WindowDataset(entries, series, config.window_frames, config.hop_frames)
            for entries in held.values()
        ]
        self.frames = [sum(entry.frames for entry in entries) for entries in held.values()]
        self._round = 0
        self.parameters = parameters_to_vector(self._parameters).detach().numpy().copy()

    def round(self) -> None:
        """Train every client once and average."""
        total = np.zeros(len(self.parameters))
        for client, frames in enumerate(self.frames):
            trained = self.trained(client, self.parameters, self._round)
            total += trained.astype(np.float64) * frames
        self.parameters = (total / sum(self.frames)).astype(np.float32)
        self._round += 1

    def trained(self, client: int, parameters: np.ndarray, number: int) -> np.ndarray:
        """A client's parameters after a round, 0 for the first, that starts from these."""
        vector_to_parameters(torch.from_numpy(parameters.copy()), self._parameters)
        self._train(self.windows[client], number)
        return parameters_to_vector(self._parameters).detach().numpy().copy()

    def _train(self, windows: WindowDataset, number: int) -> None:
        optimizer = make_optimizer(self._parameters, self.experiment.optimizer)
        order = training_order(windows, self.experiment.seed)
        order.set_epoch(number)
        options = dataclasses.asdict(self.experiment.loss)
        self._model.train()
        for batch in _batches([windows[i] for i in order], self.experiment.data.batch_size):
            optimizer.zero_grad()
            prediction = self._model(batch.features, batch.mask)
            affect_loss(prediction, batch.labels, batch.mask, **options).mean().backward()
            limit = self.experiment.trainer.gradient_clip_val or torch.inf
            nn.utils.clip_grad_norm_(self._parameters, limit)
            optimizer.step()


def _batches(windows: list[Window], size: int) -> Iterator[Batch]:
    return (collate(windows[start : start + size]) for start in range(0, len(windows), size))


def prepared(folder: Path, size: Size) -> tuple[Experiment, dict[int, list[Entry]], Preparation]:
    """The experiment, each client's recordings, and what server and clients agree on."""
    cache = folder / "cache"
    if not cache.exists():
        write_corpus(cache, size.clients, size.seconds)
    experiment = Experiment(
        data=DataConfig(
            cache=str(cache), standardise=["none"], window_frames=size.window_frames, batch_size=16
        ),
        model=ModelConfig(hidden_size=64, layers=2),
        trainer=TrainerConfig(accelerator="cpu", progress=False),
        federation=FederationConfig(rounds=1000, evaluate_every=1000),
    )
    torch.set_num_threads(1)
    entries = entries_of(experiment.data, progress=False)
    held = {index: [entry] for index, entry in enumerate(entries)}
    preparation = prepare({"train": entries[:3]}, experiment.data)
    return experiment, held, preparation


@contextmanager
def federation_of(
    workers: int,
    folder: Path,
    experiment: Experiment,
    held: dict[int, list[Entry]],
    preparation: Preparation,
) -> Iterator[Iterator[Round]]:
    """The rounds of a federation that starts from the loop's first model."""
    federation = dataclasses.replace(experiment.federation, workers=workers)
    clients = [Client(index, "train", (str(index),)) for index in held]
    nodes = {client.index: client.index + 1 for client in clients}
    start = _start(experiment, preparation)
    make_app = partial(app_at, held, folder / "memory", experiment.trainer)
    with engine(make_app, len(clients), federation) as grid:
        server = Server(grid, clients, nodes, experiment)
        yield server.rounds(State(0, start, start), preparation)


def _start(experiment: Experiment, preparation: Preparation) -> np.ndarray:
    parameters = initial_module(experiment, preparation.features).model.parameters()
    return parameters_to_vector(parameters).detach().numpy().copy()
