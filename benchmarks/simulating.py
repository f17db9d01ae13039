"""Rounds of a thousand tiny clients by each engine on this machine, and by Flower's simulation.

All do the same maths from the same start: a plain loop, `affect federate` in this process and on
Ray, and Flower's own simulation with a client as its documentation writes them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import statistics
import time
import traceback
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from federating import MANY, PlainLoop, Size, federation_of, prepared
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from measuring import Outcome, apart, timed

from affect.config import Experiment, RayConfig

GOAL_TIMES = 10
WORKERS, ROUNDS = 2, 2
_CLOSE = 1e-5
"""Flower adds replies up in the order in which they come, and in single precision."""


def measure(folder: Path, quick: bool) -> Outcome:
    """Seconds a round of 1000 tiny clients: loop, in process, Ray in cohorts, Flower's simulation.

    The rounds of the simulation cannot take turns with others: it is measured at the end.
    """
    size = MANY.shrunk() if quick else MANY
    settings = {**dataclasses.asdict(size), "ray_workers": WORKERS}
    goal = f"in process at least {GOAL_TIMES} times faster than Flower's simulation"
    if importlib.util.find_spec("ray") is None:
        return Outcome(goal, None, "install affect[simulation]", 0, settings, {}, {})
    ours = apart("simulating:ours", folder, size)
    stock = apart("simulating:stock", folder, size)
    equal = ours["equal"] and bool(np.allclose(ours["model"], stock["model"], atol=_CLOSE))
    samples = {**ours["samples"], "flower": stock["seconds"]}
    median = {f"{name}_s": statistics.median(taken) for name, taken in samples.items()}
    times = median["flower_s"] / median["inprocess_s"]
    return Outcome(
        goal=goal,
        met=times >= GOAL_TIMES and equal,
        summary=f"{times:.1f} times; seconds a round: loop {median['loop_s']:.2f}, in process "
        f"{median['inprocess_s']:.2f}, Ray in {WORKERS} cohorts {median['ray_s']:.2f}, Flower's "
        f"simulation {median['flower_s']:.2f}; models {'equal' if equal else 'differ'}",
        repeats=ROUNDS,
        settings=settings,
        median={**median, "times": times, "equal_models": equal},
        samples=samples,
    )


def ours(folder: Path, size: Size) -> dict[str, Any]:
    """Seconds of rounds in turns; the first warms up."""
    experiment, held, preparation = prepared(folder, size)
    loop = PlainLoop(experiment, held, preparation)
    arguments = held, preparation
    with (
        federation_of(1, folder, experiment, *arguments) as inprocess,
        federation_of(WORKERS, folder, _on_ray(experiment), *arguments) as ray,
    ):
        coming = {"inprocess": inprocess, "ray": ray}
        samples: dict[str, list[float]] = {"loop": [], **{name: [] for name in coming}}
        models: list[np.ndarray] = []
        for number in range(ROUNDS + 1):
            taken = {"loop": timed(loop.round)}
            for name, rounds in coming.items():
                taken[name] = timed(lambda rounds=rounds: models.append(_model(rounds)))
            for name, seconds in taken.items():
                samples[name] += [seconds] if number else []
    equal = all(np.array_equal(model, loop.parameters) for model in models[-len(coming) :])
    return {"samples": samples, "model": loop.parameters, "equal": equal}


def _on_ray(experiment: Experiment) -> Experiment:
    chosen = dataclasses.replace(
        experiment.federation, engine="ray", ray=RayConfig(cohorts=WORKERS)
    )
    return dataclasses.replace(experiment, federation=chosen)


def _model(rounds: Any) -> np.ndarray:
    return next(rounds).state.parameters


def stock(folder: Path, size: Size) -> dict[str, Any]:
    """Seconds of rounds of Flower's simulation, and its last model; the first warms up."""
    from flwr.simulation import run_simulation

    start = PlainLoop(*prepared(folder, size)).parameters
    ends_s: list[float] = []
    models: list[np.ndarray] = []
    try:
        run_simulation(
            _server(start, size, ends_s, models),
            _client(folder, size),
            size.clients,
            backend_config={
                "init_args": {
                    "num_cpus": WORKERS,
                    "include_dashboard": False,
                    "log_to_driver": False,
                },
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )
    except BaseException:  # its server would wait for the clients in a thread, for ever
        traceback.print_exc()
        os._exit(1)
    # the start, the round that warms up, and those that count
    return {"seconds": np.diff(ends_s)[1:].tolist(), "model": models[-1]}


def _server(
    start: np.ndarray, size: Size, ends_s: list[float], models: list[np.ndarray]
) -> ServerApp:
    server = ServerApp()

    def note(_: int, arrays: ArrayRecord) -> None:
        ends_s.append(time.perf_counter())
        models.append(arrays["parameters"].numpy())

    @server.main()
    def lead(grid: Grid, _: Context) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=size.clients, min_available_nodes=size.clients
        )
        begin = ArrayRecord({"parameters": Array(start)})
        strategy.start(grid, begin, ROUNDS + 1, evaluate_fn=note)

    return server


def _client(folder: Path, size: Size) -> ClientApp:
    client = ClientApp()
    client.train()(partial(_answer, folder, size))
    return client


def _answer(folder: Path, size: Size, message: Message, context: Context) -> Message:
    loop, number = _loop(folder, size), int(str(context.node_config["partition-id"]))
    start = message.content.array_records["arrays"]["parameters"].numpy()
    epoch = int(str(message.content.config_records["config"]["server-round"])) - 1
    trained = loop.trained(number, start, epoch)
    content = {
        "arrays": ArrayRecord({"parameters": Array(trained)}),
        "metrics": MetricRecord({"num-examples": loop.frames[number]}),
    }
    return Message(RecordDict(content), reply_to=message)


@cache
def _loop(folder: Path, size: Size) -> PlainLoop:
    """What an actor keeps of its clients between messages."""
    return PlainLoop(*prepared(folder, size))
