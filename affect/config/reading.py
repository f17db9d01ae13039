"""The experiment from YAML and the command line, and back; variables are filled in."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, get_type_hints

import yaml

from affect.config.experiment import Experiment, field_names, keys
from affect.config.ranges import validate
from affect.errors import UserError, nearest


def parse(arguments: Sequence[str]) -> Experiment:
    """The experiment that command-line arguments describe, such as `-c FILE --seed 1`.

    Raises:
        UserError: a file is missing or no YAML, a key is unknown (the nearest valid one is
            named), a value is of the wrong type or out of range, a variable is not set.
    """
    _refuse_broken_files(arguments)
    parser = argument_parser()
    try:
        namespace = parser.parse_args(list(arguments))
        files = namespace.pop("config") or []
        values = vars(parser.instantiate(namespace))
    except Exception as error:  # jsonargparse raises many kinds, all about what the user wrote
        raise UserError(_explained(error)) from error
    experiment = Experiment(**{name: values[name] for name in field_names(Experiment)})
    folder = Path(str(files[-1])).parent if files else Path()
    experiment = _expand(experiment, {**os.environ, "EXPERIMENT_DIR": str(folder)})
    validate(experiment)
    return experiment


def explained_keys() -> str:
    """Every key with its type, its default and what it means."""
    text = io.StringIO()
    argument_parser().print_help(text)
    return text.getvalue().rstrip("\n")


def argument_parser() -> Any:
    """The parser of `affect fit`: one flag a key, and `-c FILE` for experiment files."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="affect fit",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
        description="Train, validate and test one experiment on pooled data.",
    )
    parser.add_argument("-c", "--config", action="config", help="experiment file (YAML)")
    parser.add_class_arguments(Experiment)
    return parser


def load(path: Path) -> Experiment:
    """The experiment in a file, such as a run's `config.yaml`.

    Raises:
        UserError: as `parse`.
    """
    return parse(["-c", str(path)])


def from_yaml(text: str) -> Experiment:
    """The experiment whose every key `to_yaml` wrote out.

    Raises:
        UserError: as `parse`.
    """
    parser = argument_parser()
    try:
        values = vars(parser.instantiate(parser.parse_string(text)))
    except Exception as error:  # as in `parse`
        raise UserError(_explained(error)) from error
    experiment = Experiment(**{name: values[name] for name in field_names(Experiment)})
    validate(experiment)
    return experiment


def to_yaml(experiment: Experiment) -> str:
    """The experiment as the text of an experiment file, every key written out."""
    return yaml.safe_dump(dataclasses.asdict(experiment), sort_keys=False)


def _refuse_broken_files(arguments: Sequence[str]) -> None:
    """Tell what is wrong with an experiment file by its name, which the parser would not."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("-c", "--config", action="append", default=[])
    try:
        paths = finder.parse_known_args(list(arguments))[0].config
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    for path in paths:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"experiment file {path} does not exist") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
        _refuse_scalars(content, Experiment, path)


def _refuse_scalars(content: Any, kind: type, where: str) -> None:
    """Refuse a section that is no mapping, down to the innermost one."""
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold keys and values, not {content!r}")
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type) and name in content:
            _refuse_scalars(content[name], hint, f"{where}: {name}")


def _explained(error: Exception) -> str:
    """One line of jsonargparse's message, with the nearest valid key where one is unknown."""
    text = " ".join(str(error).replace("Parser key", "key").split())
    unknown = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
    if unknown:
        return _nearest(f"{unknown[1]}.{unknown[2]}")
    if '"federation.engine"' in text and "deployment" in text:
        return (
            "federation.engine is inprocess or ray; sites that hold their own data train the same "
            "experiment by deployment/run.sh, as deployment/README.md shows"
        )
    text = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", text)
    unknown = re.search(r"(?:unrecognized arguments: --|Key '|Option ')([\w.]+)", text)
    return _nearest(unknown[1]) if unknown else text


def _nearest(key: str) -> str:
    near = nearest(key, keys(), cutoff=0.5)
    advice = f"did you mean {near!r}?" if near else "`affect fit --keys` lists them all"
    return f"unknown key {key!r}: {advice}"


def _expand(value: Any, variables: Mapping[str, str]) -> Any:
    """The same values with `${NAME}` replaced in every text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        expanded = {
            name: _expand(getattr(value, name), variables) for name in field_names(type(value))
        }
        return dataclasses.replace(value, **expanded)
    if isinstance(value, dict):
        return {name: _expand(item, variables) for name, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, variables) for item in value]
    return _substituted(value, variables) if isinstance(value, str) else value


def _substituted(text: str, variables: Mapping[str, str]) -> str:
    try:
        return Template(text).substitute(variables) if "${" in text else text
    except KeyError as error:
        name = error.args[0]
        raise UserError(
            f"{text!r} needs the environment variable {name}: export {name}=... "
            "or give the path as a flag (such as --data.source.path)"
        ) from None
    except ValueError as error:
        raise UserError(f"{text!r} is not a valid use of ${{NAME}}: {error}") from None
