"""What a cache holds of a video already, whatever the options that it was extracted with."""

from __future__ import annotations

from pathlib import Path

from affect import store
from affect.data.naming import has_each_face, video_of_face
from affect.data.timeline import Place
from affect.recording import Provenance
from affect.store import Entry


class Cached:
    """A cache's recordings by the video that they are of.

    Each subject's folder is listed once, so that all videos together cost no more than the cache
    is large. Recordings of a video that come after that are not seen.

    Args:
        cache: the folder.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._faces: dict[tuple[str, str], dict[str, list[str]]] = {}

    def of(self, place: Place, provenance: Provenance) -> list[Entry]:
        """The recordings of a video, be they one or one a face; those that can be read.

        Another video may be called as a face would be: its recordings are left out.

        Args:
            place: the video's.
            provenance: what a new recording of the video would have.

        Raises:
            RecordingError: a recording has a header, and is broken after that.
        """
        names = self._names_of_faces(place).get(place.name, [])
        faces = [store.find(self._cache, place.corpus, place.subject, name) for name in names]
        own = store.find(self._cache, *place)
        return [
            entry
            for entry in (own, *faces)
            if entry is not None and (entry is own or _is_face(entry, provenance))
        ]

    def _names_of_faces(self, place: Place) -> dict[str, list[str]]:
        """What the recordings of faces of a subject are called, by the name of their video."""
        folder = place.corpus, place.subject
        if folder not in self._faces:
            self._faces[folder] = {}
            for name in store.names(self._cache, *folder):
                self._faces[folder].setdefault(video_of_face(name), []).append(name)
        return self._faces[folder]


def _is_face(entry: Entry, provenance: Provenance) -> bool:
    """Whether a recording that is called like a face's is one."""
    if entry.identity == provenance.identity:
        return True
    origin = store.provenance(entry.path)
    return has_each_face(origin) or origin.source_sha256 == provenance.source_sha256
