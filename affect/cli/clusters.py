"""`submit`, `jobs`, `upload` and `doctor`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from affect.cli import corpora, reports, training
from affect.cli.command import Command, Parser, Result, at_least, path_of
from affect.cli.output import complain, lines_of, table_of
from affect.errors import UserError


def _configure_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        choices=("fit", "federate", "extract", "sweep", "compare", "all"),
        help="the command to submit; all: extract (--videos), fit and federate, compare",
    )
    parser.usage = "affect submit KIND ARGUMENTS... [options]"
    parser.epilog = (
        "ARGUMENTS are those of the command itself, such as EXPERIMENT.yaml --model.layers=2; %a "
        "in them is the array's index."
    )
    resources = parser.add_argument_group("what the job asks for, over the profile")
    for name in ("partition", "account", "qos", "constraint", "time", "memory"):
        resources.add_argument(f"--{name}")
    for name, what, least in (("gpus", "of a node", 0), ("cpus", "cores of a task", 1)):
        resources.add_argument(f"--{name}", type=at_least(least), metavar="N", help=what)
    resources.add_argument(
        "--nodes", type=at_least(1), default=1, metavar="N", help="of fit, federate"
    )
    resources.add_argument(
        "--sbatch", action="append", metavar="FLAG", help="a further option: --sbatch=--exclude=n7"
    )
    arrays = parser.add_argument_group("an array of jobs")
    for name, what in (("seeds", "0-4: --seed"), ("folds", "0-4: --data.split.fold")):
        arrays.add_argument(f"--{name}", default="", metavar="INDICES", help=what)
    arrays.add_argument("--array", default="", metavar="INDICES", help="0-99%%10: ten at once")
    for name, default, what in (("shards", 8, "of extract"), ("agents", 4, "of sweep")):
        about = f"{what} (%(default)s)"
        arrays.add_argument(f"--{name}", type=at_least(1), default=default, help=about)
    parser.add_argument("--profile", type=path_of, help="YAML of the cluster (or AFFECT_PROFILE)")
    parser.add_argument(
        "--after", action="append", default=[], metavar="JOB", help="wait for its success"
    )
    parser.add_argument("--videos", type=path_of, help="all: extract these first, with defaults")
    parser.add_argument("--dry-run", action="store_true", help="print the scripts and end")


def _submit(options: argparse.Namespace) -> Result:
    from affect.cluster import profile as profiles
    from affect.cluster.plan import Array, plan
    from affect.cluster.submission import script_of, submit

    profile = profiles.overlaid(profiles.load(options.profile), vars(options))
    array = Array(options.seeds, options.folds, options.array, options.shards, options.agents)
    given = options.experiment_arguments
    jobs = plan(options.kind, given, array, after=options.after, videos=options.videos)
    _refuse_unrunnable(options.kind, given, options.videos)
    if options.dry_run:
        scripts = {job.name: script_of(job, profile, options.nodes) for job in jobs}
        return Result("\n".join(scripts.values()).rstrip("\n"), {"scripts": scripts})
    ids = submit(jobs, profile, options.nodes)
    for out, file in (pair for job in jobs for pair in pairwise(job.arguments)):
        if out == "--out":
            complain(f"the comparison will be in {file}")
    return Result(table_of(("name", "job"), ids.items()), {"jobs": ids})


def _refuse_unrunnable(kind: str, given: Sequence[str], videos: Path | None) -> None:
    """Refuse what would fail in the job: arguments that its command refuses, and missing files.

    Experiments were read when the jobs were planned.
    """
    sources = [] if videos is None else [videos]
    if kind == "extract":
        sources = _parsed("extract", corpora.COMMANDS["extract"], given).videos
    if kind == "compare":
        runs = _parsed("compare", reports.COMMANDS["compare"], given).runs
        sources = [run for run in runs if not run.name.isdecimal()]
    if kind == "sweep":
        from affect.sweep.run import require_runnable

        sweep = _parsed("sweep", training.COMMANDS["sweep"], given)
        if sweep.file is None:
            raise UserError("submit sweep takes a FILE; --folder names a sweep to go on with")
        require_runnable(sweep.file, sweep.count)
    missing = [path for path in sources if "%a" not in str(path) and not path.exists()]
    if missing:
        raise UserError(f"no such file or folder: {missing[0]}")


def _parsed(name: str, command: Command, given: Sequence[str]) -> argparse.Namespace:
    """Arguments as the command itself will read them."""
    parser = Parser(prog=f"affect {name}", allow_abbrev=False)
    command.configure(parser)
    return parser.parse_args(given)


def _configure_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("numbers", nargs="*", metavar="JOB", help="these alone, such as 12 or 12_3")
    parser.add_argument(
        "--folder", type=path_of, help="of the jobs' states (default: the profile's)"
    )
    parser.add_argument("--profile", type=path_of, help="YAML of the cluster (or AFFECT_PROFILE)")


def _jobs(options: argparse.Namespace) -> Result:
    from affect.cluster import jobs, profile

    folder = options.folder or Path(profile.load(options.profile).jobs).expanduser()
    wanted = set(options.numbers)
    found = [
        job
        for job in jobs.jobs(folder)
        if not wanted or wanted & {job.id, job.id.partition("_")[0]}
    ]
    rows = [
        (
            *(job.id, job.name, job.state, str(job.restarts), job.progress),
            "" if job.metric is None else f"{job.metric:.3f}",
            job.log,
        )
        for job in found
    ]
    columns = ("job", "name", "state", "restarts", "progress", "val ccc", "log")
    return Result(lines_of([columns, *rows]), {"jobs": [asdict(job) for job in found]})


def _configure_upload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        type=path_of,
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

    outcome = upload(options.folders, running=options.running, tell=complain)
    for folder, reason in outcome.failed.items():
        complain(f"{folder}: {reason}")
    text = f"{len(outcome.uploaded)} runs uploaded, {len(outcome.before)} there already"
    if outcome.running:
        text += f", {len(outcome.running)} left as they are running (--running takes them too)"
    failed = len(outcome.failed)
    again = f"{failed} runs could not be uploaded: mend it and give the same command again"
    return Result(text, asdict(outcome), again if failed else "")


def _configure_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", type=path_of, help="YAML of the cluster (or AFFECT_PROFILE)")


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
    return Result(lines_of(rows), data, failed)


COMMANDS: Mapping[str, Command] = {
    "submit": Command("a command as jobs of a SLURM cluster", _configure_submit, _submit, True),
    "jobs": Command("what has become of submitted jobs", _configure_jobs, _jobs),
    "upload": Command("offline W&B runs to its server", _configure_upload, _upload),
    "doctor": Command("what this machine has, and lacks", _configure_doctor, _doctor),
}
