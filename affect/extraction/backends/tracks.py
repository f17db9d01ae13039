"""The faces of one video: each followed while it may be there, and finished once it is over."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float32, Shaped, UInt8
from torch import Tensor

from affect.data.timeline import Place
from affect.extraction.backends.features import FaceFeatures, FeatureExtractor, Features
from affect.extraction.faces.landmarks import POINTS
from affect.extraction.faces.tracker import LandmarkSource, TrackedFace
from affect.extraction.rows import Rows
from affect.extraction.video import FrameBatch
from affect.recording import Provenance, Recording

_MARGIN = 8
"""Frames without a face, before it came and after it went, that stand for all the others there."""


@dataclass(frozen=True, eq=False)
class Face:
    """A face that is over: N frames of a video; in those before and after there is none.

    Attributes:
        start: the first of these frames.
        features: of these frames.
        success: whether the face is there.
        confidence: 0 to 1.
    """

    start: int
    features: Features
    success: Bool[np.ndarray, " N"]
    confidence: Float32[np.ndarray, " N"]

    def recording(
        self,
        place: Place,
        frames: int,
        rate_hz: float,
        extractor: FeatureExtractor,
        provenance: Provenance,
    ) -> Recording:
        """The face's recording, which tells of all frames of its video."""
        success = self._laid(self.success, frames, False)
        intensity = np.where(self.success[:, None], self.features.intensity, np.nan)
        presence = self.features.presence * self.success[:, None].astype(np.uint8)
        return Recording(
            corpus=place.corpus,
            subject=place.subject,
            name=place.name,
            rate_hz=rate_hz,
            time_s=np.arange(frames) / rate_hz,
            intensity=self._laid(intensity.astype(np.float32), frames, np.nan),
            intensity_names=extractor.intensity_names,
            presence=self._laid(presence, frames, 0),
            presence_names=extractor.presence_names,
            confidence=self._laid(self.confidence, frames, 0),
            success=success,
            annotations={},
            provenance=provenance,
            identifying={
                name: self._laid(values, frames, np.nan)
                for name, values in self.features.identifying.items()
            },
        )

    def _laid(
        self, values: Shaped[np.ndarray, "N ..."], frames: int, absent: float
    ) -> Shaped[np.ndarray, "T ..."]:
        """The rows of a whole video."""
        whole = np.full((frames, *values.shape[1:]), absent, values.dtype)
        whole[self.start : self.start + len(values)] = values
        return whole


class Tracks:
    """Follows the faces of one video, batch by batch.

    A face that is over is finished at once, and kept as its features in the frames in which it was
    there: many faces need no more memory than those that are there at one time.

    Args:
        source: finds the faces.
        extractor: makes their features.
    """

    def __init__(self, source: LandmarkSource, extractor: FeatureExtractor) -> None:
        self._source, self._extractor = source, extractor
        self._frames = 0
        self._followed: dict[int, _Track] = {}
        self._over: dict[int, Face] = {}

    def add(self, batch: FrameBatch) -> None:
        """Take in the next frames."""
        count = len(batch.time_s)
        faces = self._source.track(batch)
        for number in faces.keys() - self._followed.keys():
            self._followed[number] = self._begun(batch.pixels)
        for number, track in self._followed.items():
            track.add(batch.pixels, faces.get(number) or _nowhere(count))
        self._frames += count
        for number in self._followed.keys() - self._source.remembered():
            if self._followed[number].is_away:
                self._finish(number)

    def finish(self) -> dict[int, Face]:
        """All faces by their number in the video."""
        for number in list(self._followed):
            self._finish(number)
        return dict(sorted(self._over.items()))

    def _begun(self, pixels: UInt8[Tensor, "N H W 3"]) -> _Track:
        """A face that was absent so far.

        Its frames begin at an even one, since a person's median takes every other of a video.
        """
        start = max(0, self._frames - _MARGIN) // 2 * 2
        track = _Track(start, self._extractor.begin())
        if absent := self._frames - start:
            track.add(pixels[:1].expand(absent, -1, -1, -1), _nowhere(absent))
        return track

    def _finish(self, number: int) -> None:
        self._over[number] = self._followed.pop(number).finish()


@dataclass(eq=False)
class _Track:
    """A face so far, from frame `start` on."""

    start: int
    features: FaceFeatures
    success: Rows = field(default_factory=Rows)
    confidence: Rows = field(default_factory=Rows)

    @property
    def is_away(self) -> bool:
        """Whether it has not been there for as long as any of its features reaches."""
        return not self.success.all()[-_MARGIN:].any()

    def add(self, pixels: UInt8[Tensor, "N H W 3"], face: TrackedFace) -> None:
        self.features.add(pixels, face.landmarks, face.success)
        self.success.add(face.success)
        self.confidence.add(face.confidence.float())

    def finish(self) -> Face:
        return Face(self.start, self.features.finish(), self.success.all(), self.confidence.all())


def _nowhere(frames: int) -> TrackedFace:
    """A face that is not there."""
    landmarks = torch.full((frames, POINTS, 2), torch.nan)
    return TrackedFace(landmarks, torch.zeros(frames, dtype=torch.bool), torch.zeros(frames))
