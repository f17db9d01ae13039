"""A real SLURM of two virtual nodes on this machine, and what tests ask of it."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


@contextmanager
def running(folder):
    """SLURM in a folder of its own; skips where it is not installed."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"no SLURM: {', '.join(missing) or 'its daemons need root'}")
    script = HERE / "slurm.sh"
    try:
        subprocess.run([script, "start", folder, str(_three_ports())], check=True)
        with pytest.MonkeyPatch.context() as patch:
            _surroundings(patch, folder)
            yield
    finally:
        subprocess.run([script, "stop", folder], check=True)


def _surroundings(patch, folder):
    """What jobs take over from whoever submits them."""
    patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    patch.setenv("PYTHONPATH", str(HERE.parent))
    patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    patch.setenv("OMP_NUM_THREADS", "1")
    # virtual nodes have no addresses of their own
    patch.setenv("MASTER_ADDR", "127.0.0.1")
    patch.setenv("GLOO_SOCKET_IFNAME", "lo")
    patch.setenv("AFFECT_HEAD_IP", "127.0.0.1")


def _three_ports():
    """The first of three that nobody listens at."""
    for first in range(23000 + os.getpid() % 5000, 32000, 3):
        if all(_free(first + i) for i in range(3)):
            return first
    raise RuntimeError("no free ports")


def _free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def asked(*command, text=None):
    """What a command of SLURM prints."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def state(number):
    """SLURM's state of a job."""
    return asked("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}").strip()


def wait_for(condition, what, seconds=150):
    """Until something has come to pass."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def ended(number, seconds=150):
    """The state in which a job has ended."""
    over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
    wait_for(lambda: state(number) in over, f"job {number} has not ended", seconds)
    return state(number)
