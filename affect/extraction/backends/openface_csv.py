"""The backend of those who have run OpenFace already: its CSVs to recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import affect
from affect.data import openface_csv
from affect.data.importing import sha256_of
from affect.data.timeline import Place, assemble
from affect.extraction.backends.protocol import Listener
from affect.recording import Provenance, Recording


class OpenFaceCsv:
    """Reads tables that FeatureExtraction wrote; of several faces the most tracked stays."""

    name = "openface-csv"
    suffixes = frozenset({".csv"})
    keep: frozenset[str] = frozenset()

    def provenance(self, path: Path) -> Provenance:
        """The identity of a table's recording.

        Raises:
            UserError: the table cannot be read.
        """
        return Provenance(self.name, affect.__version__, sha256_of(path))

    def recordings(
        self, path: Path, place: Place, provenance: Provenance, listener: Listener
    ) -> Iterator[Recording]:
        """The recording of a table.

        Args:
            path: the table.
            place: where the recording belongs.
            provenance: the table's.
            listener: is told how it goes on.

        Raises:
            UserError: the table cannot be read, has no action units, or shows no face.
        """
        recording = assemble(place, openface_csv.read(path), {}, provenance)
        listener.expect(path, recording.frames)
        listener.advance(recording.frames)
        yield recording
