"""The `affect` command: each subcommand imports only what it runs.

Progress and logs go to standard error, the result to standard output: text for people, or with
`--json` exactly one JSON object. Exit status: 0 done, 2 for what the user can mend, 1 for a defect
of the program, 75 when it gave way after saving its state, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affect import __version__
from affect.errors import Preempted, UserError, suggestion

_LONGEST_LINE = 1000
_MOST_NAMES = 4
_OK, _DEFECT, _USER_ERROR, _PREEMPTED, _INTERRUPTED = 0, 1, 2, 75, 130


@dataclass(frozen=True)
class Result:
    """What a subcommand prints: `data` for `--json`, else `text`, which rich may render.

    Without a text nothing is printed: by processes of a distributed run other than the first.
    Where a part `failed`, the command prints what it has and ends as after an error of the user.
    """

    text: Any
    data: Mapping[str, Any]
    failed: str = ""


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        summary: one line of `affect --help`.
        configure: adds its arguments to a parser.
        run: does the work.
        takes_experiment: whether it takes an experiment's keys, or another command's arguments,
            beside its own.
    """

    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result]
    takes_experiment: bool = False


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other error of the user's."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        _run([argument for argument in arguments if argument != "--debug"])
    except UserError as error:
        if debug:
            raise
        _complain(f"error: {error}")
        return _USER_ERROR
    except KeyboardInterrupt as stop:
        gave_way = isinstance(stop, Preempted)
        _complain(str(stop) or ("preempted: nothing had begun" if gave_way else "interrupted"))
        return _PREEMPTED if gave_way else _INTERRUPTED
    except BrokenPipeError:
        _let_go_of_output()
        return _OK
    except OSError as error:
        if debug:
            raise
        _complain(f"error: {error.filename or 'cannot write'}: {error.strerror or error}")
        _let_go_of_output()
        return _USER_ERROR
    except Exception as error:
        if debug:
            raise
        _complain(f"defect: {type(error).__name__}: {error} (run again with --debug and report it)")
        return _DEFECT
    return _OK


def _run(arguments: Sequence[str]) -> None:
    name, rest = _subcommand(arguments)
    if name is None:
        return
    command = COMMANDS[name]
    parser = _Parser(prog=f"affect {name}", description=command.summary, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.configure(parser)
    if command.takes_experiment:
        options, options.experiment_arguments = parser.parse_known_args(rest)
    else:
        options = parser.parse_args(rest)
    result = command.run(options)
    if result.text is None:
        return
    if options.json:
        from affect.files import finite

        _write(json.dumps(finite(result.data), allow_nan=False))
    else:
        _print(result.text)
    if result.failed:
        raise UserError(result.failed)


def _subcommand(arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The subcommand and its arguments; none where help or the version was asked for."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        _write(_overview())
        return None, []
    if arguments[0] == "--version":
        _write(f"affect {__version__}")
        return None, []
    if arguments[0] not in COMMANDS:
        raise UserError(f"unknown command {arguments[0]!r}: {suggestion(arguments[0], COMMANDS)}")
    return arguments[0], arguments[1:]


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: affect COMMAND ...",
            "",
            "Affect recognition from facial action units, without keeping or moving faces.",
            "",
            "commands:",
            *lines,
            "",
            "`affect COMMAND --help` explains each; --json prints one JSON object.",
        ]
    )


# --- corpora ---------------------------------------------------------------------------------


def _configure_synth(parser: argparse.ArgumentParser) -> None:
    _add_cache(parser)
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
    parser.add_argument("source", type=_path, help="file or folder")
    _add_cache(parser)
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


def _configure_extract(parser: argparse.ArgumentParser) -> None:
    from affect.recording import IDENTIFYING

    parser.add_argument("videos", type=_path, nargs="+", help="files, or folders of them")
    _add_cache(parser)
    parser.add_argument(
        "--backend",
        default="auto",
        help="openface, geometry, openface-csv (reads OpenFace's own CSVs), openface-bin (runs "
        "OpenFace's FeatureExtraction), or auto: openface-bin where it is given, openface where "
        "its folder is known, else geometry",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    _add_reading(parser)
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


def _add_reading(parser: argparse._ActionsContainer) -> None:
    """What level 1 takes wherever it reads videos; None where it is not given."""
    parser.add_argument(
        "--openface-home", type=_path, help="folder of OpenFace's model files (or OPENFACE_HOME)"
    )
    parser.add_argument(
        "--openface-bin",
        type=_path,
        help="OpenFace's FeatureExtraction (default: in its folder, or on PATH)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="of FeatureExtraction, a video (default: 600 for every 1200 frames)",
    )
    parser.add_argument(
        "--faces",
        choices=("largest", "all"),
        help="the largest face (default), or all: a recording each",
    )
    parser.add_argument(
        "--gpu-decoding",
        action="store_true",
        default=None,
        help="decode on the GPU as well (not yet measured)",
    )


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    """The same as `Options` has it."""
    return {
        "backend": "auto" if options.backend is None else options.backend,
        "device": options.device,
        "openface_home": options.openface_home,
        "openface_bin": options.openface_bin,
        "timeout_s": options.timeout,
        "faces": options.faces or "largest",
        "gpu_decoding": bool(options.gpu_decoding),
    }


def _extract(options: argparse.Namespace) -> Result:
    from affect.extraction import command
    from affect.extraction.backends.choice import Options

    backend, outcomes = command.run(
        options.videos,
        options.cache,
        Options(**_reading(options), still=options.still, keep=frozenset(options.keep)),
        corpus=options.corpus,
        pattern=options.pattern,
        shard=options.shard,
        jobs=options.jobs,
        force=options.force,
    )
    _tell_of(outcomes, whole=options.json)
    summary = command.summary(backend, outcomes)
    failed = summary["failed"] and f"{summary['failed']} of {summary['files']} files failed"
    data = {"cache": str(options.cache), **summary}
    return Result(_table(("", ""), command.rows(summary)), data, failed or "")


def _tell_of(outcomes: Sequence[Any], *, whole: bool = False) -> None:
    """What became of files, in lines.

    Args:
        outcomes: of `pipeline.Extracted`.
        whole: go on where the only file failed, instead of with its error as the command's.
    """
    for outcome in outcomes:
        for note in outcome.notes:
            _complain(note)
        if outcome.error and len(outcomes) == 1 and not whole:
            raise UserError(outcome.error)
        if outcome.error:
            _complain(outcome.error)


def _import_into(options: argparse.Namespace, pending: Sequence[Any]) -> Result:
    from tqdm import tqdm

    from affect.data import importing

    steps = importing.import_all(pending, options.cache, force=options.force)
    outcome = importing.Outcome()
    for _, outcome in tqdm(steps, total=len(pending), unit="recording", file=sys.stderr):  # noqa: B007
        continue
    if outcome.failed:
        for key, message in outcome.failed.items():
            _complain(f"{key}: {message}")
        raise UserError(
            f"{len(outcome.failed)} of {len(pending)} recordings could not be imported "
            f"(the {len(outcome.written) + len(outcome.skipped)} others are in {options.cache})"
        )
    data = {"written": len(outcome.written), "skipped": len(outcome.skipped)}
    text = f"{options.cache}: {data['written']} recordings written, {data['skipped']} there already"
    return Result(text, {"cache": str(options.cache), **data})


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
    text = Group(_table(("corpus", *counts), rows), _table(("corpus", *columns), kinds))
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
            _complain(str(error))
    if broken:
        raise UserError(f"{len(broken)} of {len(paths)} recordings in {options.cache} are broken")
    return Result(
        f"{options.cache}: all {len(paths)} recordings are whole",
        {"cache": str(options.cache), "recordings": len(paths), "broken": 0},
    )


# --- training --------------------------------------------------------------------------------


def _configure_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume", type=_path, metavar="RUN", help="go on with an unfinished run's folder"
    )
    parser.epilog = (
        "Every key of an experiment file is a flag: -c EXPERIMENT.yaml --model.hidden_size=128 "
        "--seed=1; --keys lists them all."
    )
    parser.add_argument("--keys", action="store_true", help="explain every key and end")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved experiment and end"
    )


def _fit(options: argparse.Namespace) -> Result:
    from affect.training.fit import fit

    return _trained(options, "fit", fit)


def _federate(options: argparse.Namespace) -> Result:
    from affect.federated.federate import federate

    return _trained(options, "federate", federate)


def _trained(options: argparse.Namespace, name: str, train: Callable[..., Any]) -> Result:
    from affect import config

    if options.keys:
        return Result(config.explained_keys(), {"keys": list(config.keys())})
    if options.print_config:
        experiment = config.parse(options.experiment_arguments)
        return Result(config.to_yaml(experiment).rstrip("\n"), asdict(experiment))
    from affect.report import figures
    from affect.training import run as runs

    if options.resume is None and not options.experiment_arguments:
        raise UserError(f"{name} needs an experiment: give -c EXPERIMENT.yaml, or --resume RUN")
    if options.resume is None:
        resumed, experiment = None, config.parse(options.experiment_arguments)
    else:
        if options.experiment_arguments:
            raise UserError("--resume takes its experiment from the run: give no other flag")
        resumed = runs.open_run(options.resume)
        experiment = resumed.experiment
    try:
        run = train(experiment, draw=figures.draw, resume=resumed)
    except Preempted:
        if runs.is_main_process():
            raise
        return Result(None, {})  # srun would kill the first process at another's status
    if not runs.is_main_process():
        return Result(None, {})
    return _scores(run.record["metrics"], run.folder)


def _configure_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=_path, nargs="?", metavar="FILE", help="W&B sweep file")
    parser.add_argument("--count", type=int, metavar="N", help="trials in all (default: run_cap)")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time; default: 1")
    parser.add_argument(
        "--folder",
        type=_path,
        help="the sweep's folder, made or joined (default: a new one in sweeps/)",
    )
    parser.add_argument("--resume", type=_path, metavar="FOLDER", help="go on with a sweep")
    parser.add_argument("--seed", type=int, default=0, help="of random draws; default: 0")
    parser.add_argument(
        "--agent", action="store_true", help="run trials alone: no ranking, no test"
    )


def _sweep(options: argparse.Namespace) -> Result:
    from affect.sweep.run import run

    if (options.file is None) == (options.resume is None):
        raise UserError("sweep takes a FILE, or --resume FOLDER")
    return Result(
        *run(
            options.file,
            options.resume or options.folder,
            count=options.count,
            jobs=options.jobs,
            seed=options.seed,
            agent=options.agent,
            tell=_complain,
        )
    )


# --- deployment ------------------------------------------------------------------------------


def _configure_site(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="what the server calls this site")
    parser.add_argument("--cache", type=_path, required=True, help="folder of recordings")
    parser.add_argument("--corpus", default="", help="use this corpus of the cache alone")
    parser.add_argument("--state", type=_path, required=True, help="folder of clients' own states")
    parser.add_argument("--socket", type=_path, required=True, help="where the SuperNode asks")
    parser.add_argument("--split", type=_path, help="YAML of the folds, for split.kind file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU; default: %(default)s")


def _site(options: argparse.Namespace) -> Result:
    from affect.config import DataConfig
    from affect.data.corpus import entries_of
    from affect.devices import device_of, use_threads
    from affect.federated.client import enrolled_app
    from affect.federated.engines.service import serve
    from affect.federated.enrolment import EnrolledPlace
    from affect.files import require_writable
    from affect.stopping import stopping

    _log_to_standard_error()
    use_threads("--threads", options.threads)
    require_writable(options.state)
    entries = entries_of(DataConfig(cache=str(options.cache), corpus=options.corpus))
    device = device_of(options.device)
    place = EnrolledPlace(options.name, entries, options.state, device, options.split)
    with stopping("the site has stopped; start it again with the same command"):
        serve(enrolled_app(place), options.socket)
    return Result(None, {})


def _configure_gate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="0.0.0.0", help="default: %(default)s")
    parser.add_argument("--port", type=int, required=True, help="that sites connect to")
    parser.add_argument("--superlink", required=True, help="HOST:PORT on this machine")
    for name, what in (
        ("certificate", "of this machine, PEM"),
        ("key", "of the certificate, PEM"),
        ("authority", "certificate of who signed it, PEM"),
    ):
        parser.add_argument(f"--{name}", type=_path, required=True, help=what)


def _gate(options: argparse.Namespace) -> Result:
    from affect.federated.engines.gate import keep_gate

    _log_to_standard_error()
    keep_gate(
        options.host,
        options.port,
        options.superlink,
        options.certificate,
        options.key,
        options.authority,
    )
    return Result(None, {})


def _log_to_standard_error() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _configure_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, help="a run's folder")
    parser.add_argument("--cache", type=_path, help="where the recordings are now")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


def _scorer(split: str) -> Callable[[argparse.Namespace], Result]:
    def score(options: argparse.Namespace) -> Result:
        from affect.training import run as runs
        from affect.training.inference import score_run

        run = runs.open_run(options.run)
        return _scores(
            score_run(run, split, cache=options.cache, device=options.device), run.folder
        )

    return score


def _configure_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, help="a run's folder")
    parser.add_argument(
        "source",
        type=_path,
        metavar="VIDEO_OR_CACHE",
        help="a video, a folder of videos, or a folder of recordings",
    )
    parser.add_argument("--out", type=_path, required=True, help="CSV to write")
    parser.add_argument("--corpus", help="predict this corpus of a cache alone")
    parser.add_argument("--fold", type=int, help="which fold's network, where there are several")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    videos = parser.add_argument_group("of videos")
    videos.add_argument(
        "--backend",
        help="openface, geometry or openface-bin (default: what makes the features that the run "
        "was trained on)",
    )
    _add_reading(videos)


def _predict(options: argparse.Namespace) -> Result:
    from affect.training import run as runs
    from affect.training.inference import adapts
    from affect.training.videos import shows_videos

    run = runs.open_run(options.run)
    if adapts(run) and run.experiment.federation.personalisation.local == "none":
        _complain("the run adapted to each person before it was scored; this is its network before")
    if shows_videos(options.source):
        _refuse_flags(options, ["corpus"], f"a cache, {options.source} holds videos")
        return _predict_videos(run, options)
    of_videos = ["backend", "openface_home", "openface_bin", "timeout", "faces", "gpu_decoding"]
    _refuse_flags(options, of_videos, f"videos, {options.source} holds none")
    return _predict_cache(run, options)


def _refuse_flags(options: argparse.Namespace, names: Iterable[str], purpose: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for {purpose}: leave it out")


def _predict_cache(run: Any, options: argparse.Namespace) -> Result:
    from affect.training.inference import predict_cache

    written, left_out = predict_cache(
        run,
        options.source,
        options.out,
        fold=options.fold,
        device=options.device,
        corpus=options.corpus or "",
    )
    if not written["recordings"]:
        others = f"; nor do {len(left_out) - 1} others fit" if len(left_out) > 1 else ""
        raise UserError(f"{left_out[0]}{others}")
    for line in left_out:
        _complain(line)
    total = written["recordings"] + len(left_out)
    failed = f"{len(left_out)} of {total} recordings were left out" if left_out else ""
    return _predicted(options.out, {**written, "left_out": len(left_out)}, failed)


def _predict_videos(run: Any, options: argparse.Namespace) -> Result:
    from affect.extraction.backends.choice import Options
    from affect.training.videos import predict_videos

    extraction = Options(**_reading(options))
    written, outcomes = predict_videos(
        run, options.source, options.out, fold=options.fold, options=extraction
    )
    _tell_of(outcomes)
    errors = [outcome.error for outcome in outcomes if outcome.error]
    failed = f"{len(errors)} of {len(outcomes)} videos failed" if errors else ""
    if not written["recordings"]:
        raise UserError(f"{failed}: {options.out} is not written")
    counts = {**written, "videos": len(outcomes), "failed": len(errors)}
    return _predicted(options.out, counts, failed)


def _predicted(out: Path, counts: Mapping[str, int], failed: str = "") -> Result:
    text = f"{out}: {counts['frames']:,} frames of {counts['recordings']} recordings"
    return Result(text, {"out": str(out), **counts}, failed)


# --- reports ---------------------------------------------------------------------------------


def _configure_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=_path, nargs="+", metavar="RUN", help="runs' folders")
    parser.add_argument(
        "--out",
        type=_path,
        metavar="FILE.html",
        help="write all of it with figures as one page that opens without a network",
    )
    parser.add_argument("--figure", type=_path, help="draw the intervals as a PNG")
    parser.add_argument(
        "--resamples", type=int, default=2000, help="of the bootstrap over subjects"
    )


def _compare(options: argparse.Namespace) -> Result:
    from affect.report import page, table
    from affect.report.compare import compare
    from affect.report.comparison_figures import draw_comparison
    from affect.training import run as runs

    opened = [runs.open_run(folder) for folder in options.runs]
    comparison = compare(opened, resamples=options.resamples)
    if options.figure is not None:
        draw_comparison(comparison, options.figure)
    if options.out is not None:
        page.write(comparison, opened, options.out)
    return Result(table.to_tables(comparison), comparison.to_json())


def _configure_errors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, help="a run's folder")
    parser.add_argument("--split", choices=("val", "test"), default="test")


def _errors(options: argparse.Namespace) -> Result:
    from affect import store
    from affect.report import errors

    predictions = store.read_predictions(options.run / "predictions.h5")
    parts = errors.error_parts(predictions, options.split)
    return Result(errors.to_table(parts), {"run": str(options.run), **parts})


def _configure_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cache", type=_path, help="folder of recordings")


# --- clusters --------------------------------------------------------------------------------


def _configure_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        choices=("fit", "federate", "extract", "sweep", "compare", "all"),
        help="the command to submit; all: extract (with --videos), fit and federate, compare",
    )
    parser.usage = "affect submit KIND ARGUMENTS... [options]"
    parser.epilog = (
        "ARGUMENTS are those of the command itself, such as EXPERIMENT.yaml --model.layers=2; %%a "
        "in them is the array's index."
    )
    resources = parser.add_argument_group("what the job asks for, over the profile")
    for name in ("partition", "account", "qos", "constraint", "time", "memory"):
        resources.add_argument(f"--{name}")
    for name, what in (("gpus", "of a node"), ("cpus", "cores of a task")):
        resources.add_argument(f"--{name}", type=int, metavar="N", help=what)
    resources.add_argument("--nodes", type=int, default=1, metavar="N", help="of fit, federate")
    resources.add_argument(
        "--sbatch", action="append", metavar="FLAG", help="a further option: --sbatch=--exclude=n7"
    )
    arrays = parser.add_argument_group("an array of jobs")
    for name, what in (("seeds", "0-4: --seed"), ("folds", "0-4: --data.split.fold")):
        arrays.add_argument(f"--{name}", default="", metavar="INDICES", help=what)
    arrays.add_argument("--array", default="", metavar="INDICES", help="0-99%%10: ten at once")
    arrays.add_argument("--shards", type=int, default=8, help="of extract (%(default)s)")
    arrays.add_argument("--agents", type=int, default=4, help="of sweep (%(default)s)")
    parser.add_argument("--profile", type=_path, help="YAML of the cluster (or AFFECT_PROFILE)")
    parser.add_argument(
        "--after", action="append", default=[], metavar="JOB", help="wait for its success"
    )
    parser.add_argument("--videos", type=_path, help="all: extract these first")
    parser.add_argument("--dry-run", action="store_true", help="print the scripts and end")


def _submit(options: argparse.Namespace) -> Result:
    from affect.cluster import profile as profiles
    from affect.cluster.plan import Array, plan
    from affect.cluster.submission import script_of, submit

    profile = profiles.overlaid(profiles.load(options.profile), vars(options))
    array = Array(options.seeds, options.folds, options.array, options.shards, options.agents)
    given = options.experiment_arguments
    jobs = plan(options.kind, given, array, after=options.after, videos=options.videos)
    if options.dry_run:
        scripts = {job.name: script_of(job, profile, options.nodes) for job in jobs}
        return Result("\n".join(scripts.values()).rstrip("\n"), {"scripts": scripts})
    ids = submit(jobs, profile, options.nodes)
    return Result(_table(("name", "job"), ids.items()), {"jobs": ids})


def _configure_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=_path, help="of the jobs' states (default: the profile's)")
    parser.add_argument("--profile", type=_path, help="YAML of the cluster (or AFFECT_PROFILE)")


def _jobs(options: argparse.Namespace) -> Result:
    from affect.cluster import jobs, profile

    folder = options.folder or Path(profile.load(options.profile).jobs).expanduser()
    found = jobs.jobs(folder)
    rows = [
        (
            *(job.id, job.name, job.state, str(job.restarts), job.progress),
            "" if job.metric is None else f"{job.metric:.3f}",
            job.log,
        )
        for job in found
    ]
    columns = ("job", "name", "state", "restarts", "progress", "val ccc", "log")
    return Result(_lines([columns, *rows]), {"jobs": [asdict(job) for job in found]})


def _configure_upload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        type=_path,
        nargs="*",
        default=[Path("runs")],
        metavar="FOLDER",
        help="runs, folders of runs, or sweeps (default: runs)",
    )
    parser.add_argument(
        "--running",
        action="store_true",
        help="also runs that say they are running: killed ones that nobody will go on with",
    )


def _upload(options: argparse.Namespace) -> Result:
    from affect.cluster.upload import upload

    outcome = upload(options.folders, running=options.running, tell=_complain)
    for folder, reason in outcome.failed.items():
        _complain(f"{folder}: {reason}")
    text = f"{len(outcome.uploaded)} runs uploaded, {len(outcome.before)} there already"
    if outcome.running:
        text += f", {len(outcome.running)} left as they are running (--running takes them too)"
    failed = len(outcome.failed)
    again = f"{failed} runs could not be uploaded: mend it and give the same command again"
    return Result(text, asdict(outcome), again if failed else "")


def _configure_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", type=_path, help="YAML of the cluster (or AFFECT_PROFILE)")


def _doctor(options: argparse.Namespace) -> Result:
    from affect.cluster import doctor, profile

    found = list(doctor.examine(profile.load(options.profile)))
    rows = [
        (item.state, item.what, f"{item.detail}: {item.advice}" if item.advice else item.detail)
        for item in found
    ]
    broken = [item.what for item in found if item.state == doctor.BROKEN]
    failed = f"broken: {', '.join(broken)}" if broken else ""
    data = {"findings": [asdict(item) for item in found]}
    return Result(_lines(rows), data, failed)


COMMANDS: Mapping[str, Command] = {
    "synth": Command("a synthetic corpus with RECOLA's shape", _configure_synth, _synth),
    "import": Command("a corpus on disk to a cache of recordings", _configure_import, _import),
    "extract": Command("videos to a cache of recordings", _configure_extract, _extract),
    "info": Command("what a cache holds", _configure_cache, _info),
    "verify": Command("every checksum and invariant of a cache", _configure_cache, _verify),
    "fit": Command("train, validate and test an experiment", _configure_training, _fit, True),
    "federate": Command("the same experiment, by clients", _configure_training, _federate, True),
    "sweep": Command("search an experiment's settings", _configure_sweep, _sweep),
    "site": Command("hold a site's recordings in a deployment", _configure_site, _site),
    "gate": Command("let sites through to a SuperLink", _configure_gate, _gate),
    "validate": Command("a run's validation scores again", _configure_score, _scorer("val")),
    "test": Command("a run's test scores again", _configure_score, _scorer("test")),
    "predict": Command("videos or recordings to valence and arousal", _configure_predict, _predict),
    "compare": Command("runs side by side, with uncertainty", _configure_compare, _compare),
    "errors": Command("what a run's error is made of", _configure_errors, _errors),
    "submit": Command("a command as jobs of a SLURM cluster", _configure_submit, _submit, True),
    "jobs": Command("what has become of submitted jobs", _configure_jobs, _jobs),
    "upload": Command("offline W&B runs to its server", _configure_upload, _upload),
    "doctor": Command("what this machine has, and lacks", _configure_doctor, _doctor),
}


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=_path, required=True, help="folder of recordings to fill")
    parser.add_argument("--force", action="store_true", help="write what is there already again")


def _path(text: str) -> Path:
    """A path; an empty one, as of an unset shell variable, is not the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--option takes KEY=VALUE, not {text!r}")
    return key, value


def _scores(metrics: Mapping[str, float], folder: Path) -> Result:
    """The metrics as a table: one row a split and dimension, one column a score."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        split, score, dimension = key.split("/")
        rows.setdefault((split, dimension), {})[score] = value
    columns = list(dict.fromkeys(score for row in rows.values() for score in row))
    cells = [
        (*place, *(f"{row[score]:.3f}" if score in row else "" for score in columns))
        for place, row in rows.items()
    ]
    table = _table(("split", "dimension", *columns), cells, title=str(folder))
    return Result(table, {"run": str(folder), **metrics})


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _lines(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells below one another; the last cell of each may be as long as it likes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (zip(row[:-1], widths[:-1], strict=True) for row in rows)
    heads = ("".join(f"{cell:{width}}  " for cell, width in cells) for cells in padded)
    return "\n".join((head + row[-1]).rstrip() for head, row in zip(heads, rows, strict=True))


def _print(content: Any) -> None:
    if isinstance(content, str):
        _write(content)
    else:
        from rich.console import Console

        Console().print(content)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _let_go_of_output() -> None:
    """Send what standard output still holds nowhere: its last flush must not fail again."""
    with suppress(OSError, ValueError):  # it is no file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str) -> None:
    """One line on standard error, whatever a file's name or a library's message holds."""
    sys.stderr.write(f"affect: {' '.join(text.split())[:_LONGEST_LINE]}\n")
