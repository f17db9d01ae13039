"""OpenFace's CSVs to recordings: those of FeatureExtraction, and AVEC's with `;`.

A frame counts as tracked where `success` is 1; AVEC's files have no such column, and OpenFace's own
rule stands in for it: confidence above .725. Of several faces in a file, the one with the most
tracked frames stays (of equals, the lowest `face_id`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

import affect
from affect.data import columns, timeline
from affect.data.importing import Pending, sha256_of
from affect.data.naming import places_of
from affect.data.timeline import Place, Track
from affect.errors import UserError
from affect.recording import Provenance, Recording

_CONFIDENT = 0.725
_TIMES = ("timestamp", "frameTime")
_FACE = ("face_id", "confidence", "success", *_TIMES)
_UNIT = re.compile(r"AU\d+_[rc]")


def pending(
    source: Path, *, corpus: str = "openface", pattern: str | None = None
) -> Iterator[Pending]:
    """The recordings that OpenFace's CSVs hold, one a file.

    Args:
        source: a CSV, or a folder that is searched with its subfolders.
        corpus: the corpus's name in the cache.
        pattern: see `naming.places_of`.

    Raises:
        UserError: there is no CSV, the pattern is wrong or does not match a file, or two files
            would be the same recording.
    """
    paths = [source] if source.is_file() else columns.files_in(source, ".csv", pattern="**/*")
    if not paths:
        raise UserError(f"{source} holds no *.csv of OpenFace's FeatureExtraction")
    places = places_of(paths, source, corpus, pattern)
    for place, path in places.items():
        provenance = Provenance("import-openface-csv", affect.__version__, sha256_of(path))
        yield Pending(*place, provenance, partial(_load, place, path, provenance))


def read(path: Path) -> Track:
    """The action units of a CSV of OpenFace, of either format.

    Raises:
        UserError: the file cannot be read, has no action units or times, or a cell is no number.
    """
    frame = columns.read_csv(path, lambda name: name in _FACE or bool(_UNIT.fullmatch(name)))
    intensities = [name for name in frame.columns if name.endswith("_r")]
    presences = [name for name in frame.columns if name.endswith("_c")]
    time = next((name for name in _TIMES if name in frame), None)
    if not intensities:
        raise UserError(f"{path} has no AU columns (AU01_r ...): run FeatureExtraction with -aus")
    if time is None:
        raise UserError(f"{path} has no column {' or '.join(_TIMES)}")
    frame = _main_face(frame, path)
    return Track(
        source=path,
        time_s=columns.times(frame, time, path),
        intensity=columns.numbers(frame, intensities, path),
        intensity_names=tuple(intensities),
        success=_success(frame, path),
        confidence=_column(frame, "confidence", path),
        presence=(columns.numbers(frame, presences, path) > 0).astype(np.uint8),
        presence_names=tuple(presences),
    )


def _load(place: Place, path: Path, provenance: Provenance) -> Recording:
    return timeline.assemble(place, read(path), {}, provenance)


def _main_face(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    if "face_id" not in frame:
        return frame
    faces = frame.loc[:, "face_id"]
    if faces.nunique() <= 1:
        return frame
    success = _success(frame, path)
    frames = frame.assign(tracked=True if success is None else success)
    tracked = frames.groupby("face_id").agg({"tracked": "sum"})["tracked"]
    return frame.loc[faces == tracked.idxmax()]


def _success(frame: pd.DataFrame, path: Path) -> Bool[np.ndarray, " T"] | None:
    success = _column(frame, "success", path)
    if success is not None:
        return success > 0
    confidence = _column(frame, "confidence", path)
    return None if confidence is None else confidence > _CONFIDENT


def _column(frame: pd.DataFrame, name: str, path: Path) -> Float64[np.ndarray, " T"] | None:
    return columns.numbers(frame, [name], path)[:, 0] if name in frame else None
