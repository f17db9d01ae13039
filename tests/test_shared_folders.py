"""What a job does on file systems that nodes share, as the kernel sees it.

NFS keeps no promise about locks and SQLite, and no file may be one that a thousand jobs all write.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from affect import config
from affect.config import FederationConfig, TrackingConfig
from tests import builders
from tests.test_extraction_writes import (
    CALLS,
    made,
    strace,  # noqa: F401 - a fixture
)

pytestmark = pytest.mark.strace

HOME = Path(__file__).resolve().parents[1]
LOCKING = re.compile(
    r"^(flock|fcntl)\(\d+<(?P<path>[^>]*)>.*(LOCK_|F_OFD_|F_SETLK|F_RDLCK|F_WRLCK)"
)
DELICATE = re.compile(r"lock|\.(db|sqlite3?)$|-(wal|shm|journal)$")


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("command", ["fit", "federate"])
def test_a_job_takes_no_lock_and_makes_no_data_base_where_others_write(tmp_path, command):
    shared, node = tmp_path / "shared", tmp_path / "node"
    (shared / "home").mkdir(parents=True)
    node.mkdir()
    builders.cache(shared / "cache")
    toy = builders.experiment(
        shared, tracking=TrackingConfig(), federation=FederationConfig(rounds=1)
    )
    (shared / "toy.yaml").write_text(config.to_yaml(toy))
    known = {name: text for name, text in os.environ.items() if not name.startswith("WANDB")}
    known |= {
        **{"SLURM_SUBMIT_DIR": str(shared), "SLURM_JOB_ID": "7", "AFFECT_HOME": str(HOME)},
        **{"SLURM_TMPDIR": str(node), "TMPDIR": str(node), "HOME": str(shared / "home")},
        **{"PYTHONPATH": str(HOME), "NETRC": "none"},
    }
    options = f"-f --seccomp-bpf -yy -s 4096 -ff -o {node}/log -e trace={CALLS},flock,fcntl"
    words = shlex.join([sys.executable, "-B", "-m", "affect", command, "-c", "toy.yaml"])
    script = f"set -- toy.yaml; . {HOME}/slurm/job.sh; exec strace {options} {words}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=shared, env=known, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    logs = sorted(node.glob("log.*"))
    lines = [line for log in logs for line in log.read_text().splitlines()]
    locked = [found["path"] for found in map(LOCKING.match, lines) if found]
    written = [path for _, path in made(logs) if path.startswith("/")]
    assert any(path.startswith(f"{shared}/runs") for path in written)  # it does see what is written
    assert any(path.startswith(str(node)) for path in locked)
    ours = (f"{shared}/", f"{HOME}/", str(Path(config.__file__).parent))
    assert [path for path in locked if path.startswith(ours)] == []
    assert [p for p in written if p.startswith(ours) and DELICATE.search(Path(p).name)] == []
    run = (shared / "jobs/7/run").read_text().strip()
    own = (f"{run}/", f"{shared}/jobs/7/")
    folders = {run, f"{shared}/runs", f"{shared}/runs/toy"}
    others = {path for path in written if path.startswith(str(shared)) and not path.startswith(own)}
    assert others <= folders
    git = subprocess.run(
        ["git", "-C", HOME, "rev-parse", "--absolute-git-dir"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    assert not git or [path for path in written if path.startswith(git)] == []
    assert len(list(shared.glob("runs/toy/*/wandb/offline-run-*/*.wandb"))) == 1
