"""A job as it is handed to SLURM: its script, its place in a chain, its record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from affect.cluster import script, slurm
from affect.cluster.profile import Profile
from affect.errors import UserError
from affect.files import require_writable, write_whole

RECORD = "submission.json"
_EARLY_S = 60
"""SLURM may send a signal so much earlier than it was asked to."""
_WORK_S = 60
"""The least that a job must have before it is asked to save."""
_SEVERAL_NODES = frozenset({"fit", "federate"})


@dataclass(frozen=True)
class Submission:
    """A job, or an array of jobs.

    Attributes:
        kind: the script: fit, federate, extract, sweep or compare.
        name: of the job.
        arguments: of the script; `%a` is the array's index.
        array: its indices, such as `0-4`; empty for one job.
        after: jobs that must have succeeded: ids, or names of earlier ones of the same chain.
        variables: of the environment.
    """

    kind: str
    name: str
    arguments: tuple[str, ...]
    array: str = ""
    after: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


def script_of(job: Submission, profile: Profile, nodes: int = 1) -> str:
    """The whole script of a job: what SLURM is given, and nothing else.

    Args:
        job: the job.
        profile: of the cluster, with what the command line says laid over it.
        nodes: for `fit` and `federate`.

    Raises:
        UserError: the time limit is too short, or there is no script.
    """
    text = script.read(job.kind)
    options = {**_of_site(profile), **_of_job(job, profile)}
    if "signal" in script.options_of(text):
        options |= _of_work(job, profile, nodes)
        _refuse_short(options.get("time") or script.options_of(text)["time"], profile.signal_s)
    given = {name: value for name, value in options.items() if value != ""}
    given |= dict(_pair(flag) for flag in profile.extra)
    return script.fill(text, given, _setup(job, profile), job.arguments)


def submit(jobs: Sequence[Submission], profile: Profile, nodes: int = 1) -> dict[str, str]:
    """Submit a chain of jobs and return their ids by their names.

    Raises:
        UserError: one waits for a job that nobody knows; or SLURM refuses one: those before it
            are named, and stay.
    """
    _refuse_unknown(jobs, profile)
    require_writable(_folder(profile))
    ids: dict[str, str] = {}
    for job in jobs:
        named = _resolved(job, ids)
        try:
            ids[job.name] = slurm.submit(script_of(named, profile, nodes))
        except UserError as error:
            before = ", ".join(ids.values())
            raise UserError(f"{error}; submitted before it: {before}" if ids else error) from None
        _record(named, ids[job.name], profile)
    return ids


def _refuse_unknown(jobs: Sequence[Submission], profile: Profile) -> None:
    """Refuse to wait for jobs that there are not, for which SLURM would not wait."""
    names = {job.name for job in jobs}
    for number in {number for job in jobs for number in job.after} - names:
        known = (_folder(profile) / number.partition("_")[0]).is_dir()
        if slurm.present() and not known and not slurm.knows(number):
            raise UserError(f"SLURM knows no job {number}: see `affect jobs`")


def _resolved(job: Submission, ids: Mapping[str, str]) -> Submission:
    """The same with the ids of the jobs that it names."""
    job = replace(job, after=tuple(ids.get(name, name) for name in job.after))
    if job.kind != "compare":
        return job
    return replace(job, arguments=tuple(ids.get(name, name) for name in job.arguments))


def _of_site(profile: Profile) -> dict[str, str | None]:
    mail = {"mail-user": profile.mail, "mail-type": "END,FAIL"} if profile.mail else {}
    names = ("partition", "account", "qos", "constraint")
    return {**{name: getattr(profile, name) for name in names}, **mail}


def _of_job(job: Submission, profile: Profile) -> dict[str, str | None]:
    chained = {"dependency": f"afterok:{':'.join(job.after)}", "kill-on-invalid-dep": "yes"}
    return {
        "job-name": job.name,
        "output": str(_folder(profile) / ("%x-%A_%a.out" if job.array else "%x-%j.out")),
        "array": job.array or None,
        **(chained if job.after else {}),
    }


def _of_work(job: Submission, profile: Profile, nodes: int) -> dict[str, str | None]:
    """What the job is to have, where the script's own is not enough."""
    wanted = 1 if profile.gpus is None else profile.gpus
    gpus = wanted if job.kind in _SEVERAL_NODES else min(wanted, 1)
    kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
    return {
        "time": profile.time,
        "mem": profile.memory,
        "cpus-per-task": "" if profile.cpus is None else str(profile.cpus),
        "nodes": str(nodes if job.kind in _SEVERAL_NODES else 1),
        "ntasks-per-node": str(max(gpus, 1) if job.kind == "fit" else 1),
        "gres": f"gpu:{kind}{gpus}" if gpus else None,
        "signal": f"B:USR1@{profile.signal_s}",
    }


def _setup(job: Submission, profile: Profile) -> list[str]:
    variables = {
        "AFFECT_HOME": str(script.HOME),
        "AFFECT_JOBS": str(_folder(profile)),
        "AFFECT_REQUEUES": str(profile.requeues),
        "AFFECT_COMMAND": profile.command,
        **job.variables,
    }
    lines = [f"export {name}={shlex.quote(text)}" for name, text in variables.items() if text]
    if profile.scratch:
        lines.append(f'export AFFECT_SCRATCH="{profile.scratch}"')  # the job's shell expands it
    return [*lines, *_guarded(profile.setup)]


def _guarded(lines: Sequence[str]) -> list[str]:
    """Lines of the site's, of which the first that fails ends the job."""
    if not lines:
        return []
    complaint = "affect: error: a set-up line of the profile failed: $BASH_COMMAND"
    return [f"trap 'echo \"{complaint}\" >&2; exit 2' ERR", *lines, "trap - ERR"]


def _refuse_short(time: str, signal_s: int) -> None:
    needed_s = signal_s + _EARLY_S + _WORK_S
    if slurm.seconds_of(time) < needed_s:
        raise UserError(
            f"a time limit of {time} is too short: a job is asked to save up to "
            f"{signal_s + _EARLY_S} s before its end; give --time {-(-needed_s // 60)} (minutes) "
            "or more, or the profile a smaller signal_s"
        )


def _pair(flag: str) -> tuple[str, str]:
    name, _, value = flag.removeprefix("--").partition("=")
    if not flag.startswith("--") or not name:
        raise UserError(f"{flag!r} is no option of sbatch: write --name=value")
    return name, value


def _folder(profile: Profile) -> Path:
    return Path(profile.jobs).expanduser().absolute()


def _record(job: Submission, number: str, profile: Profile) -> None:
    values = {
        "kind": job.kind,
        "name": job.name,
        "arguments": job.arguments,
        "array": job.array,
        "after": job.after,
        "submitted": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    path = _folder(profile) / number / RECORD
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())
