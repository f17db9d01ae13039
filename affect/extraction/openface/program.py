"""OpenFace's own program, the user's `FeatureExtraction`: found, and run on one video.

Command line and behaviour are those of OpenFace 2.0 to 2.2: without one flag that names an output
it writes a video, face pictures and descriptors too, and what fails it tells on standard output
with status 0.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import IO

from affect.data.importing import sha256_of
from affect.errors import UserError
from affect.extraction.failures import ExtractionError
from affect.extraction.openface.weights import LICENCE

NAME = "FeatureExtraction"
FLAGS = ("-aus",)
"""What is written: a table of action units, and no pixels."""

_PLACES = ("bin", "build/bin", "")
"""Where an OpenFace folder may hold the program."""
_MODELS = ("AU_predictors", "model")
"""The folders of models that it reads, beside it or, where it is installed, in `etc/OpenFace`."""
_TABLE = "units.csv"
_PATIENCE_S, _PATIENCE_FRAMES = 600.0, 1200
_LAST_BYTES, _LONGEST_WORDS = 4096, 300
_SHELLS_SIGNALS = 128
"""What a shell, as of a container's wrapper, adds to the signal that ended its program."""


def find(given: Path | None, home: Path | None) -> Path:
    """The program: as given, else in the OpenFace folder, else on PATH.

    Args:
        given: the program itself.
        home: an OpenFace source tree, build or installation.

    Raises:
        UserError: it is not there or cannot be executed.
    """
    if given is not None:
        return _executable(given.expanduser())
    if home is not None:
        for place in _PLACES:
            candidate = home.expanduser() / place / NAME
            if candidate.is_file():
                return _executable(candidate)
    on_path = shutil.which(NAME)
    if on_path is None:
        raise UserError(
            f"the openface-bin backend needs OpenFace's program {NAME}: give --openface-bin, or "
            f"--openface-home, or put it on PATH ({LICENCE})"
        )
    return _executable(Path(on_path))


def _executable(path: Path) -> Path:
    """The file itself: its models are sought beside it, not beside a link to it."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}: give OpenFace's program {NAME} with --openface-bin")
    if not os.access(path, os.X_OK):
        raise UserError(f"{path} may not be executed: chmod +x it, or give another --openface-bin")
    return path.resolve()


def weights_sha256(program: Path) -> str:
    """SHA-256 over the program and the models that it finds, hexadecimal.

    Raises:
        UserError: one of them cannot be read.
    """
    folder = program.parent
    homes = [home for home in (folder, folder.parent / "etc" / "OpenFace") if _holds_models(home)]
    models = [
        path
        for home in homes[:1]
        for name in _MODELS
        for path in sorted((home / name).rglob("*"))
        if path.is_file()
    ]
    return sha256_of(program, *models)


def _holds_models(home: Path) -> bool:
    return (home / _MODELS[0]).is_dir()


def patience_s(frames: int) -> float:
    """How long it may take: ten minutes for every 1,200 frames, those begun included.

    That is thirty times what it usually takes for a small picture on two cores.
    """
    return _PATIENCE_S * max(1, -(-frames // _PATIENCE_FRAMES))


def run(program: Path, video: Path, folder: Path, timeout_s: float) -> Path:
    """The table of a video's action units, written to an empty folder.

    No process that it started is left when this returns or raises.

    Args:
        program: the executable.
        video: what to read.
        folder: private to this run.
        timeout_s: seconds after which it is killed.

    Raises:
        ExtractionError: it cannot be started, crashed, failed, took too long or wrote no table.
    """
    # An absolute path begins with no hyphen, and is found from whatever folder.
    arguments = ["-f", str(video.absolute()), "-out_dir", str(folder), "-of", _TABLE, *FLAGS]
    with (folder / "said.txt").open("w+b") as said:
        try:
            status = _status([str(program), *arguments], folder, said, timeout_s)
        except subprocess.TimeoutExpired:
            cause = f"OpenFace took longer than {timeout_s:g} s"
            advice = f"give --timeout more{_on_one_core()}"
            raise ExtractionError(video, cause, f"{_last_words(said)}; {advice}") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise ExtractionError(video, "OpenFace cannot be started", reason) from error
        cause = _cause(status) or ("" if (folder / _TABLE).is_file() else "OpenFace wrote no table")
        if cause:
            raise ExtractionError(video, cause, _last_words(said))
    return folder / _TABLE


def _status(command: list[str], folder: Path, said: IO[bytes], timeout_s: float) -> int:
    """How it ended; whatever happens, its whole process group is gone after that."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        with suppress(OSError):  # it has ended; a dump of its memory would hold pixels
            resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        return process.wait(timeout_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(folder: Path) -> dict[str, str]:
    """Two threads, since one can wait for another; plain decimal points; no file elsewhere."""
    return {**os.environ, "OMP_NUM_THREADS": "2", "LC_ALL": "C", "TMPDIR": str(folder)}


def _cause(status: int) -> str:
    number = -status if status < 0 else status - _SHELLS_SIGNALS
    if 0 < number < signal.NSIG:
        return f"OpenFace crashed with signal {number}"
    return f"OpenFace ended with status {status}" if status else ""


def _on_one_core() -> str:
    alone = len(os.sched_getaffinity(0)) == 1
    return ", and a second core: on one alone OpenFace can wait forever" if alone else ""


def _last_words(said: IO[bytes]) -> str:
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _LAST_BYTES))
    lines = [" ".join(line.split()) for line in said.read().decode(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return f"it last said {last[-_LONGEST_WORDS:]!r}" if last else "it said nothing"
