"""A trial's command: what W&B's agent makes of a sweep file's, and the experiment that it runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from affect import config
from affect.config import Experiment
from affect.errors import UserError, nearest
from affect.sweep.file import SweepFile
from affect.sweep.space import Point, arguments, searched

KINDS = ("fit", "federate")
_TEST = "evaluation.test"
_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
_MACRO = re.compile(r"\$\{(\w+)\}")
_SCORES = ("ccc", "rmse", "pearson", "loss", "ccc_per_recording")
_PER_EPOCH = ("ccc", "loss")
_LOWER_IS_BETTER = ("rmse", "loss")


@dataclass(frozen=True)
class Command:
    """A trial's command, split where `fit` or `federate` stands.

    Attributes:
        start: the words before it, such as `/usr/bin/env affect`.
        kind: `fit` or `federate`.
        flags: the experiment's.
    """

    start: tuple[str, ...]
    kind: str
    flags: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The whole command."""
        return [*self.start, self.kind, *self.flags]

    def resuming(self, run: Path) -> list[str]:
        """The command that goes on with an unfinished run."""
        return [*self.start, self.kind, "--resume", str(run)]


def expand(
    template: Sequence[str], program: str, configuration: Mapping[str, Any], json_file: str = ""
) -> list[str]:
    """The words that W&B's agent would run.

    Args:
        template: words of a sweep file's `command`, with W&B's macros.
        program: what `${program}` stands for.
        configuration: the parameters' values.
        json_file: what `${args_json_file}` stands for.

    Raises:
        UserError: a macro that W&B does not have.
    """
    known = _macros(program, configuration, json_file)
    words: list[str] = []
    for word in template:
        filled = _VARIABLE.sub(lambda found: os.environ.get(found[1], found[1]), word)
        macro = _MACRO.fullmatch(filled)
        if macro and macro[1] not in known:
            raise UserError(f"unknown macro {filled} in command: W&B has {', '.join(known)}")
        words += known[macro[1]] if macro else [filled]
    return words


def command_of(file: SweepFile, configuration: Mapping[str, Any], json_file: str = "") -> Command:
    """A trial's command; the test stays unread.

    Raises:
        UserError: it is not one of `affect fit` or `affect federate`.
    """
    words = expand(file.command, file.program, configuration, json_file)
    for place, word in enumerate(words):
        if word in KINDS and place and Path(words[place - 1]).name == "affect":
            flags = words[place + 1 :]
            if {"-h", "--help"} & {*flags}:
                raise UserError("the command asks for help: leave --help out")
            if not any(flag.split("=")[0] == f"--{_TEST}" for flag in flags):
                flags = [*flags, f"--{_TEST}=false"]
            return Command(tuple(words[:place]), word, tuple(flags))
    raise UserError(
        f"the command is `{' '.join(words)[:200]}`: affect sweep runs `affect fit` and "
        "`affect federate` (command: [affect, fit, -c, EXPERIMENT.yaml, ${args}])"
    )


def checked(file: SweepFile) -> Experiment:
    """The experiment of the first configuration, where every value is accepted.

    Each parameter's values are looked at beside the others' first ones; see `Parameter.probes`.

    Raises:
        UserError: an unknown parameter, a value that is refused, a metric that no run has, or
            a trial that would read the test.
    """
    if any(parameter.key == _TEST for parameter in file.space):
        raise UserError(f"a sweep's trials do not read the test: leave {_TEST} out")
    start = {parameter.key: parameter.probes[0] for parameter in searched(file.space)}
    others = ({**start, p.key: place} for p in searched(file.space) for place in p.probes[1:])
    first = _experiment(file, start)
    for experiment in chain([first], (_experiment(file, point) for point in others)):
        if experiment.evaluation.test:
            raise UserError(f"a sweep's trials do not read the test: leave {_TEST} out")
        if experiment.tracking.mode == "online":
            raise UserError("trials keep W&B offline: leave tracking.mode at auto")
    require_metric(file, first)
    return first


def require_metric(file: SweepFile, experiment: Experiment) -> None:
    """Refuse a metric that no run of the experiment reports, or its wrong direction."""
    name = file.metric.name
    dimensions = (*experiment.data.dimensions, "mean")
    scores = _PER_EPOCH if file.hyperband else _SCORES
    known = [f"val/{score}/{dimension}" for score in scores for dimension in dimensions]
    if name not in known:
        near = nearest(name, known)
        advice = f"did you mean {near!r}?" if near else f"choose one of {', '.join(known)}"
        where = " in every epoch, which early_terminate needs" if file.hyperband else ""
        raise UserError(
            f"metric {name!r} is no validation metric that runs report{where}: {advice}"
        )
    if file.metric.maximize == (name.split("/")[1] in _LOWER_IS_BETTER):
        wanted = "minimize" if file.metric.maximize else "maximize"
        raise UserError(f"metric.goal of {name} must be {wanted} (W&B's default is minimize)")


def _experiment(file: SweepFile, point: Point) -> Experiment:
    return config.parse(command_of(file, arguments(file.space, point)).flags)


def _macros(
    program: str, configuration: Mapping[str, Any], json_file: str
) -> Mapping[str, list[str]]:
    pairs = [f"{name}={value}" for name, value in configuration.items()]
    shown = {name: value for name, value in configuration.items() if value is not False}
    return {
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
        "program": [program],
        "args": [f"--{pair}" for pair in pairs],
        "args_no_hyphens": pairs,
        "args_no_equals": [
            word for name, value in configuration.items() for word in (f"--{name}", str(value))
        ],
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{name}={value}" for name, value in shown.items()
        ],
        "args_append_hydra": [f"+{pair}" for pair in pairs],
        "args_override_hydra": [f"++{pair}" for pair in pairs],
        "args_json": [json.dumps(dict(configuration))],
        "args_json_file": [json_file],
    }
