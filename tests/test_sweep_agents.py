"""Agents of a sweep: each configuration once, whatever is killed and however many work."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from affect import claims
from affect.cli import main
from affect.errors import UserError
from affect.sweep.folder import Trial, create, open_sweep
from affect.sweep.summary import ranked
from affect.sweep.trial import environment, processes_of
from tests import trial_program

RATES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the stand-in program, to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "affect").write_text(trial_program.PROGRAM)
    (tmp_path / "affect").chmod(0o755)
    return tmp_path


def sweep_file(place, **changes):
    content = {
        "command": [str(place / "affect"), "fit", f"--runs={place / 'runs'}", "${args}"],
        "method": "grid",
        "metric": {"name": "val/ccc/mean", "goal": "maximize"},
        "parameters": {
            "optimizer.lr": {"values": RATES},
            "seed": {"value": 0},
            "trainer.max_epochs": {"value": 2},
        },
        **changes,
    }
    path = place / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def with_parameters(**parameters):
    fixed = {"optimizer.lr": {"values": RATES}, "seed": {"value": 0}}
    return {**fixed, "trainer.max_epochs": {"value": 2}, **parameters}


def agent(*arguments):
    return main(["sweep", *map(str, arguments), "--folder", "s", "--agent"])


def background(*arguments, **variables):
    """The same in a process of its own."""
    command = [sys.executable, "-m", "affect", "sweep", *map(str, arguments), "--agent"]
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.Popen(command, env=known, stderr=subprocess.PIPE, text=True)


def ran(place):
    path = place / "ran.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rates_begun(place):
    return sorted(float(rate) for start, rate, _ in ran(place) if start == "fresh")


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_grid_runs_each_configuration_once_and_not_again(place, capsys):
    path = sweep_file(place)
    assert agent(path, "--jobs", 3) == 0
    assert "nothing was left" not in capsys.readouterr().err
    assert agent(path) == 0
    assert "affect: nothing was left to run: all 6 trials have ended" in capsys.readouterr().err
    assert rates_begun(place) == RATES
    sweep = open_sweep(Path("s"))
    trials = sweep.trials()
    assert [trial.value for trial in trials] == RATES
    assert {(trial.status, trial.logged) for trial in trials} == {("done", 2)}
    best = ranked(sweep.file, trials)[0]
    assert best.value == max(RATES)
    record = json.loads((Path(best.run) / "run.json").read_text())
    assert record["flags"]["evaluation.test"] == "false"
    assert record["sweep"] == sweep.id
    assert record["mode"] == "disabled"
    given = yaml.safe_load((sweep.trial_folder(best.number) / "config.yaml").read_text())
    assert given["optimizer.lr"] == {"value": max(RATES)}


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_draws_nothing_twice_and_ends_with_the_space(place, method):
    if method == "bayes":
        pytest.importorskip("optuna")
    path = sweep_file(place, method=method)
    assert agent(path, "--count", 4, "--jobs", 2) == 0
    assert len(rates_begun(place)) == 4
    assert agent(path, "--count", 100) == 0
    assert rates_begun(place) == RATES


def test_two_agents_share_a_sweep(place):
    path = sweep_file(place)
    both = [background(path, "--folder", "s", EPOCH_S="0.1") for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=300) is not None
        assert process.returncode == 0
    assert rates_begun(place) == RATES
    assert {trial.status for trial in open_sweep(Path("s")).trials()} == {"done"}


def test_a_killed_agents_trials_are_gone_on_with(place):
    path = sweep_file(place, parameters=with_parameters(**{"trainer.max_epochs": {"value": 3}}))
    first = background(path, "--folder", "s", "--jobs", 2, EPOCH_S="20")
    until(lambda: len(list(place.glob("runs/*/*/metrics.csv"))) == 2)
    first.kill()
    first.communicate()
    begun = [trial.run_id for trial in open_sweep(Path("s")).trials()]
    assert all(processes_of(run_id) for run_id in begun)  # they have outlived their agent
    assert main(["sweep", "--resume", "s", "--agent", "--jobs", "2"]) == 0
    assert rates_begun(place) == RATES
    assert Counter(start for start, *_ in ran(place)) == {"fresh": len(RATES), "resumed": 2}
    assert {trial.status for trial in open_sweep(Path("s")).trials()} == {"done"}
    assert not any(processes_of(run_id) for run_id in begun)


def test_a_signal_puts_trials_down(place):
    process = background(sweep_file(place), "--folder", "s", EPOCH_S="20")
    until(lambda: list(place.glob("runs/*/*/metrics.csv")))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert said.endswith("affect: preempted: go on with `affect sweep --resume s`\n")
    (trial,) = open_sweep(Path("s")).trials()
    assert trial.status == "interrupted"
    assert main(["sweep", "--resume", "s", "--agent"]) == 0
    assert rates_begun(place) == RATES


def test_a_second_signal_leaves_no_trial_running(place):
    process = background(sweep_file(place), "--folder", "s", EPOCH_S="20")
    until(lambda: list(place.glob("runs/*/*/metrics.csv")))
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.01)
    process.communicate(timeout=60)
    (trial,) = open_sweep(Path("s")).trials()
    assert trial.status == "interrupted"
    assert not processes_of(trial.run_id)


def test_a_trial_that_was_killed_says_so(place, capsys):
    process = background(sweep_file(place), "--folder", "s", "--count", 1, EPOCH_S="20")
    until(lambda: list(place.glob("runs/*/*/metrics.csv")))
    (trial,) = open_sweep(Path("s")).trials()
    for pid in processes_of(trial.run_id):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    (trial,) = open_sweep(Path("s")).trials()
    assert trial.reason == "killed by signal 9, as for want of memory"


def test_a_count_goes_over_the_files_cap(place):
    path = sweep_file(place, run_cap=1)
    assert agent(path) == 0
    assert rates_begun(place) == RATES[:1]
    assert main(["sweep", "--resume", "s", "--agent", "--count", "2"]) == 0
    assert rates_begun(place) == RATES[:2]


def test_a_trial_is_told_nothing_of_the_agents_job(place, monkeypatch):
    monkeypatch.setenv("AFFECT_RUN_POINTER", str(place / "pointer"))
    monkeypatch.setenv("AFFECT_RUN_ID", "mine")
    sweep = create(Path("s"), sweep_file(place).read_text(), "sweep.yaml", seed=0, count=None)
    assert sweep.take(0)
    trial = Trial(0, {}, {}, "id-0000", str(place / "runs"))
    known = environment(sweep, trial)
    assert not {"AFFECT_RUN_POINTER", "AFFECT_RUN_ID"} & known.keys()
    assert known["WANDB_RUN_ID"] == "id-0000"


def test_a_folder_with_strangers_in_it_is_read(place):
    assert agent(sweep_file(place), "--count", 1) == 0
    (place / "s" / "trials" / "copy").mkdir()
    (place / "s" / "trials" / "copy" / "trial.json").write_text("")
    assert len(open_sweep(Path("s")).trials()) == 1
    (place / "s" / "trials" / "0000" / "trial.json").write_text("")
    with pytest.raises(UserError, match="is no record of a trial"):
        open_sweep(Path("s")).trials()


def test_hyperband_stops_trials_that_lag_behind(place, monkeypatch):
    monkeypatch.setenv("EPOCH_S", "0.1")
    parameters = with_parameters(
        **{"optimizer.lr": {"values": [0.6, 0.5, 0.1]}, "trainer.max_epochs": {"value": 40}}
    )
    rule = {"type": "hyperband", "min_iter": 1, "eta": 2}
    path = sweep_file(place, early_terminate=rule, parameters=parameters)
    assert agent(path, "--jobs", 1) == 0  # one after another: no race
    best, _, worst = open_sweep(Path("s")).trials()
    assert (best.status, best.logged) == ("done", 40)
    assert (worst.status, worst.value) == ("stopped", 0.1)
    assert 0 < worst.logged < 40


def test_no_trial_begins_after_the_target(place):
    metric = {"name": "val/ccc/mean", "goal": "maximize", "target": 0.3}
    assert agent(sweep_file(place, metric=metric)) == 0
    assert rates_begun(place) == [0.1, 0.2, 0.3]


def test_runs_that_all_fail_end_the_sweep(place, capsys):
    path = sweep_file(place, parameters=with_parameters(seed={"value": 13}))
    assert agent(path) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("affect: error: no trial finished; trial 0: error: thirteen is refused")
    assert len(ran(place)) == 3


def test_a_metric_that_no_run_reports_is_told(place, capsys):
    path = sweep_file(place, parameters=with_parameters(seed={"value": 14}))
    assert main(["sweep", str(path), "--folder", "s"]) == 2
    assert "its run reports no finite val/ccc/mean" in capsys.readouterr().err.splitlines()[-1]


def test_a_claim_is_one_processs_until_it_is_old_or_let_go(place):
    sweep = create(Path("s"), sweep_file(place).read_text(), "sweep.yaml", seed=0, count=None)
    assert sweep.take(0)
    assert not sweep.take(0)
    sweep.release(0)
    assert sweep.take(0)
    claim = max(sweep.trial_folder(0).glob("claim-*"))
    claim.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert not sweep.take(0)
    long_ago = time.time() - 2 * claims.STALE_S
    os.utime(claim, (long_ago, long_ago))
    assert sweep.take(0)
    assert not sweep.own_host(0)
    assert sweep.reserve("abc", 0)
    assert sweep.reserve("abc", 0)
    assert not sweep.reserve("abc", 1)


def test_a_folder_belongs_to_one_file(place):
    path = sweep_file(place)
    made = create(Path("s"), path.read_text(), "sweep.yaml", seed=0, count=None)
    assert create(Path("s"), path.read_text(), "sweep.yaml", seed=1, count=3).id == made.id
    other = sweep_file(place, method="random").read_text()
    with pytest.raises(UserError, match="is the folder of another sweep file"):
        create(Path("s"), other, "sweep.yaml", seed=0, count=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "sweep takes a FILE, or --resume FOLDER"),
        (["missing.yaml"], "sweep file missing.yaml does not exist"),
        (["--resume", "nowhere"], "no sweep at nowhere"),
        (["sweep.yaml", "--seed", "-1"], "--seed must be 0 or more"),
        (["--resume", "s", "--folder", "t"], "--resume names the sweep's folder"),
        (["sweep.yaml", "--jobs", "0"], "--jobs must be at least 1"),
        (["sweep.yaml", "--count", "-1"], "--count must be at least 1"),
        (["endless.yaml"], "method random never ends by itself: give --count N"),
        (["empty.yaml"], "a sweep file must hold keys and values"),
    ],
)
def test_bad_calls_are_refused_and_leave_nothing(place, capsys, arguments, message):
    sweep_file(place)
    endless = {"optimizer.lr": {"min": 0.1, "max": 1.0}}
    text = sweep_file(place, method="random", parameters=endless).read_text()
    (place / "endless.yaml").write_text(text)
    (place / "empty.yaml").write_text("")
    before = sorted(place.rglob("*"))
    assert main(["sweep", *arguments]) == 2
    assert re.search(re.escape(message), capsys.readouterr().err)
    assert sorted(place.rglob("*")) == before


def test_trials_that_did_not_finish_rank_last(place):
    sweep = create(Path("s"), sweep_file(place).read_text(), "sweep.yaml", seed=0, count=None)
    base = Trial(0, {}, {}, "r", "runs/r", value=0.2, status="done")
    given = [
        replace(base, number=3, value=0.9, status="stopped"),
        base,
        replace(base, number=1, value=0.5),
        replace(base, number=2, value=None, status="failed"),
    ]
    assert [trial.number for trial in ranked(sweep.file, given)] == [1, 0, 3, 2]
    minimised = replace(sweep.file, metric=replace(sweep.file.metric, maximize=False))
    assert [trial.number for trial in ranked(minimised, given)] == [0, 1, 3, 2]
