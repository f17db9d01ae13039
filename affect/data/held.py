"""Recordings that no file holds, listed and read as those of a cache are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from affect import store
from affect.recording import Recording
from affect.store import Entry


class Held:
    """A cache in memory.

    Args:
        recordings: each with a key of its own.
    """

    def __init__(self, recordings: Iterable[Recording]) -> None:
        paths = ((store.path_of(Path(), r.corpus, r.subject, r.name), r) for r in recordings)
        self._recordings = dict(sorted(paths, key=lambda pair: pair[0]))

    @property
    def entries(self) -> list[Entry]:
        """Every recording, in the order in which a cache would list them."""
        return [_entry(path, recording) for path, recording in self._recordings.items()]

    def read(self, path: Path) -> Recording:
        """The recording of an entry's path, which is no file's."""
        return self._recordings[path]


def _entry(path: Path, recording: Recording) -> Entry:
    return Entry(
        path=path,
        corpus=recording.corpus,
        subject=recording.subject,
        name=recording.name,
        frames=recording.frames,
        rate_hz=recording.rate_hz,
        faces=float(recording.success.mean()),
        identity=recording.provenance.identity,
        identifying=tuple(sorted(recording.identifying)),
        kind=recording.kind.digest,
    )
