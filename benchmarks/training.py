"""Training through Lightning, as `affect fit` does it, against a bare PyTorch loop."""

from __future__ import annotations

import dataclasses
import logging
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning
import torch
from measuring import Outcome, timed, write_corpus
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from affect.config import DataConfig, Experiment, ModelConfig, TrainerConfig
from affect.data.corpus import entries_of
from affect.data.datamodule import AffectDataModule
from affect.data.splits import Fold
from affect.data.windows import Batch
from affect.metrics import affect_loss
from affect.training.fold import make_trainer
from affect.training.module import AffectModule, make_optimizer

GOAL_RATIO = 0.9
PAIRS = 5
MEASUREMENT_S = 10.0

_Weights = dict[str, Tensor]


def measure(folder: Path, quick: bool) -> Outcome:
    """Windows a second of both, in turns, with the same initial weights and batches.

    Validation and checkpoints are off in both. Lightning's side counts all that `AffectModule` does
    in a step beside the loss: metrics, and the seed of dropout.
    """
    _quieten()
    write_corpus(folder / "cache", 3 if quick else 8, 20.0 if quick else 300.0)
    experiment = _experiment(folder, quick)
    data = _data(experiment)
    windows = len(data.train_dataloader().dataset)  # pyright: ignore[reportArgumentType]

    def through_lightning(epochs: int) -> tuple[float, _Weights]:
        return _through_lightning(experiment, data, epochs, folder)

    def bare(epochs: int) -> tuple[float, _Weights]:
        return _bare(experiment, data, epochs)

    through_lightning(1)
    warm_s, _ = bare(1)
    epochs = 1 if quick else max(round(MEASUREMENT_S / warm_s), 1)
    runs = [(through_lightning(epochs), bare(epochs)) for _ in range(1 if quick else PAIRS)]
    rates = {
        "lightning_windows_per_s": [epochs * windows / ours[0] for ours, _ in runs],
        "bare_windows_per_s": [epochs * windows / theirs[0] for _, theirs in runs],
    }
    rates["ratio"] = [a / b for a, b in zip(*rates.values(), strict=True)]
    median = {name: statistics.median(values) for name, values in rates.items()}
    equal = all(_equal(ours[1], theirs[1]) for ours, theirs in runs)
    return Outcome(
        goal=f"at least {GOAL_RATIO} of a bare PyTorch loop, with the same weights at the end",
        met=median["ratio"] >= GOAL_RATIO and equal,
        summary=f"{median['ratio']:.3f} of the bare loop's {median['bare_windows_per_s']:.1f} "
        f"windows/s; weights {'equal' if equal else 'differ'}",
        repeats=len(runs),
        settings={
            "recordings": len(data.entries["train"]),
            "frames_per_recording": data.entries["train"][0].frames,
            "data": dataclasses.asdict(experiment.data),
            "model": dataclasses.asdict(experiment.model),
            "windows_per_epoch": windows,
            "epochs": epochs,
            "threads": torch.get_num_threads(),
            "validation": "off in both",
        },
        median={**median, "equal_weights": equal},
        samples=rates,
    )


def _experiment(folder: Path, quick: bool) -> Experiment:
    return Experiment(
        data=DataConfig(
            cache=str(folder / "cache"),
            window_frames=100 if quick else 750,
            hop_frames=50 if quick else 375,
            batch_size=4 if quick else 16,
        ),
        model=ModelConfig(hidden_size=8 if quick else 64),
        trainer=TrainerConfig(accelerator="cpu", devices=1, progress=False),
    )


def _data(experiment: Experiment) -> AffectDataModule:
    entries = entries_of(experiment.data, progress=False)
    *train, val, test = (entry.subject for entry in entries)
    fold = Fold(0, tuple(train), (val,), (test,))
    return AffectDataModule(entries, fold, experiment.data, experiment.seed)


def _through_lightning(
    experiment: Experiment, data: AffectDataModule, epochs: int, folder: Path
) -> tuple[float, _Weights]:
    module = _fresh(experiment, data)
    config = dataclasses.replace(experiment.trainer, max_epochs=epochs)
    trainer = make_trainer(config, folder, [], limit_val_batches=0, enable_checkpointing=False)
    return timed(lambda: trainer.fit(module, datamodule=data)), module.model.state_dict()


def _bare(experiment: Experiment, data: AffectDataModule, epochs: int) -> tuple[float, _Weights]:
    model = _fresh(experiment, data).model
    return timed(lambda: _loop(experiment, model, data.train_dataloader, epochs)), (
        model.state_dict()
    )


def _loop(
    experiment: Experiment,
    model: nn.Module,
    make_loader: Callable[[], DataLoader[Batch]],
    epochs: int,
) -> None:
    loader = make_loader()
    parameters = list(model.parameters())
    optimizer = make_optimizer(parameters, experiment.optimizer)
    loss_options = dataclasses.asdict(experiment.loss)
    model.train()
    for epoch in range(epochs):
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            prediction = model(batch.features, batch.mask)
            affect_loss(prediction, batch.labels, batch.mask, **loss_options).mean().backward()
            nn.utils.clip_grad_norm_(parameters, experiment.trainer.gradient_clip_val or torch.inf)
            optimizer.step()


def _fresh(experiment: Experiment, data: AffectDataModule) -> AffectModule:
    lightning.seed_everything(experiment.seed, verbose=False)
    return AffectModule(experiment, data.preparation.features)


def _equal(one: _Weights, other: _Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _quieten() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
