"""The backend that runs the user's own OpenFace program, a video at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import affect
from affect.data import openface_csv
from affect.data.importing import sha256_of
from affect.data.timeline import Place, Track, assemble
from affect.errors import UserError
from affect.extraction.backends.protocol import Listener
from affect.extraction.clock import crowding
from affect.extraction.failures import ExtractionError
from affect.extraction.openface import program as programs
from affect.extraction.ticks import Ticks, ticks_of
from affect.extraction.video import SUFFIXES
from affect.recording import Provenance, Recording


class OpenFaceBin:
    """Extracts a video's one face by OpenFace's FeatureExtraction.

    Args:
        program: the executable.
        timeout_s: seconds that a video may take; None for what its length allows.

    Raises:
        UserError: the program or its models cannot be read.
    """

    name = "openface-bin"
    suffixes = SUFFIXES
    keep: frozenset[str] = frozenset()

    def __init__(self, program: Path, timeout_s: float | None = None) -> None:
        self._program = program
        self._timeout_s = timeout_s
        self._weights_sha256 = programs.weights_sha256(program)

    def provenance(self, path: Path) -> Provenance:
        """The identity of a video's recording, known before OpenFace runs.

        Raises:
            UserError: the video cannot be read.
        """
        return Provenance(
            backend=self.name,
            backend_version=affect.__version__,
            source_sha256=sha256_of(path),
            weights_sha256=self._weights_sha256,
            parameters={"flags": list(programs.FLAGS)},
        )

    def recordings(
        self, path: Path, place: Place, provenance: Provenance, listener: Listener
    ) -> Iterator[Recording]:
        """The recording of a video.

        Args:
            path: the video.
            place: where the recording belongs.
            provenance: the video's.
            listener: is told how it goes on.

        Raises:
            UserError: the video cannot be read or shows no face, or OpenFace failed.
        """
        ticks = ticks_of(path)
        listener.expect(path, len(ticks.shown))
        track = _on_clock(self._track(path, ticks.frames), ticks, path, listener)
        listener.advance(len(track.time_s))
        yield assemble(place, track, {}, provenance, rate_hz=ticks.rate_hz)

    def _track(self, path: Path, frames: int) -> Track:
        """What OpenFace tells of a video, a row a frame; its files are gone after that."""
        timeout_s = self._timeout_s or programs.patience_s(frames)
        try:
            with TemporaryDirectory(prefix="affect-") as folder:
                return _read(programs.run(self._program, path, Path(folder), timeout_s), path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ExtractionError(path, "no temporary folder", f"{reason}: set TMPDIR") from error


def _read(table: Path, path: Path) -> Track:
    try:
        track = openface_csv.read(table)
    except UserError as error:
        reason = str(error).removeprefix(f"{table}: ").replace(str(table), "it")
        raise ExtractionError(path, "OpenFace's table cannot be used", reason) from error
    if track.success is not None and not track.success.any():
        raise ExtractionError(path, "no face", f"none of its {len(track.success)} frames shows one")
    return track


def _on_clock(track: Track, ticks: Ticks, path: Path, listener: Listener) -> Track:
    """The rows of the frames that the ticks show, at the ticks' times.

    OpenFace writes a row for each frame that it could decode, and gives it a time as though all
    frames were equally long. Where some could not be decoded, nobody knows which: rows follow one
    another then.
    """
    rows, shown = len(track.time_s), ticks.shown
    if rows != ticks.frames:
        listener.note(f"{path}: OpenFace read {rows} of {ticks.frames} frames: is it damaged?")
        shown = np.arange(rows)
    elif ticks.dropped:
        listener.note(f"{path}: {crowding(ticks.dropped, ticks.rate_hz)}")
    time_s = np.arange(len(shown)) / ticks.rate_hz
    return replace(track.taken(shown), source=path, time_s=time_s)
