"""Reads a W&B sweep file, and refuses by name what of it is not supported."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from affect.errors import UserError, suggestion
from affect.sweep.hyperband import Hyperband, from_first, from_last
from affect.sweep.space import Parameter, Space

METHODS = ("grid", "random", "bayes")
_DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
_KEYS = {
    *("program", "command", "method", "metric", "parameters", "early_terminate", "run_cap"),
    *("name", "description", "project", "entity", "apiVersion", "kind"),
}
_EXPERIMENTS = {"data", "model", "trainer"}
"""Keys that experiments have and sweep files do not."""
_ELSEWHERE = {
    "controller": "this command is the controller",
    "scheduler": "W&B's server runs schedulers",
    "job": "W&B Launch runs jobs",
    "image_uri": "W&B Launch runs images",
    "metrics": "a sweep here has one metric",
}
_LARGEST, _LARGEST_EXPONENT = 2**53, 700
_MOST_VALUES = 10_000
_METRIC_KEYS = {"name", "goal", "target"}
_BOUNDS = ("min", "max")
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    **dict.fromkeys(
        (
            *("int_uniform", "uniform", "q_uniform", "log_uniform", "log_uniform_values"),
            *("inv_log_uniform", "inv_log_uniform_values"),
            *("q_log_uniform", "q_log_uniform_values"),
        ),
        _BOUNDS,
    ),
    **dict.fromkeys(("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"), ()),
}


@dataclass(frozen=True)
class Metric:
    """What the sweep optimises.

    Attributes:
        name: its key in a run's metrics.
        maximize: whether more is better.
        target: value at which no new trial begins; None for none.
    """

    name: str = "val/ccc/mean"
    maximize: bool = True
    target: float | None = None

    def cost(self, value: float) -> float:
        """The value, so that lower is better."""
        return -value if self.maximize else value


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file says.

    Attributes:
        name: of the sweep; empty where the file gives none.
        method: `grid`, `random` or `bayes`.
        metric: what is optimised.
        space: the parameters, ordered as W&B orders them.
        command: the words of a trial's command, with W&B's macros.
        program: what `${program}` stands for.
        hyperband: when trials are stopped early; None for never.
        run_cap: most trials; None for no limit.
        project: W&B's project; empty for the experiment's.
        entity: likewise.
    """

    name: str
    method: str
    metric: Metric
    space: Space
    command: tuple[str, ...]
    program: str
    hyperband: Hyperband | None
    run_cap: int | None
    project: str
    entity: str


def parse(text: str, name: str) -> SweepFile:
    """The sweep that a file describes.

    Args:
        text: of the file, YAML.
        name: of the file, for messages.

    Raises:
        UserError: it is no YAML, or says what is not supported.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"cannot read {name}: {' '.join(str(error).split())}") from error
    try:
        return _sweep(content)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except RecursionError:
        raise UserError(f"{name}: an anchor stands for what it is part of") from None


def _sweep(content: Any) -> SweepFile:
    content = _mapping(content, "a sweep file")
    if "parameters" not in content and content.keys() & _EXPERIMENTS:
        raise UserError("this is an experiment, not a sweep file: see experiments/sweeps/")
    for key in content:
        if key in _ELSEWHERE:
            raise UserError(f"{key} is not supported: {_ELSEWHERE[key]}; leave it out")
    _known(content, _KEYS, "")
    method = content.get("method")
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    metric = _metric(content.get("metric"))
    space = tuple(_parameters(content.get("parameters"), ()))
    if method == "grid":
        space = _on_grid(space)
    name = content.get("name") or ""
    if not isinstance(name, str):
        raise UserError(f"name must be a text, not {name!r}")
    cap = content.get("run_cap")
    if cap is not None and not (_is_integer(cap) and cap > 0):
        raise UserError(f"run_cap must be a whole number above 0, not {cap!r}")
    return SweepFile(
        name=name,
        method=method,
        metric=metric,
        space=space,
        command=_command(content),
        program=str(content.get("program") or ""),
        hyperband=_hyperband(content.get("early_terminate")),
        run_cap=cap,
        project=str(content.get("project") or ""),
        entity=str(content.get("entity") or ""),
    )


def _metric(content: Any) -> Metric:
    if content is None:
        return Metric()
    content = _mapping(content, "metric")
    _known(content, _METRIC_KEYS, "metric.")
    name = content.get("name")
    if not isinstance(name, str):
        raise UserError("metric needs a name, such as val/ccc/mean")
    goal = content.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise UserError(f"metric.goal must be minimize or maximize, not {goal!r}")
    target = content.get("target")
    if target is not None and not _is_number(target):
        raise UserError(f"metric.target must be a number, not {target!r}")
    return Metric(name, goal == "maximize", target)


def _command(content: Mapping[str, Any]) -> tuple[str, ...]:
    command = content.get("command", list(_DEFAULT_COMMAND))
    if not isinstance(command, list) or not command:
        raise UserError("command must be a list of words, such as [affect, fit, -c, FILE, ${args}]")
    return tuple(str(word) for word in command)


# --- early termination -----------------------------------------------------------------------


def _hyperband(content: Any) -> Hyperband | None:
    if content is None:
        return None
    content = _mapping(content, "early_terminate")
    if content.get("type") != "hyperband":
        given = content.get("type")
        raise UserError(f"early_terminate.type {given!r} is not supported: choose hyperband")
    known = {"type", "min_iter", "max_iter", "s", "eta", "strict"}
    _known(content, known, "early_terminate.")
    eta = _number(content, "eta", 3, above=1.1)
    if "max_iter" in content:
        if "s" not in content:
            raise UserError("early_terminate.max_iter needs s, the number of brackets")
        last, count = _number(content, "max_iter", None), _number(content, "s", None)
        brackets = from_last(int(last), count, eta)
    elif "min_iter" in content:
        brackets = from_first(math.ceil(_number(content, "min_iter", None)), eta)
    else:
        raise UserError("early_terminate needs min_iter, or max_iter and s")
    if not brackets:
        raise UserError("early_terminate has no bracket: raise max_iter or s, or lower eta")
    strict = content.get("strict", False)
    if not isinstance(strict, bool):
        raise UserError(f"early_terminate.strict must be true or false, not {strict!r}")
    return Hyperband(brackets, eta, strict)


def _number(content: Mapping[str, Any], key: str, default: float | None, above: float = 0) -> float:
    value = content.get(key, default)
    if not _is_number(value) or not value > above:
        raise UserError(f"early_terminate.{key} must be a number above {above}, not {value!r}")
    return value


# --- parameters ------------------------------------------------------------------------------


def _parameters(content: Any, outer: tuple[str, ...]) -> Iterator[Parameter]:
    """All parameters, nested ones included, ordered by their names."""
    content = _mapping(content, ".".join([*outer, "parameters"]))
    if not content:
        raise UserError("parameters is empty: name what to search")
    for name, given in sorted(content.items(), key=lambda item: str(item[0])):
        path = (*outer, str(name))
        given = _mapping(given, f"parameter {'.'.join(path)}")  # noqa: PLW2901
        if "parameters" in given:
            _known(given, {"parameters"}, f"{'.'.join(path)}.")
            yield from _parameters(given["parameters"], path)
        else:
            yield _parameter(path, given)


def _parameter(path: tuple[str, ...], given: Mapping[str, Any]) -> Parameter:
    key = ".".join(path)
    settings = {name: value for name, value in given.items() if name != "distribution"}
    kind = given.get("distribution") or _implied(key, settings)
    if not isinstance(kind, str) or kind not in _NEEDED:
        raise UserError(f"{key}: unknown distribution {kind!r}: {suggestion(str(kind), _NEEDED)}")
    defaults = _defaults(kind)
    for name in _NEEDED[kind]:
        if name not in settings:
            raise UserError(f"{key}: {kind} needs {name}")
    _known(settings, {*_NEEDED[kind], *defaults}, f"{key}: {kind}: ")
    settings = {**defaults, **settings}
    for broken, wanted in _rules(kind, settings):
        if broken:
            raise UserError(f"{key}: {wanted}")
    return Parameter(path, kind, settings)


def _implied(key: str, settings: Mapping[str, Any]) -> str:
    """The distribution that W&B takes where none is named."""
    if "value" in settings:
        return "constant"
    if "values" in settings:
        return "categorical_w_probabilities" if "probabilities" in settings else "categorical"
    if set(_BOUNDS) <= set(settings):
        whole = all(_is_integer(settings[name]) for name in _BOUNDS)
        return "int_uniform" if whole else "uniform"
    raise UserError(f"{key}: give value, values, min and max, or a distribution")


def _defaults(kind: str) -> dict[str, Any]:
    defaults: dict[str, Any] = {"q": 1.0} if kind.startswith("q_") else {}
    if kind.endswith("normal"):
        defaults |= {"mu": 0.0, "sigma": 1.0}
    return {**defaults, "a": 1, "b": 1} if kind.endswith("beta") else defaults


def _rules(kind: str, settings: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Pairs of whether a rule is broken, and what it wants; later ones rely on earlier ones."""
    for name in ("min", "max", "mu", "sigma", "a", "b", "q"):
        if name in settings:
            yield not _is_number(settings[name]), f"{name} must be a number{_hint(settings[name])}"
    if kind == "int_uniform":
        whole = all(_is_integer(settings[name]) for name in _BOUNDS)
        yield not whole, "min and max of int_uniform must be whole numbers"
        large = any(abs(settings[name]) > _LARGEST for name in _BOUNDS)
        yield large, f"min and max of int_uniform may be {_LARGEST} at most"
    if "min" in settings:
        low, high = settings["min"], settings["max"]
        yield not low < high, f"min {low} is not below max {high}"
        yield kind.endswith("log_uniform_values") and not low > 0, f"min of {kind} must be above 0"
        exponents = kind.removeprefix("q_") in ("log_uniform", "inv_log_uniform")
        yield (
            exponents and max(abs(low), abs(high)) > _LARGEST_EXPONENT,
            f"min and max of {kind} are exponents of e: {kind}_values takes the values themselves",
        )
    yield not settings.get("sigma", 0) >= 0, "sigma must be 0 or more"
    for name in ("q", "a", "b"):
        yield not settings.get(name, 1) > 0, f"{name} must be above 0"
    if "values" in settings:
        values = settings["values"]
        yield not isinstance(values, list) or not values, "values must be a list, not empty"
    for value in settings.get("values", [settings.get("value")]):
        yield not _is_plain(value), f"{value} is no text or number: write it in quotes"
    if "probabilities" in settings:
        yield from _probability_rules(settings["values"], settings["probabilities"])


def _probability_rules(values: list[Any], given: Any) -> Iterator[tuple[bool, str]]:
    numbers = isinstance(given, list) and all(_is_number(item) and item >= 0 for item in given)
    yield not numbers, "probabilities must be a list of numbers of 0 or more"
    yield len(given) != len(values), f"{len(values)} values have {len(given)} probabilities"
    yield not math.isclose(sum(given), 1.0, rel_tol=1e-5), "the probabilities must sum to 1"


def _on_grid(space: Space) -> Space:
    for parameter in space:
        if not parameter.grids:
            raise UserError(
                f"{parameter.key}: method grid takes values, int_uniform and q_uniform, not "
                f"{parameter.kind}: choose method random or bayes"
            )
        settings = parameter.settings
        if "q" in settings and settings["max"] - settings["min"] > _MOST_VALUES * settings["q"]:
            raise UserError(f"{parameter.key}: a grid of more than {_MOST_VALUES} values: raise q")
    return tuple(parameter.on_grid() for parameter in space)


# --- values ----------------------------------------------------------------------------------


def _mapping(content: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{what} must hold keys and values, not {content!r}")
    return content


def _known(content: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    for key in content:
        if key not in known:
            advice = suggestion(str(key), sorted(known))
            raise UserError(f"{prefix}{key} is not supported: {advice}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_plain(value: Any) -> bool:
    """Whether JSON has it, as W&B's agent hands it on; YAML also knows dates."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _hint(value: Any) -> str:
    """What to write instead of `1e-5`, which YAML takes for a text."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        number = None
    if number is None:
        return f", not {value!r}"
    return f": YAML takes {value} for a text, write it with a point, such as 1.0e-5"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
