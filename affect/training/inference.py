"""A finished run put to use: its scores again, and predictions of new recordings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from affect import store
from affect.data.corpus import entries_of
from affect.data.datamodule import evaluation_dataset
from affect.data.preparation import SeriesCache
from affect.data.splits import refuse_missing
from affect.devices import device_of
from affect.errors import UserError
from affect.files import whole_file
from affect.prediction import Prediction
from affect.store import Entry
from affect.training.evaluate import (
    Output,
    cross_fitted,
    output_rate_hz,
    outputs_of,
    predictions_of,
)
from affect.training.fold import Trained, load_trained
from affect.training.run import Run
from affect.training.scores import losses, scores

_MIB = 2**20
_RATE_TOLERANCE = 1e-3


def score_run(run: Run, split: str, *, cache: Path | None, device: str) -> dict[str, float]:
    """The metrics of a split, computed again from a run's networks and recordings.

    Args:
        run: a finished run.
        split: `val` or `test`.
        cache: where the recordings are now; None for where they were.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.

    Raises:
        UserError: the run is not finished, or its recordings are not there.
    """
    data = run.experiment.data
    if cache is not None:
        source = dataclasses.replace(data.source, format="")
        data = dataclasses.replace(data, cache=str(cache), source=source)
    entries = entries_of(data)
    folds = run.folds
    refuse_missing(folds, entries)
    predictions: list[Prediction] = []
    for fold in folds:
        chosen = [entry for entry in entries if entry.subject in getattr(fold, split)]
        trained = _knowing(load_trained(run, fold.index), chosen)
        outputs = _outputs(run, chosen, trained, device)
        processing = [trained.postprocessing] * len(outputs)
        if split == "val":
            steps = run.experiment.evaluation.postprocess
            processing = cross_fitted(outputs, steps, output_rate_hz(trained.preparation, data))
        predictions += predictions_of(
            outputs, processing, data.dimensions, split=split, fold=fold.index
        )
    return {**scores(predictions, split), **losses(predictions, split, run.experiment.loss)}


def predict_cache(
    run: Run, cache: Path, out: Path, *, fold: int | None, device: str
) -> dict[str, int]:
    """Write a CSV with one row a frame: corpus, subject, recording, time_s and each dimension.

    Recordings are read, predicted and written one after another, so that memory does not grow with
    their number; the CSV appears whole at the end.

    Args:
        run: a finished run.
        cache: recordings with the action units that the run was trained on.
        out: the CSV.
        fold: which fold's network; needed where the run has several.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.

    Returns:
        How many `recordings` and `frames` were predicted.

    Raises:
        UserError: the run is not finished, the cache is empty or lacks an action unit, or the CSV
            cannot be written.
    """
    entries = store.entries(cache)
    if not entries:
        raise UserError(f"no recordings in {cache}")
    trained = _knowing(load_trained(run, fold), entries)
    frames = 0
    with whole_file(out) as file:
        for position, entry in enumerate(entries):
            outputs = _outputs(run, [entry], trained, device)
            (item,) = predictions_of(
                outputs,
                [trained.postprocessing],
                run.experiment.data.dimensions,
                split="predict",
                fold=trained.fold,
            )
            frames += len(item.time_s)
            _rows(item).to_csv(file, index=False, header=position == 0)
    return {"recordings": len(entries), "frames": frames}


def _knowing(trained: Trained, entries: Sequence[Entry]) -> Trained:
    """The same network, with the statistics of these recordings' subjects; refuses another rate."""
    rate_hz = trained.preparation.rate_hz
    for entry in entries:
        if not math.isclose(entry.rate_hz, rate_hz, rel_tol=_RATE_TOLERANCE):
            raise UserError(
                f"recording {entry.key} has {entry.rate_hz:g} frames a second, the network was "
                f"trained on {rate_hz:g}: use recordings of that rate"
            )
    return dataclasses.replace(trained, preparation=trained.preparation.with_subjects(entries))


def _outputs(run: Run, entries: Sequence[Entry], trained: Trained, device: str) -> list[Output]:
    data = run.experiment.data
    series = SeriesCache(trained.preparation, data.memory_mb * _MIB)
    dataset = evaluation_dataset(entries, series, data)
    return outputs_of(trained.module.to(device_of(device)), dataset, series, data)


def _rows(item: Prediction) -> pd.DataFrame:
    columns = dict(zip(item.dimensions, item.prediction.T, strict=True))
    place = {"corpus": item.corpus, "subject": item.subject, "recording": item.name}
    return pd.DataFrame({**place, "time_s": item.time_s.round(6), **columns})
