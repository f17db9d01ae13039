"""`affect extract`: from its arguments to what became of each video, with a progress bar."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from affect.data.naming import places_of
from affect.data.timeline import Place
from affect.devices import device_of
from affect.errors import UserError
from affect.extraction import backends, pipeline
from affect.extraction.faces.tracker import Faces
from affect.extraction.pipeline import Extracted, Extractor
from affect.extraction.video import find_videos

_SHARD = re.compile(r"(\d+)/(\d+)")


def run(
    sources: Sequence[Path],
    cache: Path,
    *,
    backend: str,
    device: str,
    openface_home: Path | None,
    faces: Faces,
    corpus: str,
    pattern: str | None,
    shard: str,
    force: bool,
) -> list[Extracted]:
    """Extract the videos of files and folders into a cache.

    Args:
        sources: files and folders.
        cache: the folder to fill.
        backend: `auto`, `openface` or `geometry`.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
        openface_home: the OpenFace folder; None for OPENFACE_HOME.
        faces: `largest` or `all`.
        corpus: its name in the cache.
        pattern: see `naming.places_of`.
        shard: `I/N`: the videos of job I of N.
        force: extract again what is cached.

    Raises:
        UserError: there is no video, or the backend or the device is not there.
    """
    place = device_of(device)
    extractor = Extractor(backends.make(backend, openface_home, place), place, faces)
    videos = _videos(sources, corpus, pattern)
    chosen = dict(pipeline.shard(list(videos.items()), *_shard(shard)))
    outcomes: list[Extracted] = []
    with tqdm(unit="frame", file=sys.stderr, unit_scale=True) as bar:
        for outcome in pipeline.extract(chosen, cache, extractor, force=force, on_batch=bar.update):
            outcomes.append(outcome)
            bar.set_description(f"{len(outcomes)}/{len(chosen)} videos")
    return outcomes


def summary(outcomes: Sequence[Extracted]) -> dict[str, Any]:
    """Counts over all videos, and the mean confidence of frames with a face."""
    faces = sum(outcome.faces for outcome in outcomes)
    return {
        "videos": len(outcomes),
        "recordings": sum(len(outcome.keys) for outcome in outcomes),
        "skipped": sum(outcome.skipped for outcome in outcomes),
        "failed": sum(bool(outcome.error) for outcome in outcomes),
        "frames": sum(outcome.frames for outcome in outcomes),
        "frames_with_a_face": faces,
        "mean_confidence": round(sum(o.confidence for o in outcomes) / max(faces, 1), 3),
    }


def _videos(sources: Sequence[Path], corpus: str, pattern: str | None) -> dict[Place, Path]:
    """Each video by its place; those of a folder are named by their path below it."""
    found: dict[Place, Path] = {}
    for source in sources:
        for place, path in places_of(find_videos([source]), source, corpus, pattern).items():
            other = found.setdefault(place, path)
            if other.resolve() != path.resolve():
                raise UserError(
                    f"{other} and {path} are both recording {place.name!r} of "
                    f"{place.subject!r}: tell them apart with --pattern"
                )
    return found


def _shard(text: str) -> tuple[int, int]:
    match = _SHARD.fullmatch(text)
    if match is None:
        raise UserError(f"--shard takes I/N such as 1/4, not {text!r}")
    return int(match[1]), int(match[2])
