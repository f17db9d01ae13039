"""`synth`, `import`, `extract`, `info` and `verify`: what makes caches and looks at them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from affect.cli.command import Command, Result, add_cache, path_of
from affect.cli.output import complain, table_of
from affect.cli.videos import add_reading, reading_of, tell_of
from affect.errors import UserError

_MOST_NAMES = 4


def _configure_synth(parser: argparse.ArgumentParser) -> None:
    add_cache(parser)
    parser.add_argument("--subjects", type=int, default=23, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=300.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def _synth(options: argparse.Namespace) -> Result:
    from affect.data import synthetic

    pending = synthetic.pending(options.subjects, options.seconds, seed=options.seed)
    return _import_into(options, list(pending))


def _configure_import(parser: argparse.ArgumentParser) -> None:
    from affect.data.importing import IMPORTERS

    parser.add_argument("format", choices=list(IMPORTERS), help="format of the source")
    parser.add_argument("source", type=path_of, help="file or folder")
    add_cache(parser)
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of this format, see data/README.md; may be given several times",
    )


def _import(options: argparse.Namespace) -> Result:
    from affect.data import importing

    chosen = dict(_pair(text) for text in options.option)
    return _import_into(options, list(importing.find(options.format, options.source, chosen)))


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--option takes KEY=VALUE, not {text!r}")
    return key, value


def _configure_extract(parser: argparse.ArgumentParser) -> None:
    from affect.recording import IDENTIFYING

    parser.add_argument("videos", type=path_of, nargs="+", help="files, or folders of them")
    add_cache(parser)
    parser.add_argument(
        "--backend",
        default="auto",
        help="openface, geometry, openface-csv (reads OpenFace's own CSVs), openface-bin (runs "
        "OpenFace's FeatureExtraction), or auto: openface-bin where it is given, openface where "
        "its folder is known, else geometry",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add_reading(parser)
    parser.add_argument(
        "--still",
        action="store_true",
        help="the files are pictures: a recording of one frame each, at 1 Hz",
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        action="extend",
        choices=IDENTIFYING,
        default=[],
        help="keep what identifies people in the recordings too: landmarks (0.5 kB a frame), "
        "descriptors (openface alone: 19 kB a frame on disk before compression, and several times "
        "that in memory until the video ends)",
    )
    parser.add_argument("--corpus", default="videos", help="its name in the cache (%(default)s)")
    parser.add_argument(
        "--pattern", help="regular expression with groups subject and recording, of a video's path"
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="only every N-th video")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="processes (default: one a core, at most 8; on a GPU one)",
    )


def _extract(options: argparse.Namespace) -> Result:
    from affect.extraction import command
    from affect.extraction.backends.choice import Options

    backend, outcomes = command.run(
        options.videos,
        options.cache,
        Options(**reading_of(options), still=options.still, keep=frozenset(options.keep)),
        corpus=options.corpus,
        pattern=options.pattern,
        shard=options.shard,
        jobs=options.jobs,
        force=options.force,
    )
    tell_of(outcomes, whole=options.json)
    summary = command.summary(backend, outcomes)
    failed = summary["failed"] and f"{summary['failed']} of {summary['files']} files failed"
    data = {"cache": str(options.cache), **summary}
    return Result(table_of(("", ""), command.rows(summary)), data, failed or "")


def _import_into(options: argparse.Namespace, pending: Sequence[Any]) -> Result:
    from tqdm import tqdm

    from affect.data import importing

    steps = importing.import_all(pending, options.cache, force=options.force)
    outcome = importing.Outcome()
    for _, outcome in tqdm(steps, total=len(pending), unit="recording", file=sys.stderr):  # noqa: B007
        continue
    if outcome.failed:
        for key, message in outcome.failed.items():
            complain(f"{key}: {message}")
        raise UserError(
            f"{len(outcome.failed)} of {len(pending)} recordings could not be imported "
            f"(the {len(outcome.written) + len(outcome.skipped)} others are in {options.cache})"
        )
    data = {"written": len(outcome.written), "skipped": len(outcome.skipped)}
    text = f"{options.cache}: {data['written']} recordings written, {data['skipped']} there already"
    return Result(text, {"cache": str(options.cache), **data})


def _configure_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", type=path_of, help="folder of recordings")


def _info(options: argparse.Namespace) -> Result:
    from rich.console import Group

    from affect import store
    from affect.data import contents

    corpora = contents.by_corpus(store.entries(options.cache))
    rows = [
        (
            name,
            *(f"{corpus[column]:,}" for column in ("subjects", "recordings", "frames")),
            f"{corpus['seconds'] / 3600:.2f}",
            f"{corpus['faces']:.1%}",
            "\n".join(corpus["identifying"]) or "none",
        )
        for name, corpus in corpora.items()
    ]
    kinds = [
        (
            name,
            f"{kind['recordings']:,}",
            kind["backend"],
            _spanned([f"{rate_hz:g}" for rate_hz in kind["rates_hz"]]),
            "\n".join(_spanned(kind[part]) for part in ("features", "presences") if kind[part]),
            _spanned(kind["annotations"]) or "none",
        )
        for name, corpus in corpora.items()
        for kind in corpus["kinds"]
    ]
    counts = ("subjects", "recordings", "frames", "hours", "frames with a face", "identifying")
    columns = ("recordings", "backend", "rate (Hz)", "features", "annotations")
    text = Group(table_of(("corpus", *counts), rows), table_of(("corpus", *columns), kinds))
    return Result(text, {"cache": str(options.cache), "corpora": corpora})


def _spanned(names: Sequence[str]) -> str:
    """All of a few names; of more the first, the last and their number."""
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{names[0]} ... {names[-1]} ({len(names)})"


def _verify(options: argparse.Namespace) -> Result:
    from tqdm import tqdm

    from affect import store

    paths = store.recording_paths(options.cache)
    broken = []
    for path in tqdm(paths, unit="recording", file=sys.stderr):
        try:
            store.verify(path)
        except UserError as error:
            broken.append(str(error))
            complain(str(error))
    if broken:
        raise UserError(f"{len(broken)} of {len(paths)} recordings in {options.cache} are broken")
    return Result(
        f"{options.cache}: all {len(paths)} recordings are whole",
        {"cache": str(options.cache), "recordings": len(paths), "broken": 0},
    )


COMMANDS: Mapping[str, Command] = {
    "synth": Command("a synthetic corpus with RECOLA's shape", _configure_synth, _synth),
    "import": Command("a corpus on disk to a cache of recordings", _configure_import, _import),
    "extract": Command("videos to a cache of recordings", _configure_extract, _extract),
    "info": Command("what a cache holds", _configure_cache, _info),
    "verify": Command("every checksum and invariant of a cache", _configure_cache, _verify),
}
