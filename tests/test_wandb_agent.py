"""W&B's own `wandb sweep` and `wandb agent` on the sweep files that are shipped, as they are.

The server is `tests/wandb_server.py`; experiments of the same names stand in for those that the
files name, so that a trial takes a moment.
"""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from affect import config
from affect.config import FederationConfig, StrategyConfig, TrackingConfig
from affect.sweep.command import command_of
from affect.sweep.file import parse
from tests import builders, wandb_server

HOME = Path(__file__).resolve().parents[1]
SWEEPS = HOME / "experiments/sweeps"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which the files' experiments are small."""
    monkeypatch.chdir(tmp_path)
    builders.cache(tmp_path / "cache", subjects=6)
    toy = builders.experiment(
        tmp_path,
        tracking=TrackingConfig(project="sweeping"),
        federation=FederationConfig(strategy=StrategyConfig(name="fedadam")),
    )
    for name in ("haines.yaml", "recola/avec_bilstm.yaml"):
        path = tmp_path / "experiments" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(config.to_yaml(toy))
    shutil.copytree(SWEEPS, tmp_path / "experiments/sweeps")
    return tmp_path


@pytest.fixture
def wandb(place):
    """W&B's command in that folder, for a stand-in of its server."""
    with wandb_server.serving() as server:
        known = {name: text for name, text in os.environ.items() if not name.startswith("WANDB")}
        known |= server.environment() | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(HOME),
            "HOME": str(place / "home"),
            "OMP_NUM_THREADS": "1",
        }

        def run(*arguments):
            words = [sys.executable, "-m", "wandb", *map(str, arguments)]
            done = subprocess.run(
                words, cwd=place, env=known, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        yield run, server


def created(run, server, name):
    """A sweep as W&B's command makes it of a file, whose ends `affect` takes too."""
    said = run("sweep", "--project", "sweeping", f"experiments/sweeps/{name}.yaml")
    (address,) = set(re.findall(r"wandb agent (\S+)", said))
    sweep = server.sweeps[address.rpartition("/")[2]]
    file = parse((SWEEPS / f"{name}.yaml").read_text(), name)
    for given in (sweep["queue"][0], sweep["queue"][-1]):
        config.parse(command_of(file, given).flags)
    return address, sweep, file


@pytest.mark.parametrize(
    ("name", "kind", "trials"), [("haines", "fit", 2), ("federated", "federate", 1)]
)
def test_wandbs_agent_runs_the_shipped_sweeps(place, wandb, name, kind, trials):
    run, server = wandb
    address, sweep, file = created(run, server, name)
    said = run("agent", "--count", trials, address)
    assert len(sweep["begun"]) == trials, said
    for run_id, given in sweep["begun"].items():
        told = server.runs[run_id]
        assert (told["project"], told["exit_code"]) == ("sweeping", 0), said
        folder = place / "runs/toy" / run_id
        record = json.loads((folder / "run.json").read_text())
        assert (record["kind"], record["status"]) == (kind, "done")
        value = record["metrics"][file.metric.name]
        assert told["summary"][file.metric.name] == pytest.approx(value)
        assert not any(key.startswith("test/") for key in record["metrics"])
        with (folder / "metrics.csv").open() as rows:
            assert len(told["rows"]) >= len(list(csv.DictReader(rows)))
        chosen = dataclasses.asdict(config.load(folder / "config.yaml"))
        for key, wanted in given.items():
            assert _at(chosen, key) == wanted, key


def test_wandb_takes_the_shipped_sweep_of_recola(place, wandb):
    created(*wandb, "recola")


def _at(values, key):
    for part in key.split("."):
        values = values[part]
    return values
