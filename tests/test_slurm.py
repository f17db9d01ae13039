"""Jobs on a real SLURM: two virtual nodes on this machine, see `tests/slurm.sh`."""

import csv
import io
import json
import os
import subprocess
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from textwrap import dedent

import pytest

from affect import cli
from affect.cluster import script
from tests import builders, clips
from tests.clusters import (
    asked,
    ended,
    kill_node,
    node_of,
    restarts,
    start_node,
    state,
    wait_for,
)

pytestmark = pytest.mark.slurm

STEPS = 60
"""Epochs, rounds and videos of a job that is stopped on its way: minutes of work, if paced."""
TOY = """
name: toy
data:
  cache: cache
  window_frames: 30
  split: {val_fraction: 0.34, test_fraction: 0.34}
model: {hidden_size: 4, layers: 1}
trainer: {max_epochs: 1, accelerator: cpu, devices: 1}
tracking: {mode: disabled}
federation: {rounds: 1}
"""
SWEEP = """
command: [affect, fit, -c, toy.yaml, --name=swept, --trainer.max_epochs=60, "${args}"]
method: grid
metric: {name: val/ccc/mean, goal: maximize}
parameters: {optimizer.lr: {values: [0.01, 0.02]}}
"""
PROFILE = "{gpus: 0, cpus: 1, memory: 2G, time: 0:10:00, signal_s: 20, extra: [--comment=tests]}"
# SLURM looks every 30 s for whom to send the signal, up to a minute early
LIMITED = ("--profile=paced.yaml", "--sbatch=--time=2", "--sbatch=--signal=B:USR1@110")
LONG = (f"--trainer.max_epochs={STEPS}", f"--federation.rounds={STEPS}")
LOGGED = (*LONG, "--tracking.mode=offline")
GEOMETRY = ("--backend=geometry", "--device=cpu", "--jobs=1")
SURVIVORS = {
    "fit": ("fit", "toy.yaml", "--name=pooled", *LOGGED, "--data.workers=1"),
    # at once, where the partition of the others has a grace time
    "federate": ("federate", "toy.yaml", "--name=clients", *LOGGED, "--partition=spare"),
    "ray": ("federate", "toy.yaml", "--name=ray", *LOGGED, "--nodes=2", "--cpus=2"),
    "extract": ("extract", "videos", "--cache=extracted", *GEOMETRY, "--shards=1"),
}
NAMES = {
    "fit": "fit-pooled",
    "federate": "federate-clients",
    "ray": "federate-ray",
    "extract": "extract",
}


@pytest.fixture(scope="module")
def place(slurm, tmp_path_factory):
    """The folder from which jobs are submitted, with a name that scripts must quote."""
    folder = tmp_path_factory.mktemp("work place")
    builders.cache(folder / "cache", subjects=6)
    (folder / "videos").mkdir()
    for index in range(STEPS):
        clips.face(folder / "videos" / f"v{index:02d}.mkv", clips.grey(2))
    (folder / "toy.yaml").write_text(TOY)
    (folder / "profile.yaml").write_text(PROFILE)
    (folder / "paced.yaml").write_text(f"{PROFILE[:-1]}, command: python -m tests.paced}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AFFECT_PROFILE", "profile.yaml")
        patch.setenv("HURRY", str(folder / "hurry"))
        yield folder


@pytest.fixture
def affect(place, capsys):
    """Runs a command and returns its JSON object."""

    def run(*arguments):
        status = cli.main([*map(str, arguments), "--json"])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return json.loads(captured.out)

    return run


@pytest.fixture(scope="module")
def submitted(place):
    """The ids of what all tests below look at: submitted together, so that it runs together."""
    study: dict[str, str] = {}
    for command in SURVIVORS.values():
        study |= submit(*command, *LIMITED)
    study |= submit("fit", "toy.yaml", "--name=endless", "--trainer.max_epochs=100000")
    study |= submit("all", "toy.yaml")
    study |= submit("fit", "toy.yaml", "--name=pair", "--nodes=2")
    waits = ("--after", study["fit-endless"])
    return study | submit("fit", "toy.yaml", "--name=waiting", *waits)


def submit(*arguments):
    """The ids of jobs by their names."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert cli.main(["submit", *arguments, "--json"]) == 0
    return json.loads(out.getvalue())["jobs"]


def job_of(affect, number):
    (job,) = [job for job in affect("jobs")["jobs"] if job["id"] == number]
    return job


def of_shell(place, name, body):
    """A profile under which a few lines of shell stand for `affect`."""
    (place / f"{name}.sh").write_text(dedent(body))
    (place / f"{name}.yaml").write_text(f"{PROFILE[:-1]}, requeues: 1, command: bash {name}.sh}}")
    return f"{name}.yaml"


# --- what is submitted -----------------------------------------------------------------------


def test_a_dry_run_prints_what_sbatch_gets(affect, place):
    given = ["fit", "toy.yaml", "--name=a b", "--seeds=0-3", "--time=7"]
    (told,) = affect("submit", *given, "--dry-run")["scripts"].values()
    (number,) = affect("submit", *given, "--sbatch=--hold")["jobs"].values()
    asked("scontrol", "write", "batch_script", number, "kept.sh")
    kept = Path("kept.sh").read_text().removesuffix("\0")
    assert kept.replace("#SBATCH --hold\n", "") == told
    (job, *_) = json.loads(json.dumps(affect("jobs")["jobs"]))
    assert (job["id"], job["name"]) == (f"{number}_0", "fit-a b")
    assert job["state"] == "pending (JobHeldUser)"
    assert len([j for j in affect("jobs")["jobs"] if j["id"].startswith(number)]) == 4
    asked("scancel", number)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--partition=nope"], "invalid partition specified: nope"),
        (["--partition=nope"], "(there are gpu, high, spare)"),
        (["--memory=900G"], "sbatch refuses"),
        (["--array=5000"], "names MaxArraySize"),
        (["--after=4999"], "SLURM knows no job 4999"),
    ],
)
def test_what_slurm_refuses_is_told_in_a_line(place, capsys, flags, message):
    status = cli.main(["submit", "fit", "toy.yaml", *flags])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


# --- what becomes of it ----------------------------------------------------------------------


def test_a_job_that_fails_for_its_own_fault_is_not_requeued(affect, place):
    profile = of_shell(place, "failing", 'echo "$1" >>failed; exit 2\n')
    number = affect("submit", "fit", "toy.yaml", "--profile", profile)["jobs"]["fit-toy"]
    assert ended(number) == "FAILED"
    job = job_of(affect, number)
    assert (job["state"], job["restarts"]) == ("failed with status 2", 0)
    assert Path("failed").read_text() == "fit\n"


def test_scripts_work_by_hand_and_shards_are_an_array(affect, place):
    """As the guide says: sbatch from the checkout's folder or with AFFECT_HOME."""
    profile = of_shell(place, "shards", 'echo "$*" >"shard.$SLURM_ARRAY_TASK_ID"\n')
    assert profile
    environment = {
        **os.environ,
        "AFFECT_HOME": str(script.HOME),
        "AFFECT_COMMAND": "bash shards.sh",
    }
    command = ["sbatch", "--wait", "--gres=none", "--mem=1G", "--array=1-2", "--cpus-per-task=1"]
    given = [script.HOME / "slurm" / "extract.sbatch", "a video", "--cache", "c"]
    subprocess.run([*command, *given], env=environment, check=True)
    for task in (1, 2):
        expected = f"extract a video --cache c --shard {task}/2\n"
        assert Path(f"shard.{task}").read_text() == expected
    asked_for = [job for job in affect("jobs")["jobs"] if job["name"] == "extract"]
    assert [job["state"] for job in asked_for] == ["done", "done"]
    assert Path(asked_for[0]["log"]).name.startswith("extract-")


def test_gpus_are_given_as_they_are_asked_for(affect, place):
    profile = of_shell(place, "gpus", 'echo "$CUDA_VISIBLE_DEVICES|$SLURM_JOB_ID" >gpus.txt\n')
    given = ["submit", "fit", "toy.yaml", "--profile", profile, "--gpus=2", "--sbatch=--wait"]
    number = affect(*given)["jobs"]["fit-toy"]
    assert ended(number) == "COMPLETED"
    assert Path("gpus.txt").read_text() == f"0,1|{number}\n"


def test_jobs_are_asked_to_save_before_their_time_limit(affect, limited):
    for number in limited.values():
        job = job_of(affect, number)
        assert job["state"].startswith(("pending", "running", "completing"))
        assert job["restarts"] <= restarts(number)
        # on a slow machine it may not have begun a run
        assert not job["run"] or record_of(affect, number)["status"] in {"preempted", "running"}


def test_a_job_can_be_cancelled_and_what_waits_for_it_is(affect, submitted):
    number = submitted["fit-endless"]
    pointer = Path("jobs", number, "run")
    wait_for(lambda: pointer.exists() and epochs(pointer) > 0, "no epoch has ended")
    job = job_of(affect, number)
    assert (job["state"], job["restarts"]) == ("running", 0)
    assert job["progress"].endswith(" of 100000")
    asked("scancel", number)
    assert ended(number) == "CANCELLED"
    assert job_of(affect, number)["state"] == "cancelled"
    # what needs its success can never run, and does not wait for it for ever
    assert ended(submitted["fit-waiting"]) == "CANCELLED"
    assert job_of(affect, submitted["fit-waiting"])["state"] == "cancelled"


def epochs(pointer):
    if not pointer.exists():  # asked to give way before it had begun
        return 0
    metrics = Path(pointer.read_text().strip()) / "metrics.csv"
    return len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0


def test_a_study_runs_from_one_command(affect, submitted):
    for name in ("fit-toy", "federate-toy", "compare"):
        assert ended(submitted[name]) == "COMPLETED", log(affect, submitted[name])
        assert job_of(affect, submitted[name])["state"] == "done"
    fit, federate = (job_of(affect, submitted[f"{kind}-toy"]) for kind in ("fit", "federate"))
    assert fit["progress"] == federate["progress"] == "done"
    metrics = json.loads((Path(fit["run"]) / "run.json").read_text())["metrics"]
    assert fit["metric"] == metrics["val/ccc/mean"]
    page = Path("report.html").read_text()
    assert Path(fit["run"]).name in page
    assert Path(federate["run"]).name in page


def log(affect, number):
    return Path(job_of(affect, number)["log"]).read_text()


def test_two_nodes_train_one_network(affect, submitted):
    number = submitted["fit-pair"]
    assert ended(number) == "COMPLETED", log(affect, number)
    record = json.loads((Path(job_of(affect, number)["run"]) / "run.json").read_text())
    assert record["status"] == "done"
    config = (Path(job_of(affect, number)["run"]) / "config.yaml").read_text()
    assert "num_nodes: 2" in config
    assert "strategy: ddp" in config
    assert len(list(Path("runs/pair").iterdir())) == 1


# --- what stops a job, and how it goes on -----------------------------------------------------


@pytest.fixture(scope="module")
def survivors(submitted):
    """The ids of the jobs that are stopped, by what they do."""
    numbers = {kind: submitted[name] for kind, name in NAMES.items()}
    return {**numbers, "extract": f"{numbers['extract']}_1"}


@pytest.fixture(scope="module")
def limited(survivors):
    """They were asked to save before their time limit, and have a longer one now."""
    for number in survivors.values():
        wait_for(lambda n=number: restarts(n) > 0, f"job {number} does not give way")
        asked("scontrol", "update", f"jobid={number}", "timelimit=10")
    return survivors


@pytest.fixture(scope="module")
def preempted(limited, intruder):
    """They had to make room for a job of a higher partition."""
    assert intruder
    await_progress(limited)
    with requeued(limited):
        whole = ("--nodes=2", "--exclusive", "--mem=1G", "--output=/dev/null", "--wrap=true")
        asked("sbatch", "--wait", "--partition=high", *whole)
    return limited


@pytest.fixture(scope="module")
def bereft(preempted):
    """Their nodes lost power under them, and came back; they hurry now."""
    await_progress(preempted)
    with requeued(preempted):
        nodes = {node_of(number) for number in preempted.values()}
        for node in nodes:
            kill_node(node)
        for node in nodes:
            start_node(node)
    Path("hurry").touch()
    return preempted


@contextmanager
def requeued(jobs):
    """What is done in the block makes SLURM start each job once more."""
    before = {number: restarts(number) for number in jobs.values()}
    yield
    for number, count in before.items():
        wait_for(lambda n=number: restarts(n) > before[n], f"job {number} is not requeued")
        assert restarts(number) == count + 1


def await_progress(jobs):
    """Until each has started again and has done something more."""
    before = {kind: progress(kind, number) for kind, number in jobs.items()}
    for kind, number in jobs.items():
        wait_for(lambda k=kind, n=number: progress(k, n) > before[k], f"{kind} does not go on")


def progress(kind, number):
    """Epochs, rounds or recordings so far."""
    if kind == "extract":
        return len(list(Path("extracted").rglob("*.h5")))
    return epochs(Path("jobs", number, "run"))


@pytest.fixture(scope="module")
def intruder(limited):
    """What a command says that somebody starts on a run which a job has in hand."""
    number = limited["fit"]
    wait_for(lambda: state(number) == "RUNNING", "the job does not start again")
    run = Path("jobs", number, "run").read_text().strip()
    await_progress({"fit": number})
    command = ["affect", "fit", "--resume", run]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def record_of(affect, number):
    return record_at(Path(job_of(affect, number)["run"]))


def record_at(run):
    return json.loads((run / "run.json").read_text())


def test_two_do_not_work_in_one_run(affect, limited, intruder):
    assert (intruder.returncode, intruder.stdout) == (2, "")
    (said,) = intruder.stderr.splitlines()
    assert "is in the hands of process " in said
    assert f"SLURM job {limited['fit']}: " in said
    assert record_of(affect, limited["fit"])["status"] != "failed"


def test_a_task_of_an_array_is_requeued_alone_and_no_more_often_than_stated(affect, place):
    """Requeueing by $SLURM_JOB_ID would start finished tasks of the array again."""
    profile = of_shell(
        place,
        "giving_way",
        """
        echo "$*" >>"ran.$SLURM_ARRAY_TASK_ID"
        [ "$SLURM_ARRAY_TASK_ID" = 0 ] || exit 75
        """,
    )
    given = ["submit", "fit", "toy.yaml", "--seed=%a", "--array=0-1", "--profile", profile]
    number = affect(*given)["jobs"]["fit-toy"]
    wait_for(lambda: over(affect, number), "the array has not ended")
    told = {job["id"]: job for job in affect("jobs")["jobs"] if job["id"].startswith(f"{number}_")}
    assert [job["state"] for job in told.values()] == [
        "done",
        "failed: preempted after 1 restarts",
    ]
    assert [job["restarts"] for job in told.values()] == [0, 1]
    assert Path("ran.0").read_text() == "fit -c toy.yaml --seed=0\n"
    assert Path("ran.1").read_text() == "fit -c toy.yaml --seed=1\n" * 2


def test_a_sweeps_agent_that_gives_way_goes_on_with_its_trials(affect, place):
    Path("sweep.yaml").write_text(SWEEP)
    number = affect("submit", "sweep", "sweep.yaml", "--agents=1")["jobs"]["sweep-sweep"]
    wait_for(lambda: list(Path("runs/swept").glob("*/metrics.csv")), "no trial has begun")
    asked("scancel", "--batch", "--signal=USR1", f"{number}_1")
    wait_for(lambda: over(affect, number), "the sweep has not ended")
    (job,) = affect("jobs", number)["jobs"]
    assert (job["state"], job["restarts"], job["run"]) == ("done", 1, "")
    records = sorted(Path("sweeps", number).glob("trials/*/trial.json"))
    trials = [json.loads(path.read_text()) for path in records]
    assert [trial["status"] for trial in trials] == ["done", "done"]
    assert record_at(Path(trials[0]["run"]))["restarts"] == 1


def over(affect, number):
    states = [job["state"] for job in affect("jobs")["jobs"] if job["id"].startswith(f"{number}_")]
    return all(state.startswith(("done", "failed")) for state in states)


def test_a_job_requeued_after_it_was_done_does_nothing(affect, place):
    profile = of_shell(place, "once", "echo >>done_once\n")
    number = affect("submit", "fit", "toy.yaml", "--profile", profile)["jobs"]["fit-toy"]
    assert ended(number) == "COMPLETED"
    asked("scontrol", "requeue", number)
    wait_for(lambda: "Restarts=1" in asked("scontrol", "show", "job", number), "not requeued")
    assert ended(number) == "COMPLETED"
    assert Path("done_once").read_text() == "\n"


def test_the_doctor_knows_the_cluster(affect):
    told = {item["what"]: item for item in affect("doctor")["findings"]}
    assert told["SLURM"]["state"] == "ok"
    for part in ("MaxArraySize=1001", "PreemptMode=REQUEUE", "high 1-00:00:00 2 nodes"):
        assert part in told["SLURM"]["detail"]


# --- how what was stopped has ended -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["fit", "federate", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_run_that_was_stopped_three_times_ends_with_the_bits_of_one_that_was_not(
    affect, bereft, kind
):
    number = bereft[kind]
    assert ended(number) == "COMPLETED", log(affect, number)
    run = Path(job_of(affect, number)["run"])
    record = record_of(affect, number)
    assert job_of(affect, number)["restarts"] == restarts(number)
    # one that was asked to save before it had begun has nothing to go on with
    assert 2 <= record["restarts"] <= restarts(number)
    assert list(run.parent.iterdir()) == [run]
    command = "fit" if kind == "fit" else "federate"
    name = f"--name={kind}-whole"
    whole = Path(affect(command, "-c", "toy.yaml", name, *LONG)["run"])
    for file in ("model.safetensors", "preparation.json"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()
    assert record["metrics"] == json.loads((whole / "run.json").read_text())["metrics"]
    assert untimed(run / "metrics.csv") == untimed(whole / "metrics.csv")
    # one run in W&B, in a part for each start that could close its own
    parts = [path.name.rpartition("-")[2] for path in (run / "wandb").glob("offline-run-*")]
    assert set(parts) == {record["id"].rpartition("-")[2]}


def untimed(path):
    """The rows of a table without the columns that tell seconds."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows]


def test_ray_was_on_both_nodes_and_leaves_nothing(affect, bereft):
    number = bereft["ray"]
    assert ended(number) == "COMPLETED", log(affect, number)
    assert "Ray: 2 of 2 nodes have joined" in log(affect, number)
    config = (Path(job_of(affect, number)["run"]) / "config.yaml").read_text()
    assert "engine: ray" in config
    assert "workers: 4" in config  # a core each: more than a node's two
    assert not Path(f"/tmp/ray-{number}").exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert f"/tmp/ray-{number}/" not in running.stdout


def test_an_extraction_that_was_stopped_three_times_does_nothing_twice(affect, bereft):
    number = bereft["extract"]
    assert ended(number) == "COMPLETED", log(affect, number)
    assert restarts(number) >= 3
    affect("extract", "videos", "--cache=whole", *GEOMETRY)
    one, other = (
        {path.name: path.read_bytes() for path in Path(cache).rglob("*.h5")}
        for cache in ("extracted", "whole")
    )
    assert len(one) == STEPS
    assert one == other
