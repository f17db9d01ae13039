"""What a backend is: a way from a file to its Recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from affect.data.timeline import Place
from affect.recording import Provenance, Recording


class Listener:
    """Hears how the extraction of a file goes on; this one does not mind."""

    def expect(self, path: Path, frames: int) -> None:
        """A file was opened, and has so many frames by its header; 0 where it does not say.

        A file may be opened again, after `advance` has taken back the frames that were done.
        """

    def advance(self, frames: int) -> None:
        """So many frames more are done, or fewer where it is below 0."""

    def note(self, text: str) -> None:
        """Something that a user should know of a file that was extracted all the same."""


@runtime_checkable
class Backend(Protocol):
    """A way from a file to its Recordings.

    Attributes:
        name: as on the command line.
        suffixes: of the files that it takes from a folder, in lower case.
        keep: what of `recording.IDENTIFYING` its recordings hold.
    """

    name: str
    suffixes: frozenset[str]
    keep: frozenset[str]

    def provenance(self, path: Path) -> Provenance:
        """The identity of a file's recordings, known before it is decoded.

        Raises:
            UserError: the file cannot be read.
        """
        ...

    def recordings(
        self, path: Path, place: Place, provenance: Provenance, listener: Listener
    ) -> Iterator[Recording]:
        """The recordings of a file, one a face.

        Args:
            path: the file.
            place: where the recording belongs; of several faces, each name gets `-face<number>`.
            provenance: the file's, as `provenance` tells.
            listener: is told how it goes on.

        Raises:
            UserError: the file cannot be read or shows no face.
        """
        ...
