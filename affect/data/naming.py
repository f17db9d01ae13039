"""Where files of one recording each belong in a cache: subject and recording from their paths."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from affect.data.timeline import Place
from affect.errors import UserError
from affect.recording import Provenance

_FACE = re.compile(r"(?P<video>.+)-face\d+")


def places_of(
    paths: Iterable[Path], source: Path, corpus: str, pattern: str | None = None
) -> dict[Place, Path]:
    """Each file by its place in a cache.

    Args:
        paths: the files: the source itself, or below it.
        source: a file, or the folder that was searched.
        corpus: the corpus's name in the cache.
        pattern: regular expression with a group `subject` and, if wanted, `recording`; it must
            match a file's whole path below the source, without suffix and with `/`. By default
            the subject is the folder that the file lies in, or, directly in the source, the file
            name; the recording is the file name.

    Raises:
        UserError: the pattern is wrong or does not match a file, or two files would be the same
            recording.
    """
    compiled = _compiled(pattern)
    places: dict[Place, Path] = {}
    for path in paths:
        relative = Path(path.name) if path == source else path.relative_to(source)
        place = Place(corpus, *_names(relative.with_suffix(""), compiled))
        if place in places:
            raise UserError(
                f"{places[place]} and {path} are both recording {place.name!r} of "
                f"{place.subject!r}: rename one, or tell them apart by --pattern (of import: "
                "--option pattern=...)"
            )
        places[place] = path
    return places


def has_each_face(provenance: Provenance) -> bool:
    """Whether a recording is of one of all faces of its video, and bears the face's name."""
    return provenance.parameters.get("faces") == "all"


def place_of_face(place: Place, number: int) -> Place:
    """Where the recording of one of all faces of a video belongs."""
    return place._replace(name=f"{place.name}-face{number}")


def video_of_face(name: str) -> str:
    """The video's name in that of a face's recording; empty where it can be none."""
    match = _FACE.fullmatch(name)
    return match["video"] if match else ""


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"pattern {pattern!r} is no regular expression: {error}") from error
    if "subject" not in compiled.groupindex:
        raise UserError(f"pattern {pattern!r} has no group (?P<subject>...)")
    return compiled


def _names(relative: Path, pattern: re.Pattern[str] | None) -> tuple[str, str]:
    """Subject and recording of a file, from its path below the source without suffix."""
    if pattern is None:
        return relative.parent.name or relative.name, relative.name
    match = pattern.fullmatch(relative.as_posix())
    if match is None:
        raise UserError(f"pattern {pattern.pattern!r} does not match {relative.as_posix()!r}")
    return match["subject"] or "", match.groupdict().get("recording") or relative.name
