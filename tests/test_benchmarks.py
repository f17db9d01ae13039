"""Every benchmark runs, in tiny, and says what it measured; how fast is not a test's business."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench.py"
SHARED = Path(__file__).parents[2] / "shared"
LEVEL1 = {
    "steps": {
        "decoding",
        "tracking",
        "shape fit",
        "alignment",
        "FHOG",
        "regressors",
        "action units",
        "FHOG by pyfhog",
    },
    "extraction": {"frames_per_s", "short_s", "long_s"},
    "length": {"short_mib", "long_mib", "two_hours_mib"},
    "exactness": {
        "full_mean_error",
        "full_agreement",
        "one_decimal_mean_error",
        "one_decimal_agreement",
    },
}
MEDIANS = {
    "training": {"lightning_windows_per_s", "bare_windows_per_s", "ratio", "equal_weights"},
    "federation": {"loop_s", "ratio_1", "ratio_2", "equal_models"},
    "clients": {
        "loop_s",
        "ratio",
        "equal_models",
        "memory_ratio",
        "loop_mib",
        "federation_mib",
    },
    "cohort": {"alone_s", "cohort_s", "ratio", "difference"},
    "reading": {"store_s", "series_s"},
    "listing": {"entries_s"},
    "memory": {"ru_maxrss_mib", "peak_memory_mib", "wall_time_s"},
    "scaling": {
        "seconds_per_million_frames",
        "ratio",
        "peak_memory_mib",
        "growth_mib",
        "growth_bytes_per_frame",
    },
    "start": {"help_s", "fit_help_s"},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmarks") / "bench.json"
    # not `engines` and `peers`, which start Ray and need what only `make bench` installs
    names = [*MEDIANS, *LEVEL1]
    command = [sys.executable, str(SCRIPT), "--out", str(path), "--quick", "--only", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in MEDIANS)  # the table
    return json.loads(path.read_text())


def test_the_report_says_what_its_numbers_depend_on(report):
    assert report["quick"] is True
    assert report["threads"] == 1
    assert report["machine"]["cpus"] >= 1
    assert {"python", "torch", "lightning", "affect"} <= set(report["versions"])
    assert {"commit", "started"} <= set(report)


@pytest.mark.parametrize("name", list(MEDIANS))
def test_an_item_says_its_goal_and_whether_it_was_met(report, name):
    item = report["items"][name]
    on_a_gpu_alone = name == "cohort" and not torch.cuda.is_available()
    assert item["met"] is None if on_a_gpu_alone else isinstance(item["met"], bool)
    assert item["goal"]
    assert item["summary"]
    assert item["repeats"] >= 1
    assert item["settings"]
    assert item["samples"]
    assert item["load_before"] >= 0
    assert set(item["median"]) == MEDIANS[name]
    assert all(math.isfinite(value) for value in numbers(item["median"]))


def test_lightning_and_the_bare_loop_did_the_same_work(report):
    assert report["items"]["training"]["median"]["equal_weights"] is True


def test_only_the_items_that_were_asked_for_run(tmp_path):
    path = tmp_path / "bench.json"
    command = [sys.executable, str(SCRIPT), "--out", str(path), "--quick", "--only", "start"]
    subprocess.run(command, capture_output=True, check=True)
    assert list(json.loads(path.read_text())["items"]) == ["start"]


def test_level_1_says_what_it_lacks(report):
    for name in LEVEL1:
        item = report["items"][name]
        assert item["met"] is None
        assert "--video" in item["summary"]


@pytest.mark.openface
@pytest.mark.real_data
def test_level_1_is_measured_where_its_files_are(openface_home, tmp_path):
    if not SHARED.is_dir():
        pytest.skip("no clips beside the project")
    given = ["--video", SHARED / "videos" / "single_face.mp4", "--openface", openface_home]
    given += ["--reference", SHARED / "openface-reference" / "single_face.csv.gz"]
    names = ("steps", "exactness")
    path = tmp_path / "bench.json"
    command = [sys.executable, SCRIPT, "--out", path, "--quick", "--only", *names, *given]
    subprocess.run(list(map(str, command)), capture_output=True, check=True)
    items = json.loads(path.read_text())["items"]
    assert all(set(items[name]["median"]) == LEVEL1[name] for name in names)
    assert items["exactness"]["met"] is True


def numbers(values):
    for value in values.values():
        yield from numbers(value) if isinstance(value, dict) else [value]
