"""Why a video could not be extracted: one line for a person, and a cause to count by."""

from __future__ import annotations

from pathlib import Path

from affect.errors import UserError


class ExtractionError(UserError):
    """A video that cannot be extracted.

    Args:
        path: the video.
        cause: a few words that do not name the file, by which a summary counts.
        detail: the rest of the line: how to mend it.

    Attributes:
        cause: as given.
    """

    def __init__(self, path: Path, cause: str, detail: str) -> None:
        super().__init__(f"{path}: {cause}: {detail}")
        self.cause = cause
