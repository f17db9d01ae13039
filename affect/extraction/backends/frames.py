"""The backends that read frames: faces found, followed, turned into features, pixels let go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import affect
from affect.data.importing import sha256_of
from affect.data.timeline import Place
from affect.extraction.backends.features import FaceFeatures, FeatureExtractor
from affect.extraction.backends.protocol import Listener
from affect.extraction.clock import crowding
from affect.extraction.faces import detector, landmarks, networks
from affect.extraction.faces.landmark_csv import CsvLandmarks, csv_beside
from affect.extraction.faces.tracker import (
    EVERY,
    SEGMENT_FRAMES,
    Faces,
    FaceTracker,
    LandmarkSource,
    TrackedFace,
)
from affect.extraction.failures import ExtractionError
from affect.extraction.image import IMAGE_SUFFIXES, Still
from affect.extraction.rows import Rows
from affect.extraction.stream import ahead, joined
from affect.extraction.ticks import ticks_of
from affect.extraction.video import SUFFIXES, FrameBatch, Video
from affect.recording import Provenance, Recording

_GPU_SEGMENTS = 8
"""Segments a batch on a GPU, which small batches leave idle."""


class FrameBackend:
    """Extracts the faces of videos, frame by frame, on one device.

    Args:
        extractor: makes features of landmarks and pixels.
        device: of the face networks.
        faces: the `largest` face of a video, or `all`, each a recording of its own.
        threads: decoding threads; 0 for as many as there are cores.
        gpu_decoding: decode on the device as well, where it is a GPU that can.
        still: the files are still images, each a recording of one frame.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        device: torch.device,
        faces: Faces = "largest",
        threads: int = 0,
        *,
        gpu_decoding: bool = False,
        still: bool = False,
    ) -> None:
        self.name = extractor.name
        self.suffixes = IMAGE_SUFFIXES if still else SUFFIXES
        self.keep = extractor.keep
        self._extractor = extractor
        self._faces: Faces = faces
        self._threads = threads
        self._device = device
        self._segments = 1 if device.type == "cpu" else _GPU_SEGMENTS
        self._gpu = device if gpu_decoding and device.type == "cuda" else None
        self._still = still
        self._detector = detector.load_detector().to(device)
        self._network = landmarks.load_landmarks().to(device)

    def provenance(self, path: Path) -> Provenance:
        """The identity of a video's recordings, known before it is decoded.

        Raises:
            UserError: the video cannot be read.
        """
        table = csv_beside(path)
        used: dict[str, Any] = {"landmarks": "openface-csv"}
        if table is None:
            sums = {name: networks.sha256(name) for name in (detector.WEIGHTS, landmarks.WEIGHTS)}
            used = {"landmarks": sums, "faces": self._faces, "detect_every_frames": EVERY}
        if self._still:
            used["still"] = True
        return Provenance(
            backend=self.name,
            backend_version=affect.__version__,
            source_sha256=sha256_of(path, *([table] if table else [])),
            weights_sha256=self._extractor.weights_sha256,
            parameters=used,
        )

    def recordings(
        self, path: Path, place: Place, provenance: Provenance, listener: Listener
    ) -> Iterator[Recording]:
        """The recordings of a video, one a face.

        Args:
            path: the video.
            place: where the recording belongs; of several faces, each name gets `-face<number>`.
            provenance: the video's.
            listener: is told how it goes on.

        Raises:
            UserError: the video cannot be read or shows no face.
        """
        _tell_of_other_csv(path, listener)
        tracks: dict[int, _Track] = {}
        frames = 0
        with self._opened(path) as video:
            listener.expect(path, video.frames or 0)
            source = self._source(path, video.batch_frames)
            for batch in joined(ahead(video), self._segments, self._device):
                _add(tracks, source, batch, self._extractor, frames)
                frames += len(batch.time_s)
                listener.advance(len(batch.time_s))
        if not any(track.seen for track in tracks.values()):
            shown = "it shows none" if self._still else f"none of its {frames} frames shows one"
            raise ExtractionError(path, "no face", shown)
        _tell_of_damage(video, frames, listener)
        # The first face comes last: where it is cached, so are the others.
        for number, track in sorted(tracks.items(), reverse=True):
            name = f"{place.name}-face{number}" if self._faces == "all" else place.name
            yield track.recording(
                place._replace(name=name), video.rate_hz, self._extractor, provenance
            )

    def _opened(self, path: Path) -> Video | Still:
        if self._still:
            return Still(path)
        return Video(path, batch_frames=SEGMENT_FRAMES, threads=self._threads, gpu=self._gpu)

    def _source(self, path: Path, segment_frames: int) -> LandmarkSource:
        table = csv_beside(path)
        if table is not None:
            return CsvLandmarks(table, None if self._still else ticks_of(path))
        return FaceTracker(
            self._detector, self._network, self._faces, segment_frames=segment_frames
        )


@dataclass(eq=False)
class _Track:
    """One face so far."""

    features: FaceFeatures
    success: Rows = field(default_factory=Rows)
    confidence: Rows = field(default_factory=Rows)

    @property
    def seen(self) -> bool:
        """Whether the face was there in any frame."""
        return bool(self.success.all().any())

    def add(self, batch: FrameBatch, face: TrackedFace) -> None:
        self.features.add(batch.pixels, face.landmarks, face.success)
        self.success.add(face.success)
        self.confidence.add(face.confidence.float())

    def recording(
        self, place: Place, rate_hz: float, extractor: FeatureExtractor, provenance: Provenance
    ) -> Recording:
        features = self.features.finish()
        success = self.success.all()
        return Recording(
            corpus=place.corpus,
            subject=place.subject,
            name=place.name,
            rate_hz=rate_hz,
            time_s=np.arange(len(success)) / rate_hz,
            intensity=np.where(success[:, None], features.intensity, np.nan).astype(np.float32),
            intensity_names=extractor.intensity_names,
            presence=features.presence * success[:, None].astype(np.uint8),
            presence_names=extractor.presence_names,
            confidence=self.confidence.all(),
            success=success,
            annotations={},
            provenance=provenance,
            identifying=features.identifying,
        )


def _add(
    tracks: dict[int, _Track],
    source: LandmarkSource,
    batch: FrameBatch,
    extractor: FeatureExtractor,
    frames_before: int,
) -> None:
    """Hand a batch to every face's features; a new face was absent in the frames before."""
    faces = source.track(batch)
    for number in faces.keys() - tracks.keys():
        tracks[number] = _Track(extractor.begin())
        for start in range(0, frames_before, SEGMENT_FRAMES):
            tracks[number].add(*_absent(batch, min(SEGMENT_FRAMES, frames_before - start)))
    for number, track in tracks.items():
        if number in faces:
            track.add(batch, faces[number])
        else:
            track.add(*_absent(batch, len(batch.time_s)))


def _tell_of_other_csv(path: Path, listener: Listener) -> None:
    other = path.with_suffix(".csv")
    if other.is_file() and csv_beside(path) is None:
        listener.note(f"{other}: holds no landmarks of OpenFace: the built-in network is used")


def _tell_of_damage(video: Video | Still, frames: int, listener: Listener) -> None:
    if video.errors:
        listener.note(f"{video.path}: {video.errors} of {frames} frames could not be decoded")
    if video.dropped:
        listener.note(f"{video.path}: {crowding(video.dropped, video.rate_hz)}")
    if video.ended_early:
        listener.note(f"{video.path}: ends after {frames} of {video.frames} frames: is it cut off?")


def _absent(batch: FrameBatch, count: int) -> tuple[FrameBatch, TrackedFace]:
    """Frames without a face; their pixels are not looked at."""
    pixels = batch.pixels[:1].expand(count, -1, -1, -1)
    empty = FrameBatch(pixels, np.zeros(count), np.zeros(count, bool))
    nowhere = torch.full((count, landmarks.POINTS, 2), torch.nan)
    return empty, TrackedFace(nowhere, torch.zeros(count, dtype=torch.bool), torch.zeros(count))
