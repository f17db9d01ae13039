"""Scripts, profiles, chains of jobs and what is told of them, without SLURM."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from affect import cli
from affect.cluster import doctor, jobs, plan, profile, script, slurm, submission
from affect.cluster.profile import Profile
from affect.errors import UserError
from tests import run_folders, wandb_server

KINDS = ("fit", "federate", "extract", "sweep", "compare")


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An experiment file in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(profile.VARIABLE, raising=False)
    Path("toy.yaml").write_text("name: toy\ndata: {cache: cache}\n")
    return tmp_path


@pytest.fixture
def no_slurm(monkeypatch, tmp_path):
    """A machine without SLURM's commands."""
    monkeypatch.setenv("PATH", str(tmp_path))


# --- scripts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_script_can_be_read_by_bash_and_filled(kind):
    text = script.read(kind)
    filled = script.fill(text, {"job-name": "a job", "mem": None}, ["true"], ["a b", "--c=$d"])
    for content in (text, filled):
        subprocess.run(["bash", "-n"], input=content, text=True, check=True)
    assert len(text.splitlines()) < 40
    asked = script.options_of(filled)
    assert asked["job-name"] == "a job"
    assert (
        asked.items() >= {k: v for k, v in script.options_of(text).items() if k == "time"}.items()
    )
    assert "mem" not in asked


def test_a_filled_script_sees_its_set_up_and_arguments_as_they_were_given():
    text = '#!/bin/bash\n# what it is\n#SBATCH --time=1\nprintf \'%s|\' "$place" "$@"\n'
    filled = script.fill(text, {"time": "2", "exclusive": ""}, ["place=here"], ["a b", "$c", "%a"])
    assert filled.splitlines()[:4] == [
        "#!/bin/bash",
        "# what it is",
        "#SBATCH --time=2",
        "#SBATCH --exclusive",
    ]
    done = subprocess.run(["bash"], input=filled, capture_output=True, text=True, check=True)
    assert done.stdout == "here|a b|$c|%a|"


# of sbatch's manual: minutes, minutes:seconds, hours:minutes:seconds, days-hours, ...
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("UNLIMITED", sys.maxsize),
        ("1:30", 90),
        ("04:00:00", 14400),
        ("2-12", 216000),
        ("1-0:30", 88200),
        ("1-1:1:1", 90061),
    ],
)
def test_time_limits_are_read_as_slurm_does(text, seconds):
    assert slurm.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "an hour", "1:2:3:4", "-5"])
def test_what_is_no_time_limit_is_refused(text):
    with pytest.raises(UserError, match="is no time limit"):
        slurm.seconds_of(text)


# --- profiles --------------------------------------------------------------------------------


def test_a_profile_holds_what_its_file_says(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("partition: gpu\ntime: 04:00:00\ngpus: 2\nsetup: [module load cuda]\nmail:\n")
    expected = Profile(partition="gpu", time="04:00:00", gpus=2, setup=("module load cuda",))
    assert profile.load(path) == expected


def test_the_profile_in_the_folder_of_scripts_is_a_profile():
    asked = profile.load(script.HOME / "slurm" / "profile.yaml")
    shipped = yaml.safe_load((script.HOME / "slurm" / "profile.yaml").read_text())
    assert set(shipped) == {field.name for field in dataclasses.fields(Profile)}
    assert asked.signal_s == Profile().signal_s


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("partitoin: gpu", "unknown key 'partitoin': did you mean 'partition'?"),
        ("gpus: two", "gpus must be a number, 0 or more, not 'two'"),
        ("gpus: -1", "gpus must be a number, 0 or more, not '-1'"),
        ("signal_s: 0", "signal_s must be 10 or more"),
        ("account: [a]", "account must be a text"),
        ("setup: {a: b}", "setup must be a list of lines"),
        ("- gpu", "must hold keys and values"),
        ("a: [", "cannot read the profile"),
    ],
)
def test_a_wrong_profile_is_refused(capsys, toy, content, message):
    Path("cluster.yaml").write_text(content)
    status, out, err = run(capsys, "submit", "fit", "toy.yaml", "--profile", "cluster.yaml")
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


# --- submission ------------------------------------------------------------------------------


def options_of(kind, nodes=1, **settings):
    job = submission.Submission(kind, "j", ("x",))
    return script.options_of(submission.script_of(job, Profile(**settings), nodes))


def test_the_script_asks_for_what_the_profile_and_the_flags_say(toy):
    asked = options_of(
        "fit",
        nodes=2,
        partition="gpu",
        account="lab",
        gpus=4,
        gpu_type="a100",
        memory="64G",
        cpus=6,
        time="1-0",
        mail="me@example.org",
        extra=("--exclude=n7", "--exclusive"),
    )
    assert asked == {
        "job-name": "j",
        "partition": "gpu",
        "account": "lab",
        "nodes": "2",
        "ntasks-per-node": "4",
        "cpus-per-task": "6",
        "gres": "gpu:a100:4",
        "mem": "64G",
        "time": "1-0",
        "signal": "B:USR1@300",
        "requeue": "",
        "open-mode": "append",
        "output": str(toy / "jobs" / "%x-%j.out"),
        "mail-user": "me@example.org",
        "mail-type": "END,FAIL",
        "exclude": "n7",
        "exclusive": "",
    }


def test_only_training_takes_several_nodes_and_gpus(toy):
    federated = options_of("federate", nodes=3, gpus=2)
    assert (federated["nodes"], federated["ntasks-per-node"], federated["gres"]) == (
        "3",
        "1",
        "gpu:2",
    )
    extraction = options_of("extract", nodes=3, gpus=2)
    assert (extraction["nodes"], extraction["gres"]) == ("1", "gpu:1")
    assert "gres" not in options_of("fit", gpus=0)
    comparison = options_of("compare", nodes=3, gpus=2, time="0:10", partition="gpu")
    assert "gres" not in comparison
    assert (comparison["time"], comparison["partition"]) == ("00:30:00", "gpu")


@pytest.mark.parametrize(("time", "refused"), [("6:59", True), ("7:00", False)])
def test_a_time_limit_must_leave_time_to_work_before_the_signal(capsys, toy, time, refused):
    status, _, err = run(capsys, "submit", "fit", "toy.yaml", "--time", time, "--dry-run")
    assert (status == 2) == refused, err
    if refused:
        assert "is too short" in err
        assert "--time 7 (minutes) or more" in err


def test_set_up_lines_and_variables_stand_before_the_scripts_own(toy):
    asked = Profile(
        setup=("module load cuda",), scratch="$SCRATCH/me", command="apptainer exec a.sif affect"
    )
    text = submission.script_of(submission.Submission("fit", "j", ("x",)), asked)
    before = text.partition("slurm/job.sh")[0].splitlines()
    assert "module load cuda" in before
    assert 'export AFFECT_SCRATCH="$SCRATCH/me"' in before
    assert "export AFFECT_COMMAND='apptainer exec a.sif affect'" in before


def test_a_set_up_line_that_fails_ends_the_job():
    asked = Profile(setup=("first=1", "source /nowhere/activate", "echo later"))
    filled = submission.script_of(submission.Submission("fit", "j", ("x",)), asked)
    before = filled.partition('. "${AFFECT_HOME')[0]
    done = subprocess.run(["bash"], input=before, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    told = done.stderr.splitlines()[-1]
    assert told == ("affect: error: a set-up line of the profile failed: source /nowhere/activate")


@pytest.mark.parametrize("kind", KINDS)
def test_a_script_by_hand_says_where_it_wants_to_be_started(kind, tmp_path):
    done = subprocess.run(
        ["bash", script.HOME / "slurm" / f"{kind}.sbatch", "x"],
        env={"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("or export AFFECT_HOME, its path\n")


# --- chains ----------------------------------------------------------------------------------


def planned(kind, *arguments, after=(), videos=None, **array):
    return plan.plan(kind, arguments, plan.Array(**array), after=after, videos=videos)


def test_seeds_folds_and_indices_become_arrays(toy):
    (seeds,) = planned("fit", "toy.yaml", seeds="0-4")
    assert (seeds.array, seeds.arguments) == ("0-4", ("toy.yaml", "--seed=%a"))
    kfold = ("toy.yaml", "--data.split.kind=kfold")
    (folds,) = planned("federate", "-c", *kfold, folds="0-2%1")
    assert (folds.array, folds.arguments) == ("0-2%1", (*kfold, "--data.split.fold=%a"))
    (free,) = planned("fit", "toy.yaml", "--model.layers=%a", indices="1,3")
    assert (free.array, free.arguments) == ("1,3", ("toy.yaml", "--model.layers=%a"))
    (shards,) = planned("extract", "videos", "--cache", "cache", shards=16)
    assert (shards.array, shards.variables) == ("1-16", {"SHARDS": "16"})


def test_the_whole_study_is_a_chain(toy):
    chain = planned(
        "all", "toy.yaml", "--out", "a.html", seeds="0-1", videos=Path("v"), after=["9"]
    )
    assert [(job.kind, job.after) for job in chain] == [
        ("extract", ("9",)),
        ("fit", ("extract",)),
        ("federate", ("extract",)),
        ("compare", ("fit-toy", "federate-toy")),
    ]
    assert chain[0].arguments == ("v", "--cache", "cache")
    assert chain[1].arguments == chain[2].arguments == ("toy.yaml", "--seed=%a")
    assert chain[3].arguments == ("fit-toy", "federate-toy", "--out", "a.html")


ENDLESS = """
method: random
command: [affect, fit, -c, toy.yaml, "${args}"]
metric: {name: val/ccc/mean, goal: maximize}
parameters: {optimizer.lr: {min: 0.001, max: 0.1}}
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "submit fit needs the arguments of the command"),
        (["fit", "absent.yaml"], "experiment file absent.yaml does not exist"),
        (["fit", "toy.yaml", "--model.hiden_size=3"], "did you mean 'model.hidden_size'?"),
        (["fit", "toy.yaml", "--seeds", "0-1", "--folds", "0-1"], "give one of them"),
        (["fit", "toy.yaml", "--seeds", "zero"], "'zero' is no array"),
        (["fit", "toy.yaml", "--folds", "0-1"], "data.split.kind ratio has a single fold"),
        (["fit", "toy.yaml", "--seeds", "0-1", "--seed=3"], "--seed is given, and an array"),
        (["fit", "toy.yaml", "--seed=%a"], "%a stands for an array's index: give --array"),
        (["fit", "toy.yaml", "--seeds", "5-2"], "'5-2' is no array"),
        (["sweep", "endless.yaml", "--seeds", "0-3"], "for fit, federate and all, not for sweep"),
        (["extract", "toy.yaml", "--array", "0-2", "--shards", "3"], "shards are 1 to 3"),
        (["fit", "toy.yaml", "--gpus", "-1"], "'-1' is no whole number of 0 or more"),
        (["fit", "toy.yaml", "--nodes", "0"], "'0' is no whole number of 1 or more"),
        (["compare", "12", "absent"], "no such file or folder: absent"),
        (["sweep", "absent.yaml"], "sweep file absent.yaml does not exist"),
        (["sweep", "toy.yaml"], "this is an experiment, not a sweep file"),
        (["sweep", "endless.yaml"], "never ends by itself: give --count N"),
        (["sweep", "endless.yaml", "--coun=3"], "unrecognized arguments: --coun=3"),
        (["extract", "absent", "--cache", "cache"], "no such file or folder: absent"),
        (["extract", "toy.yaml"], "the following arguments are required: --cache"),
        (["all", "toy.yaml", "--videos", "absent"], "no such file or folder: absent"),
        (["fit", "toy.yaml", "--videos", "v"], "--videos is for `affect submit all`"),
        (["fit", "toy.yaml", "--sbatch=exclude"], "'exclude' is no option of sbatch"),
        (["fit", "toy.yaml", "--time", "soon"], "'soon' is no time limit"),
        (["train", "toy.yaml"], "invalid choice: 'train'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_queued(capsys, toy, arguments, message):
    Path("endless.yaml").write_text(ENDLESS)
    status, out, err = run(capsys, "submit", *arguments, "--dry-run")
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_without_slurm_a_dry_run_works_and_a_submission_says_why_not(capsys, toy, no_slurm):
    status, out, _ = run(capsys, "submit", "fit", "toy.yaml", "--dry-run")
    assert status == 0
    assert "set -- toy.yaml\n" in out
    status, out, err = run(capsys, "submit", "fit", "toy.yaml")
    assert (status, out) == (2, "")
    assert "no sbatch on this machine" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "said",
    [
        "squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    ],
)
def test_a_controller_that_cannot_be_reached_is_told_in_plain_words(tmp_path, monkeypatch, said):
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match="squeue finds no SLURM controller"):
        slurm.call("squeue")


def test_submitting_imports_nothing_heavy(toy):
    code = (
        "import sys; from affect.cli import main\n"
        "main(['submit', 'all', 'toy.yaml', '--dry-run'])\n"
        "sys.exit(' '.join({'torch', 'lightning', 'pandas', 'h5py', 'wandb'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "\n"
    assert "#SBATCH" in done.stdout


# --- what has become of jobs -----------------------------------------------------------------


def started(folder, number, run_folder="", **texts):
    """What the scripts write of a job."""
    place = folder / number.replace("_", "/")
    place.mkdir(parents=True)
    texts = {"log": "j.out", "name": "fit", "restarts": "0", "run": str(run_folder), **texts}
    for name, text in texts.items():
        (place / name).write_text(f"{text}\n")


def test_jobs_that_slurm_has_forgotten_are_told_of_by_what_they_wrote(tmp_path, no_slurm):
    folder = tmp_path / "jobs"
    items = run_folders.predictions()
    finished = run_folders.write_run(tmp_path / "a", items).folder
    under_way = run_folders.write_run(tmp_path / "b", items, epochs=6, folds=2).folder
    started(folder, "7", finished, state="done")
    started(folder, "12_0", under_way, state="running", restarts="2")
    started(folder, "12_1", state="failed with status 2")
    (folder / "13").mkdir()
    (folder / "13" / submission.RECORD).write_text(json.dumps({"name": "fit-toy"}))
    told = jobs.jobs(folder)
    assert [(job.id, job.name, job.state, job.restarts) for job in told] == [
        ("7", "fit", "done", 0),
        ("12_0", "fit", "gone (was running)", 2),
        ("12_1", "fit", "failed with status 2", 0),
        ("13", "fit-toy", "gone", 0),
    ]
    assert told[0].run == str(finished)
    assert told[1].progress == "fold 2 of 2, epoch 6 of 40"
    assert told[2].progress == ""


def test_strangers_among_the_jobs_hide_no_job(tmp_path, no_slurm):
    started(tmp_path, "12", restarts="3 4", state="done")
    (tmp_path / "12" / "name").write_bytes(b"\xff")
    (tmp_path / "17").write_text("a file")
    (tmp_path / "18").symlink_to("nowhere")
    (job,) = jobs.jobs(tmp_path)
    assert (job.id, job.restarts) == ("12", 0)


def test_accounts_are_read():
    told = "12|COMPLETED|fit\n13_1|CANCELLED by 1000|a|b\n14_[2-4]|PENDING|fit\n"
    assert dict(jobs.accounts(told)) == {"12": ("fit", "completed"), "13_1": ("a|b", "cancelled")}


def test_without_jobs_the_folder_is_named(capsys, toy):
    status, _, err = run(capsys, "jobs")
    assert status == 2
    assert "no jobs in jobs" in err


# --- doctor ----------------------------------------------------------------------------------


def findings(settings=None):
    return {item.what: item for item in doctor.examine(settings or Profile())}


def test_the_doctor_says_of_everything_whether_it_is_there(capsys, toy, monkeypatch, no_slurm):
    monkeypatch.delenv("OPENFACE_HOME", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    status, out, _ = run(capsys, "doctor", "--json")
    assert status == 0
    told = {item["what"]: item for item in json.loads(out)["findings"]}
    assert told["affect"]["state"] == told["torch"]["state"] == told["scratch"]["state"] == "ok"
    assert told["SLURM"] | {"detail": ""} == {
        "what": "SLURM",
        "state": "missing",
        "detail": "",
        "advice": "fine where no jobs are submitted",
    }
    assert told["OpenFace"]["state"] == told["GPUs"]["state"] == "missing"
    assert all(item["advice"] for item in told.values() if item["state"] == "missing")


def test_the_doctor_misses_a_gpu_that_slurm_has_given(monkeypatch, no_slurm):
    assert findings()["GPUs"].state == "missing"
    monkeypatch.setenv("SLURM_JOB_GPUS", "1")
    found = findings()["GPUs"]
    assert (found.state, found.detail) == ("broken", "SLURM gave GPU 1, no nvidia-smi")


def test_the_doctor_doubts_a_scratch_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    for scratch, said in ((tmp_path / "x", "does not exist"), ("$NOWHERE/a", "is not set")):
        found = findings(Profile(scratch=str(scratch)))["scratch"]
        assert found.state == "missing"
        assert said in found.detail
    assert not (tmp_path / "x").exists()


def test_the_doctor_ends_with_2_where_something_is_broken(capsys, toy, monkeypatch):
    monkeypatch.setenv("OPENFACE_HOME", str(toy / "absent"))
    Path("cluster.yaml").write_text("scratch: toy.yaml\n")
    status, out, err = run(capsys, "doctor", "--profile", "cluster.yaml")
    assert status == 2
    assert "OpenFace, scratch" in err
    assert "absent" in out


def test_the_doctor_says_whether_runs_reach_wandbs_server(monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    with wandb_server.serving() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        look = doctor._LOOKS["W&B"]
        assert look().state == "ok"
        assert f"logged in at {server.url}" in look().detail
        server.key = "another"
        told = doctor._found("W&B", look)
        assert (told.state, "does not take the key" in told.detail) == ("broken", True)
    assert look().state == "missing"
    assert "`affect upload` later" in look().advice


@pytest.mark.parametrize(
    ("scratch", "environment", "expected"),
    [
        ("", {}, "/tmp"),
        ("", {"TMPDIR": "/a", "SLURM_TMPDIR": "/b"}, "/b"),
        ("$LOCAL/x", {"LOCAL": "/c", "TMPDIR": "/a"}, "/c/x"),
        ("${LOCAL}", {"LOCAL": "/c"}, "/c"),
        ("$LOCAL", {"TMPDIR": "/a"}, "/a"),
    ],
)
def test_scratch_is_where_the_scripts_lay_it(scratch, environment, expected):
    assert doctor.scratch_of(Profile(scratch=scratch), environment) == Path(expected)
    setup = submission.script_of(
        submission.Submission("fit", "j", ("x",)), Profile(scratch=scratch)
    )
    lines = [line for line in setup.splitlines() if "AFFECT_SCRATCH=" in line]
    own = next(
        line
        for line in (script.HOME / "slurm/job.sh").read_text().splitlines()
        if "scratch=" in line
    )
    code = "\n".join([*lines, own, 'echo "$scratch"'])
    done = subprocess.run(
        ["bash", "-c", code],
        env={**environment, "SLURM_JOB_ID": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{expected}/affect-1\n"
