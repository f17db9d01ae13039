"""How long `affect submit` takes, asked of a real SLURM of two virtual nodes on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measuring import Outcome, seconds_of

GOAL_S = 2.0
REPEATS, ARRAY = 5, 1000
ROOT = Path(__file__).resolve().parents[1]
SLURM = ROOT / "tests" / "slurm.sh"
COMMANDS = {"one_s": (), "array_s": (f"--seeds=0-{ARRAY - 1}",)}


def measure(folder: Path, quick: bool) -> Outcome:
    """Seconds of `affect submit fit` for one job, and for an array of 1000; SLURM holds them."""
    goal = f"each in less than {GOAL_S:g} s, an array as one submission"
    daemons = ("munged", "slurmctld", "slurmd")
    if os.getuid() != 0 or not all(map(shutil.which, daemons)):
        return Outcome(goal, None, "needs SLURM's daemons, and to be root", 0, {}, {}, {})
    repeats = 1 if quick else REPEATS
    with slurm(folder) as surroundings:
        samples = {
            name: seconds_of(lambda: _submit(folder, surroundings, words), repeats)  # noqa: B023
            for name, words in COMMANDS.items()
        }
        listed = subprocess.run(
            ["squeue", "--noheader", "--format=%i"],
            env=surroundings,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
    median = {name: statistics.median(values) for name, values in samples.items()}
    single = len(listed) == len(COMMANDS) * (repeats + 1)
    return Outcome(
        goal=goal,
        met=max(median.values()) < GOAL_S and single,
        summary=f"{median['one_s']:.2f} s one job, {median['array_s']:.2f} s an array of {ARRAY}",
        repeats=repeats,
        settings={"array": ARRAY},
        median=median,
        samples=samples,
    )


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A SLURM in a folder; the variables by which it is found."""
    folder.chmod(0o755)  # munge trusts no other
    try:
        subprocess.run([SLURM, "start", folder, str(_port())], check=True)
        yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run([SLURM, "stop", folder], check=True)


def _port() -> int:
    """One that is free; the next two are taken to be so as well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _submit(folder: Path, surroundings: dict[str, str], words: tuple[str, ...]) -> None:
    affect = Path(sys.executable).with_name("affect")
    experiment = ROOT / "experiments" / "demo.yaml"
    subprocess.run(
        [affect, "submit", "fit", experiment, "--sbatch=--hold", *words],
        cwd=folder,
        env=surroundings,
        check=True,
        stdout=subprocess.DEVNULL,
    )
