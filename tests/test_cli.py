import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from affect import __version__, cli, store
from affect.cli import main
from affect.recording import OPENFACE_INTENSITIES, Provenance
from tests import builders


def run(capsys, *arguments):
    """Exit status, standard output and standard error of the command."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def in_a_process(*arguments, **options):
    command = [sys.executable, "-m", "affect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def toy(folder, **changes):
    """The flags of a tiny experiment on a cache in `folder`."""
    flags = {
        "name": "toy",
        "runs": folder / "runs",
        "data.cache": folder / "cache",
        "data.window_frames": 30,
        "data.split.val_fraction": 0.34,
        "data.split.test_fraction": 0.34,
        "model.hidden_size": 4,
        "trainer.max_epochs": 1,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "tracking.mode": "disabled",
        **changes,
    }
    return ["fit", *(f"--{key}={value}" for key, value in flags.items())]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a cache and a finished run."""
    folder = tmp_path_factory.mktemp("workplace")
    builders.cache(folder / "cache", subjects=6)
    assert main(toy(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def a_run(workplace):
    (folder,) = (workplace / "runs" / "toy").iterdir()
    return folder


def test_help_names_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for name in cli.COMMANDS:
        assert f"  {name} " in out


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name):
    finished = in_a_process(name, "--help")
    assert finished.returncode == 0, finished.stderr
    assert cli.COMMANDS[name].summary in finished.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from affect.cli import main; main(['--help']);"
        "heavy = {'torch', 'lightning', 'pandas', 'h5py', 'numpy', 'wandb', 'flwr'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stderr.strip() == "[]"


def test_the_version_is_told(capsys):
    assert run(capsys, "--version")[1].startswith("affect 0.")


def test_a_corpus_is_made_listed_and_verified(capsys, tmp_path):
    cache = tmp_path / "cache"
    made = ("synth", "--cache", cache, "--subjects", 2, "--seconds", 20)
    assert json.loads(run(capsys, *made, "--json")[1])["written"] == 2
    assert json.loads(run(capsys, *made, "--json")[1]) == {
        "cache": str(cache),
        "written": 0,
        "skipped": 2,
    }
    held = json.loads(run(capsys, "info", cache, "--json")[1])["corpora"]["synthetic"]
    assert (held["subjects"], held["recordings"], held["frames"]) == (2, 2, 1002)
    assert 0 < held["faces"] < 1
    assert "synthetic" in run(capsys, "info", cache)[1]
    assert json.loads(run(capsys, "verify", cache, "--json")[1])["broken"] == 0


def test_info_tells_of_each_corpus_what_its_recordings_have(capsys, tmp_path):
    builders.cache(tmp_path, subjects=3)
    plain = builders.recording("P7").with_annotations({})
    store.write(plain, tmp_path)
    units = {
        "intensity_names": OPENFACE_INTENSITIES,
        "intensity": np.zeros((60, 17), np.float32),
        "presence": np.zeros((60, 1), np.uint8),
        "presence_names": ("AU28_c",),
        "provenance": Provenance("openface", "1", "x"),
    }
    for name, rate_hz in (("a", 25.0), ("b", 30000 / 1001)):
        clock = {"rate_hz": rate_hz, "time_s": np.arange(60) / rate_hz}
        store.write(builders.recording(name, corpus="videos", **clock, **units), tmp_path)
    corpora = json.loads(run(capsys, "info", tmp_path, "--json")[1])["corpora"]
    rated = {"recordings": 3, "annotations": ["arousal", "valence"]}
    shared = {"backend": "test", "rates_hz": [5.0], "features": [*builders.NAMES], "presences": []}
    unrated = {"recordings": 1, "annotations": []}
    assert corpora["toy"]["kinds"] == [{**rated, **shared}, {**unrated, **shared}]
    (openface,) = corpora["videos"]["kinds"]
    assert openface["rates_hz"] == [25.0, 29.97]
    assert (openface["features"], openface["presences"]) == ([*OPENFACE_INTENSITIES], ["AU28_c"])
    table = run(capsys, "info", tmp_path)[1]
    assert "25, 29.97" in table
    assert "(17)" in table  # of AU01_r to AU45_r, which a narrow column may part


def test_verify_names_every_broken_file(capsys, tmp_path):
    builders.cache(tmp_path / "cache", subjects=3)
    paths = store.recording_paths(tmp_path / "cache")
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    paths[2].write_bytes(b"")
    status, out, err = run(capsys, "verify", tmp_path / "cache")
    assert (status, out) == (2, "")
    assert str(paths[0]) in err
    assert str(paths[2]) in err
    assert "2 of 3 recordings" in err


def test_fit_prints_one_json_object_with_the_shared_keys(capsys, workplace, tmp_path):
    status, out, err = run(capsys, *toy(workplace, runs=tmp_path), "--json")
    assert status == 0
    result = json.loads(out)
    assert {"test/ccc/valence", "val/rmse/arousal", "test/ccc_per_recording/mean"} <= result.keys()
    assert (tmp_path / "toy") in [p.parent for p in tmp_path.rglob("run.json") for p in [p.parent]]
    assert "epoch" in err


def test_fit_draws_the_figures(a_run):
    names = {path.stem for path in (a_run / "figures").iterdir()}
    assert {"traces", "scatter", "learning_curves"} <= names


def test_the_scores_are_printed_as_a_table(capsys, a_run):
    status, out, _ = run(capsys, "test", a_run)
    assert status == 0
    assert "ccc_per_recording" in out
    assert "arousal" in out


def test_validate_and_test_agree_with_the_run(capsys, a_run):
    stored = json.loads((a_run / "run.json").read_text())["metrics"]
    for command, split in (("validate", "val"), ("test", "test")):
        again = json.loads(run(capsys, command, a_run, "--json", "--device", "cpu")[1])
        assert again.pop("run") == str(a_run)
        expected = {key: value for key, value in stored.items() if key.startswith(split)}
        assert again == pytest.approx(expected, abs=1e-5)


def test_predict_writes_a_csv(capsys, workplace, a_run, tmp_path):
    out = tmp_path / "out.csv"
    status, text, _ = run(capsys, "predict", a_run, workplace / "cache", "--out", out)
    assert status == 0
    assert "360 frames of 6 recordings" in text
    assert len(out.read_text().splitlines()) == 361


def odd_recordings(cache):
    """Recordings that no run on `builders.NAMES` at 5 Hz can take, and what is said of each."""
    slow = {"rate_hz": 4.0, "time_s": np.arange(60) / 4.0}
    lost = {"intensity": np.full((60, 3), np.nan, np.float32), "success": np.zeros(60, bool)}
    store.write(builders.recording("P1", "slow", **slow), cache)
    store.write(builders.recording("P2", "units", intensity_names=("a", "b", "AU12_r")), cache)
    store.write(builders.recording("P3", "lost", **lost), cache)
    broken = store.write(builders.recording("P4", "broken"), cache)
    content = broken.read_bytes()
    broken.write_bytes(content[:512] + bytes(len(content) - 512))
    return [
        "recording toy/P1/slow has 4 frames a second, the network was trained on 5: use",
        "recording toy/P2/units has no action unit 'AU01_r'; it has a, b, AU12_r",
        "recording toy/P3/lost has no frame with a face",
        f"{broken} cannot be read as HDF5 of affect",
    ]


def test_recordings_that_do_not_fit_cost_no_other(capsys, workplace, a_run, tmp_path):
    alone, beside = tmp_path / "alone.csv", tmp_path / "beside.csv"
    assert run(capsys, "predict", a_run, workplace / "cache", "--out", alone)[0] == 0
    shutil.copytree(workplace / "cache", tmp_path / "cache")
    told = odd_recordings(tmp_path / "cache")
    arguments = ("predict", a_run, tmp_path / "cache", "--out", beside, "--json")
    status, out, err = run(capsys, *arguments)
    counts = json.loads(out)
    assert (status, counts["recordings"], counts["left_out"]) == (2, 6, 4)
    *lines, last = err.splitlines()
    for line, start in zip(lines, told, strict=True):
        assert line.startswith(f"affect: {start}")
    assert last == "affect: error: 4 of 10 recordings were left out"
    assert beside.read_bytes() == alone.read_bytes()


def test_where_no_recording_fits_no_csv_is_written(capsys, a_run, tmp_path):
    told = odd_recordings(tmp_path / "cache")
    out = tmp_path / "out.csv"
    status, text, err = run(capsys, "predict", a_run, tmp_path / "cache", "--out", out)
    assert (status, text, out.exists()) == (2, "", False)
    assert err.startswith(f"affect: error: {told[0]}")
    assert err.endswith("; nor do 3 others fit\n")
    assert err.count("\n") == 1


def test_one_corpus_of_a_cache_is_predicted(capsys, workplace, a_run, tmp_path):
    shutil.copytree(workplace / "cache", tmp_path / "cache")
    store.write(builders.recording("P1", corpus="other"), tmp_path / "cache")
    out = tmp_path / "out.csv"
    arguments = ("predict", a_run, tmp_path / "cache", "--out", out)
    assert run(capsys, *arguments, "--corpus", "other")[0] == 0
    rows = out.read_text().splitlines()
    assert len(rows) == 61
    assert rows[1].startswith("other,P1,1,0.0,")
    status, _, err = run(capsys, *arguments, "--corpus", "odd")
    assert status == 2
    assert "no recordings of corpus 'odd' in" in err
    video = tmp_path / "a.mp4"
    video.touch()
    status, _, err = run(capsys, "predict", a_run, video, "--out", out, "--corpus", "other")
    assert status == 2
    assert err.startswith("affect: error: --corpus is for a cache, ")


def test_compare_stands_runs_side_by_side(capsys, workplace, a_run, tmp_path):
    other = toy(workplace, runs=tmp_path, **{"model.name": "gru"})
    second = json.loads(run(capsys, *other, "--json")[1])["run"]
    figure = tmp_path / "comparison.png"
    page = tmp_path / "report.html"
    files = ("--figure", figure, "--out", page)
    status, out, _ = run(capsys, "compare", a_run, second, "--json", *files)
    assert status == 0
    first, other = json.loads(out)["runs"]
    gap = other["scores"]["test/rmse/mean"]["value"] - first["scores"]["test/rmse/mean"]["value"]
    assert other["differences"]["test/rmse/mean"]["value"] == pytest.approx(gap)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert first["id"] in page.read_text()
    assert first["id"] in run(capsys, "compare", a_run, second)[1]


def test_the_resolved_experiment_can_be_printed_and_run(capsys, tmp_path):
    printed = run(capsys, "fit", "--print-config", "--seed=5")[1]
    path = tmp_path / "experiment.yaml"
    path.write_text(printed)
    assert run(capsys, "fit", "-c", path, "--print-config")[1] == printed
    as_json = run(capsys, "fit", "-c", path, "--print-config", "--json")[1]
    assert json.loads(as_json)["seed"] == 5


def test_a_printed_experiment_names_its_files_for_any_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HAINES_CSV", "ratings.csv")
    path = tmp_path / "printed.yaml"
    path.write_text(run(capsys, "fit", "-c", "experiments/haines.yaml", "--print-config")[1])
    again = json.loads(run(capsys, "fit", "-c", path, "--print-config", "--json")[1])
    assert again["data"]["source"]["path"] == "ratings.csv"
    assert again["data"]["split"]["file"] == "experiments/haines/folds.yaml"


@pytest.mark.parametrize(
    "flag",
    ["--data.dimensions=valence", "--model.hidden=3", "--data.cach=x", "--seed=x", "--seed=-1"],
)
def test_a_mistake_beside_print_config_is_told(capsys, flag):
    status, out, err = run(capsys, "fit", flag, "--print-config")
    assert (status, out) == (2, "")
    assert err.startswith("affect: error: ")


def test_every_key_is_listed(capsys):
    assert (
        "data.split.val_fraction" in json.loads(run(capsys, "fit", "--keys", "--json")[1])["keys"]
    )
    out = run(capsys, "fit", "--keys")[1]
    assert "--data.split.val_fraction" in out
    assert "share of subjects for validation" in out


def test_fit_without_an_experiment_is_told(capsys):
    status, _, err = run(capsys, "fit")
    assert status == 2
    assert "fit needs an experiment: give -c" in err


def test_resume_takes_no_other_flag(capsys, a_run):
    status, _, err = run(capsys, "fit", "--resume", a_run, "--seed=4")
    assert status == 2
    assert "--resume takes its experiment from the run" in err


def test_a_finished_run_resumes_to_itself(capsys, a_run):
    folder = sorted(path.stat().st_mtime_ns for path in a_run.rglob("*"))
    before = json.loads((a_run / "run.json").read_text())["metrics"]
    result = json.loads(run(capsys, "fit", "--resume", a_run, "--json")[1])
    assert {key: result[key] for key in before} == before
    assert sorted(path.stat().st_mtime_ns for path in a_run.rglob("*")) == folder


def test_a_defect_is_told_with_status_1(capsys, monkeypatch):
    def broken(_):
        raise ZeroDivisionError("division by zero")

    command = cli.Command("breaks", lambda parser: None, broken)
    monkeypatch.setitem(cli.COMMANDS, "break", command)
    status, _, err = run(capsys, "break")
    assert status == 1
    assert "affect: defect: ZeroDivisionError: division by zero" in err
    with pytest.raises(ZeroDivisionError):
        main(["break", "--debug"])


def test_ctrl_c_in_a_process_can_be_resumed(workplace, tmp_path):
    """A real signal in a real process: status 130, and the advice it prints works."""
    import signal
    import time

    command = toy(workplace, runs=tmp_path, **{"trainer.max_epochs": 2000})
    process = subprocess.Popen(
        [sys.executable, "-m", "affect", *command], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    (folder,) = (tmp_path / "toy").iterdir()
    assert f"affect fit --resume {folder}" in err
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"


def test_a_signal_ends_a_fit_after_its_epoch_and_it_goes_on_to_the_same_bits(workplace, tmp_path):
    """SIGTERM in a real process: status 75; what goes on equals what was never stopped."""
    import signal
    import time

    epochs = 40
    command = toy(workplace, runs=tmp_path, **{"trainer.max_epochs": epochs})
    process = subprocess.Popen(
        [sys.executable, "-m", "affect", *command], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 75, err
    (folder,) = (tmp_path / "toy").iterdir()
    assert f"preempted: go on with `affect fit --resume {folder}`" in err
    assert json.loads((folder / "run.json").read_text())["status"] == "preempted"
    done = len((folder / "metrics.csv").read_text().splitlines()) - 1
    assert 0 < done < epochs
    assert main(["fit", "--resume", str(folder)]) == 0
    whole = toy(workplace, runs=tmp_path, name="whole", **{"trainer.max_epochs": epochs})
    assert main(whole) == 0
    (other,) = (tmp_path / "whole").iterdir()
    weights = [(place / "model.safetensors").read_bytes() for place in (folder, other)]
    assert weights[0] == weights[1]
    rows = [(place / "metrics.csv").read_text() for place in (folder, other)]
    assert rows[0] == rows[1]


def test_two_processes_train_together(workplace, tmp_path):
    """Distributed data parallel on two CPU processes: one run folder, one result."""
    command = toy(workplace, runs=tmp_path, **{"trainer.devices": 2, "trainer.strategy": "ddp"})
    finished = in_a_process(*command, "--json", timeout=240)
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    (folder,) = (tmp_path / "toy").iterdir()
    assert result["run"] == str(folder)
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done"


def test_a_full_standard_output_is_told(workplace):
    command = [sys.executable, "-m", "affect", "info", str(workplace / "cache")]
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert finished.returncode == 2
    assert finished.stderr.count(b"\n") == 1
    assert finished.stderr.startswith(b"affect: error: cannot write: No space left")


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_synth_refuses_an_odd_length(capsys, tmp_path, seconds):
    status, _, err = run(capsys, "synth", "--cache", tmp_path / "c", f"--seconds={seconds}")
    assert status == 2
    assert "cannot make" in err


def test_the_package_and_the_code_bear_one_version():
    """Flower asks for a version that stands in pyproject.toml itself."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["version"] == __version__
