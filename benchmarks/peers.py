"""Rounds of a federation by pfl-research, beside `affect federate` and a plain loop.

pfl-research (Apache 2.0) is not among the dependencies: `make bench` lays it into a
folder of its own, `build/peers`. BlazeFL, the other fast simulator, wants Python 3.12.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from federating import EXACT, FEW, TINY, PlainLoop, Size, federation_of, prepared
from measuring import Outcome, apart, timed
from simulating import COHORT_CLIENTS, changed
from torch import nn
from torch.nn.utils import parameters_to_vector

from affect.data.datamodule import training_order
from affect.data.windows import collate
from affect.federated.local import initial_module
from affect.metrics import affect_loss
from affect.training.module import make_optimizer

ROUNDS = 5
_TOGETHER = 1e-4
"""Of cohorts: Adam magnifies rounding where a gradient is next to nothing."""


def measure(folder: Path, quick: bool) -> Outcome:
    """Seconds a round of few and of many tiny clients by each, on one core.

    Clients are also trained in cohorts, as one batched computation, by which tiny ones are judged.
    """
    goal = "in process no slower than pfl-research"
    if importlib.util.find_spec("pfl") is None:
        return Outcome(goal, None, "pfl-research is not in build/peers", 0, {}, {}, {})
    sizes = {"few": FEW.shrunk() if quick else FEW, "tiny": TINY.shrunk() if quick else TINY}
    found = {name: apart("peers:compared", folder / name, size) for name, size in sizes.items()}
    median = {
        f"{name}_{peer}_s": statistics.median(seconds)
        for name, item in found.items()
        for peer, seconds in item["samples"].items()
    }
    ours = {"few": "inprocess", "tiny": "cohorts"}
    slower = {name: median[f"{name}_{ours[name]}_s"] / median[f"{name}_pfl_s"] for name in sizes}
    close = all(item["close"] for item in found.values())
    said = "; ".join(
        f"{size.clients} clients: "
        + ", ".join(f"{peer} {median[f'{name}_{peer}_s']:.2f}" for peer in found[name]["samples"])
        for name, size in sizes.items()
    )
    return Outcome(
        goal=goal,
        met=max(slower.values()) <= 1 and close,
        summary=f"seconds a round of {said}; models {'equal' if close else 'differ'}",
        repeats=ROUNDS,
        settings={name: dataclasses.asdict(size) for name, size in sizes.items()},
        median={**median, **{f"{name}_ratio": value for name, value in slower.items()}},
        samples={name: item["samples"] for name, item in found.items()},
    )


def compared(folder: Path, size: Size) -> dict[str, Any]:
    """Seconds of rounds in turns, and whether all come to the same model in the first one.

    That one warms up.
    """
    folder.mkdir()
    experiment, held, preparation = prepared(folder, size)
    loop = PlainLoop(experiment, held, preparation)
    kinds = {"inprocess": experiment, "cohorts": changed(experiment, cohort_clients=COHORT_CLIENTS)}
    samples: dict[str, list[float]] = {name: [] for name in ("loop", *kinds)}
    models: list[np.ndarray] = []
    with ExitStack() as stack:
        coming = {
            name: stack.enter_context(federation_of(1, folder, kind, held, preparation))
            for name, kind in kinds.items()
        }

        def others() -> None:
            samples["loop"].append(timed(loop.round))
            trained = [loop.parameters]
            for name, rounds in coming.items():
                start_s = time.perf_counter()
                trained.append(next(rounds).state.parameters)
                samples[name].append(time.perf_counter() - start_s)
            if not models:
                models.extend(trained)

        model, samples["pfl"] = by_pfl(PlainLoop(experiment, held, preparation), ROUNDS + 1, others)
    return {
        "samples": {name: taken[1:] for name, taken in samples.items()},
        "close": all(
            np.allclose(model, other, atol=atol)
            for other, atol in zip(models, (EXACT, EXACT, _TOGETHER), strict=True)
        ),
    }


def by_pfl(
    loop: PlainLoop, rounds: int, between: Callable[[], None]
) -> tuple[np.ndarray, list[float]]:
    """The model after the first round of pfl-research, and the seconds of all rounds.

    Args:
        loop: has the clients' windows and the model to start from.
        rounds: how many.
        between: is called after each round, and counts for nothing.
    """
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.internal.ops import pytorch_ops
    from pfl.internal.ops.distributed import NotDistributedContext
    from pfl.model.pytorch import PyTorchModel

    # which it sets up by itself in a main process alone
    pytorch_ops.distributed = NotDistributedContext()
    experiment = loop.experiment
    begins_s, ends_s = [time.perf_counter()], list[float]()
    firsts: list[np.ndarray] = []

    class Ends(TrainingProcessCallback):
        """Notes when a round ends."""

        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
            from pfl.metrics import Metrics

            if not firsts:
                firsts.append(parameters_to_vector(network.parameters()).detach().numpy())
            ends_s.append(time.perf_counter())
            between()
            begins_s.append(time.perf_counter())
            return False, Metrics()

    class Windows(Dataset):
        """One client's windows in the order of the round."""

        def __len__(self) -> int:
            return len(self.raw_data)

        def iter(self, batch_size: int | None) -> Iterator[Any]:
            windows = self.raw_data
            order = training_order(windows, experiment.seed)
            order.set_epoch(len(ends_s))
            numbers = list(order)
            size = batch_size or len(numbers)
            for start in range(0, len(numbers), size):
                batch = collate([windows[i] for i in numbers[start : start + size]])
                yield batch.features, batch.labels, batch.mask

    network = Network(loop)
    model = PyTorchModel(
        network,
        lambda parameters, lr: make_optimizer(
            parameters, dataclasses.replace(experiment.optimizer, lr=lr)
        ),
        torch.optim.SGD(network.parameters(), 1.0),
    )
    windows = {str(client): loop.windows[client] for client in range(len(loop.frames))}
    data = FederatedDataset(
        lambda user: Windows(windows[user], user_id=user), partial(next, cycle(windows))
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=len(windows),
            val_cohort_size=0,
        ),
        SimulatedBackend(data, None),
        model,
        NNTrainHyperParams(
            local_batch_size=experiment.data.batch_size,
            local_num_epochs=1,
            local_learning_rate=experiment.optimizer.lr,
            local_max_grad_norm=experiment.trainer.gradient_clip_val,
        ),
        callbacks=[Ends()],
    )
    return firsts[0], np.subtract(ends_s, begins_s[:-1]).tolist()


class Network(nn.Module):
    """The loop's network as pfl-research takes one.

    Args:
        loop: has the model to start from.
    """

    def __init__(self, loop: PlainLoop) -> None:
        super().__init__()
        self.model = initial_module(loop.experiment, loop.features).model
        self._options = dataclasses.asdict(loop.experiment.loss)

    def loss(self, features: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> Any:
        """The mean of the loss over dimensions."""
        self.train()
        return affect_loss(self.model(features, mask), labels, mask, **self._options).mean()

    def metrics(self, *_: Any) -> dict[str, Any]:
        """Nothing is evaluated."""
        return {}
