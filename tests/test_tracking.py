import csv
import dataclasses
import json
import subprocess
import sys

import pytest

from affect import config, tracking
from affect.config import EvaluationConfig, Experiment, TrackingConfig
from affect.errors import UserError
from affect.federated.federate import federate
from affect.report import figures
from affect.tracking import Tracker
from affect.training.fit import fit
from tests import builders


def rows_in(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def silent(folder):
    experiment = Experiment(tracking=TrackingConfig(mode="disabled"))
    return Tracker(folder, "id", "fit", experiment, {})


def test_rows_are_appended_and_a_new_key_widens_them(tmp_path):
    tracker = silent(tmp_path)
    tracker.log(0, {"val/ccc/mean": 0.5})
    tracker.log(1, {"val/ccc/mean": 0.6})
    tracker.log(2, {"val/ccc/mean": 0.7, "epsilon": 3.0})
    assert rows_in(tmp_path) == [
        {"step": "0", "val/ccc/mean": "0.5", "epsilon": ""},
        {"step": "1", "val/ccc/mean": "0.6", "epsilon": ""},
        {"step": "2", "val/ccc/mean": "0.7", "epsilon": "3.0"},
    ]
    tracker.log(3, {"val/ccc/mean": 0.8})
    assert [row["epsilon"] for row in rows_in(tmp_path)] == ["", "", "3.0", ""]


def test_a_restart_writes_over_the_rows_that_it_does_again(tmp_path):
    first = silent(tmp_path)
    for step in range(4):
        first.log(step, {"loss": float(step)})
    again = silent(tmp_path)
    again.log(2, {"loss": 20.0})
    again.log(3, {"loss": 30.0})
    assert [row["loss"] for row in rows_in(tmp_path)] == ["0.0", "1.0", "20.0", "30.0"]


@pytest.mark.parametrize(
    ("asked", "environment", "mode"),
    [
        ("disabled", {"WANDB_MODE": "online", "WANDB_API_KEY": "k" * 40}, "disabled"),
        ("offline", {"WANDB_API_KEY": "k" * 40}, "offline"),
        ("auto", {"WANDB_MODE": "disabled", "WANDB_API_KEY": "k" * 40}, "disabled"),
        ("auto", {"WANDB_MODE": "offline", "WANDB_API_KEY": "k" * 40}, "offline"),
        ("auto", {"WANDB_API_KEY": "k" * 40}, "online"),
        ("auto", {"NETRC": "with-key"}, "online"),
        ("auto", {"NETRC": "without-key"}, "offline"),
        ("auto", {"NETRC": "missing"}, "offline"),
        ("auto", {"WANDB_MODE": ""}, "offline"),
    ],
)
def test_wandb_is_online_with_a_key_and_offline_without(
    monkeypatch, tmp_path, asked, environment, mode
):
    (tmp_path / "with-key").write_text(f"machine api.wandb.ai login user password {'k' * 40}\n")
    (tmp_path / "without-key").write_text("machine example.org login user password secret\n")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "missing")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracking.mode_of(TrackingConfig(mode=asked)) == mode


def test_an_unknown_wandb_mode_is_told(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "bogus")
    with pytest.raises(UserError, match="WANDB_MODE is 'bogus': choose one of online"):
        tracking.mode_of(TrackingConfig())


def test_an_empty_wandb_mode_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("NETRC", "missing")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = Tracker(tmp_path, "id", "fit", Experiment(), {})
    tracker.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def inspected(log, *options):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(log)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return (
        [json.loads(line) for line in finished.stdout.splitlines()]
        if not options
        else (json.loads(finished.stdout))
    )


def test_an_offline_run_holds_config_metrics_summary_figures_and_model(tmp_path):
    """W&B's own log of a run without an account, read back with W&B's own reader."""
    builders.cache(tmp_path / "cache")
    experiment = builders.experiment(
        tmp_path,
        tracking=TrackingConfig(mode="offline", tags=["toy"], group="trial"),
        evaluation=EvaluationConfig(importance_repeats=1),
    )
    run = fit(experiment, draw=figures.draw)
    (log,) = run.folder.rglob("*.wandb")
    summary = inspected(log, "--summary")
    assert summary["run_id"] == run.record["id"]
    assert summary["exit_code"] == 0
    assert summary["config"]["model"]["name"] == "gru"
    for key, value in run.record["metrics"].items():
        assert summary["summary"][key] == pytest.approx(value, abs=1e-6)
    shown = {"traces", "scatter", "learning_curves", "importance"}
    assert {f"figures/{name}" for name in shown} <= summary["summary"].keys()
    records = json.dumps(inspected(log))
    assert "model.safetensors" in records
    assert '"trial"' in records
    assert '"toy"' in records


def test_the_configuration_reads_back_from_the_run(tmp_path):
    builders.cache(tmp_path / "cache")
    experiment = builders.experiment(tmp_path)
    run = fit(experiment, draw=lambda folder: [])
    assert config.load(run.folder / "config.yaml") == experiment


def test_an_offline_federated_run_holds_rounds_costs_and_what_clients_did(tmp_path):
    builders.cache(tmp_path / "cache")
    experiment = builders.experiment(tmp_path, tracking=TrackingConfig(mode="offline"))
    federation = config.FederationConfig(rounds=2)
    run = federate(dataclasses.replace(experiment, federation=federation), draw=lambda _: [])
    (log,) = run.folder.rglob("*.wandb")
    summary = inspected(log, "--summary")
    rows = rows_in(run.folder)
    assert summary["summary"]["round"] == 2
    for name in ("val/ccc/mean", "train/ccc/mean", "bytes/up", "update_norm/max"):
        assert summary["summary"][name] == pytest.approx(float(rows[-1][name]), rel=1e-6)
    histogram = summary["summary"]["clients/train/update_norm"]
    assert sum(histogram["values"]) == len(run.folds[0].train)
    assert "clients.csv" in json.dumps(inspected(log))
