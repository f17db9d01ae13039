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
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from federating import FEW, MANY, PlainLoop, Size, federation_of, prepared
from measuring import Outcome, apart, timed
from torch import nn
from torch.nn.utils import parameters_to_vector

from affect.data.datamodule import training_order
from affect.data.windows import collate
from affect.federated.local import initial_module
from affect.metrics import affect_loss
from affect.training.module import make_optimizer

ROUNDS = 4
_CLOSE = 1e-5
"""pfl-research averages in single precision."""


def measure(folder: Path, quick: bool) -> Outcome:
    """Seconds a round of few and of many clients, by each."""
    goal = "in process no slower than pfl-research"
    if importlib.util.find_spec("pfl") is None:
        return Outcome(goal, None, "pfl-research is not in build/peers", 0, {}, {}, {})
    sizes = {"few": FEW.shrunk() if quick else FEW, "many": MANY.shrunk() if quick else MANY}
    found = {name: apart("peers:compared", folder / name, size) for name, size in sizes.items()}
    median = {
        f"{name}_{peer}_s": statistics.median(seconds)
        for name, item in found.items()
        for peer, seconds in item["samples"].items()
    }
    slower = {name: median[f"{name}_inprocess_s"] / median[f"{name}_pfl_s"] for name in sizes}
    close = all(item["close"] for item in found.values())
    said = "; ".join(
        f"{sizes[name].clients} clients {median[f'{name}_inprocess_s']:.2f} s, pfl-research "
        f"{median[f'{name}_pfl_s']:.2f} s, loop {median[f'{name}_loop_s']:.2f} s"
        for name in sizes
    )
    return Outcome(
        goal=goal,
        met=max(slower.values()) <= 1 and close,
        summary=f"{said}; models {'equal' if close else 'differ'}",
        repeats=ROUNDS,
        settings={name: dataclasses.asdict(size) for name, size in sizes.items()},
        median={**median, **{f"{name}_ratio": value for name, value in slower.items()}},
        samples={name: item["samples"] for name, item in found.items()},
    )


def compared(folder: Path, size: Size) -> dict[str, Any]:
    """Seconds of rounds, and whether all come to the same model in the first, which warms up.

    The loop and the federation take turns; pfl-research runs its rounds itself, so that it follows.
    """
    folder.mkdir()
    experiment, held, preparation = prepared(folder, size)
    loop = PlainLoop(experiment, held, preparation)
    samples: dict[str, list[float]] = {"loop": [], "inprocess": []}
    with federation_of(1, folder, experiment, held, preparation) as rounds:
        loop.round()
        models = [loop.parameters, next(rounds).state.parameters]
        for _ in range(ROUNDS):
            samples["loop"].append(timed(loop.round))
            samples["inprocess"].append(timed(partial(next, rounds)))
    peer = PlainLoop(experiment, held, preparation)
    model, (_, *samples["pfl"]) = by_pfl(peer, ROUNDS + 1)
    return {
        "samples": samples,
        "close": all(np.allclose(model, other, atol=_CLOSE) for other in models),
    }


def by_pfl(loop: PlainLoop, rounds: int) -> tuple[np.ndarray, list[float]]:
    """The model after the first round of pfl-research, and the seconds of all rounds.

    Args:
        loop: has the clients' windows and the model to start from.
        rounds: how many.
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
    ends_s = [time.perf_counter()]
    firsts: list[np.ndarray] = []

    class Ends(TrainingProcessCallback):
        """Notes when a round ends."""

        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
            from pfl.metrics import Metrics

            if not firsts:
                firsts.append(parameters_to_vector(network.parameters()).detach().numpy())
            ends_s.append(time.perf_counter())
            return False, Metrics()

    class Windows(Dataset):
        """One client's windows in the order of the round."""

        def __len__(self) -> int:
            return len(self.raw_data)

        def iter(self, batch_size: int | None) -> Iterator[Any]:
            windows = self.raw_data
            order = training_order(windows, experiment.seed)
            order.set_epoch(len(ends_s) - 1)
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
    return firsts[0], np.diff(ends_s).tolist()


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
