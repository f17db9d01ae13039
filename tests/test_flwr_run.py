"""`flwr run` of the project's folder, in Flower's own simulation on Ray."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from affect import store
from affect.config import to_yaml
from affect.federated.client import enrolled_app
from affect.federated.engines.cohorts import in_cohorts
from affect.federated.engines.deployment import lead
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.enrolment import EnrolledPlace
from affect.training.run import open_run
from tests import sites

pytest.importorskip("ray")
pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[1]


@pytest.fixture
def flower(tmp_path):
    """Flower's variables; the SuperLink that its command leaves behind is ended."""
    home = tmp_path / "home"
    known = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    yield {**known, **own}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"FLWR_HOME={home}" in path.read_bytes().decode(errors="replace").split("\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)


def test_flowers_simulation_trains_what_the_same_sites_train_in_process(tmp_path, flower):
    sites.caches(tmp_path)
    asked = sites.experiment(tmp_path)
    file = tmp_path / "experiment.yaml"
    file.write_text(to_yaml(asked))
    done = subprocess.run(
        [
            Path(sys.executable).with_name("flwr"),
            *("run", ROOT, "local", "--stream", "--run-config"),
            f"sites=2 experiment={str(file)!r}".replace("'", '"'),
        ],
        cwd=tmp_path,
        env=flower,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"Successfully started run", done.stdout), done.stdout
    (folder,) = (tmp_path / "runs" / asked.name).iterdir()
    simulated = open_run(folder)
    assert simulated.record["status"] == "done"
    here = lead(places(tmp_path), asked, 2)
    trained = [load_file(run.folder / "model.safetensors") for run in (simulated, here)]
    assert trained[0].keys() == trained[1].keys()
    for name, values in trained[0].items():
        np.testing.assert_array_equal(values, trained[1][name], err_msg=name)
    assert simulated.record["metrics"] == here.record["metrics"]


def places(folder):
    """Two sites that share the people of the cache between them, in this process."""
    entries = store.entries(folder / "cache")
    people = sorted({entry.subject for entry in entries})
    apps = [
        enrolled_app(
            EnrolledPlace(
                f"site-{number:04}",
                [entry for entry in entries if entry.subject in people[number::2]],
                folder / "states" / str(number),
                torch.device("cpu"),
            )
        )
        for number in range(2)
    ]
    return InProcessGrid(in_cohorts(lambda m, c: apps[c.node_id - 1](m, c)), 2)
