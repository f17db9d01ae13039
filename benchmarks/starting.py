"""How fast the command line answers."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from measuring import Outcome, seconds_of

GOAL_S = 0.5
REPEATS = 5
COMMANDS = {"help_s": ("--help",), "fit_help_s": ("fit", "--help")}


def measure(_folder: Path, quick: bool) -> Outcome:
    """Seconds from the start of `affect --help` and `affect fit --help` to their end."""
    repeats = 1 if quick else REPEATS
    affect = Path(sys.executable).with_name("affect")
    samples = {
        name: seconds_of(lambda: _run(affect, *arguments), repeats)  # noqa: B023 - called at once
        for name, arguments in COMMANDS.items()
    }
    median = {name: statistics.median(values) for name, values in samples.items()}
    return Outcome(
        goal=f"each in less than {GOAL_S:g} s",
        met=max(median.values()) < GOAL_S,
        summary=f"`affect --help` {median['help_s']:.3f} s, "
        f"`affect fit --help` {median['fit_help_s']:.3f} s",
        repeats=repeats,
        settings={"commands": [" ".join(("affect", *words)) for words in COMMANDS.values()]},
        median=median,
        samples=samples,
    )


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
