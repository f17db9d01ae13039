"""One process works in a folder, whatever becomes of those before it, here or on other machines."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from affect import claims, cli
from affect.data.corpus import entries_of
from affect.data.splits import Fold
from affect.errors import UserError
from affect.training import run as runs
from affect.training.execution import under_way
from tests import builders

OWNER = """
import sys, time
from pathlib import Path
from affect import claims
claims.TOUCH_S = 0.05
with claims.held(Path(sys.argv[1]), "the work"):
    print("works", flush=True)
    time.sleep(60)
"""
ENTRANT = """
import sys, time
from pathlib import Path
from affect.claims import take
while time.time() < float(sys.argv[2]):
    pass
print(take(Path(sys.argv[1])) is not None, flush=True)
sys.stdin.read()
"""


def process(program, *arguments):
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=known, text=True, **pipes)


@pytest.fixture
def owner(tmp_path):
    """A process that works in a folder."""
    with process(OWNER, tmp_path) as started:
        assert started.stdout.readline() == "works\n"
        yield started
        started.kill()


def claimed(folder, age_s=0.0, **owner):
    """The claim of a process on another machine."""
    told = {"host": "n7", "pid": 1, "birth": 1, "machine": "m", "job": None, "start": 0, **owner}
    path = folder / f"claim-{len(list(folder.glob('claim-*'))):04d}"
    path.write_text(json.dumps(told))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_the_second_is_refused_until_the_first_is_over_or_killed(owner, tmp_path):
    said = rf"the work is in the hands of process {owner.pid} on \S+: wait until it ends, or end it"
    with pytest.raises(UserError, match=said), claims.held(tmp_path, "the work"):
        pass
    owner.kill()
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # unburied: a zombie
    with claims.held(tmp_path, "the work"):
        assert claims.take(tmp_path) is None
    with claims.held(tmp_path, "the work"):
        pass


def test_an_owner_that_is_taken_for_dead_ends_at_once(owner, tmp_path):
    claimed(tmp_path, job="c/12")
    _, err = owner.communicate(timeout=20)
    assert owner.returncode == 2
    assert err.startswith("affect: error: the work was taken over by process 1 on n7, SLURM job 12")
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("released-*"))


def test_an_owner_shows_that_it_lives(owner, tmp_path):
    (claim,) = tmp_path.glob("claim-*")
    os.utime(claim, (0, 0))
    deadline = time.monotonic() + 20
    while claim.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_has_a_dead_ones_number_is_another(tmp_path):
    mine = json.loads(claims.take(tmp_path).read_text())
    assert claims.take(tmp_path) is None
    claimed(tmp_path, **{**mine, "birth": mine["birth"] - 1})
    assert claims.take(tmp_path) is not None


@pytest.mark.parametrize(
    ("owner", "age_s", "free"),
    [
        ({}, 0, False),
        ({}, claims.STALE_S + 5, True),
        ({"job": "here/12", "start": 0}, 0, True),
        ({"job": "here/12", "start": 1}, 0, False),
        ({"job": "here/13", "start": 0}, 0, False),
        ({"job": "there/12", "start": 0}, 0, False),
        ({"job": "there/12", "start": 0}, claims.STALE_S + 5, True),
    ],
)
def test_another_machines_process_is_judged_by_its_job_and_its_age(
    tmp_path, monkeypatch, owner, age_s, free
):
    """This is the second start of job 12 of the cluster `here`."""
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    claimed(tmp_path, age_s, **owner)
    assert (claims.take(tmp_path) is not None) == free


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"host": "here"}'])
def test_a_claim_that_tells_nothing_is_judged_by_its_age(tmp_path, text):
    claim = tmp_path / "claim-0000"
    claim.write_text(text)
    assert claims.take(tmp_path) is None
    assert not claims.own_host(tmp_path)
    long_ago = time.time() - 2 * claims.STALE_S
    os.utime(claim, (long_ago, long_ago))
    assert claims.take(tmp_path) is not None


@pytest.mark.parametrize("before", [None, {"age_s": 1000.0}], ids=["new", "of a dead process"])
def test_of_many_that_come_at_once_one_is_taken(tmp_path, before):
    if before:
        claimed(tmp_path, **before)
    start_s = time.time() + 1.0
    many = [process(ENTRANT, tmp_path, start_s) for _ in range(4)]
    said = [one.stdout.readline() for one in many]  # all have tried, none has ended
    for one in many:
        one.communicate(timeout=60)
    assert sorted(said) == ["False\n"] * 3 + ["True\n"]


@pytest.fixture
def run(tmp_path):
    """A run that has stopped."""
    builders.cache(tmp_path / "cache")
    experiment = builders.experiment(tmp_path)
    begun = runs.create(experiment, "fit", [Fold(0, ("P0",), ("P1",), ("P2",))])
    runs.begin(begun, entries_of(experiment.data, progress=False))
    return begun


def test_a_run_in_another_process_hands_is_refused_and_keeps_every_byte(run, capsys):
    (run.folder / "owners").mkdir()
    claimed(run.folder / "owners", job="c/12")
    before = contents(run.folder)
    assert cli.main(["fit", "--resume", str(run.folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    told = f"affect: error: the run {run.folder} is in the hands of process 1 on n7, SLURM job 12: "
    assert err.startswith(told)
    assert len(err.splitlines()) == 1
    assert contents(run.folder) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_goes_on_with_what_its_last_owner_wrote_and_counts_its_restarts(run):
    resumed = runs.open_run(run.folder)
    run.update({"delay_s": {"0": {}}})  # while the next one was reading the corpus
    with under_way(resumed, "affect fit --resume", None):
        assert resumed.record["delay_s"] == {"0": {}}
    with under_way(runs.open_run(run.folder), "affect fit --resume", None):
        pass
    assert runs.open_run(run.folder).record["restarts"] == 2
