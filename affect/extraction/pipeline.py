"""From video files to Recordings in a cache, one after another; frames never leave memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import affect
from affect import store
from affect.data.importing import sha256_of
from affect.data.timeline import Place
from affect.errors import UserError
from affect.extraction.backends import Backend, Extraction
from affect.extraction.faces import detector, landmarks, networks
from affect.extraction.faces.landmark_csv import CsvLandmarks, csv_beside
from affect.extraction.faces.tracker import EVERY, Faces, FaceTracker, LandmarkSource, TrackedFace
from affect.extraction.video import FrameBatch, Video
from affect.recording import Provenance, Recording

T = TypeVar("T")

BATCH_FRAMES = 64
"""Frames a batch: part of what determines where the detector looks, so it never varies."""


@dataclass
class Extracted:
    """What became of one video.

    Attributes:
        path: the video.
        keys: of the recordings that were written.
        skipped: whether the cache held them already.
        frames: of the video.
        faces: frames with a face, over all recordings.
        confidence: sum over these frames.
        error: why it failed; empty where it did not.
    """

    path: Path
    keys: list[str] = field(default_factory=list)
    skipped: bool = False
    frames: int = 0
    faces: int = 0
    confidence: float = 0.0
    error: str = ""


class Extractor:
    """Extracts the faces of videos with one backend on one device.

    Args:
        backend: makes features of landmarks and pixels.
        device: of the face networks.
        faces: the `largest` face of a video, or `all`, each a recording of its own.
    """

    def __init__(self, backend: Backend, device: torch.device, faces: Faces = "largest") -> None:
        self._backend = backend
        self._faces: Faces = faces
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
        return Provenance(
            backend=self._backend.name,
            backend_version=affect.__version__,
            source_sha256=sha256_of(path, *([table] if table else [])),
            weights_sha256=self._backend.weights_sha256,
            parameters=used,
        )

    def recordings(
        self, path: Path, place: Place, on_batch: Callable[[int], object] = lambda _: None
    ) -> Iterator[Recording]:
        """The recordings of a video, one a face.

        Args:
            path: the video.
            place: where the recording belongs; of several faces, each name gets `-face<number>`.
            on_batch: is told the number of frames after each batch.

        Raises:
            UserError: the video cannot be read or shows no face.
        """
        provenance = self.provenance(path)
        source = self._source(path)
        tracks: dict[int, _Track] = {}
        frames = 0
        with Video(path, batch_frames=BATCH_FRAMES) as video:
            for batch in video:
                _add(tracks, source, batch, self._backend, frames)
                frames += len(batch.time_s)
                on_batch(len(batch.time_s))
            rate_hz = video.rate_hz
        if not tracks:
            raise UserError(f"{path}: no face in any of its {frames} frames: leave it out")
        for number, track in sorted(tracks.items()):
            name = f"{place.name}-face{number}" if self._faces == "all" else place.name
            yield track.recording(place._replace(name=name), rate_hz, self._backend, provenance)

    def _source(self, path: Path) -> LandmarkSource:
        table = csv_beside(path)
        if table is not None:
            return CsvLandmarks(table)
        return FaceTracker(self._detector, self._network, self._faces)


def extract(
    videos: Mapping[Place, Path],
    cache: Path,
    extractor: Extractor,
    *,
    force: bool = False,
    on_batch: Callable[[int], object] = lambda _: None,
) -> Iterator[Extracted]:
    """Put the recordings of each video into a cache; a broken one does not stop the rest.

    Args:
        videos: by their place in the cache.
        cache: the folder to fill.
        extractor: makes the recordings.
        force: extract again what is cached under the same identity.
        on_batch: is told the number of frames after each batch.
    """
    for place, path in videos.items():
        done = Extracted(path)
        try:
            if not force and _is_cached(cache, place, extractor.provenance(path).identity):
                done.skipped = True
            else:
                for recording in extractor.recordings(path, place, on_batch):
                    _count(done, recording)
                    store.write(recording, cache)
                    done.keys.append(recording.key)
        except UserError as error:
            done.error = str(error)
        yield done


def shard(videos: Sequence[T], index: int, count: int) -> list[T]:
    """The part of the videos that job `index` of `count`, from 1, extracts: every count-th.

    Raises:
        UserError: the index is not from 1 to the count.
    """
    if not 1 <= index <= count:
        raise UserError(f"shard {index}/{count}: the first number must be from 1 to the second")
    return list(videos[index - 1 :: count])


@dataclass(eq=False)
class _Track:
    """One face so far."""

    extraction: Extraction
    success: list[np.ndarray] = field(default_factory=list)
    confidence: list[np.ndarray] = field(default_factory=list)

    def add(self, batch: FrameBatch, face: TrackedFace) -> None:
        self.extraction.add(batch.pixels, face.landmarks, face.success)
        self.success.append(face.success.cpu().numpy())
        self.confidence.append(face.confidence.cpu().numpy())

    def recording(
        self, place: Place, rate_hz: float, backend: Backend, provenance: Provenance
    ) -> Recording:
        features = self.extraction.finish()
        success = np.concatenate(self.success)
        return Recording(
            corpus=place.corpus,
            subject=place.subject,
            name=place.name,
            rate_hz=rate_hz,
            time_s=np.arange(len(success)) / rate_hz,
            intensity=np.where(success[:, None], features.intensity, np.nan).astype(np.float32),
            intensity_names=backend.intensity_names,
            presence=features.presence * success[:, None].astype(np.uint8),
            presence_names=backend.presence_names,
            confidence=np.concatenate(self.confidence).astype(np.float32),
            success=success,
            annotations={},
            provenance=provenance,
        )


def _add(
    tracks: dict[int, _Track],
    source: LandmarkSource,
    batch: FrameBatch,
    backend: Backend,
    frames_before: int,
) -> None:
    """Hand a batch to every face's extraction; a new face was absent in the frames before."""
    faces = source.track(batch)
    for number in faces.keys() - tracks.keys():
        tracks[number] = _Track(backend.begin())
        for start in range(0, frames_before, BATCH_FRAMES):
            count = min(BATCH_FRAMES, frames_before - start)
            tracks[number].add(*_absent(batch, count))
    for number, track in tracks.items():
        if number in faces:
            track.add(batch, faces[number])
        else:
            track.add(*_absent(batch, len(batch.time_s)))


def _absent(batch: FrameBatch, count: int) -> tuple[FrameBatch, TrackedFace]:
    """Frames without a face; their pixels are not looked at."""
    pixels = batch.pixels[:1].expand(count, -1, -1, -1)
    empty = FrameBatch(pixels, np.zeros(count), np.zeros(count, bool))
    nowhere = torch.full((count, landmarks.POINTS, 2), torch.nan)
    return empty, TrackedFace(nowhere, torch.zeros(count, dtype=torch.bool), torch.zeros(count))


def _is_cached(cache: Path, place: Place, identity: str) -> bool:
    """Whether a recording of the video is there; of several faces, the first tells for all."""
    names = (place.name, f"{place.name}-face0")
    entries = (store.find(cache, place.corpus, place.subject, name) for name in names)
    return any(entry is not None and entry.identity == identity for entry in entries)


def _count(done: Extracted, recording: Recording) -> None:
    done.frames = recording.frames
    done.faces += int(recording.success.sum())
    done.confidence += float(recording.confidence[recording.success].sum())
