"""Offline W&B runs, and their upload by W&B's own command to a stand-in of its server."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from affect import tracking
from affect.cli import main
from affect.config import Experiment, TrackingConfig
from affect.errors import UserError
from affect.tracking import Tracker
from tests import wandb_server

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_upload import tracker
told = tracker(Path(sys.argv[1]), "killed")
for step in range(3):
    told.log(step, {"val/ccc/mean": step / 10})
os.killpg(0, signal.SIGKILL)
"""


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """W&B as on a machine of somebody who has no key, in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("WANDB", "AFFECT"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "none")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def server(surroundings, monkeypatch):
    with wandb_server.serving() as known:
        for name, value in known.environment().items():
            monkeypatch.setenv(name, value)
        yield known


def tracker(folder, run_id, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(tracking=TrackingConfig(mode="offline", project="faces", **settings))
    return Tracker(folder, run_id, "fit", experiment, {"seed": 7})


def told(folder, run_id, steps, exit_code=0, **settings):
    """A part of a run: rows of some steps, and a proper end."""
    reports = tracker(folder, run_id, **settings)
    for step in steps:
        reports.log(step, {"val/ccc/mean": step / 10})
    reports.summarise({"val/ccc/mean": max(steps) / 10})
    reports.finish(exit_code)


def rows_of(server, run):
    return [(row["step"], row["val/ccc/mean"]) for row in server.runs[run]["rows"].values()]


def expected(steps):
    return [(step, pytest.approx(step / 10)) for step in steps]


def upload(capsys, *arguments):
    capsys.readouterr()
    status = main(["upload", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out.strip(), said.err.strip().splitlines()


def test_runs_are_uploaded_once_also_those_that_were_resumed_or_killed(server, capsys, tmp_path):
    """Every row arrives once and in order, whatever became of the run on its way."""
    told(Path("runs/toy/resumed"), "resumed", range(3), exit_code=1)
    killed = tmp_path / "runs/toy/killed"
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    known.pop("WANDB_SERVICE", None)  # it would live on in this process's
    command = [sys.executable, "-c", KILLED, killed]
    process = subprocess.run(command, env=known, start_new_session=True, check=False)
    assert process.returncode == -signal.SIGKILL
    told(killed, "killed", range(2, 6), group="mine")
    told(Path("runs/toy/resumed"), "resumed", range(3, 5))
    told(Path("runs/toy/refused"), "refused", range(2))
    Path("runs/toy/refused/wandb/offline-run-x").mkdir()  # not W&B's: it fails as well
    unfinished = Path("runs/toy/unfinished")
    told(unfinished, "unfinished", range(2))
    (unfinished / "run.json").write_text(json.dumps({"status": "running"}))
    server.broken = {"refused"}

    status, out, err = upload(capsys)
    assert status == 2
    assert out.startswith("2 runs uploaded, 0 there already, 1 left as they are running")
    assert err[-2] == "affect: runs/toy/refused: run refused is refused"
    assert err[-1].startswith("affect: error: 1 runs could not be uploaded")
    assert rows_of(server, "resumed") == expected(range(5))
    assert rows_of(server, "killed") == expected(range(6))
    assert [row["_step"] for row in server.runs["killed"]["rows"].values()] == list(range(6))
    assert server.runs["killed"]["group"] == "mine"
    assert server.runs["resumed"]["project"] == "faces"
    assert server.runs["resumed"]["config"]["seed"]["value"] == 7
    assert "unfinished" not in server.runs

    server.broken = set()
    Path("runs/toy/refused/wandb/offline-run-x").rmdir()
    before = server.asked.count("CreateRunFiles")
    assert upload(capsys)[:2] == (
        0,
        "1 runs uploaded, 2 there already, 1 left as they are running (--running takes them too)",
    )
    assert server.asked.count("CreateRunFiles") == before + 1
    assert rows_of(server, "refused") == expected(range(2))
    assert upload(capsys, "--running", "runs/toy")[1] == "1 runs uploaded, 3 there already"
    assert upload(capsys, "runs")[1] == "0 runs uploaded, 4 there already"


def test_a_serverless_sweeps_runs_are_uploaded_as_a_group(server, capsys, monkeypatch):
    """A server refuses a run that names a sweep which it has never known."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "abcdefgh")
    monkeypatch.setenv("WANDB_RUN_ID", "abcdefgh-0000")
    told(Path("elsewhere/abcdefgh-0000"), "abcdefgh-0000", range(2))
    assert os.environ["WANDB_SWEEP_ID"] == "abcdefgh"
    trial = Path("sweeps/toy/abcdefgh/trials/0000/trial.json")
    trial.parent.mkdir(parents=True)
    trial.write_text(json.dumps({"run": "elsewhere/abcdefgh-0000"}))
    status, out, err = upload(capsys, "sweeps/toy/abcdefgh")
    assert (status, out) == (0, "1 runs uploaded, 0 there already"), err
    run = server.runs["abcdefgh-0000"]
    assert (run["group"], run["project"], run["sweep"]) == ("abcdefgh", "faces", None)


def test_what_keeps_runs_from_their_server_is_told(server, surroundings, capsys, monkeypatch):
    assert "no folder runs: name runs' folders" in upload(capsys)[2][-1]
    Path("runs").mkdir()
    assert "no offline W&B run in runs" in upload(capsys)[2][-1]
    Path("runs/r/wandb/offline-run-1").mkdir(parents=True)
    server.key = "another"
    status, _, err = upload(capsys)
    assert (status, len(err)) == (2, 1)
    assert "does not take the key (expired, or another server's): `wandb login" in err[0]
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 does not answer" in upload(capsys)[2][-1]
    monkeypatch.delenv("WANDB_API_KEY")
    assert "no key for W&B's server http://127.0.0.1:9: `wandb login`" in upload(capsys)[2][-1]


def online(mode):
    experiment = Experiment(tracking=TrackingConfig(mode=mode))
    Path("run").mkdir(exist_ok=True)
    return Tracker(Path("run"), "r", "fit", experiment, {})


def test_a_key_that_is_refused_ends_a_run_before_it_begins(server):
    server.key = "another"
    with pytest.raises(UserError, match="does not take the key"):
        online("auto")


def test_without_a_server_a_run_is_offline_unless_online_was_asked_for(server, capsys, monkeypatch):
    """As on a compute node whose user has logged in on the login node."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="does not answer"):
        online("online")
    online("auto").finish()
    assert "this run is offline (`affect upload` later)" in capsys.readouterr().err
    assert list(Path("run/wandb").glob("offline-run-*"))


def test_in_a_job_wandb_writes_to_the_nodes_disk_and_leaves_all_in_the_runs_folder(
    server, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("AFFECT_LOCAL", str(tmp_path / "disk"))
    folder = Path("runs/toy/local")
    reports = tracker(folder, "local")
    reports.log(0, {"val/ccc/mean": 0.0})
    assert not (folder / "wandb").exists()
    assert list((tmp_path / "disk").rglob("*.wandb"))
    reports.finish(exit_code=1)  # preempted
    time.sleep(1)  # W&B's folders bear the second in which they began
    again = tracker(folder, "local")
    for step in (1, 2):
        again.log(step, {"val/ccc/mean": step / 10})
    model = folder / "model.safetensors"
    model.write_bytes(b"model")
    again.keep_model([model], {})
    again.finish()
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 2
    assert not list((tmp_path / "disk").iterdir())
    assert not list((tmp_path / "home").rglob("staging"))  # of models, for ever
    status, _, err = upload(capsys)
    assert status == 0, err
    assert rows_of(server, "local") == expected(range(3))
    with (folder / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_a_full_disk_of_a_node_is_told_before_a_run_begins(surroundings, monkeypatch, tmp_path):
    monkeypatch.setenv("AFFECT_LOCAL", str(tmp_path / "disk"))
    monkeypatch.setattr(tracking, "_LEAST_FREE", 2**60)
    with pytest.raises(UserError, match=r"the node's disk is full: .* or name another folder"):
        told(Path("run"), "r", range(1))
