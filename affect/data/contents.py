"""What a cache holds, corpus by corpus: told by headers, and by one opened file of each kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from affect import store
from affect.recording import Kind
from affect.store import Entry

_RATE_DIGITS = 3


def by_kind(entries: Iterable[Entry]) -> dict[Kind, list[Entry]]:
    """The entries of each kind, in the order in which they come.

    Raises:
        RecordingError: a file is broken.
    """
    known: dict[str, Kind] = {}
    found: dict[Kind, list[Entry]] = {}
    for entry in entries:
        # Headers of older files do not tell the kind: each of them is opened.
        mark = entry.kind or str(entry.path)
        if mark not in known:
            known[mark] = store.kind_of(entry.path)
        found.setdefault(known[mark], []).append(entry)
    return found


def by_corpus(entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
    """Of each corpus, JSON values: counts over all its recordings, and its `kinds`.

    Raises:
        RecordingError: a file is broken.
    """
    corpora: dict[str, list[Entry]] = {}
    for entry in entries:
        corpora.setdefault(entry.corpus, []).append(entry)
    return {name: {**_counts(held), "kinds": _kinds(held)} for name, held in corpora.items()}


def _counts(entries: list[Entry]) -> dict[str, Any]:
    frames = sum(entry.frames for entry in entries)
    faces = sum(entry.faces * entry.frames for entry in entries)
    return {
        "subjects": len({entry.subject for entry in entries}),
        "recordings": len(entries),
        "frames": frames,
        "seconds": round(sum(entry.frames / entry.rate_hz for entry in entries), 2),
        "faces": round(faces / frames, 4),
        "identifying": sorted({name for entry in entries for name in entry.identifying}),
    }


def _kinds(entries: list[Entry]) -> list[dict[str, Any]]:
    return [
        {
            "recordings": len(held),
            "backend": kind.backend,
            "rates_hz": sorted({round(entry.rate_hz, _RATE_DIGITS) for entry in held}),
            "features": list(kind.intensity_names),
            "presences": list(kind.presence_names),
            "annotations": list(kind.annotations),
        }
        for kind, held in by_kind(entries).items()
    ]
