"""`fit`, `federate` and `sweep`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from affect.cli.command import Command, Result, path_of
from affect.cli.output import complain, scores_of
from affect.errors import Preempted, UserError


def _configure_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume", type=path_of, metavar="RUN", help="go on with an unfinished run's folder"
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
    return scores_of(run.record["metrics"], run.folder)


def _configure_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=path_of, nargs="?", metavar="FILE", help="W&B sweep file")
    parser.add_argument("--count", type=int, metavar="N", help="trials in all (default: run_cap)")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time; default: 1")
    parser.add_argument(
        "--folder",
        type=path_of,
        help="the sweep's folder, made or joined (default: a new one in sweeps/)",
    )
    parser.add_argument("--resume", type=path_of, metavar="FOLDER", help="go on with a sweep")
    parser.add_argument("--seed", type=int, default=0, help="of random draws; default: 0")
    parser.add_argument(
        "--agent", action="store_true", help="run trials alone: no ranking, no test"
    )


def _sweep(options: argparse.Namespace) -> Result:
    from affect.sweep.run import run

    if (options.file is None) == (options.resume is None):
        raise UserError("sweep takes a FILE, or --resume FOLDER")
    if options.resume and options.folder:
        raise UserError("--resume names the sweep's folder: leave --folder out")
    return Result(
        *run(
            options.file,
            options.resume or options.folder,
            count=options.count,
            jobs=options.jobs,
            seed=options.seed,
            agent=options.agent,
            tell=complain,
        )
    )


COMMANDS: Mapping[str, Command] = {
    "fit": Command("train, validate and test an experiment", _configure_training, _fit, True),
    "federate": Command("the same experiment, by clients", _configure_training, _federate, True),
    "sweep": Command("search an experiment's settings", _configure_sweep, _sweep),
}
