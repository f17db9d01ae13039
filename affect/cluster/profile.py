"""What a cluster asks for, and how its jobs are set up: a small YAML file, written once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from affect.errors import UserError, suggestion

_LEAST_SIGNAL_S = 10
"""0 would be no signal at all."""
VARIABLE = "AFFECT_PROFILE"


@dataclass(frozen=True)
class Profile:
    """A cluster, as its user sees it; what is empty is left to SLURM or to the script.

    Attributes:
        partition, account, qos, constraint: what SLURM calls so.
        time: limit of a job, as SLURM writes it.
        cpus: cores of a task.
        memory: of a node, such as `32G`.
        gpus: of a node; 0 for none.
        gpu_type: such as `a100`.
        mail: address that is told of ends and failures.
        signal_s: how long before the limit a job is asked to save; SLURM may be a minute early.
        requeues: how often a job that was preempted starts again.
        scratch: folder on a node's own disk; may name a variable of the job, such as
            `$SLURM_TMPDIR`.
        jobs: folder of the jobs' logs and states.
        command: what runs `affect`, such as `apptainer exec --nv affect.sif affect`.
        setup: lines of shell before it, such as `module load cuda`.
        extra: further options of sbatch, such as `--exclude=node7`.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: str = ""
    cpus: int | None = None
    memory: str = ""
    gpus: int | None = None
    gpu_type: str = ""
    mail: str = ""
    signal_s: int = 300
    requeues: int = 20
    scratch: str = ""
    jobs: str = "jobs"
    command: str = ""
    setup: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


def load(path: Path | None) -> Profile:
    """The profile in a file; without one that of the variable AFFECT_PROFILE, or an empty one.

    Raises:
        UserError: the file cannot be read, a key is unknown or a value is not what it must be.
    """
    path = path or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if path is None:
        return Profile()
    try:
        # every value as it was written: YAML would take 04:00:00 for a number
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the profile {path}: {error}") from error
    if content and not isinstance(content, dict):
        raise UserError(f"the profile {path} must hold keys and values, not {content!r}")
    return Profile(**{key: _value(path, key, value) for key, value in (content or {}).items()})


def overlaid(profile: Profile, given: Mapping[str, Any]) -> Profile:
    """The profile with what the command line says; `sbatch` adds to `extra`.

    Args:
        profile: of the cluster.
        given: values by the names of fields; None where there is none.
    """
    names = ("partition", "account", "qos", "constraint", "time", "memory", "gpus", "cpus")
    chosen = {name: given[name] for name in names if given[name] is not None}
    extra = (*profile.extra, *(given["sbatch"] or ()))
    return dataclasses.replace(profile, **chosen, extra=extra)


def _value(path: Path, key: str, value: Any) -> Any:
    """A value as its field has it."""
    names = [item.name for item in dataclasses.fields(Profile)]
    if key not in names:
        raise UserError(f"the profile {path} has an unknown key {key!r}: {suggestion(key, names)}")
    hint = get_type_hints(Profile)[key]
    if hint == tuple[str, ...]:
        lines = [value] if isinstance(value, str) else value
        if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            return tuple(line for line in lines if line)
    elif isinstance(value, str):
        if hint is str or not value:
            return value or getattr(Profile, key)
        if value.isdecimal():
            if key == "signal_s" and int(value) < _LEAST_SIGNAL_S:
                raise UserError(f"the profile {path}: {key} must be {_LEAST_SIGNAL_S} or more")
            return int(value)
    wanted = {str: "a text", tuple[str, ...]: "a list of lines"}.get(hint, "a number, 0 or more")
    raise UserError(f"the profile {path}: {key} must be {wanted}, not {value!r}")
