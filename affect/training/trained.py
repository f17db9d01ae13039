"""What a trained fold leaves behind: predictions, and everything that predicts new recordings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from affect import store
from affect.config import Experiment
from affect.data.datamodule import evaluation_dataset
from affect.data.preparation import Preparation, SeriesCache
from affect.data.splits import Fold
from affect.errors import UserError
from affect.files import write_whole
from affect.prediction import Prediction
from affect.store import Entry
from affect.training.evaluate import (
    Output,
    cross_fitted,
    fit_postprocessing,
    output_rate_hz,
    outputs_of,
    predictions_of,
)
from affect.training.importance import permutation_importance
from affect.training.module import AffectModule
from affect.training.postprocess import Postprocessing
from affect.training.run import Run

PREDICTIONS = "predictions.h5"

Predict = Callable[[Sequence[Entry]], list[Output]]
"""Makes the output over each of some recordings, in order."""


@dataclass(frozen=True)
class Trained:
    """What a fold leaves behind: everything that predicts new recordings.

    Attributes:
        module: the network with the weights that were kept.
        preparation: how recordings become its input.
        postprocessing: of its output.
        fold: index of the fold.
    """

    module: AffectModule
    preparation: Preparation
    postprocessing: Postprocessing
    fold: int


def conclude(
    experiment: Experiment,
    module: AffectModule,
    entries: Mapping[str, Sequence[Entry]],
    series: SeriesCache,
    fold: Fold,
    folder: Path,
    predict: Predict | None = None,
) -> list[Prediction]:
    """Predict a fold's validation and test recordings, and write all that the fold leaves.

    `predictions.h5` is written last: where it is there, so is the rest.

    Args:
        experiment: the configuration.
        module: the network with the weights to keep.
        entries: recordings by part.
        series: prepares the recordings.
        fold: which one.
        folder: where to write.
        predict: makes the outputs where they are not those of the network.

    Raises:
        UserError: the folder cannot be written.
    """
    config = experiment.data

    def of_network(chosen: Sequence[Entry]) -> list[Output]:
        return outputs_of(module, evaluation_dataset(chosen, series, config), series, config)

    parts = ("val", "test") if experiment.evaluation.test else ("val",)
    outputs = {part: (predict or of_network)(entries[part]) for part in parts}
    trained, predictions = _evaluated(experiment, module, outputs, series.preparation, fold)
    save_trained(trained, folder)
    if experiment.evaluation.importance_repeats:
        _save_importance(experiment, trained, entries["val"], series, folder)
    store.write_predictions(folder / PREDICTIONS, predictions)
    return predictions


def load_trained(run: Run, fold: int | None = None) -> Trained:
    """The trained network of a run.

    Args:
        run: a finished run.
        fold: which fold's network; needed where the run has several.

    Raises:
        UserError: the fold is not given or not there.
    """
    folds = run.record["folds"]
    if fold is None and len(folds) > 1:
        raise UserError(f"{run.folder} has {len(folds)} folds: choose one with --fold")
    index = folds[0] if fold is None else fold
    if index not in folds:
        raise UserError(f"{run.folder} has no fold {index}; it has {', '.join(map(str, folds))}")
    folder = run.fold_folder(index)
    preparation, postprocessing = _read(folder / "preparation.json", _parts_of_preparation)
    module = AffectModule(run.experiment, preparation.features)
    _read(folder / "model.safetensors", lambda content: module.model.load_state_dict(load(content)))
    return Trained(module, preparation, postprocessing, index)


def _parts_of_preparation(content: bytes) -> tuple[Preparation, Postprocessing]:
    values = json.loads(content)
    return (
        Preparation.from_json(values["preparation"]),
        Postprocessing.from_json(values["postprocessing"]),
    )


def _read(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """What a file of a finished fold holds; refuses one that is missing or broken by its name."""
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"no {path}: the run is not finished, `affect fit --resume` it") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot read {path} (truncated or foreign): {error}") from error


def _evaluated(
    experiment: Experiment,
    module: AffectModule,
    outputs: Mapping[str, Sequence[Output]],
    preparation: Preparation,
    fold: Fold,
) -> tuple[Trained, list[Prediction]]:
    """Post-processing fitted on validation, and the predictions of what is to be scored."""
    config, steps = experiment.data, experiment.evaluation.postprocess
    rate_hz = output_rate_hz(preparation, config)
    fitted = fit_postprocessing(outputs["val"], steps, rate_hz)
    processing = {
        part: cross_fitted(items, steps, rate_hz) if part == "val" else [fitted] * len(items)
        for part, items in outputs.items()
    }
    predictions = [
        item
        for part, items in outputs.items()
        for item in predictions_of(
            items, processing[part], config.dimensions, split=part, fold=fold.index
        )
    ]
    return Trained(module, preparation, fitted, fold.index), predictions


def save_trained(trained: Trained, folder: Path) -> None:
    """Write a fold's network and how recordings are prepared for it.

    Raises:
        UserError: the folder cannot be written.
    """
    weights = {name: value.cpu() for name, value in trained.module.model.state_dict().items()}
    write_whole(folder / "model.safetensors", save(weights))
    values = {
        "preparation": trained.preparation.to_json(),
        "postprocessing": trained.postprocessing.to_json(),
    }
    write_whole(folder / "preparation.json", json.dumps(values).encode())


def _save_importance(
    experiment: Experiment,
    trained: Trained,
    validation: Sequence[Entry],
    series: SeriesCache,
    folder: Path,
) -> None:
    names = trained.preparation.feature_names
    drops = permutation_importance(
        trained.module,
        evaluation_dataset(validation, series, experiment.data),
        names,
        repeats=experiment.evaluation.importance_repeats,
        seed=experiment.seed,
        batch_size=experiment.data.eval_batch_size,
    )
    lines = [",".join(("action_unit", *trained.preparation.dimensions))]
    lines += [
        ",".join((name, *(f"{value:.6f}" for value in row.tolist())))
        for name, row in zip(names, drops, strict=True)
    ]
    write_whole(folder / "importance.csv", ("\n".join(lines) + "\n").encode())
