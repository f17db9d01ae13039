"""Files that appear whole or not at all, and JSON values that any reader takes."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from affect.errors import UnwritableError

_SUFFIX = ".tmp"
_STALE_S = 3600
"""What a temporary file that nobody has written to for so long is: that of a killed process."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step.

    Raises:
        UserError: as `whole_file`.
    """
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes its name when the block ends without an error.

    It is a temporary neighbour until then, synced before it is renamed; folders are made. A file
    that had the name is replaced in one step. Neighbours that a killed process left are removed.

    Raises:
        UnwritableError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=".", suffix=_SUFFIX, delete=False
        ) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise UnwritableError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    for temporary in folder.glob(f".*{_SUFFIX}"):
        with suppress(OSError):  # another process has removed it, or it is not ours to remove
            if time.time() - temporary.stat().st_mtime > _STALE_S:
                temporary.unlink()


def require_writable(folder: Path) -> None:
    """Make a folder where it is missing, and refuse it where nothing can be written to it.

    Raises:
        UnwritableError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix="."):
            pass
    except OSError as error:
        raise UnwritableError(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder"
        ) from error


def finite(value: Any) -> Any:
    """JSON values in which numbers that are not finite, which JSON does not know, are null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
