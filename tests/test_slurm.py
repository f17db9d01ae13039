"""Jobs on a real SLURM: two virtual nodes on this machine, see `tests/slurm.sh`."""

import json
import os
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

from affect import cli
from affect.cluster import script
from tests import builders
from tests.clusters import asked, ended, state, wait_for

pytestmark = pytest.mark.slurm

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
PROFILE = "{gpus: 0, cpus: 1, memory: 2G, time: 0:10:00, signal_s: 20, extra: [--comment=tests]}"


@pytest.fixture(scope="module")
def place(slurm, tmp_path_factory):
    """The folder from which jobs are submitted, with a name that scripts must quote."""
    folder = tmp_path_factory.mktemp("work place")
    builders.cache(folder / "cache", subjects=6)
    (folder / "toy.yaml").write_text(TOY)
    (folder / "profile.yaml").write_text(PROFILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AFFECT_PROFILE", "profile.yaml")
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
    submit = ["affect", "submit", "--json"]
    endless = ["fit", "toy.yaml", "--name=endless", "--trainer.max_epochs=100000"]
    study = json.loads(asked(*submit, *endless))["jobs"]
    study |= json.loads(asked(*submit, "all", "toy.yaml"))["jobs"]
    distributed = ["fit", "toy.yaml", "--name=pair", "--nodes=2"]
    study |= json.loads(asked(*submit, *distributed))["jobs"]
    waiting = ["fit", "toy.yaml", "--name=waiting", "--after", study["fit-endless"]]
    return study | json.loads(asked(*submit, *waiting))["jobs"]


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
        (["--partition=nope"], "(there are gpu, high)"),
        (["--memory=900G"], "sbatch refuses"),
        (["--array=5000"], "names MaxArraySize"),
    ],
)
def test_what_slurm_refuses_is_told_in_a_line(place, capsys, flags, message):
    status = cli.main(["submit", "fit", "toy.yaml", *flags])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


# --- what becomes of it ----------------------------------------------------------------------


def test_a_fit_gives_way_goes_on_and_can_be_cancelled(affect, submitted):
    number = submitted["fit-endless"]
    pointer = Path("jobs", number, "run")
    wait_for(lambda: pointer.exists() and epochs(pointer) > 0, "no epoch has ended")
    asked("scancel", "--batch", "--signal=USR1", number)
    wait_for(lambda: state(number) == "PENDING", "the job is not requeued")
    before, run = epochs(pointer), Path(pointer.read_text().strip())
    assert json.loads((run / "run.json").read_text())["status"] == "preempted"
    assert job_of(affect, number)["state"].startswith("pending")
    wait_for(lambda: epochs(pointer) > before, "the run does not go on")
    assert Path(pointer.read_text().strip()) == run
    job = job_of(affect, number)
    assert (job["state"], job["restarts"]) == ("running", 1)
    assert job["progress"].endswith(" of 100000")
    asked("scancel", number)
    assert ended(number) == "CANCELLED"
    assert job_of(affect, number)["state"] == "cancelled"
    # what needs its success can never run, and does not wait for it for ever
    assert ended(submitted["fit-waiting"]) == "CANCELLED"
    assert job_of(affect, submitted["fit-waiting"])["state"] == "cancelled"


def epochs(pointer):
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
    given = ["submit", "sweep", "sweep.yaml", "--of=%a", "--array=0-1", "--profile", profile]
    number = affect(*given)["jobs"]["sweep-sweep"]
    wait_for(lambda: over(affect, number), "the array has not ended")
    told = {job["id"]: job for job in affect("jobs")["jobs"] if job["id"].startswith(f"{number}_")}
    assert [job["state"] for job in told.values()] == [
        "done",
        "failed: preempted after 1 restarts",
    ]
    assert [job["restarts"] for job in told.values()] == [0, 1]
    agent = f"sweep sweep.yaml --folder sweeps/{number} --agent"
    assert Path("ran.0").read_text() == f"{agent} --of=0\n"
    assert Path("ran.1").read_text() == f"{agent} --of=1\n" * 2


def over(affect, number):
    states = [job["state"] for job in affect("jobs")["jobs"] if job["id"].startswith(f"{number}_")]
    return all(state.startswith(("done", "failed")) for state in states)


def test_a_job_that_fails_for_its_own_fault_is_not_requeued(affect, place):
    profile = of_shell(place, "failing", 'echo "$1" >>failed; exit 2\n')
    number = affect("submit", "fit", "toy.yaml", "--profile", profile)["jobs"]["fit-toy"]
    assert ended(number) == "FAILED"
    job = job_of(affect, number)
    assert (job["state"], job["restarts"]) == ("failed with status 2", 0)
    assert Path("failed").read_text() == "fit\n"


def test_a_job_requeued_after_it_was_done_does_nothing(affect, place):
    profile = of_shell(place, "once", "echo >>done_once\n")
    number = affect("submit", "fit", "toy.yaml", "--profile", profile)["jobs"]["fit-toy"]
    assert ended(number) == "COMPLETED"
    asked("scontrol", "requeue", number)
    wait_for(lambda: "Restarts=1" in asked("scontrol", "show", "job", number), "not requeued")
    assert ended(number) == "COMPLETED"
    assert Path("done_once").read_text() == "\n"


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


# --- what a job sees -------------------------------------------------------------------------


def test_gpus_are_given_as_they_are_asked_for(affect, place):
    profile = of_shell(place, "gpus", 'echo "$CUDA_VISIBLE_DEVICES|$SLURM_JOB_ID" >gpus.txt\n')
    given = ["submit", "fit", "toy.yaml", "--profile", profile, "--gpus=2", "--sbatch=--wait"]
    number = affect(*given)["jobs"]["fit-toy"]
    assert ended(number) == "COMPLETED"
    assert Path("gpus.txt").read_text() == f"0,1|{number}\n"


@pytest.mark.ray
def test_ray_joins_all_nodes_and_leaves_nothing(place):
    """The part of `federate.sbatch` that starts Ray, with plain Ray calls for a federated run."""
    work = """
        import json, ray
        ray.init("auto", log_to_driver=False)
        @ray.remote(num_cpus=2)  # all of a node's
        class Worker:
            def node(self): return ray.get_runtime_context().get_node_id()
        workers = [Worker.remote() for _ in range(2)]
        ids = ray.get([worker.node.remote() for worker in workers])
        print(json.dumps({"nodes": len(set(ids)), "cpus": ray.cluster_resources()["CPU"]}))
    """
    (place / "work.py").write_text(dedent(work))
    text = f"""\
        #!/usr/bin/env bash
        #SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --mem=4G --output=ray.out --time=5
        export AFFECT_HOME="{script.HOME}"
        . "$AFFECT_HOME/slurm/job.sh"
        . "$home/slurm/ray.sh"
        start_ray
        trap 'stop_ray; rm -rf "$scratch"' EXIT
        srun --nodes=1 --ntasks=1 --overlap python work.py >ray.json
    """
    number = asked("sbatch", "--parsable", text=dedent(text)).strip()
    assert ended(number) == "COMPLETED", Path("ray.out").read_text()
    assert json.loads(Path("ray.json").read_text()) == {"nodes": 2, "cpus": 4.0}
    assert not Path(f"/tmp/ray-{number}").exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert f"/tmp/ray-{number}/" not in running.stdout


def test_the_doctor_knows_the_cluster(affect):
    told = {item["what"]: item for item in affect("doctor")["findings"]}
    assert told["SLURM"]["state"] == "ok"
    for part in ("MaxArraySize=1001", "PreemptMode=REQUEUE", "high 1-00:00:00 2 nodes"):
        assert part in told["SLURM"]["detail"]
