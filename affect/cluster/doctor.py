"""What this machine has of all that `affect` can use, and what to do about the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template

from affect import __version__
from affect.cluster import slurm
from affect.cluster.profile import Profile
from affect.errors import UserError
from affect.files import require_writable

OK, MISSING, BROKEN = "ok", "missing", "broken"
_LITTLE_GB = 5
_GIVEN = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
_SITE = ("MaxArraySize", "MaxJobCount", "PreemptMode", "AccountingStorageType")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: was looked for.
        state: `ok`, `missing` or `broken`.
        detail: what there is.
        advice: what to do; empty where all is well, or where the detail says so.
    """

    what: str
    state: str
    detail: str
    advice: str = ""


def examine(profile: Profile) -> Iterator[Finding]:
    """Look at everything, one after the other.

    Args:
        profile: of the cluster.
    """
    yield Finding("affect", OK, f"{__version__}, Python {sys.version.split()[0]}, {sys.prefix}")
    for what, look in _LOOKS.items():
        yield _found(what, look)
    yield _found("scratch", lambda: _scratch(profile))


def _found(what: str, look: Callable[[], Finding]) -> Finding:
    """A finding, also where looking itself went wrong."""
    try:
        return look()
    except UserError as error:
        return Finding(what, BROKEN, str(error))
    except Exception as error:  # a broken installation must not hide the other findings
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(what, BROKEN, detail, "install it again: `make setup`")


def _gpus() -> Finding:
    if shutil.which("nvidia-smi") is None:
        if given := next(filter(None, map(os.environ.get, _GIVEN)), None):
            advice = "ask who runs the machine; in a container, start it with --nv"
            return Finding("GPUs", BROKEN, f"SLURM gave GPU {given}, no nvidia-smi", advice)
        advice = "fine on a login node and for CPU work; else ask for one: --gpus 1"
        return Finding("GPUs", MISSING, "no nvidia-smi", advice)
    query = "--query-gpu=name,memory.total,driver_version"
    done = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    told = "; ".join(done.stdout.strip().splitlines())
    if done.returncode or not told:
        return Finding("GPUs", BROKEN, told or done.stderr.strip(), "ask who runs the machine")
    return Finding("GPUs", OK, told)


def _torch() -> Finding:
    import torch

    build = f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    if shutil.which("nvidia-smi") is None:
        return Finding("torch", OK, build)
    if torch.cuda.is_available():
        torch.ones(8, device="cuda").sum().item()
        return Finding("torch", OK, f"{build}, sees {torch.cuda.device_count()} GPUs")
    if torch.version.cuda is None:
        return Finding("torch", BROKEN, f"{build}: CPU only", "install PyTorch's CUDA build")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
    advice = "ask SLURM for a GPU (--gpus 1), or a newer driver for this CUDA"
    return Finding("torch", BROKEN, f"{build}, sees no GPU (visible: {visible})", advice)


def _nccl() -> Finding:
    from torch import distributed
    from torch.cuda import nccl

    if not distributed.is_available() or not distributed.is_nccl_available():
        advice = "needed by several GPUs alone: install PyTorch's CUDA build"
        return Finding("NCCL", MISSING, "not in this build of torch", advice)
    return Finding("NCCL", OK, ".".join(map(str, nccl.version())))


def _ray() -> Finding:
    try:
        return Finding("Ray", OK, version("ray"))
    except PackageNotFoundError:
        advice = "for federated runs on several nodes: pip install 'affect[simulation]'"
        return Finding("Ray", MISSING, "not installed", advice)


def _slurm() -> Finding:
    if not slurm.present():
        return Finding("SLURM", MISSING, "no sbatch", "fine where no jobs are submitted")
    release = slurm.call("sbatch", "--version").strip().removeprefix("slurm ")
    known = dict(_settings(slurm.call("scontrol", "show", "config")))
    limits = [f"{name}={known[name]}" for name in _SITE if name in known]
    form = "%R %l %D nodes"
    told = slurm.call("sinfo", "--noheader", "--summarize", f"--format={form}").splitlines()
    parts = [f"{release}; {', '.join(limits)}", *(" ".join(line.split()) for line in told)]
    return Finding("SLURM", OK, "; ".join(parts))


def _settings(told: str) -> Iterator[tuple[str, str]]:
    for line in told.splitlines():
        name, separator, value = line.partition("=")
        if separator:
            yield name.strip(), value.strip()


def _job() -> Finding:
    number = os.environ.get("SLURM_JOB_ID")
    if not number:
        return Finding("job", OK, "none: this is a login node, or a machine of your own")
    asked = ("SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST", "SLURM_CPUS_PER_TASK", "SLURM_JOB_GPUS")
    told = [
        f"{name.removeprefix('SLURM_')}={os.environ[name]}" for name in asked if name in os.environ
    ]
    return Finding("job", OK, ", ".join([number, *told]))


def _wandb() -> Finding:
    from affect import tracking
    from affect.config import TrackingConfig

    mode = tracking.mode_of(TrackingConfig())
    if mode != "online":
        advice = "`wandb login`, or upload later: `affect upload`"
        return Finding("W&B", MISSING, f"{version('wandb')}, {mode}", advice)
    try:
        tracking.require_server()
    except tracking.NoServerError as error:
        return Finding("W&B", MISSING, str(error), "runs are offline here: `affect upload` later")
    return Finding("W&B", OK, f"{version('wandb')}, logged in at {tracking.server()}")


def _openface() -> Finding:
    from affect.extraction.openface import weights

    home = weights.home_in_environment()
    if home is None:
        advice = "for OpenFace's action units export OPENFACE_HOME=...; `geometry` needs none"
        return Finding("OpenFace", MISSING, "OPENFACE_HOME is not set", advice)
    try:
        weights.load(weights.home_of(home))
    except UserError as error:
        return Finding("OpenFace", BROKEN, str(error))
    return Finding("OpenFace", OK, f"{home}: every file as it must be")


def _scratch(profile: Profile) -> Finding:
    folder = scratch_of(profile, os.environ)
    if profile.scratch and "$" in Template(profile.scratch).safe_substitute(os.environ):
        advice = "fine where jobs have what it names; else mend it in the profile"
        return Finding("scratch", MISSING, f"{profile.scratch} is not set, {folder} then", advice)
    if not folder.exists():
        advice = "jobs make it where they may; is that the node's own disk?"
        return Finding("scratch", MISSING, f"{folder} does not exist here", advice)
    require_writable(folder)
    free_gb = shutil.disk_usage(folder).free / 1e9
    detail = f"{folder}: {free_gb:.1f} GB free"
    if free_gb < _LITTLE_GB:
        return Finding("scratch", BROKEN, detail, "free space, or name another in the profile")
    return Finding("scratch", OK, detail)


def scratch_of(profile: Profile, environment: Mapping[str, str]) -> Path:
    """The folder on a node's own disk, as the batch scripts choose it.

    Args:
        profile: of the cluster.
        environment: of a job, or of this process.
    """
    named = Template(profile.scratch).safe_substitute(environment)
    given = "" if "$" in named else named
    fallbacks = (environment.get("SLURM_TMPDIR"), environment.get("TMPDIR"), "/tmp")
    return Path(given or next(path for path in fallbacks if path))


_LOOKS: Mapping[str, Callable[[], Finding]] = {
    "GPUs": _gpus,
    "torch": _torch,
    "NCCL": _nccl,
    "Ray": _ray,
    "SLURM": _slurm,
    "job": _job,
    "W&B": _wandb,
    "OpenFace": _openface,
}
