"""`affect extract`: from its arguments to what became of each file, with a progress bar."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from affect.data.naming import places_of
from affect.data.timeline import Place
from affect.devices import device_of
from affect.errors import UserError
from affect.extraction import pipeline
from affect.extraction.backends import choice
from affect.extraction.backends.choice import Options
from affect.extraction.backends.protocol import Backend, Listener
from affect.extraction.pipeline import Extracted
from affect.extraction.processor import settle
from affect.extraction.progress import Progress
from affect.extraction.video import find_files
from affect.extraction.workers import Task, extract_in_processes
from affect.files import require_writable
from affect.stopping import giving_way

_SHARD = re.compile(r"(\d+)/(\d+)")
_PROXIES = (
    "affect: no OpenFace folder is known: landmark proxies are made (geometry); for action units "
    "give --openface-home or export OPENFACE_HOME\n"
)
_MOST_JOBS = 8
"""Processes where the user does not say: each takes up to a gigabyte."""


def run(
    sources: Sequence[Path],
    cache: Path,
    options: Options,
    *,
    corpus: str,
    pattern: str | None,
    shard: str,
    jobs: int | None,
    force: bool,
) -> tuple[str, list[Extracted]]:
    """Extract the videos of files and folders into a cache.

    Args:
        sources: files and folders.
        cache: the folder to fill.
        options: of the backend.
        corpus: its name in the cache.
        pattern: see `naming.places_of`.
        shard: `I/N`: the videos of job I of N.
        jobs: processes; None for one a core on the CPU, and one on a GPU.
        force: extract again what is cached.

    Returns:
        The backend's name, and what became of each file.

    Raises:
        UserError: there is no video, the backend or the device is not there, or the cache cannot
            be written.
        Preempted: after SIGTERM or SIGUSR1; what is finished stays.
    """
    backend = choice.make(options)
    files = _places(sources, backend.suffixes, corpus, pattern)
    chosen = dict(pipeline.shard(list(files.items()), *_shard(shard)))
    jobs = _jobs(jobs, len(chosen), options.device)
    require_writable(cache)
    if options.backend == "auto" and backend.name == "geometry":
        sys.stderr.write(_PROXIES)
    outcomes: list[Extracted] = []
    message = f"stopped: what is finished is in {cache}, and the same command goes on"
    with giving_way(message), Progress(chosen.values()) as progress:
        for outcome in _extracted(chosen, cache, options, backend, jobs, force, progress):
            outcomes.append(outcome)
            progress.finished(outcome)
    return backend.name, outcomes


def _extracted(
    files: Mapping[Place, Path],
    cache: Path,
    options: Options,
    backend: Backend,
    jobs: int,
    force: bool,
    listener: Listener,
) -> Iterator[Extracted]:
    if jobs == 1:
        settle()
        return pipeline.extract(files, cache, backend, force=force, listener=listener)
    share = max(1, len(os.sched_getaffinity(0)) // jobs)
    task = Task(cache, replace(options, threads=share), force)
    return extract_in_processes(files, task, jobs, listener)


def summary(backend: str, outcomes: Sequence[Extracted]) -> dict[str, Any]:
    """Counts over all videos, the mean confidence of frames with a face, and why some failed."""
    faces = sum(outcome.faces for outcome in outcomes)
    confidence = sum(outcome.confidence for outcome in outcomes)
    return {
        "backend": backend,
        "files": len(outcomes),
        "recordings": sum(len(outcome.keys) for outcome in outcomes),
        "skipped": sum(outcome.skipped for outcome in outcomes),
        "failed": sum(bool(outcome.error) for outcome in outcomes),
        "frames": sum(outcome.frames for outcome in outcomes),
        "frames_with_a_face": faces,
        "mean_confidence": round(confidence / faces, 3) if faces else None,
        "failures": dict(Counter(outcome.cause for outcome in outcomes if outcome.error)),
    }


def rows(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A summary as lines of a table, failures by cause below their number."""
    lines: list[tuple[str, Any]] = []
    for name, value in counts.items():
        if name != "failures":
            lines.append((name.replace("_", " "), value))
        if name == "failed":
            lines += [(f"  {cause}", count) for cause, count in counts["failures"].items()]
    return [(name, _cell(value)) for name, value in lines]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,}"


def _jobs(asked: int | None, files: int, device: str) -> int:
    if asked is not None and asked < 1:
        raise UserError(f"--jobs {asked}: give 1 or more")
    usual = 1
    if device_of(device).type == "cpu":
        usual = min(len(os.sched_getaffinity(0)), _MOST_JOBS)
    return max(1, min(asked or usual, files))


def _places(
    sources: Sequence[Path], suffixes: frozenset[str], corpus: str, pattern: str | None
) -> dict[Place, Path]:
    """Each file once by its place; those of a folder are named by their path below it."""
    found: dict[Place, Path] = {}
    named: set[Path] = set()
    for source in sources:
        # One that is missing fails alone, as one that is broken does.
        files = find_files([source], suffixes) if source.exists() else [source]
        files = [file for file in files if file.resolve() not in named]
        named.update(file.resolve() for file in files)
        for place, path in places_of(files, source, corpus, pattern).items():
            other = found.setdefault(place, path)
            if other != path:
                raise UserError(
                    f"{other} and {path} are both recording {place.name!r} of "
                    f"{place.subject!r}: rename one, or give the folder above both"
                )
    return found


def _shard(text: str) -> tuple[int, int]:
    match = _SHARD.fullmatch(text)
    if match is None:
        raise UserError(f"--shard takes I/N such as 1/4, not {text!r}")
    return int(match[1]), int(match[2])
