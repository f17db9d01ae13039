"""The backends that read frames: faces found, followed, turned into features, pixels let go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

import affect
from affect.data.importing import sha256_of
from affect.data.naming import has_each_face, place_of_face
from affect.data.timeline import Place
from affect.extraction.backends.features import FeatureExtractor
from affect.extraction.backends.protocol import Listener
from affect.extraction.backends.tracks import Face, Tracks
from affect.extraction.clock import crowding
from affect.extraction.faces import detector, landmarks, networks
from affect.extraction.faces.landmark_csv import CsvLandmarks, csv_beside
from affect.extraction.faces.tracker import (
    EVERY,
    SEGMENT_FRAMES,
    Faces,
    FaceTracker,
    LandmarkSource,
)
from affect.extraction.failures import ExtractionError
from affect.extraction.image import IMAGE_SUFFIXES, Still
from affect.extraction.parts import Halving
from affect.extraction.stream import ahead, joined
from affect.extraction.ticks import ticks_of
from affect.extraction.video import SUFFIXES, Video
from affect.recording import Provenance, Recording

_GPU_SEGMENTS = 8
"""Segments a batch on a GPU, which small batches leave idle.

Where its memory runs out in any step, a video begins again with half as many.
"""


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
        self._segments = Halving(1 if device.type == "cpu" else _GPU_SEGMENTS)
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
            UserError: the video cannot be read or shows no face, or is too large for the GPU.
        """
        _tell_of_other_csv(path, listener)
        try:
            video, frames, faces = self._segments(partial(self._followed, path, listener))
        except torch.OutOfMemoryError as error:
            advice = "free some of it, or give --device cpu"
            raise ExtractionError(path, "too little memory on the GPU", advice) from error
        if not any(face.success.any() for face in faces.values()):
            shown = "it shows none" if self._still else f"none of its {frames} frames shows one"
            raise ExtractionError(path, "no face", shown)
        _tell_of_damage(video, frames, listener)
        # The first face comes last: where it is cached, so are the others.
        for number, face in reversed(faces.items()):
            where = place_of_face(place, number) if has_each_face(provenance) else place
            yield face.recording(where, frames, video.rate_hz, self._extractor, provenance)

    def _followed(
        self, path: Path, listener: Listener, segments: int
    ) -> tuple[Video | Still, int, dict[int, Face]]:
        """A video that was read to its end, its number of frames, and its faces.

        Args:
            path: the video.
            listener: is told how it goes on.
            segments: how many to work on at once; results differ by rounding at most.
        """
        frames = 0
        with self._opened(path) as video, closing(ahead(video)) as coming:
            listener.expect(path, video.frames or 0)
            try:
                tracks = Tracks(self._source(path, video.batch_frames), self._extractor)
                for batch in joined(coming, segments, self._device):
                    tracks.add(batch)
                    frames += len(batch.time_s)
                    listener.advance(len(batch.time_s))
                return video, frames, tracks.finish()
            except torch.OutOfMemoryError:
                listener.advance(-frames)
                raise

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
