"""Rounds of a thousand tiny clients by each engine on this machine, and by Flower's simulation.

All do the same maths from the same start: a plain loop, `affect federate` with one worker and with
two processes, on Ray, and Flower's own simulation with a client as its documentation writes them.
In cohorts clients are trained as one batched computation.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import statistics
import time
import traceback
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from federating import EXACT, TINY, PlainLoop, Size, federation_of, prepared
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from measuring import Outcome, apart, timed

from affect.config import Experiment, RayConfig

GOAL_TIMES = 10
WORKERS, ROUNDS, COHORT_CLIENTS = 2, 3, 20


def measure(folder: Path, quick: bool) -> Outcome:
    """Seconds a round of 1000 tiny clients by each, processes being as many as Flower's actors.

    The rounds of the simulation cannot take turns with others: it is measured at the end.
    """
    size = TINY.shrunk() if quick else TINY
    settings = {**dataclasses.asdict(size), "workers": WORKERS, "cohort_clients": COHORT_CLIENTS}
    goal = f"in process at least {GOAL_TIMES} times faster than Flower's simulation"
    if importlib.util.find_spec("ray") is None:
        return Outcome(goal, None, "install affect[simulation]", 0, settings, {}, {})
    ours = apart("simulating:ours", folder, size)
    stock = apart("simulating:stock", folder, size)
    equal = ours["equal"] and bool(np.allclose(ours["model"], stock["model"], atol=EXACT))
    samples = {**ours["samples"], "flower": stock["seconds"]}
    median = {f"{name}_s": statistics.median(taken) for name, taken in samples.items()}
    times = {name: median["flower_s"] / median[f"{name}_s"] for name in ours["samples"]}
    said = ", ".join(f"{name.replace('_', ' ')} {median[f'{name}_s']:.2f}" for name in samples)
    return Outcome(
        goal=goal,
        met=times["cohorts"] >= GOAL_TIMES and equal,
        summary=f"{times['cohorts']:.1f} times in cohorts, {times['processes']:.1f} one client "
        f"after another; seconds a round: {said}; models {'equal' if equal else 'differ'}",
        repeats=ROUNDS,
        settings=settings,
        median={**median, **{f"{n}_times": v for n, v in times.items()}, "equal_models": equal},
        samples=samples,
    )


def ours(folder: Path, size: Size) -> dict[str, Any]:
    """Seconds of rounds in turns; the first warms up."""
    experiment, held, preparation = prepared(folder, size)
    loop = PlainLoop(experiment, held, preparation)
    kinds = {
        "one_worker": (1, {}),
        "processes": (WORKERS, {}),
        "cohorts": (WORKERS, {"cohort_clients": COHORT_CLIENTS}),
        "ray_in_two_messages": (WORKERS, {"engine": "ray", "ray": RayConfig(cohorts=WORKERS)}),
    }
    samples: dict[str, list[float]] = {"loop": [], **{name: [] for name in kinds}}
    models: dict[str, np.ndarray] = {}
    with ExitStack() as stack:
        coming = {
            name: stack.enter_context(
                federation_of(workers, folder, changed(experiment, **change), held, preparation)
            )
            for name, (workers, change) in kinds.items()
        }
        for number in range(ROUNDS + 1):
            taken = {"loop": timed(loop.round)}
            for name, rounds in coming.items():
                start_s = time.perf_counter()
                models[name] = next(rounds).state.parameters
                taken[name] = time.perf_counter() - start_s
            for name, seconds in taken.items():
                samples[name] += [seconds] if number else []
    together = models.pop("cohorts")  # which is equal within rounding
    equal = bool(np.allclose(together, loop.parameters, atol=EXACT)) and all(
        np.array_equal(model, loop.parameters) for model in models.values()
    )
    return {"samples": samples, "model": loop.parameters, "equal": equal}


def changed(experiment: Experiment, **change: Any) -> Experiment:
    """The experiment with changes to its federation."""
    return dataclasses.replace(
        experiment, federation=dataclasses.replace(experiment.federation, **change)
    )


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
