"""What a subcommand is, and what it gives."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affect.errors import UserError


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


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other error of the user's."""

    def error(self, message: str) -> Any:
        """Refuse arguments."""
        raise UserError(f"{message} (see `{self.prog} --help`)")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that fills a cache."""
    parser.add_argument("--cache", type=path_of, required=True, help="folder of recordings to fill")
    parser.add_argument("--force", action="store_true", help="write what is there already again")


def at_least(least: int) -> Callable[[str], int]:
    """Reads whole numbers from there on."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return int(text)

    return whole


def path_of(text: str) -> Path:
    """A path; an empty one, as of an unset shell variable, is not the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)
