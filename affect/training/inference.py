"""A finished run put to use: its scores again, and predictions of new recordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from affect import store
from affect.config import DataConfig
from affect.data.calibration import calibration_frames
from affect.data.corpus import entries_of
from affect.data.datamodule import evaluation_dataset
from affect.data.held import Held
from affect.data.preparation import Preparation, Read, SeriesCache, select
from affect.data.splits import refuse_missing
from affect.devices import device_of
from affect.errors import UserError
from affect.files import whole_file
from affect.prediction import Prediction
from affect.recording import Recording
from affect.store import Entry
from affect.training.evaluate import (
    Output,
    cross_fitted,
    output_rate_hz,
    outputs_of,
    predictions_of,
)
from affect.training.run import Run
from affect.training.scores import losses, scores
from affect.training.trained import Trained, load_trained

_MIB = 2**20


def score_run(run: Run, split: str, *, cache: Path | None, device: str) -> dict[str, float]:
    """The metrics of a split, computed again from a run's networks and recordings.

    Args:
        run: a finished run.
        split: `val` or `test`.
        cache: where the recordings are now; None for where they were.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.

    Raises:
        UserError: the run is not finished, its recordings are not there, or its networks were not
            kept.
    """
    if adapts(run):
        raise UserError(
            f"the networks by which {run.folder} was scored were its clients' own and are not "
            f"kept: its scores stand in {run.folder / 'run.json'}"
        )
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
        trained.module.to(device_of(device))
        outputs = _outputs(chosen, trained, data, unscored=calibration_frames(chosen, data))
        processing = [trained.postprocessing] * len(outputs)
        if split == "val":
            steps = run.experiment.evaluation.postprocess
            processing = cross_fitted(outputs, steps, output_rate_hz(trained.preparation, data))
        predictions += predictions_of(
            outputs, processing, data.dimensions, split=split, fold=fold.index
        )
    return {**scores(predictions, split), **losses(predictions, split, run.experiment.loss)}


class TrainedLevelTwo:
    """A run's network on one device: recordings to predictions, one after another.

    Args:
        run: a finished run.
        fold: which fold's network; needed where the run has several.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.

    Attributes:
        network: the trained network.
        preparation: how recordings become its input.

    Raises:
        UserError: the run is not finished, the fold or the device is not there, or the run's
            network has no trained head.
    """

    def __init__(self, run: Run, fold: int | None, device: str) -> None:
        if adapts(run) and run.experiment.federation.personalisation.local == "head":
            raise UserError(
                f"the heads of {run.folder} stayed with its clients, and the one beside its body "
                "is untrained: predict with a run whose federation.personalisation.local is none"
            )
        self._trained = load_trained(run, fold)
        self._data: DataConfig = run.experiment.data
        self.network = self._trained.module.to(device_of(device))
        self.preparation: Preparation = self._trained.preparation

    def __call__(self, recordings: Sequence[Recording]) -> Iterator[Prediction]:
        """The prediction of each recording, in the order of a cache.

        Args:
            recordings: all that there are of each of their subjects.
        """
        held = Held(recordings)
        return self.of_entries(held.entries, held.read)

    def require_fit(self, entry: Entry) -> None:
        """Refuse a recording of a cache that the network cannot take.

        Raises:
            UserError: it has another rate, lacks an action unit, cannot be read, or shows no face
                where that would leave nothing to standardise its features by.
        """
        _refuse_rate(entry, self.preparation)
        recording = store.read(entry.path)
        select(recording, self.preparation.feature_names)
        self.preparation.with_subjects([entry], lambda _: recording)

    def of_entries(self, entries: Sequence[Entry], read: Read = store.read) -> Iterator[Prediction]:
        """The prediction of each entry; one recording is held at a time.

        Raises:
            UserError: a recording has another rate, lacks an action unit or cannot be read.
        """
        trained = _knowing(self._trained, entries, read)
        for entry in entries:
            outputs = _outputs([entry], trained, self._data, read)
            yield from predictions_of(
                outputs,
                [trained.postprocessing],
                self._data.dimensions,
                split="predict",
                fold=trained.fold,
            )


def predict_cache(
    run: Run, cache: Path, out: Path, *, fold: int | None, device: str, corpus: str = ""
) -> tuple[dict[str, int], list[str]]:
    """Write the predictions of a cache's recordings, see `write_csv`.

    A recording that the network cannot take stops no other.

    Args:
        run: a finished run.
        cache: recordings with the action units that the run was trained on.
        out: the CSV.
        fold: which fold's network; needed where the run has several.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
        corpus: predict this one alone; empty for all.

    Returns:
        How many `recordings` and `frames` were predicted, and of each that was left out, why.

    Raises:
        UserError: the run is not finished, the cache is empty, or the CSV cannot be written.
    """
    entries = store.entries(cache, corpus)
    level_two = TrainedLevelTwo(run, fold, device)
    fitting: list[Entry] = []
    left_out: list[str] = []
    for entry in entries:
        try:
            level_two.require_fit(entry)
            fitting.append(entry)
        except UserError as error:
            left_out.append(str(error))
    return write_csv(out, level_two.of_entries(fitting)), left_out


def write_csv(out: Path, predictions: Iterable[Prediction]) -> dict[str, int]:
    """Write one row a frame: corpus, subject, recording, time_s and each dimension.

    Predictions are written as they come, so that memory does not grow with their number; the CSV
    appears whole at the end, and not at all where there are none.

    Returns:
        How many `recordings` and `frames` were predicted.

    Raises:
        UserError: the CSV cannot be written.
    """
    coming = iter(predictions)
    first = next(coming, None)
    counts = {"recordings": 0, "frames": 0}
    if first is None:
        return counts
    with whole_file(out) as file:
        for item in chain([first], coming):
            table_of(item).to_csv(file, index=False, header=counts["recordings"] == 0)
            counts["recordings"] += 1
            counts["frames"] += len(item.time_s)
    return counts


def table_of(item: Prediction) -> pd.DataFrame:
    """A prediction as rows of the CSV: one a frame, of windows one each."""
    columns = dict(zip(item.dimensions, item.prediction.T, strict=True))
    place = {"corpus": item.corpus, "subject": item.subject, "recording": item.name}
    return pd.DataFrame({**place, "time_s": item.time_s.round(6), **columns})


def adapts(run: Run) -> bool:
    """Whether a run was scored by networks that had adapted to each client."""
    personalised = run.experiment.federation.personalisation.steps > 0
    return run.record["kind"] == "federate" and personalised


def _knowing(trained: Trained, entries: Sequence[Entry], read: Read = store.read) -> Trained:
    """The same network, with the statistics of these recordings' subjects; refuses another rate."""
    preparation = trained.preparation
    for entry in entries:
        _refuse_rate(entry, preparation)
    return dataclasses.replace(trained, preparation=preparation.with_subjects(entries, read))


def _refuse_rate(entry: Entry, preparation: Preparation) -> None:
    if not preparation.fits_rate(entry.rate_hz):
        raise UserError(
            f"recording {entry.key} has {entry.rate_hz:g} frames a second, the network was "
            f"trained on {preparation.rate_hz:g}: use recordings of that rate"
        )


def _outputs(
    entries: Sequence[Entry],
    trained: Trained,
    data: DataConfig,
    read: Read = store.read,
    unscored: Mapping[Path, int] | None = None,
) -> list[Output]:
    series = SeriesCache(trained.preparation, data.memory_mb * _MIB, read, unscored)
    return outputs_of(trained.module, evaluation_dataset(entries, series, data), series, data)
