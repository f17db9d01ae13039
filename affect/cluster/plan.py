"""What `affect submit` is asked for, as jobs that wait for one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from affect import config
from affect.cluster import slurm
from affect.cluster.submission import Submission
from affect.config import Experiment
from affect.errors import UserError

_ONE_FOLD = ("ratio", "listed")
KINDS = ("fit", "federate", "extract", "sweep", "compare", "all")


@dataclass(frozen=True)
class Array:
    """What the tasks of an array differ in; at most one of the first three.

    Attributes:
        seeds, folds: such as `0-4`.
        indices: likewise, of whatever `%a` stands for in the arguments.
        shards: into how many shards the videos are divided.
        agents: how many agents a sweep has.
    """

    seeds: str = ""
    folds: str = ""
    indices: str = ""
    shards: int = 8
    agents: int = 4


def plan(
    kind: str, arguments: Sequence[str], array: Array, *, after: Sequence[str], videos: Path | None
) -> list[Submission]:
    """The jobs of a command, each after those that it needs.

    Args:
        kind: one of `KINDS`; `all` stands for `extract` of the videos, where they are given, then
            `fit` and `federate`, then `compare`.
        arguments: of that command: of `compare` jobs or runs, of all others as `affect` takes them.
        array: over seeds, folds or shards.
        after: ids of jobs that must have succeeded.
        videos: for `all`.

    Raises:
        UserError: the arguments cannot be used.
    """
    if not arguments:
        raise UserError(f"submit {kind} needs the arguments of the command, such as a file")
    if videos is not None and kind != "all":
        raise UserError("--videos is for `affect submit all`: leave it out")
    if (array.seeds or array.folds) and kind not in ("fit", "federate", "all"):
        raise UserError(f"--seeds and --folds are for fit, federate and all, not for {kind}")
    given, waits = tuple(arguments), tuple(after)
    match kind:
        case "extract":
            return [_extraction(given, array, waits)]
        case "sweep":
            agents = array.indices or f"1-{array.agents}"
            slurm.bounds_of(agents)
            return [Submission("sweep", f"sweep-{Path(given[0]).stem}", given, agents, waits)]
        case "compare":
            jobs = tuple(argument for argument in given if argument.isdecimal())
            return [Submission("compare", "compare", given, after=(*waits, *jobs))]
        case "all":
            return _all(given, array, waits, videos)
        case _:
            return [_training(kind, given, array, waits)]


def _training(
    kind: str, arguments: tuple[str, ...], array: Array, after: tuple[str, ...]
) -> Submission:
    given, indices = _spread(arguments, array)
    experiment = _experiment(given, indices)
    if array.folds and experiment.data.split.kind in _ONE_FOLD:
        raise UserError(f"--folds: data.split.kind {experiment.data.split.kind} has a single fold")
    name = f"{kind}-{experiment.name}"
    return Submission(kind, name, given, indices, after)


def _extraction(arguments: tuple[str, ...], array: Array, after: tuple[str, ...]) -> Submission:
    indices = array.indices or f"1-{array.shards}"
    first, last = slurm.bounds_of(indices)
    if not 1 <= first <= last <= array.shards:
        raise UserError(f"--array {indices}: shards are 1 to {array.shards} (--shards N)")
    shards = {"SHARDS": str(array.shards)}
    return Submission("extract", "extract", arguments, indices, after, shards)


def _all(
    arguments: tuple[str, ...], array: Array, after: tuple[str, ...], videos: Path | None
) -> list[Submission]:
    """The whole study of an experiment: its recordings, both ways of training, the comparison."""
    trained, out = _without_out(arguments)
    fit = _training("fit", trained, array, after)
    extraction: list[Submission] = []
    if videos is not None:
        data = _experiment(fit.arguments, fit.array).data
        corpus = ("--corpus", data.corpus) if data.corpus else ()
        source = (str(videos), "--cache", data.cache, *corpus)
        extraction = [_extraction(source, replace(array, indices=""), after)]
        fit = replace(fit, after=("extract",))
    federate = replace(
        fit, kind="federate", name=f"federate-{fit.name.removeprefix('fit-')}", after=fit.after
    )
    runs = (fit.name, federate.name)
    return [*extraction, fit, federate, Submission("compare", "compare", (*runs, *out), after=runs)]


def _without_out(arguments: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The experiment's arguments, and `--out FILE` of the comparison, a page by default."""
    if "--out" not in arguments:
        return arguments, ("--out", "report.html")
    at = arguments.index("--out")
    return arguments[:at] + arguments[at + 2 :], arguments[at : at + 2]


def _spread(arguments: tuple[str, ...], array: Array) -> tuple[tuple[str, ...], str]:
    """Arguments with `%a` in them, and the indices that it takes."""
    arguments = arguments[1:] if arguments[0] in {"-c", "--config"} else arguments
    ways = {"--seed=%a": array.seeds, "--data.split.fold=%a": array.folds, "": array.indices}
    given = {flag: indices for flag, indices in ways.items() if indices}
    if not given:
        if any("%a" in argument for argument in arguments):
            raise UserError("%a stands for an array's index: give --array, such as --array=0-4")
        return arguments, ""
    if len(given) > 1:
        raise UserError("an array runs over seeds, folds or --array: give one of them")
    ((flag, indices),) = given.items()
    key = flag.partition("=")[0]
    if key in {argument.partition("=")[0] for argument in arguments}:
        raise UserError(f"{key} is given, and an array over it: leave one of them out")
    return (*arguments, *([flag] if flag else [])), indices


def _experiment(arguments: Sequence[str], indices: str) -> Experiment:
    """The experiment of an array's first task: what is wrong with it is told before it is queued.

    Raises:
        UserError: as `config.parse`.
    """
    index = str(slurm.bounds_of(indices)[0]) if indices else ""
    return config.parse(["-c", *(text.replace("%a", index) for text in arguments)])
