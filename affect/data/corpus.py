"""The recordings of an experiment: imported first where it names a source, then listed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from affect import store
from affect.config import DataConfig
from affect.data import importing
from affect.data.contents import by_kind
from affect.errors import UserError
from affect.store import Entry


def entries_of(config: DataConfig, *, progress: bool = True) -> list[Entry]:
    """The recordings that an experiment uses, sorted by corpus, subject and name.

    Where it names a source these are the source's own: what else a cache holds changes no result.

    Raises:
        UserError: nothing is there, a recording cannot be imported, two corpora share a subject's
            name, or no recording has an annotation that is to be predicted.
    """
    cache = Path(config.cache)
    if config.source.format:
        paths = _import(config, cache, progress=progress)
        entries = [store.entry(path) for path in paths]
    else:
        entries = store.entries(cache, config.corpus)
    entries = [entry for entry in entries if config.corpus in ("", entry.corpus)]
    if not entries:
        raise UserError(f"no corpus {config.corpus!r} in {cache}: see `affect info {cache}`")
    _refuse_shared_names(entries)
    _refuse_unrated(entries, config.dimensions)
    return entries


def frames_by_subject(entries: Iterable[Entry]) -> dict[str, int]:
    """Each subject's number of frames."""
    frames: dict[str, int] = {}
    for entry in entries:
        frames[entry.subject] = frames.get(entry.subject, 0) + entry.frames
    return frames


def _import(config: DataConfig, cache: Path, *, progress: bool) -> list[Path]:
    """Fill the cache from the source; its recordings' files, sorted."""
    source = config.source
    items = list(importing.find(source.format, Path(source.path), source.options))
    bar = tqdm(total=len(items), desc="import", file=sys.stderr, disable=not progress, leave=False)
    with bar:
        for _, outcome in importing.import_all(items, cache):
            bar.update()
            if outcome.failed:
                key, message = next(iter(outcome.failed.items()))
                raise UserError(f"cannot import {key}: {message}")
    return sorted(store.path_of(cache, item.corpus, item.subject, item.name) for item in items)


def _refuse_shared_names(entries: Iterable[Entry]) -> None:
    corpora: dict[str, str] = {}
    for entry in entries:
        other = corpora.setdefault(entry.subject, entry.corpus)
        if other != entry.corpus:
            raise UserError(
                f"corpora {other!r} and {entry.corpus!r} both have a subject {entry.subject!r}: "
                "choose one with data.corpus"
            )


def _refuse_unrated(entries: Iterable[Entry], dimensions: Iterable[str]) -> None:
    kinds = by_kind(entries)
    rated = sorted({name for kind in kinds for name in kind.annotations})
    missing = [dimension for dimension in dimensions if dimension not in rated]
    if missing:
        corpora = sorted({entry.corpus for held in kinds.values() for entry in held})
        raise UserError(
            f"no recording of corpus {' or '.join(map(repr, corpora))} has annotation "
            f"{missing[0]!r}; there is {', '.join(rated) or 'none at all'}: "
            + ("mend data.dimensions or " if rated else "")
            + "put ratings beside the recordings as data/README.md shows"
        )
