"""From a corpus on disk to a cache: what an importer yields, and the loop that stores it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from affect import store
from affect.errors import UserError, suggestion
from affect.recording import Provenance, Recording

IMPORTERS: Mapping[str, str] = {
    "recola": "affect.data.recola",
    "avec": "affect.data.avec",
    "openface-csv": "affect.data.openface_csv",
    "table": "affect.data.table",
}
"""A format's name and the module whose `pending(source, **options)` finds its recordings."""

GENERATORS: Mapping[str, str] = {"synthetic": "affect.data.synthetic"}
"""The same for what needs no source: `pending(**options)`."""


@dataclass(frozen=True)
class Pending:
    """A recording that an importer has found and not yet read.

    Attributes:
        corpus, subject, name: the recording's place in a cache.
        provenance: its identity, known before it is read, so that what is cached is skipped.
        load: reads it; raises UserError where the source is broken.
    """

    corpus: str
    subject: str
    name: str
    provenance: Provenance
    load: Callable[[], Recording]

    @property
    def key(self) -> str:
        """`corpus/subject/name`."""
        return f"{self.corpus}/{self.subject}/{self.name}"


@dataclass
class Outcome:
    """What an import did: keys written, keys that were there already, and failures by key."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def find(format_name: str, source: Path, options: Mapping[str, Any]) -> Iterator[Pending]:
    """The recordings that a source holds in a format.

    Args:
        format_name: a key of `IMPORTERS` or `GENERATORS`.
        source: file or folder; not looked at by a generator.
        options: the importer's own keyword arguments.

    Raises:
        UserError: the format or an option is unknown, the source is missing, or holds nothing of
            that format.
    """
    modules = {**IMPORTERS, **GENERATORS}
    if format_name not in modules:
        raise UserError(f"unknown format {format_name!r}: {suggestion(format_name, modules)}")
    pending = import_module(modules[format_name]).pending
    sources = [] if format_name in GENERATORS else [source]
    if sources and not source.exists():
        raise UserError(f"no file or folder at {source}")
    known = list(signature(pending).parameters)[len(sources) :]
    for option in options:
        if option not in known:
            advice = suggestion(option, known)
            raise UserError(f"format {format_name!r} has no option {option!r}: {advice}")
    try:
        return pending(*sources, **options)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise UserError(f"format {format_name!r} cannot use {given}: {error}") from error


def import_all(
    pending: Iterable[Pending], cache: Path, *, force: bool = False
) -> Iterator[tuple[Pending, Outcome]]:
    """Store each pending recording, one after another; a broken one does not stop the rest.

    Args:
        pending: what an importer found.
        cache: the cache's folder.
        force: read and write again what is cached under the same identity.

    Yields:
        After each recording, the recording and the outcome so far (the same object).
    """
    outcome = Outcome()
    for item in pending:
        cached = store.find(cache, item.corpus, item.subject, item.name)
        if not force and cached is not None and cached.identity == item.provenance.identity:
            outcome.skipped.append(item.key)
        else:
            try:
                store.write(item.load(), cache)
                outcome.written.append(item.key)
            except UserError as error:
                outcome.failed[item.key] = str(error)
        yield item, outcome


def sha256_of(*paths: Path) -> str:
    """SHA-256 over the contents of files, in the order given, hexadecimal.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()
