"""One clock for features and annotations: times in order, a rate, and labels brought onto frames.

Features are never resampled: their times are a recording's clock, in which frames that the file
leaves out stand without a face. Annotations of another rate are interpolated linearly onto it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8

from affect.errors import UserError
from affect.recording import Provenance, Recording

# Clocks are rounded when they are written: a label nearer to a frame than this share of a label
# period is that frame's own.
_ROUNDING = 1e-6
_SPARSEST = 1000
"""Frames a row beyond which a gap is a mistake in the times."""
_REPEATED = 3
"""Times in a row that may stand twice: more are a second recording's, not a slip of the clock."""
_SLOWEST_HZ = 0.1
_LONGEST_S = 12 * 3600
"""Frames this far apart for half a day are those of a video, with its time in milliseconds."""


class Place(NamedTuple):
    """Where a cache keeps a recording."""

    corpus: str
    subject: str
    name: str


@dataclass(frozen=True, eq=False)
class Track:
    """The faces that a file holds: T rows, F intensities, P presences, in the file's order.

    Attributes:
        source: the file, for messages.
        time_s: seconds, finite; may be unsorted or hold duplicates.
        intensity, intensity_names: one column a name; NaN is missing.
        success: whether a face was tracked; None where the file does not say.
        confidence: 0 to 1; None where the file does not say.
        presence, presence_names: 0 or 1, one column a name.
    """

    source: Path
    time_s: Float64[np.ndarray, " T"]
    intensity: Float64[np.ndarray, "T F"]
    intensity_names: tuple[str, ...]
    success: Bool[np.ndarray, " T"] | None = None
    confidence: Float64[np.ndarray, " T"] | None = None
    presence: UInt8[np.ndarray, "T P"] | None = None
    presence_names: tuple[str, ...] = ()

    def taken(self, rows: Int[np.ndarray, " K"]) -> Track:
        """The track with these rows alone, in their order."""
        by_row = ("time_s", "intensity", "success", "confidence", "presence")
        given = {name: getattr(self, name) for name in by_row}
        return replace(self, **{n: v[rows] for n, v in given.items() if v is not None})


@dataclass(frozen=True, eq=False)
class Annotation:
    """One dimension's labels as a file holds them: [L], or raters [R, L].

    Attributes:
        source: the file, for messages.
        time_s: seconds, finite; may be unsorted or hold duplicates.
        values: NaN is missing.
    """

    source: Path
    time_s: Float64[np.ndarray, " L"]
    values: Float64[np.ndarray, "*R L"]


def in_order(time_s: Float64[np.ndarray, " T"], source: Path) -> Int[np.ndarray, " K"]:
    """Rows in the order of time, each time once: of rows that share one, the file's first stays.

    Args:
        time_s: seconds, finite.
        source: the file, for messages.

    Raises:
        UserError: more than three times in a row stand twice, as where a second recording begins
            at 0 again.
    """
    times, order, counts = np.unique(time_s, return_index=True, return_counts=True)
    twice = np.concatenate([[0], np.cumsum(counts > 1)])
    stretch = _REPEATED + 1
    starts = np.flatnonzero(twice[stretch:] - twice[:-stretch] == stretch)
    if len(starts):
        raise UserError(
            f"{source}: times repeat from {times[starts[0]]:g} s on: give each frame a time of its "
            "own, or part two recordings (in a table: name a column with the schema's key "
            "recording)"
        )
    return order


def rate_of(time_s: Float64[np.ndarray, " T"]) -> float:
    """Rows a second: the inverse of the typical step.

    The typical step is the mean of the steps within half a median step of the median. Times
    rounded to milliseconds make the median itself wrong by up to 1 % at 30 frames/s; the mean of
    many rounded steps is not, and gaps stay out of it. Of two steps in the middle the lower is the
    median: half their sum may be like no step at all.

    Args:
        time_s: seconds, strictly increasing, two at least.
    """
    steps = np.diff(time_s)
    median = np.quantile(steps, 0.5, method="lower")
    typical = steps[np.abs(steps - median) <= median / 2]
    return float(np.round(1 / typical.mean(), 6))


def resample(
    values: Float64[np.ndarray, "*R L"],
    time_s: Float64[np.ndarray, " L"],
    clock_s: Float64[np.ndarray, " T"],
    period_s: float,
) -> Float64[np.ndarray, "*R T"]:
    """Labels at the clock's times, by linear interpolation between the two neighbours.

    A frame before the first or after the last label takes that label. A frame more than one label
    period away from its nearest label is NaN, and so is one with a neighbour that is NaN.

    Args:
        values: labels; NaN is missing.
        time_s: the labels' times, strictly increasing.
        clock_s: the frames' times.
        period_s: the labels' usual distance in time, above 0.
    """
    after = np.searchsorted(time_s, clock_s).clip(min(1, len(time_s) - 1), len(time_s) - 1)
    before = np.maximum(after - 1, 0)
    gap_s = np.where(after > before, time_s[after] - time_s[before], period_s)
    weight = ((clock_s - time_s[before]) / gap_s).clip(0, 1)
    left, right = values[..., before], values[..., after]
    mixed = left + weight * (right - left)
    mixed = np.where(weight <= _ROUNDING, left, np.where(weight >= 1 - _ROUNDING, right, mixed))
    distance_s = np.minimum(np.abs(clock_s - time_s[before]), np.abs(clock_s - time_s[after]))
    return np.where(distance_s <= period_s * (1 + _ROUNDING), mixed, np.nan)


def without_gaps(
    time_s: Float64[np.ndarray, " T"], rate_hz: float
) -> tuple[Int[np.ndarray, " K"], Float64[np.ndarray, " K"]]:
    """The rows of a clock that has a frame a period, and its times.

    Delay and windows count frames, so that frames which a file leaves out must be there, without a
    face: a row that stands again is such a frame, evenly spaced until the next row.

    Args:
        time_s: strictly increasing.
        rate_hz: frames a second.
    """
    steps = np.diff(time_s, append=time_s[-1] + 1 / rate_hz)
    counts = np.maximum(np.rint(steps * rate_hz), 1).astype(np.int64)
    rows = np.repeat(np.arange(len(time_s)), counts)
    offset = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, time_s[rows] + offset * (steps / counts)[rows]


def assemble(
    place: Place,
    track: Track,
    annotations: Mapping[str, Annotation],
    provenance: Provenance,
    *,
    raters: tuple[str, ...] = (),
    rate_hz: float | None = None,
) -> Recording:
    """A recording on the track's clock: sorted, without duplicates, labels resampled onto it.

    Frames without a face, or without any intensity, carry `success` False, NaN intensities and
    presence 0. Where the file knows no confidence, it is 1 with a face and 0 without.

    Args:
        place: where it belongs.
        track: its features.
        annotations: by dimension; may be empty.
        provenance: where the numbers come from.
        raters: names of the rows of [R, L] annotations.
        rate_hz: frames a second; inferred from the times where it is None.

    Raises:
        UserError: the track has no face or too few rows for a rate, its times repeat or are no
            seconds, or the labels of a dimension are on another clock.
    """
    order = in_order(track.time_s, track.source)
    time_s = track.time_s[order]
    if rate_hz is None:
        if len(order) < 2:  # noqa: PLR2004 - a step needs two times
            raise UserError(f"{track.source}: it takes two frames to infer a rate: give more")
        rate_hz = rate_of(time_s)
        _refuse_other_units(time_s, rate_hz, track.source)
    rows, time_s = without_gaps(time_s, rate_hz)
    order, filled = order[rows], np.diff(rows, prepend=-1) == 0
    success = np.any(np.isfinite(track.intensity[order]), axis=1) & ~filled
    if track.success is not None:
        success &= track.success[order]
    if not success.any():
        raise UserError(f"{track.source}: no frame with a face: extract it again or leave it out")
    confidence = success if track.confidence is None else track.confidence[order] * ~filled
    seen = success[:, None]
    return Recording(
        corpus=place.corpus,
        subject=place.subject,
        name=place.name,
        rate_hz=rate_hz,
        time_s=time_s,
        intensity=np.where(seen, track.intensity[order], np.nan).astype(np.float32),
        intensity_names=track.intensity_names,
        presence=None if track.presence is None else track.presence[order] * seen.astype(np.uint8),
        presence_names=track.presence_names,
        confidence=np.nan_to_num(confidence.astype(np.float32)),
        success=success,
        annotations={
            dimension: _on_clock(labels, dimension, time_s, rate_hz).astype(np.float32)
            for dimension, labels in annotations.items()
        },
        raters=raters,
        provenance=provenance,
    )


def _refuse_other_units(time_s: Float64[np.ndarray, " T"], rate_hz: float, source: Path) -> None:
    """Refuse times that are no seconds: next to no rows in them, or hardly any for half a day."""
    span_s = np.ptp(time_s)
    sparse = span_s * rate_hz > _SPARSEST * len(time_s)
    if sparse or (rate_hz < _SLOWEST_HZ and span_s > _LONGEST_S):
        raise UserError(
            f"{source}: {len(time_s)} rows span {span_s:g} s at {rate_hz:g} frames a second: "
            "give times in seconds (a table may give rate_hz instead)"
        )


def _on_clock(
    labels: Annotation, dimension: str, clock_s: Float64[np.ndarray, " T"], rate_hz: float
) -> Float[np.ndarray, "*R T"]:
    order = in_order(labels.time_s, labels.source)
    time_s = labels.time_s[order]
    if not _share_a_clock(time_s, clock_s):
        raise UserError(
            f"{labels.source}: {dimension} labels from {time_s[0]:g} to {time_s[-1]:g} s do not "
            f"fit the features' time, {clock_s[0]:g} to {clock_s[-1]:g} s: "
            "give both the same clock, in seconds"
        )
    period_s = 1 / (rate_of(time_s) if len(time_s) > 1 else rate_hz)
    found = resample(labels.values[..., order], time_s, clock_s, period_s)
    if np.isfinite(labels.values).any() and not np.isfinite(found).any():
        raise UserError(
            f"{labels.source}: no frame lies near a label of {dimension}, or only near a missing "
            "one: give labels and features the same clock"
        )
    return found


def _share_a_clock(labels_s: Float64[np.ndarray, " L"], clock_s: Float64[np.ndarray, " T"]) -> bool:
    """Whether labels and features share half of the shorter's time, and a twentieth of the labels'.

    Labels may be of a part of the features, and features of a part of the labels. In milliseconds,
    labels would hold a thousandth of their time in common with features in seconds.
    """
    shared_s = min(labels_s[-1], clock_s[-1]) - max(labels_s[0], clock_s[0])
    span_s = np.ptp(labels_s)
    return bool(shared_s >= max(min(span_s, np.ptp(clock_s)) / 2, span_s / 20))
