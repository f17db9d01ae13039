"""What a Recording is: one video's action units and annotations, and where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from affect.errors import RecordingError

SCHEMA_VERSION = 1

IDENTIFYING = ("landmarks", "descriptors")
"""What a recording may hold that identifies people: kept only where the user asks."""

_LONGEST_STEP = 1.5
"""Periods from one frame to the next beyond which a frame is missing between them."""

OPENFACE_INTENSITIES: tuple[str, ...] = tuple(
    f"AU{number:02d}_r" for number in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
)
OPENFACE_PRESENCES: tuple[str, ...] = tuple(
    f"AU{number:02d}_c"
    for number in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45)
)


@dataclass(frozen=True)
class Provenance:
    """Where a recording's numbers come from; together the fields are its identity.

    Attributes:
        backend: what made the action units, such as `openface` or `import-recola`.
        backend_version: its version.
        source_sha256: SHA-256 of the file or files that were read, hexadecimal.
        weights_sha256: SHA-256 of the model files; empty where there are none.
        parameters: what changes the numbers, JSON values only; never device or worker count, nor
            what identifying data are kept beside them.
    """

    backend: str
    backend_version: str
    source_sha256: str
    weights_sha256: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """SHA-256 over all fields, hexadecimal: equal identities promise equal numbers.

        Identifying data that both recordings hold are equal too, but one may hold more of them.
        """
        fields = (
            self.source_sha256,
            self.backend,
            self.backend_version,
            self.weights_sha256,
            dict(self.parameters),
        )
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Kind:
    """What a recording has columns of, and what made them.

    Attributes:
        backend: as of its provenance.
        intensity_names, presence_names: of its action units, in order.
        annotations: its annotations' names, sorted.
    """

    backend: str
    intensity_names: tuple[str, ...]
    presence_names: tuple[str, ...]
    annotations: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A short mark of it, hexadecimal: other kinds have other marks."""
        text = json.dumps([getattr(self, item.name) for item in fields(self)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Recording:
    """One video's action units over time, with its annotations; never pixels.

    T frames, F intensities, P presences, R raters. Frames where the face was lost carry
    `success` False and NaN intensities, never invented values.

    Attributes:
        corpus, subject, name: which corpus, which person, which recording of that person.
        rate_hz: frames a second.
        time_s: seconds from the start of the video, strictly increasing, without gaps: windows and
            delays count frames.
        intensity: action-unit intensities, one column a name of `intensity_names`.
        presence: 0 or 1, one column a name of `presence_names`; P may be 0.
        confidence: the tracker's confidence, 0 to 1.
        success: whether a face was tracked.
        annotations: per dimension [T], or [R, T] with one row a name of `raters`; NaN is missing.
        raters: names of the rows of [R, T] annotations.
        truth: what a generator knows of itself; empty for real recordings.
        identifying: what identifies people, float32 with a row a frame, NaN where there is no
            face; empty but where the user asks: `landmarks` [T, 68, 2] in pixels, and the action
            units' `descriptors` [T, 4702].
        provenance: where the numbers come from.
    """

    corpus: str
    subject: str
    name: str
    rate_hz: float
    time_s: Float64[np.ndarray, " T"]
    intensity: Float32[np.ndarray, "T F"]
    intensity_names: tuple[str, ...]
    confidence: Float32[np.ndarray, " T"]
    success: Bool[np.ndarray, " T"]
    annotations: Mapping[str, np.ndarray]
    provenance: Provenance
    raters: tuple[str, ...] = ()
    presence: UInt8[np.ndarray, "T P"] | None = None
    presence_names: tuple[str, ...] = ()
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)
    identifying: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """Number of frames, T."""
        return len(self.time_s)

    @property
    def key(self) -> str:
        """`corpus/subject/name`, unique in a cache."""
        return f"{self.corpus}/{self.subject}/{self.name}"

    @property
    def kind(self) -> Kind:
        """What it has columns of."""
        return Kind(
            self.provenance.backend,
            self.intensity_names,
            self.presence_names,
            tuple(sorted(self.annotations)),
        )

    def with_annotations(self, annotations: Mapping[str, np.ndarray]) -> Recording:
        """The same recording with other annotations."""
        return replace(self, annotations=annotations)


def check(recording: Recording) -> None:
    """Verify every invariant of the format.

    Raises:
        RecordingError: naming the recording and the first invariant that is broken.
    """
    for broken, message in _invariants(recording):
        if broken:
            raise RecordingError(f"recording {recording.key}: {message}")


def check_names(corpus: str, subject: str, name: str) -> None:
    """Verify what a recording is called, before there is one.

    Raises:
        RecordingError: naming the first that breaks the format.
    """
    for broken, message in _name_invariants(corpus, subject, name):
        if broken:
            raise RecordingError(message)


def _name_invariants(corpus: str, subject: str, name: str):  # noqa: ANN202 - as `_invariants`
    for part, text in (("corpus", corpus), ("subject", subject), ("name", name)):
        yield not (text and text.isprintable()), f"its {part} {text!r} is empty or not printable"


def _invariants(rec: Recording):  # noqa: ANN202 - pairs of (broken, message), lazily in order
    frames, rate_hz = rec.frames, rec.rate_hz
    yield from _name_invariants(rec.corpus, rec.subject, rec.name)
    yield not (np.isfinite(rate_hz) and rate_hz > 0), f"rate_hz is {rate_hz}, not above 0"
    yield frames == 0, "it has no frames"
    yield not np.isfinite(rec.time_s).all(), "time_s has values that are not finite"
    yield bool((np.diff(rec.time_s) <= 0).any()), "time_s does not increase strictly"
    gaps_s = rec.time_s[:-1][np.diff(rec.time_s) * rate_hz > _LONGEST_STEP]
    yield len(gaps_s) > 0, f"frames are missing after {min(gaps_s, default=0):g} s"
    yield not rec.intensity_names, "it has no action units"
    yield (
        rec.intensity.shape != (frames, len(rec.intensity_names)),
        f"intensities are {rec.intensity.shape}, {frames} frames and "
        f"{len(rec.intensity_names)} names were given",
    )
    yield len(set(rec.intensity_names)) < len(rec.intensity_names), "two action units share a name"
    presence_shape = (frames, 0) if rec.presence is None else rec.presence.shape
    yield (
        presence_shape != (frames, len(rec.presence_names)),
        f"presences are {presence_shape}, {frames} frames and "
        f"{len(rec.presence_names)} names were given",
    )
    yield rec.confidence.shape != (frames,), "confidence has another length than time_s"
    outside = ~((rec.confidence >= 0) & (rec.confidence <= 1))
    yield bool(outside.any()), "its confidence is not always from 0 to 1"
    yield rec.success.shape != (frames,), "success has another length than time_s"
    yield bool(np.isinf(rec.intensity).any()), "intensities are infinite"
    for dimension, values in rec.annotations.items():
        yield (
            values.shape not in {(frames,), (len(rec.raters), frames)},
            f"annotation {dimension!r} is {values.shape}, {frames} frames and "
            f"{len(rec.raters)} raters were given",
        )
        yield bool(np.isinf(values).any()), f"annotation {dimension!r} has infinite values"
    for name, values in rec.identifying.items():
        yield (
            values.shape[:1] != (frames,),
            f"identifying {name!r} is {values.shape}, {frames} frames were given",
        )
        yield bool(np.isinf(values).any()), f"identifying {name!r} has infinite values"
