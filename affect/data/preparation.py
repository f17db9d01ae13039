"""From a Recording to what a network sees: features, delayed labels and the reference.

A Preparation is everything between the cache and the batches that a trained network depends on.
It is saved in the run, so that the same steps are taken for new recordings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache
from jaxtyping import Float32, Float64

from affect import store
from affect.config import DataConfig, GoldStandard, Standardisation
from affect.data.annotation import (
    CANDIDATE_DELAYS_S,
    estimate_delay,
    gold_standard,
    shift_back,
)
from affect.data.standardisation import (
    Statistics,
    centred,
    merge,
    standardise,
    statistics_of,
)
from affect.errors import UserError
from affect.recording import Recording
from affect.store import Entry

Read = Callable[[Path], Recording]
"""What reads the recording that an entry names; raises as `store.read`."""

_RATE_TOLERANCE = 1e-3
_AUTO_DELAY_RECORDINGS = 50
_CONSTANT_STD = 1e-6


@dataclass(frozen=True)
class Series:
    """One recording as a network sees it; T frames.

    Attributes:
        time_s: seconds from the start of the video.
        features: [T, F], standardised, without NaN.
        labels: [T, D], the gold standard shifted back by the annotation delay, NaN where missing.
        reference: [T, D], the unshifted gold standard, NaN where missing.
    """

    time_s: Float64[np.ndarray, " T"]
    features: Float32[np.ndarray, "T F"]
    labels: Float32[np.ndarray, "T D"]
    reference: Float32[np.ndarray, "T D"]


@dataclass(frozen=True)
class Preparation:
    """How recordings become series.

    Attributes:
        feature_names: action units, in the network's order.
        dimensions: what is predicted.
        gold_standard: from raters to one trace: `avec` or `mean`.
        standardise: the forms of the features, side by side.
        delay_s: annotation delay of each dimension, in seconds.
        rate_hz: frames a second of every recording.
        train: statistics of the training subjects.
        train_centred: the same of their centred features.
        subjects: statistics of each `corpus/subject` that has been seen.
    """

    feature_names: tuple[str, ...]
    dimensions: tuple[str, ...]
    gold_standard: GoldStandard
    standardise: tuple[Standardisation, ...]
    delay_s: tuple[float, ...]
    rate_hz: float
    train: Statistics
    train_centred: Statistics
    subjects: Mapping[str, Statistics] = field(default_factory=dict)

    @property
    def features(self) -> int:
        """Number of the network's input features, F."""
        return len(self.feature_names) * len(self.standardise)

    @property
    def input_names(self) -> list[str]:
        """A name for each of the network's input features."""
        return [f"{name} ({form})" for form in self.standardise for name in self.feature_names]

    @property
    def by_subject(self) -> bool:
        """Whether a recording's features depend on the other recordings of its subject."""
        return "subject" in self.standardise

    def fits_rate(self, rate_hz: float) -> bool:
        """Whether a recording of so many frames a second can be prepared."""
        return math.isclose(rate_hz, self.rate_hz, rel_tol=_RATE_TOLERANCE)

    def with_subjects(self, entries: Sequence[Entry], read: Read = store.read) -> Preparation:
        """The same preparation knowing the statistics of these recordings' subjects as well."""
        if not self.by_subject:
            return self
        known = {**self.subjects, **subject_statistics(entries, self.feature_names, read)}
        return dataclasses.replace(self, subjects=known)

    def to_json(self) -> dict[str, Any]:
        """JSON values from which `from_json` makes the same preparation."""
        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "train": _listed(self.train),
            "train_centred": _listed(self.train_centred),
            "subjects": {key: _listed(value) for key, value in self.subjects.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preparation:
        """The preparation that `to_json` wrote."""
        arrays = {name: tuple(item) for name, item in values.items() if isinstance(item, list)}
        subjects = {key: _statistics(item) for key, item in values["subjects"].items()}
        train = {name: _statistics(values[name]) for name in ("train", "train_centred")}
        return cls(**{**values, **arrays, **train, "subjects": subjects})


def prepare(parts: Mapping[str, Sequence[Entry]], config: DataConfig) -> Preparation:
    """The preparation that training subjects determine.

    Args:
        parts: recordings of `train`, by which delay and training statistics are determined, and of
            other parts, whose subjects are each standardised by themselves.
        config: which features, dimensions, gold standard, forms and delay.

    Raises:
        UserError: recordings differ in rate or action units, lack a feature, or have no frame with
            a face; a part has no label of a dimension or constant ones; recordings are too short
            for the delay.
    """
    train = parts["train"]
    _refuse_rates([entry for entries in parts.values() for entry in entries])
    first = store.read(train[0].path)
    names = selected_names(first, config.features)
    surveys = {
        part: survey_of(entries, names, config) for part, entries in parts.items() if entries
    }
    for part, survey in surveys.items():
        _refuse_labels(survey.labels, part, first, config.dimensions)
    subjects = {key: item for survey in surveys.values() for key, item in survey.subjects.items()}
    prepared = Preparation(
        feature_names=names,
        dimensions=tuple(config.dimensions),
        gold_standard=config.gold_standard,
        standardise=tuple(config.standardise),
        delay_s=(0.0,) * len(config.dimensions),
        rate_hz=first.rate_hz,
        train=merge(surveys["train"].subjects.values()),
        train_centred=surveys["train"].centred,
        subjects=subjects if "subject" in config.standardise else {},
    )
    return dataclasses.replace(prepared, delay_s=_delays(prepared, train, config))


def load_series(entry: Entry, preparation: Preparation, read: Read = store.read) -> Series:
    """A recording as a network sees it.

    Raises:
        UserError: the recording lacks a feature.
        RecordingError: its file is broken.
    """
    recording = read(entry.path)
    features = select(recording, preparation.feature_names)
    reference = reference_of(recording, preparation.dimensions, preparation.gold_standard)
    labels = [
        shift_back(reference[:, column], delay_s, recording.rate_hz)
        for column, delay_s in enumerate(preparation.delay_s)
    ]
    return Series(
        time_s=recording.time_s,
        features=standardise(
            [_form(form, features, entry, preparation) for form in preparation.standardise]
        ),
        labels=np.stack(labels, axis=1),
        reference=reference,
    )


class SeriesCache:
    """Prepared recordings by entry, the latest kept within a limit of memory.

    Each worker process holds a cache of its own: what is kept does not travel.

    Args:
        preparation: how recordings become series.
        limit_bytes: of what is kept.
        read: reads recordings.
        unscored: first frames of a recording, by its path, whose labels are left out.
    """

    def __init__(
        self,
        preparation: Preparation,
        limit_bytes: int,
        read: Read = store.read,
        unscored: Mapping[Path, int] | None = None,
    ) -> None:
        self.preparation = preparation
        self.unscored = dict(unscored or {})
        self._limit_bytes = limit_bytes
        self._read = read
        self._kept: LRUCache[Path, Series] = self._empty()

    def __getitem__(self, entry: Entry) -> Series:
        series = self._kept.get(entry.path)
        if series is None:
            series = self._load(entry)
            if _bytes(series) <= self._limit_bytes:
                self._kept[entry.path] = series
        return series

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": self._empty()}

    def _load(self, entry: Entry) -> Series:
        series = load_series(entry, self.preparation, self._read)
        unscored = slice(self.unscored.get(entry.path, 0))
        series.labels[unscored] = np.nan
        series.reference[unscored] = np.nan
        return series

    def _empty(self) -> LRUCache[Path, Series]:
        return LRUCache(self._limit_bytes, getsizeof=_bytes)


def select(recording: Recording, names: Sequence[str]) -> Float32[np.ndarray, "T F"]:
    """The columns of a recording's action units by name.

    Raises:
        UserError: one is missing.
    """
    columns = {name: column for column, name in enumerate(recording.intensity_names)}
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(
            f"recording {recording.key} has no action unit {missing[0]!r}; it has "
            f"{', '.join(recording.intensity_names)}"
        )
    return recording.intensity[:, [columns[name] for name in names]]


def reference_of(
    recording: Recording, dimensions: Sequence[str], method: GoldStandard
) -> Float32[np.ndarray, "T D"]:
    """The gold standard of each dimension; NaN where the recording has no annotation of it."""
    traces = []
    for dimension in dimensions:
        values = recording.annotations.get(dimension)
        if values is None:
            values = np.full(recording.frames, np.nan, np.float32)
        trace = values if values.ndim == 1 else gold_standard(values, method)
        traces.append(trace.astype(np.float32))
    return np.stack(traces, axis=1)


def subject_key(entry: Entry) -> str:
    """`corpus/subject`: two corpora may number their subjects alike."""
    return f"{entry.corpus}/{entry.subject}"


def subject_statistics(
    entries: Iterable[Entry], feature_names: Sequence[str], read: Read = store.read
) -> dict[str, Statistics]:
    """Each subject's feature statistics over all of these recordings.

    Raises:
        UserError: a recording lacks a feature, or has no frame with a face.
    """
    parts: dict[str, list[Statistics]] = {}
    for entry in entries:
        statistics = _statistics_of(read(entry.path), feature_names)
        parts.setdefault(subject_key(entry), []).append(statistics)
    return {key: merge(statistics) for key, statistics in parts.items()}


@dataclass(frozen=True)
class Survey:
    """Moments of some recordings.

    Attributes:
        subjects: of each subject's features.
        centred: of the centred features.
        labels: of the gold standard in each dimension.
    """

    subjects: Mapping[str, Statistics]
    centred: Statistics
    labels: Statistics


def survey_of(entries: Sequence[Entry], names: Sequence[str], config: DataConfig) -> Survey:
    """The moments of these recordings, of which one is held at a time.

    Raises:
        UserError: a recording lacks a feature, or has no frame with a face.
    """
    features: dict[str, list[Statistics]] = {}
    centred_features: list[Statistics] = []
    labels: list[Statistics] = []
    for entry in entries:
        recording = store.read(entry.path)
        features.setdefault(subject_key(entry), []).append(_statistics_of(recording, names))
        centred_features.append(statistics_of(centred(select(recording, names))))
        labels.append(
            statistics_of(reference_of(recording, config.dimensions, config.gold_standard))
        )
    subjects = {key: merge(parts) for key, parts in features.items()}
    return Survey(subjects, merge(centred_features), merge(labels))


def _form(
    form: Standardisation,
    features: Float32[np.ndarray, "T F"],
    entry: Entry,
    preparation: Preparation,
) -> tuple[Float32[np.ndarray, "T F"], Statistics | None]:
    """A recording's features in one form, and the statistics that standardise them."""
    match form:
        case "none":
            return features, None
        case "train":
            return features, preparation.train
        case "subject":
            return features, preparation.subjects[subject_key(entry)]
        case "centred":
            return centred(features), preparation.train_centred


def _statistics_of(recording: Recording, feature_names: Sequence[str]) -> Statistics:
    statistics = statistics_of(select(recording, feature_names))
    if not statistics.count.any():
        raise UserError(
            f"recording {recording.key} has no frame with a face (all action units are NaN): "
            "remove it from the cache"
        )
    return statistics


def _refuse_labels(
    labels: Statistics, part: str, first: Recording, dimensions: Sequence[str]
) -> None:
    for column, dimension in enumerate(dimensions):
        if not labels.count[column]:
            raise UserError(
                f"no {part} recording has labels of {dimension!r}; recording {first.key} has "
                f"{', '.join(first.annotations) or 'no annotation'}: mend data.dimensions or "
                "data.split"
            )
        if labels.std[column] < _CONSTANT_STD:
            raise UserError(
                f"the labels of {dimension!r} are constant over all {part} subjects: "
                "there is nothing to learn or to score, mend the annotations or data.split"
            )


def selected_names(recording: Recording, patterns: Sequence[str]) -> tuple[str, ...]:
    """The recording's action units that match a pattern, in its order.

    Raises:
        UserError: a pattern matches none.
    """
    names = recording.intensity_names
    unmatched = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
    if unmatched:
        raise UserError(
            f"data.features: no action unit is named {unmatched[0]!r}; recording {recording.key} "
            f"has {', '.join(names)}"
        )
    return tuple(name for name in names if any(fnmatchcase(name, p) for p in patterns))


def _refuse_rates(entries: Sequence[Entry]) -> None:
    rates = {round(entry.rate_hz, 2): entry for entry in entries}
    if len(rates) > 1:
        (one, first), (other, second), *_ = rates.items()
        raise UserError(
            f"recording {first.key} has {one:g} frames a second, {second.key} has {other:g}: "
            "use recordings of one rate"
        )


def _delays(
    preparation: Preparation, train: Sequence[Entry], config: DataConfig
) -> tuple[float, ...]:
    if config.delay_s == "auto":
        return _estimated(preparation, train)
    return given_delays(config, max(entry.frames / entry.rate_hz for entry in train))


def given_delays(config: DataConfig, longest_s: float) -> tuple[float, ...]:
    """The delay of each dimension in seconds, where the configuration says it.

    Args:
        config: with a delay other than `auto`.
        longest_s: seconds of the longest training recording.

    Raises:
        UserError: no recording is longer than the delay.
    """
    if isinstance(config.delay_s, dict):
        delays = tuple(float(config.delay_s[dimension]) for dimension in config.dimensions)
    else:
        delays = (float(config.delay_s),) * len(config.dimensions)
    if max(delays) >= longest_s:
        raise UserError(
            f"data.delay_s is {max(delays):g} s, the longest training recording has "
            f"{longest_s:g} s: give the delay in seconds"
        )
    return delays


def _estimated(preparation: Preparation, train: Sequence[Entry]) -> tuple[float, ...]:
    longest_s = CANDIDATE_DELAYS_S[-1]
    long = long_enough(train, preparation.rate_hz)
    if len(long) < 2:  # noqa: PLR2004 - one to learn from, one to judge
        raise UserError(
            f"data.delay_s: auto takes two training recordings of more than {longest_s:g} s and "
            f"finds {len(long)}: give the delay in seconds"
        )
    series = [load_series(entry, preparation) for entry in long[:_AUTO_DELAY_RECORDINGS]]
    return tuple(
        estimate_delay(
            [item.features for item in series],
            [item.reference[:, column] for item in series],
            preparation.rate_hz,
        )
        for column in range(len(preparation.dimensions))
    )


def long_enough(entries: Iterable[Entry], rate_hz: float) -> list[Entry]:
    """The recordings of which two frames are left at any delay that an estimate tries."""
    shortest_frames = round(CANDIDATE_DELAYS_S[-1] * rate_hz) + 2
    return [entry for entry in entries if entry.frames >= shortest_frames]


def _bytes(series: Series) -> int:
    return sum(getattr(series, f.name).nbytes for f in dataclasses.fields(series))


def _listed(statistics: Statistics) -> dict[str, list[float]]:
    return {f.name: getattr(statistics, f.name).tolist() for f in dataclasses.fields(statistics)}


def _statistics(values: Mapping[str, list[float]]) -> Statistics:
    return Statistics(**{name: np.array(item, np.float64) for name, item in values.items()})
