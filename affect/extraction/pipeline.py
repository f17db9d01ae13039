"""From files to Recordings in a cache, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from affect import store
from affect.data.naming import has_each_face, place_of_face
from affect.data.timeline import Place
from affect.errors import RecordingError, UserError
from affect.extraction.backends.protocol import Backend, Listener
from affect.extraction.cached import Cached
from affect.extraction.container import require_content
from affect.extraction.failures import ExtractionError
from affect.recording import Provenance, Recording
from affect.store import Entry

T = TypeVar("T")

DEFECT = "a defect of affect"
"""The cause of failures that no user can mend."""

_NAMED = 3
"""Recordings that a message names."""


@dataclass
class Extracted:
    """What became of one file.

    Attributes:
        path: the file.
        keys: of the recordings that were written.
        skipped: whether the cache held them already.
        frames: of the video.
        faces: frames with a face, over all recordings.
        confidence: sum over these frames.
        notes: what a user should know of it all the same.
        error: why it failed; empty where it did not.
        cause: the same in a few words that do not name the file.
    """

    path: Path
    keys: list[str] = field(default_factory=list)
    skipped: bool = False
    frames: int = 0
    faces: int = 0
    confidence: float = 0.0
    notes: list[str] = field(default_factory=list)
    error: str = ""
    cause: str = ""


def extract(
    files: Mapping[Place, Path],
    cache: Path,
    backend: Backend,
    *,
    force: bool = False,
    listener: Listener | None = None,
) -> Iterator[Extracted]:
    """Put the recordings of each file into a cache; a broken one does not stop the rest.

    Args:
        files: by their place in the cache.
        cache: the folder to fill.
        backend: makes the recordings.
        force: extract again what is cached under the same identity with all that is to be kept.
        listener: is told how it goes on.
    """
    cached = Cached(cache)
    for place, path in files.items():
        yield extract_one(
            place, path, cache, backend, force=force, listener=listener, cached=cached
        )


def extract_one(
    place: Place,
    path: Path,
    cache: Path,
    backend: Backend,
    *,
    force: bool = False,
    listener: Listener | None = None,
    cached: Cached | None = None,
) -> Extracted:
    """Put the recordings of one file into a cache, in the place of those that it held of the file.

    Args:
        place: where they belong.
        path: the file.
        cache: as for `extract`.
        backend: likewise.
        force: likewise.
        listener: likewise.
        cached: what the cache holds; None to look at its folder anew.
    """
    done = Extracted(path)
    noting = Noting(done.notes, listener or Listener())
    with failing_alone(done):
        require_content(path)
        refuse_names(place, path)
        provenance = backend.provenance(path)
        held = (cached or Cached(cache)).of(place, provenance)
        if not force and _serve(held, place, provenance, backend):
            done.skipped = True
            return done
        if not force:
            _refuse_other_options(held, provenance, path)
        for recording in backend.recordings(path, place, provenance, noting):
            store.write(recording, cache)
            _count(done, recording)
        for entry in held:
            if entry.key not in done.keys:
                store.remove(entry.path)
    return done


@contextmanager
def failing_alone(done: Extracted) -> Iterator[None]:
    """What goes wrong with one file is told in what became of it, and stops no other."""
    try:
        yield
    except UserError as error:
        done.error = str(error)
        done.cause = getattr(error, "cause", "other")
    except Exception as error:
        done.error = f"{done.path}: defect: {type(error).__name__}: {error} (report it)"
        done.cause = DEFECT


def refuse_names(place: Place, path: Path) -> None:
    """Refuse a file whose recordings no cache can hold, before anything of it is computed.

    Raises:
        UserError: a name is empty, not printable, or too long.
    """
    try:
        store.require_names(*place)
    except RecordingError as error:
        advice = "rename it or its folder, or give another --pattern or --corpus"
        raise ExtractionError(path, "a name that cannot be stored", f"{error}: {advice}") from error


def shard(files: Sequence[T], index: int, count: int) -> list[T]:
    """The part of the files that job `index` of `count`, from 1, extracts: every count-th.

    Raises:
        UserError: the index is not from 1 to the count.
    """
    if not 1 <= index <= count:
        raise UserError(f"shard {index}/{count}: the first number must be from 1 to the second")
    return list(files[index - 1 :: count])


class Noting(Listener):
    """Keeps the notes of one file and passes the rest on."""

    def __init__(self, notes: list[str], listener: Listener) -> None:
        self._notes = notes
        self._listener = listener

    def expect(self, path: Path, frames: int) -> None:
        """See `Listener`."""
        self._listener.expect(path, frames)

    def advance(self, frames: int) -> None:
        """See `Listener`."""
        self._listener.advance(frames)

    def note(self, text: str) -> None:
        """Keep a note."""
        self._notes.append(text)


def _serve(held: Sequence[Entry], place: Place, provenance: Provenance, backend: Backend) -> bool:
    """Whether they have the numbers that are asked for, what is to be kept, and nothing else.

    Of several faces, the first stands for all: it was written last.
    """
    each = has_each_face(provenance)
    first = place_of_face(place, 0) if each else place
    return any(entry.name == first.name for entry in held) and all(
        entry.identity == provenance.identity
        and (entry.name != place.name) == each
        and backend.keep <= set(entry.identifying)
        for entry in held
    )


def _refuse_other_options(held: Sequence[Entry], provenance: Provenance, path: Path) -> None:
    """Other numbers of the same kind are replaced; those of another backend only by `--force`.

    So are those of all faces where the largest is asked for, and the other way round: side by side
    they would count as several videos.
    """
    others = [entry for entry in held if entry.identity != provenance.identity]
    origins = [store.provenance(entry.path) for entry in others]
    for other in origins:
        if other.backend != provenance.backend:
            raise ExtractionError(
                path,
                f"in the cache from {other.backend}",
                f"give --backend {other.backend}, another --cache or --corpus, or --force to "
                f"replace it by {provenance.backend}",
            )
    each = has_each_face(provenance)
    names = [e.name for e, o in zip(others, origins, strict=True) if has_each_face(o) != each]
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise ExtractionError(
            path,
            f"in the cache from --faces {'largest' if each else 'all'}",
            "give another --cache or --corpus, or --force to replace "
            f"{', '.join(names[:_NAMED])}{more}",
        )


def _count(done: Extracted, recording: Recording) -> None:
    done.keys.append(recording.key)
    done.frames = recording.frames
    done.faces += int(recording.success.sum())
    done.confidence += float(recording.confidence[recording.success].sum())
