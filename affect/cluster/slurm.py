"""SLURM's own commands, and what they say where they refuse."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

from affect.errors import UserError

_TIMEOUT_S = 60
_UNREACHED = re.compile("Unable to contact slurm|DNS SRV lookup failed|res_nsearch error")
_ENDLESS = {"UNLIMITED", "INFINITE"}
_PART = re.compile(r"(\d+)(?:-(\d+)(?::\d+)?)?")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def present() -> bool:
    """Whether this machine is part of a cluster."""
    return shutil.which("sbatch") is not None


def call(program: str, *arguments: str, text: str | None = None) -> str:
    """What a command of SLURM prints.

    Args:
        program: such as `squeue`.
        arguments: of it.
        text: its standard input.

    Raises:
        UserError: it is not there, does not answer, or refuses.
    """
    try:
        done = subprocess.run(
            [program, *arguments],
            input=text or "",
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise UserError(
            f"no {program} on this machine: run this where SLURM is, such as on a cluster's login "
            "node (affect submit --dry-run shows the script anywhere)"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{program} does not answer within {_TIMEOUT_S} s: try again") from None
    if done.returncode:
        raise UserError(_explained(program, done.stderr))
    return done.stdout


def submit(script: str) -> str:
    """Hand a script to SLURM and return the job's id.

    Raises:
        UserError: as `call`.
    """
    return call("sbatch", "--parsable", text=script).strip().partition(";")[0]


def knows(job: str) -> bool:
    """Whether SLURM remembers a job, queued, running or over."""
    try:
        return bool(call("squeue", "--noheader", "--states=all", "--format=%i", f"--jobs={job}"))
    except UserError:
        return False


def partitions() -> list[str]:
    """The names of all partitions that this user may see.

    Raises:
        UserError: as `call`.
    """
    return sorted(set(call("sinfo", "--noheader", "--format=%R").split()))


def seconds_of(text: str) -> int:
    """Seconds of a time limit as SLURM writes it: `90` (minutes), `1:30:00`, `2-12`, ...

    Raises:
        UserError: it is no such time.
    """
    if text.upper() in _ENDLESS:
        return sys.maxsize
    found = _TIME.fullmatch(text)
    if not found:
        raise UserError(f"{text!r} is no time limit: write hours:minutes:seconds, such as 04:00:00")
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == len(parts):
        hours, minutes, seconds = numbers
    else:  # minutes[:seconds]
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _explained(program: str, said: str) -> str:
    """Its refusal in one line, with the names that there are where one was wrong."""
    lines = [re.sub(rf"^{program}: (error|fatal): ", "", line) for line in said.splitlines()]
    told = "; ".join(line for line in lines if line) or "it says nothing"
    if _UNREACHED.search(told):
        return (
            f"{program} finds no SLURM controller: run this on a cluster's login node, or ask its "
            "staff whether SLURM is down"
        )
    return f"{program} refuses: {told}{_advice(told)}"


def _advice(told: str) -> str:
    if "partition" in told.lower():
        return f" (there are {', '.join(partitions())})"
    if "array" in told.lower():
        return " (`scontrol show config` names MaxArraySize, which no index may reach)"
    return ""


def bounds_of(array: str) -> tuple[int, int]:
    """The least and the greatest index of an array such as `0-4`, `1,3` or `1-8%2`.

    Raises:
        UserError: it is no array.
    """
    parts = [_PART.fullmatch(part) for part in re.sub(r"%\d+$", "", array).split(",")]
    ranges = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    if len(ranges) < len(parts) or any(first > last for first, last in ranges):
        raise UserError(f"{array!r} is no array: write such as 0-4, 1,3 or 0-99%10 (ten at once)")
    return min(first for first, _ in ranges), max(last for _, last in ranges)
