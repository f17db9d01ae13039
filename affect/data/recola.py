"""RECOLA's native release to recordings: its own video features, or OpenFace's, and six raters.

Ringeval et al. 2013, "Introducing the RECOLA multimodal corpus of remote collaborative and
affective interactions".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import affect
from affect.data import arff, columns, openface_csv, timeline
from affect.data.importing import Pending, sha256_of
from affect.data.timeline import Annotation, Place, Track
from affect.errors import UserError, suggestion
from affect.recording import Provenance, Recording

FEATURES: Mapping[str, re.Pattern[str]] = {"au": re.compile(r"AU\d+"), "all": re.compile(r".*")}
"""The option `features` and the names that it keeps, without RECOLA's prefix."""

_PREFIX = "VIDEO_40_LLD_"
_PROBABILITY = "Face_detection_probability"
_RATINGS = Path("RECOLA-Annotation", "emotional_behaviour")
_VIDEO = Path("RECOLA-Video-features")


def pending(
    source: Path,
    *,
    features: str = "au",
    openface: str | Path | None = None,
    corpus: str = "recola",
) -> Iterator[Pending]:
    """The recordings of RECOLA's native release, one a participant with video features.

    Args:
        source: the folder with `RECOLA-Annotation` and `RECOLA-Video-features`.
        features: `au` (intensities without deltas) or `all` (deltas, head pose, optical flow).
        openface: a folder of OpenFace's CSVs (`P16.csv` ...) to be read instead of RECOLA's own
            features.
        corpus: the corpus's name in the cache.

    Raises:
        UserError: the folder does not hold the release, or `features` is unknown.
    """
    if features not in FEATURES:
        raise UserError(f"unknown features {features!r}: {suggestion(features, FEATURES)}")
    folder, suffix = (source / _VIDEO, ".arff") if openface is None else (Path(openface), ".csv")
    paths = columns.files_in(folder, suffix)
    if not paths:
        raise UserError(f"no features of RECOLA's participants: looked for P16{suffix} in {folder}")
    if not (source / _RATINGS).is_dir():
        raise UserError(f"no ratings of RECOLA: looked for the folder {source / _RATINGS}")
    for path in paths:
        ratings = rating_files(source / _RATINGS, path.stem)
        provenance = Provenance(
            "import-recola",
            affect.__version__,
            sha256_of(path, *ratings.values()),
            parameters={"features": features if openface is None else "openface"},
        )
        place = Place(corpus, path.stem, path.stem)
        load = partial(_load, place, path, ratings, FEATURES[features], provenance)
        yield Pending(*place, provenance, load)


def rating_files(folder: Path, stem: str) -> dict[str, Path]:
    """The files `<folder>/<dimension>/<stem>.{arff,csv}` that exist, by dimension."""
    return {
        path.parent.name: path
        for suffix in (".csv", ".arff")
        for path in columns.files_in(folder, suffix, pattern="*/*")
        if path.stem == stem
    }


def read_raters(
    ratings: Mapping[str, Path],
) -> tuple[dict[str, Annotation], tuple[str, ...]]:
    """Raters' traces by dimension, and the raters' names in the order of the files.

    A rater who is missing in one dimension only has a row of NaN there.

    Args:
        ratings: by dimension, a CSV with the column `time` in seconds and one column a rater.

    Raises:
        UserError: a file cannot be read or lacks the time.
    """
    frames = {dimension: columns.read_csv(path) for dimension, path in ratings.items()}
    raters = tuple(dict.fromkeys(str(n) for f in frames.values() for n in f.columns if n != "time"))
    annotations = {}
    for dimension, frame in frames.items():
        path = ratings[dimension]
        if "time" not in frame:
            raise UserError(f"{path} has no column 'time'")
        values = columns.numbers(frame.reindex(columns=list(raters)), raters, path).T
        annotations[dimension] = Annotation(path, columns.times(frame, "time", path), values)
    return annotations, raters


def read_features(path: Path, keep: re.Pattern[str]) -> Track:
    """The features of an ARFF of RECOLA or AVEC.

    `Face_detection_probability` becomes the confidence, and a face counts as tracked where it is
    above 0.

    Args:
        path: the file.
        keep: which features, by their whole name without the prefix `VIDEO_40_LLD_`.

    Raises:
        UserError: the file cannot be read or holds no such feature.
    """
    time_s, frame = arff.split_time(arff.read(path), path)
    frame = frame.rename(columns=lambda name: str(name).removeprefix(_PREFIX))
    confidence = None
    if _PROBABILITY in frame:
        confidence = columns.numbers(frame, [_PROBABILITY], path)[:, 0]
    names = [n for n in map(str, frame.columns) if n != _PROBABILITY and keep.fullmatch(n)]
    if not names:
        raise UserError(f"{path} has no feature that matches {keep.pattern!r}")
    return Track(
        source=path,
        time_s=time_s,
        intensity=columns.numbers(frame, names, path),
        intensity_names=tuple(names),
        success=None if confidence is None else confidence > 0,
        confidence=confidence,
    )


def _load(
    place: Place,
    path: Path,
    ratings: Mapping[str, Path],
    keep: re.Pattern[str],
    provenance: Provenance,
) -> Recording:
    faces = path.suffix.lower() == ".arff"
    track = read_features(path, keep) if faces else openface_csv.read(path)
    annotations, raters = read_raters(ratings)
    return timeline.assemble(place, track, annotations, provenance, raters=raters)
