"""The AVEC challenges' releases of RECOLA to recordings: 2015 and 2016, and 2018 (GES).

A partition's file stem is the subject (`train_1`, `dev_3`, `test_7`), so that fixed splits match
subjects by prefix. Test partitions have features and no labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path

import numpy as np
from jaxtyping import Float64

import affect
from affect.data import arff, columns, openface_csv, recola, timeline
from affect.data.importing import Pending, sha256_of
from affect.data.timeline import Annotation, Place, Track
from affect.errors import UserError
from affect.recording import Provenance, Recording

_FILE = re.compile(
    r"(?P<subject>(?:train|dev|test)_\d+)(?:_(?P<window>\d+(?:\.\d+)?)_\d+(?:\.\d+)?)?"
)
_DIMENSIONS = ("arousal", "valence")
_COMMON = 0.9
"""Least share of the longer file's times that both dimensions' features must have in common."""


@dataclass(frozen=True)
class Release:
    """How a challenge lays out its folders.

    Attributes:
        corpus: its name in a cache.
        marker: a folder that only this release has.
        features_at, ratings_at: where a named set of features or ratings lies.
        features, ratings: the sets that are read unless others are chosen; empty: the only one.
    """

    corpus: str
    marker: str
    features_at: str
    ratings_at: str
    features: str
    ratings: str


RELEASES = (
    Release(
        corpus="avec2016",
        marker="ratings_gold_standard",
        features_at="features_{}",
        ratings_at="ratings_{}",
        features="video_geometric",
        ratings="gold_standard",
    ),
    Release(
        corpus="avec2018",
        marker="labels",
        features_at="features/video/{}",
        ratings_at="labels/{}",
        features="AU",
        ratings="",
    ),
)


def pending(
    source: Path,
    *,
    features: str | None = None,
    ratings: str | None = None,
    window_s: float | int | str | None = None,
    corpus: str | None = None,
) -> Iterator[Pending]:
    """The recordings of an AVEC release, one a partition file.

    Args:
        source: the release's folder; its year is told by what lies in it.
        features: a folder of ARFF files or OpenFace's CSVs: the last part of its name in the
            release (`video_geometric`, `video_appearance`; 2018: `AU`), or its path from the
            source (`openface`, `features_video_geometric/arousal`). Where features come once a
            dimension, both are joined, with names such as `x@arousal`.
        ratings: the folder of labels: `gold_standard` (default), `individual` or another
            `ratings_*`; 2018: a folder below `labels`.
        window_s: which of several analysis windows that lie side by side, in seconds.
        corpus: the corpus's name in the cache, by default `avec2016` or `avec2018`.

    Raises:
        UserError: the folder holds no release, or the options do not settle which files to read.
    """
    release = _release(source)
    window = _seconds(window_s)
    chosen = _feature_folder(source, release, features or release.features)
    rating_folder = _rating_folder(source, release, ratings or release.ratings)
    parts = {name: chosen / name for name in _DIMENSIONS if (chosen / name).is_dir()}
    found = {name: _variant(folder, window) for name, folder in (parts or {"": chosen}).items()}
    for subject in sorted(set().union(*found.values())):
        faces = {name: files[subject] for name, files in found.items() if subject in files}
        labels = recola.rating_files(rating_folder, subject)
        provenance = Provenance(
            "import-avec",
            affect.__version__,
            sha256_of(*faces.values(), *labels.values()),
            parameters={
                "features": _told(chosen, source),
                "ratings": _told(rating_folder, source),
                "window_s": window,
            },
        )
        place = Place(corpus or release.corpus, subject, subject)
        yield Pending(*place, provenance, partial(_load, place, faces, labels, provenance))


def _release(source: Path) -> Release:
    for release in RELEASES:
        if (source / release.marker).is_dir():
            return release
    markers = " or ".join(release.marker for release in RELEASES)
    raise UserError(f"no AVEC release in {source}: looked for a folder {markers}")


def _feature_folder(source: Path, release: Release, name: str) -> Path:
    places = (source / release.features_at.format(name), source / name)
    for place in places:
        if place.is_dir():
            return place
    raise UserError(
        f"no features {name!r}: looked for the folders {places[0]} and {places[1]}; "
        "choose a folder with the option features"
    )


def _rating_folder(source: Path, release: Release, name: str) -> Path:
    folder = source / release.ratings_at.format(name)
    if not folder.is_dir():
        raise UserError(f"no ratings {name!r}: looked for the folder {folder}")
    if name:
        return folder
    sets = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(sets) != 1:
        listed = ", ".join(path.name for path in sets) or "none"
        raise UserError(f"{folder} holds the gold standards {listed}: choose one with ratings")
    return sets[0]


def _seconds(window_s: float | int | str | None) -> float | None:
    try:
        return None if window_s is None else float(window_s)
    except ValueError:
        raise UserError(f"window_s is {window_s!r}, not a number of seconds") from None


def _variant(folder: Path, window_s: float | None) -> dict[str, Path]:
    """A folder's files of one analysis window, by subject."""
    paths = columns.files_in(folder, ".arff", ".csv")
    matches = [(match, path) for path in paths if (match := _FILE.fullmatch(path.stem))]
    windows = sorted({match["window"] for match, _ in matches if match["window"]}, key=float)
    if window_s is None and len(windows) > 1:
        raise UserError(
            f"{folder} holds the windows {', '.join(windows)} s: choose one with window_s"
        )
    if window_s is not None and window_s not in map(float, windows):
        listed = ", ".join(windows) or "none"
        raise UserError(f"{folder} holds no window of {window_s:g} s: it has {listed}")
    files: dict[str, Path] = {}
    for match, path in matches:
        if window_s is not None and float(match["window"] or "nan") != window_s:
            continue
        if match["subject"] in files:
            raise UserError(
                f"{files[match['subject']]} and {path} are both {match['subject']}: leave one"
            )
        files[match["subject"]] = path
    if not files:
        raise UserError(f"{folder} holds no train_*, dev_* or test_* file (.arff or .csv)")
    return files


def _load(
    place: Place,
    faces: Mapping[str, Path],
    labels: Mapping[str, Path],
    provenance: Provenance,
) -> Recording:
    track = _joined({part: _track(path) for part, path in faces.items()})
    gold = {d: path for d, path in labels.items() if path.suffix.lower() == ".arff"}
    individual = {d: path for d, path in labels.items() if d not in gold}
    annotations, raters = recola.read_raters(individual)
    annotations |= {d: _gold_standard(path) for d, path in gold.items()}
    return timeline.assemble(place, track, annotations, provenance, raters=raters)


def _track(path: Path) -> Track:
    if path.suffix.lower() == ".csv":
        return openface_csv.read(path)
    return recola.read_features(path, recola.FEATURES["all"])


def _joined(tracks: Mapping[str, Track]) -> Track:
    """The features of all parts beside one another, at the times that all parts have."""
    common = reduce(np.intersect1d, (track.time_s for track in tracks.values()))
    if len(common) < _COMMON * max(len(track.time_s) for track in tracks.values()):
        raise UserError(
            f"{' and '.join(str(track.source) for track in tracks.values())} have different times: "
            "choose one of the two folders with the option features"
        )
    taken = {part: _at(track, common) for part, track in tracks.items()}
    return replace(
        next(iter(taken.values())),
        intensity=np.hstack([track.intensity for track in taken.values()]),
        intensity_names=tuple(
            f"{name}@{part}" if part else name
            for part, track in taken.items()
            for name in track.intensity_names
        ),
    )


def _at(track: Track, time_s: Float64[np.ndarray, " K"]) -> Track:
    """A track's rows at times that it holds."""
    order = timeline.in_order(track.time_s, track.source)
    return track.taken(order[np.searchsorted(track.time_s[order], time_s)])


def _gold_standard(path: Path) -> Annotation:
    time_s, frame = arff.split_time(arff.read(path), path)
    names = arff.numeric_names(frame)
    if len(names) != 1:
        raise UserError(
            f"{path}: one numeric attribute beside the time was looked for, not {names}"
        )
    return Annotation(path, time_s, columns.numbers(frame, names, path)[:, 0])


def _told(folder: Path, source: Path) -> str:
    """A folder as provenance names it: never by an absolute path."""
    return folder.relative_to(source).as_posix() if source in folder.parents else folder.name
