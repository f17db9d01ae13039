"""The progress of an extraction on standard error."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from tqdm import tqdm

from affect.extraction.backends.protocol import Listener
from affect.extraction.pipeline import Extracted


class Progress(Listener):
    """One bar: frames done, frames a second, and the time left.

    Only an opened file tells how many frames it has; those that wait are guessed from their bytes.

    Args:
        paths: of all files.
    """

    def __init__(self, paths: Collection[Path]) -> None:
        self._unopened = {path: path.stat().st_size for path in paths if path.is_file()}
        self._files, self._finished = len(paths), 0
        self._frames, self._bytes = 0, 0
        self._bar = tqdm(unit="frame", file=sys.stderr, unit_scale=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def expect(self, path: Path, frames: int) -> None:
        """See `Listener`."""
        if frames and path in self._unopened:  # else it is read again
            self._frames += frames
            self._bytes += self._unopened.pop(path)
        self._guess_total()

    def advance(self, frames: int) -> None:
        """See `Listener`."""
        self._bar.update(frames)

    def finished(self, outcome: Extracted) -> None:
        """So much is known of one more file."""
        self._unopened.pop(outcome.path, None)
        self._finished += 1
        self._bar.set_description(f"{self._finished}/{self._files} files", refresh=False)
        self._guess_total()

    def _guess_total(self) -> None:
        frames_a_byte = self._frames / self._bytes if self._bytes else 0
        guess = self._frames + frames_a_byte * sum(self._unopened.values())
        self._bar.total = max(int(guess), self._bar.n)
