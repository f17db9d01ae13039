"""Landmarks from OpenFace's CSV beside a video, instead of the packaged networks."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64

from affect.data import columns
from affect.errors import UserError
from affect.extraction.faces.landmarks import POINTS
from affect.extraction.faces.tracker import TrackedFace
from affect.extraction.failures import ExtractionError
from affect.extraction.ticks import Ticks
from affect.extraction.video import FrameBatch

_NO_FIT = "landmarks that do not fit"
_HEADER_BYTES = 1 << 16
_COLUMN = re.compile(r"[xy]_\d+|frame|success|confidence|face_id")


def csv_beside(video: Path) -> Path | None:
    """The CSV of a video's name in its folder, where its header names landmarks.

    Any other CSV is passed over, whatever it holds: people keep their ratings there too.

    Raises:
        UserError: it cannot be read.
    """
    path = video.with_suffix(".csv")
    return path if path.is_file() and b"x_0" in _first_names(path) else None


def _first_names(path: Path) -> list[bytes]:
    """The cells of a file's first line that is not blank; of a file that is no text, anything."""
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    header = start.removeprefix(codecs.BOM_UTF8).lstrip(b",;\t \r\n").partition(b"\n")[0]
    return [name.strip(b' "\r') for name in re.split(rb"[,;\t]", header)]


class CsvLandmarks:
    """The one face of a CSV of FeatureExtraction, a row a frame, or of FaceLandmarkImg, one row.

    OpenFace counts frames and heeds none of their times: a video's ticks tell which row is where.

    Args:
        path: the CSV.
        ticks: of its video; None for a still image.

    Raises:
        UserError: it cannot be read, lacks a point, holds several faces, or is of another video.
    """

    def __init__(self, path: Path, ticks: Ticks | None) -> None:
        self._path = path
        frame = columns.read_csv(path, lambda name: bool(_COLUMN.fullmatch(name)))
        frame = _of_still(frame, path) if ticks is None else _on_clock(frame, ticks, path)
        points = [f"{axis}_{point}" for axis in "xy" for point in range(POINTS)]
        missing = [name for name in (*points, "success", "confidence") if name not in frame]
        if missing:
            raise ExtractionError(
                path, _NO_FIT, f"it has no column {missing[0]!r}: run OpenFace with -2Dfp"
            )
        values = columns.numbers(frame, points, path).reshape(-1, 2, POINTS)
        self._landmarks = torch.from_numpy(values).transpose(1, 2)
        tracked = columns.numbers(frame, ["success", "confidence"], path)
        self._success = torch.from_numpy((tracked[:, 0] > 0) & _is_face(values))
        self._confidence = torch.from_numpy(tracked[:, 1].clip(0, 1)).float()
        self._next = 0

    def track(self, batch: FrameBatch) -> dict[int, TrackedFace]:
        """The face in the next frames.

        Raises:
            UserError: the video holds more frames than its packets told of.
        """
        rows = slice(self._next, self._next + len(batch.time_s))
        self._next = rows.stop
        if rows.stop > len(self._success):
            raise ExtractionError(self._path, _NO_FIT, "its video is damaged: move the CSV away")
        success = self._success[rows] & torch.from_numpy(batch.decoded.astype(np.bool_))
        face = TrackedFace(self._landmarks[rows], success, self._confidence[rows] * success)
        return {0: face}

    def remembered(self) -> frozenset[int]:
        """The one face's number."""
        return frozenset({0})


def _is_face(points: Float64[np.ndarray, "T 2 68"]) -> Bool[np.ndarray, " T"]:
    """Whether a row's points are numbers, and not all on one spot."""
    with np.errstate(invalid="ignore"):
        extent = points.max(axis=2) - points.min(axis=2)  # NaN and infinity stay
    return np.isfinite(extent).all(axis=1) & (extent > 0).all(axis=1)


def _on_clock(frame: pd.DataFrame, ticks: Ticks, path: Path) -> pd.DataFrame:
    """The row of the frame on each tick of the video."""
    if "face_id" in frame and len(np.unique(frame.loc[:, "face_id"])) > 1:
        raise ExtractionError(path, _NO_FIT, "it holds several faces: give one CSV a face")
    if len(frame) != ticks.frames:
        raise ExtractionError(
            path,
            _NO_FIT,
            f"it has {len(frame)} rows, its video {ticks.frames} frames: run FeatureExtraction on "
            "this video again, or move the CSV away",
        )
    if "frame" in frame and not frame.loc[:, "frame"].is_monotonic_increasing:
        raise ExtractionError(path, _NO_FIT, "its rows are not in the order of their frames")
    return frame.iloc[ticks.shown]


def _of_still(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """FaceLandmarkImg writes a row a face, and not that it succeeded: it found what it wrote."""
    if len(frame) != 1:
        raise ExtractionError(
            path,
            _NO_FIT,
            f"it has {len(frame)} rows, not one: leave a single face's row in it, or move it away",
        )
    success = pd.Series(1, frame.index, name="success")
    return frame if "success" in frame else frame.join(success)
