"""The progress of an extraction on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from affect.extraction.backends.protocol import Listener
from affect.extraction.pipeline import Extracted

_LINE_S = 30.0
"""Between two lines where standard error is a file."""


class Progress(Listener):
    """Frames done, frames a second, and the time left: a bar, or a line now and then in a file.

    Only an opened file tells how many frames it has; those that wait are guessed from their bytes.

    Args:
        paths: of all files.
    """

    def __init__(self, paths: Collection[Path]) -> None:
        self._unopened = {path: path.stat().st_size for path in paths if path.is_file()}
        self._files, self._finished = len(paths), 0
        self._frames, self._bytes = 0, 0
        self._bar = _bar() if sys.stderr.isatty() else _Lines()
        self._count_files()

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
        self._count_files()
        self._guess_total()

    def _count_files(self) -> None:
        self._bar.set_description(f"{self._finished}/{self._files} files", refresh=False)

    def _guess_total(self) -> None:
        frames_a_byte = self._frames / self._bytes if self._bytes else 0
        guess = self._frames + frames_a_byte * sum(self._unopened.values())
        self._bar.total = max(int(guess), self._bar.n)


def _bar() -> tqdm[Any]:
    return tqdm(unit="frame", file=sys.stderr, unit_scale=True)


class _Lines:
    """Stands in for a bar that would fill a file with states of itself.

    The last line is written at the end; where no frame was read, there is none.
    """

    def __init__(self) -> None:
        self.n, self.total = 0, 0
        self._title = ""
        self._start_s = self._latest_s = time.monotonic()

    def set_description(self, title: str, *, refresh: bool) -> None:
        self._title = title

    def update(self, frames: int) -> None:
        self.n += frames
        if time.monotonic() - self._latest_s >= _LINE_S:
            self._write()

    def close(self) -> None:
        if self.n:
            self._write()

    def _write(self) -> None:
        self._latest_s = time.monotonic()
        rate_hz = self.n / (self._latest_s - self._start_s)
        left = tqdm.format_interval((self.total - self.n) / rate_hz)
        line = f"{self._title}, {self.n:,} frames, {rate_hz:.0f} frames/s"
        sys.stderr.write(line + (f", {left} left\n" if self.total > self.n else "\n"))
        sys.stderr.flush()
