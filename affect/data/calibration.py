"""The calibration part: the first labels of a person, to which a network may adapt.

Validation and test people who calibrate give a share of their labels, the first ones in time, and
are scored on the others (`data.split.calibration_fraction`). The share is of the points that have
a label: frames, or windows under the target `window_mean`. A person's recordings count in the
order of the cache, so that of many short ones the first are calibration, and of a single long one
its beginning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from affect import store
from affect.config import DataConfig
from affect.data.preparation import (
    Series,
    SeriesCache,
    load_series,
    reference_of,
    subject_key,
)
from affect.errors import UserError
from affect.recording import Recording
from affect.store import Entry

_ROUNDING = 1e-9
"""So that .29 of 100 points are 29, though the product is a little less."""

_LEAST_SCORED = 2
"""Points of a person: one alone agrees with nothing."""


def calibration_frames(entries: Sequence[Entry], config: DataConfig) -> dict[Path, int]:
    """How many first frames of each recording, by its path, belong to the calibration part.

    Recordings that have none of it are left out.

    Args:
        entries: all recordings of each of their subjects.
        config: the share, and what is predicted.

    Raises:
        UserError: the share of a subject's labels is none, or leaves too few.
    """
    if not config.split.calibration_fraction:
        return {}
    subjects: dict[str, dict[Path, Int64[np.ndarray, " P"]]] = {}
    for entry in entries:
        recording = store.read(entry.path)
        reference = reference_of(recording, config.dimensions, config.gold_standard)
        subjects.setdefault(subject_key(entry), {})[entry.path] = _ends(reference, config)
    return {
        path: frames
        for subject, recordings in subjects.items()
        for path, frames in _first(subject, recordings, config.split.calibration_fraction)
    }


def calibrating(entries: Sequence[Entry], frames: Mapping[Path, int]) -> list[Entry]:
    """The calibration part as recordings, each as long as its share of `calibration_frames`."""
    return [replace(entry, frames=frames[entry.path]) for entry in entries if entry.path in frames]


class CalibrationSeries(SeriesCache):
    """Recordings that `calibrating` gives: no label from behind their end takes part in them.

    Features are standardised as those of the whole recording are.
    """

    def _load(self, entry: Entry) -> Series:
        whole = load_series(
            entry, self.preparation, lambda path: _until(self._read(path), entry.frames)
        )
        return Series(*(getattr(whole, item.name)[: entry.frames] for item in fields(whole)))


def _ends(reference: Float32[np.ndarray, "T D"], config: DataConfig) -> Int64[np.ndarray, " P"]:
    """Where each point that has a label ends, in frames."""
    size = config.window_frames if config.target == "window_mean" else None
    labelled = np.flatnonzero(np.isfinite(reference).any(axis=1)) // (size or 1)
    return np.minimum((np.unique(labelled) + 1) * (size or 1), len(reference))


def _first(
    subject: str, recordings: Mapping[Path, Int64[np.ndarray, " P"]], share: float
) -> Iterator[tuple[Path, int]]:
    points = sum(len(ends) for ends in recordings.values())
    left = math.floor(share * points + _ROUNDING)
    if points and not left:
        raise UserError(
            f"subject {subject} has {points} points with a label, of which "
            f"data.split.calibration_fraction {share:g} takes none: raise it, or 0 for no "
            "calibration"
        )
    if points and points - left < _LEAST_SCORED:
        raise UserError(
            f"subject {subject} has {points} points with a label, of which "
            f"data.split.calibration_fraction {share:g} leaves {points - left} to score: lower it"
        )
    for path, ends in recordings.items():
        if taken := min(left, len(ends)):
            yield path, int(ends[taken - 1])
        left -= taken


def _until(recording: Recording, frames: int) -> Recording:
    """The recording with no rating from this frame on; raters are weighed without what follows."""
    known = np.arange(recording.frames) < frames
    annotations = {
        name: np.where(known, values, np.float32(np.nan))
        for name, values in recording.annotations.items()
    }
    return replace(recording, annotations=annotations)
