"""A sweep from end to end, with real trials, on the toy corpus."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from affect import config, store
from affect.cli import main
from affect.config import EvaluationConfig
from affect.report import figures
from affect.sweep import figures as sweep_figures
from affect.sweep.file import parse
from affect.sweep.folder import Trial
from affect.training import run as runs
from affect.training.fit import fit
from affect.training.inference import score_run
from tests import builders


def test_a_sweep_tests_its_winner_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    builders.cache(tmp_path / "cache", subjects=6)
    Path("toy.yaml").write_text(config.to_yaml(builders.experiment(tmp_path)))
    content = {
        "program": "affect",
        "command": ["${env}", "${program}", "fit", "-c", "toy.yaml", "${args}"],
        "method": "grid",
        "metric": {"name": "val/ccc/mean", "goal": "maximize"},
        "parameters": {"model": {"parameters": {"hidden_size": {"values": [2, 8]}}}},
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(content))
    assert main(["sweep", "sweep.yaml", "--folder", "s", "--jobs", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    for trial in said["trials"]:
        run = runs.open_run(Path(trial["run"]))
        assert run.record["metrics"]["val/ccc/mean"] == trial["value"]
        assert not any(key.startswith("test/") for key in run.record["metrics"])
        assert run.experiment.model.hidden_size == trial["parameters"]["model"]["hidden_size"]
    values = [trial["value"] for trial in said["trials"]]
    assert values == sorted(values, reverse=True)
    best = runs.open_run(Path(said["best"]["run"]))
    assert said["test"] == score_run(best, "test", cache=None, device="cpu")
    experiment = config.load(Path(said["best"]["experiment"]))
    assert experiment.model == best.experiment.model
    assert experiment.evaluation.test
    assert [Path(path).name for path in said["figures"]] == ["parallel.png"]
    assert main(["sweep", "--resume", "s"]) == 0
    assert "the winner's test: " in capsys.readouterr().out


def test_a_run_may_leave_the_test_unread(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "abc-0001")
    builders.cache(tmp_path / "cache", subjects=6)
    evaluation = EvaluationConfig(postprocess=["median"], test=False)
    run = fit(builders.experiment(tmp_path, evaluation=evaluation), draw=figures.draw)
    assert run.folder == tmp_path / "runs" / "toy" / "abc-0001"
    predictions = store.read_predictions(run.folder / "predictions.h5")
    assert {item.split for item in predictions} == {"val"}
    assert {key.split("/")[0] for key in run.record["metrics"]} == {"val"}
    with (run.folder / "metrics.csv").open() as rows:
        assert not any(key.startswith("test/") for key in next(csv.DictReader(rows)))
    drawn = sorted(path.stem for path in (run.folder / "figures").iterdir())
    assert drawn == ["learning_curves"]
    monkeypatch.delenv("WANDB_SWEEP_ID")
    tested = fit(builders.experiment(tmp_path), draw=figures.draw)
    monkeypatch.undo()
    assert tested.folder.name != "abc-0001"


def test_importance_is_of_what_makes_the_difference(tmp_path):
    pytest.importorskip("optuna")
    content = {
        "command": ["affect", "fit", "${args}"],
        "method": "random",
        "parameters": {
            "model.dropout": {"min": 0.0, "max": 0.5},
            "model.layers": {"values": [1, 2, 3]},
            "model.hidden_size": {"min": 4, "max": 40},
            "optimizer.lr": {"distribution": "normal"},
        },
    }
    file = parse(yaml.safe_dump(content), "sweep.yaml")
    trials = [_trial(number) for number in range(30)]
    shares = sweep_figures.importance(file, trials)
    assert next(iter(shares)) == "model.dropout"
    assert shares["model.dropout"] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0)
    drawn = sweep_figures.draw(file, trials, tmp_path)
    assert [path.name for path in drawn] == ["parallel.png", "importance.png"]
    assert not sweep_figures.importance(file, trials[:3])


def _trial(number):
    point = {
        "model.dropout": number / 30,
        "model.layers": number % 3,
        "model.hidden_size": 4 + number * 7 % 37,
        "optimizer.lr": (number * 11 % 30) / 30,
    }
    return Trial(number, point, {}, "r", "runs/r", status="done", value=(number / 30) ** 2)
