"""A batch script filled with options, set-up lines and arguments: a text that stands for itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from affect.errors import UserError

_DIRECTIVE = "#SBATCH --"
HOME = Path(__file__).resolve().parents[2]
"""The checkout, whose folder `slurm` has the scripts."""


def read(kind: str) -> str:
    """The script of a command.

    Raises:
        UserError: this installation has none.
    """
    path = HOME / "slurm" / f"{kind}.sbatch"
    try:
        return path.read_text()
    except OSError:
        raise UserError(
            f"no {path}: the batch scripts come with the checkout, install affect from it with "
            "`make setup`, or `pip install -e`"
        ) from None


def options_of(script: str) -> dict[str, str]:
    """What the script asks of SLURM; a switch has an empty value."""
    lines = [line for line in script.splitlines() if line.startswith(_DIRECTIVE)]
    pairs = (shlex.split(line.removeprefix(_DIRECTIVE))[0].partition("=") for line in lines)
    return {name: value for name, _, value in pairs}


def fill(
    script: str, options: Mapping[str, str | None], setup: Sequence[str], arguments: Sequence[str]
) -> str:
    """The script that a user would have written for this one job.

    Args:
        script: as in the folder `slurm`.
        options: of sbatch, over the script's own; None takes one away.
        setup: lines before its own.
        arguments: of the script.
    """
    lines = script.splitlines()
    asked = {**options_of(script), **options}
    directives = [_directive(name, value) for name, value in asked.items() if value is not None]
    first = next(i for i, line in enumerate(lines) if line.startswith(_DIRECTIVE))
    body = [line for line in lines[first:] if not line.startswith(_DIRECTIVE)]
    given = [f"set -- {shlex.join(arguments)}"]
    return "\n".join([*lines[:first], *directives, "", *setup, *given, *body]) + "\n"


def _directive(name: str, value: str) -> str:
    return f"{_DIRECTIVE}{name}={shlex.quote(value)}" if value else f"{_DIRECTIVE}{name}"
