"""A real SLURM of two virtual nodes on this machine, and what tests ask of it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
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


def node_of(number):
    """The node on which a job's script runs; empty where it does not run."""
    return asked("squeue", "--noheader", "--states=R", "--format=%B", f"--jobs={number}").strip()


def restarts(number):
    """How often SLURM has started a job again."""
    told = asked("scontrol", "show", "job", number)
    return int(re.search(r"Restarts=(\d+)", told)[1])


def kill_node(name):
    """A node's power fails: all of its processes are gone, and SLURM is told."""
    folder = Path(os.environ["SLURM_CONF"]).parent
    daemon = int((folder / "run" / f"slurmd-{name}.pid").read_text())
    for pid in [daemon, *_processes_on(name)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{daemon}").exists(), "slurmd lives on", 10)
    asked("scontrol", "update", f"nodename={name}", "state=down", "reason=power")


def start_node(name):
    """The node comes back."""
    subprocess.run(["slurmd", "-N", name, "-f", os.environ["SLURM_CONF"]], check=True)


def _processes_on(name):
    """Jobs' processes on a node, and the ones of SLURM that watch them first."""
    marks = {f"SLURMD_NODENAME={name}", f"SLURM_CONF={os.environ['SLURM_CONF']}"}
    working = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if marks <= set(path.read_bytes().decode(errors="replace").split("\0")):
                working.add(int(path.parent.name))
    parents = {_parent(pid) for pid in working} - working
    watching = {pid for pid in parents if _command(pid) == "slurmstepd"}
    return [*watching, *working]


def _parent(pid):
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _command(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


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
