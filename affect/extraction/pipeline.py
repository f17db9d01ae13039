"""From files to Recordings in a cache, one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from affect import store
from affect.data.timeline import Place
from affect.errors import RecordingError, UserError
from affect.extraction.backends.protocol import Backend, Listener
from affect.extraction.container import require_content
from affect.extraction.failures import ExtractionError
from affect.recording import Provenance, Recording
from affect.store import Entry

T = TypeVar("T")

DEFECT = "a defect of affect"
"""The cause of failures that no user can mend."""


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
    for place, path in files.items():
        yield extract_one(place, path, cache, backend, force=force, listener=listener)


def extract_one(
    place: Place,
    path: Path,
    cache: Path,
    backend: Backend,
    *,
    force: bool = False,
    listener: Listener | None = None,
) -> Extracted:
    """Put the recordings of one file into a cache; arguments as for `extract`."""
    done = Extracted(path)
    noting = Noting(done.notes, listener or Listener())
    with failing_alone(done):
        require_content(path)
        refuse_names(place, path)
        provenance = backend.provenance(path)
        cached = [] if force else _cached(cache, place)
        if any(_serves(entry, provenance, backend) for entry in cached):
            done.skipped = True
        else:
            _refuse_other_backend(cached, path, backend)
            for recording in backend.recordings(path, place, provenance, noting):
                store.write(recording, cache)
                _count(done, recording)
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


def _cached(cache: Path, place: Place) -> list[Entry]:
    """What the cache holds of a file; of several faces, the first stands for all."""
    names = (place.name, f"{place.name}-face0")
    entries = (store.find(cache, place.corpus, place.subject, name) for name in names)
    return [entry for entry in entries if entry is not None]


def _serves(entry: Entry, provenance: Provenance, backend: Backend) -> bool:
    """Whether it has the numbers that are asked for, and what is to be kept, or more."""
    return entry.identity == provenance.identity and backend.keep <= set(entry.identifying)


def _refuse_other_backend(cached: Iterable[Entry], path: Path, backend: Backend) -> None:
    """Other numbers of the same kind are replaced; those of another backend only by `--force`."""
    for entry in cached:
        other = store.read(entry.path).provenance.backend
        if other != backend.name:
            raise ExtractionError(
                path,
                f"in the cache from {other}",
                f"give --backend {other}, another --cache or --corpus, or --force to replace it "
                f"by {backend.name}",
            )


def _count(done: Extracted, recording: Recording) -> None:
    done.keys.append(recording.key)
    done.frames = recording.frames
    done.faces += int(recording.success.sum())
    done.confidence += float(recording.confidence[recording.success].sum())
