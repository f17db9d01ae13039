"""Both levels in one: what a run says of a video is what it says of the video's recording."""

import dataclasses
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import lightning
import matplotlib
import numpy as np
import pandas as pd
import pytest
from torch.utils.data import DataLoader

from affect.cli import main
from affect.config import DataConfig, ModelConfig, SplitConfig
from affect.data.naming import places_of
from affect.data.timeline import Place
from affect.errors import UserError
from affect.extraction.backends.choice import Options
from affect.extraction.backends.protocol import Listener
from affect.extraction.video import FrameBatch, find_files
from affect.models.two_level import CORPUS, TwoLevel, backend_for
from affect.training.fit import fit
from affect.training.inference import TrainedLevelTwo
from affect.training.videos import TwoLevelModule, _groups, predict_videos
from tests import builders, clips, corpora, openface_models, openface_program
from tests.watching import written_by

PROXIES = ("AU12_proxy", "AU01_proxy", "AU25_proxy")
VIDEOS = Path(__file__).parents[2] / "shared" / "videos"


def film(path, frames=60, seed=0, rate=25):
    """A lossless clip of a face that is lost for a while, and OpenFace's CSV of it beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    landmarks, pictures = openface_models.poses(frames, seed)
    clips.write(path, list(pictures), rate=rate)
    table = pd.DataFrame(
        {"frame": range(1, frames + 1), "face_id": 0, "confidence": 0.98, "success": 1}
    )
    table.loc[20:24, ["success", "confidence"]] = [0, 0.1]
    flat = np.concatenate([landmarks[..., 0], landmarks[..., 1]], axis=1)
    names = [f"{axis}_{point}" for axis in "xy" for point in range(68)]
    table = pd.concat([table, pd.DataFrame(flat, columns=names)], axis=1)
    table.to_csv(path.with_suffix(".csv"), index=False)
    return path


def trained(folder, names=PROXIES, rate_hz=25.0, **settings):
    """A run that was trained on features of these names."""
    clock = {"rate_hz": rate_hz, "time_s": np.arange(60) / rate_hz}
    builders.cache(folder / "cache", intensity_names=names, **clock)
    data = DataConfig(
        cache=str(folder / "cache"),
        window_frames=25,
        batch_size=4,
        split=SplitConfig(val_fraction=0.34, test_fraction=0.34),
        **settings,
    )
    network = ModelConfig("bilstm", hidden_size=4, layers=1)
    experiment = builders.experiment(folder, data=data, model=network)
    return fit(experiment, draw=lambda _: [])


@pytest.fixture(scope="module")
def proxies_run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("proxies"))


@pytest.fixture(scope="module")
def units_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("units")
    return trained(folder, builders.NAMES, standardise=["subject", "centred"])


@pytest.fixture(scope="module")
def windows_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    return trained(folder, target="window_mean", standardise=["train"])


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """Two videos of Anna and one of Ben, of which the list of files begins with Ben's."""
    folder = tmp_path_factory.mktemp("film")
    film(folder / "Anna" / "first day.mkv", seed=1)
    film(folder / "Anna" / "second.mkv", frames=90, seed=2)
    film(folder / "0 guests" / "Ben.mkv", seed=3)
    return folder


@pytest.fixture(scope="module")
def openface_models_home(tmp_path_factory):
    return openface_models.write_folder(tmp_path_factory.mktemp("openface"))


@pytest.fixture(autouse=True)
def no_openface_in_the_environment(monkeypatch):
    monkeypatch.delenv("OPENFACE_HOME", raising=False)


def run(capsys, *arguments):
    """Exit status, standard output and the last part of standard error of the command."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def by_way_of_a_cache(finished, source, folder, *flags):
    """The CSV of `extract` into a cache and `predict` on it."""
    extract = ["extract", source, "--cache", folder / "c", "--jobs", 1, *flags]
    predict = ["predict", finished.folder, folder / "c", "--out", folder / "cached.csv"]
    assert main([str(argument) for argument in extract]) in {0, 2}
    assert main([str(argument) for argument in predict]) == 0
    return (folder / "cached.csv").read_bytes()


@pytest.mark.parametrize("flags", [(), ("--faces", "all")])
@pytest.mark.parametrize("name", ["proxies_run", "windows_run"])
def test_videos_are_predicted_as_their_recordings_are(name, flags, filmed, tmp_path, request):
    finished, out = request.getfixturevalue(name), tmp_path / "new" / "out.csv"
    expected = by_way_of_a_cache(finished, filmed, tmp_path, "--backend", "geometry", *flags)
    arguments = ["predict", finished.folder, filmed, "--out", out, *flags]
    assert main([str(argument) for argument in arguments]) == 0
    assert out.read_bytes() == expected
    assert len(pd.read_csv(out).groupby(["subject", "recording"])) == 3


def test_openface_is_chosen_where_its_units_are_needed(
    units_run, filmed, openface_models_home, unverified, tmp_path
):
    flags = ("--openface-home", openface_models_home)
    source, out = filmed / "Anna" / "first day.mkv", tmp_path / "out.csv"
    expected = by_way_of_a_cache(units_run, source, tmp_path, "--backend", "openface", *flags)
    arguments = ["predict", units_run.folder, source, "--out", out, *flags]
    assert main([str(argument) for argument in arguments]) == 0
    assert out.read_bytes() == expected


@pytest.mark.parametrize("backend", [(), ("--backend", "openface-bin")])
def test_openfaces_program_serves_where_it_is_given(units_run, tmp_path, backend):
    program = openface_program.install(tmp_path / "OpenFace", corpora.faces(30))
    flags = ("--openface-bin", program, "--timeout", "60")
    source, out = film(tmp_path / "a.mkv", frames=30), tmp_path / "out.csv"
    expected = by_way_of_a_cache(units_run, source, tmp_path, *flags)
    arguments = ["predict", units_run.folder, source, "--out", out, *flags, *backend]
    assert main([str(argument) for argument in arguments]) == 0
    assert out.read_bytes() == expected
    assert len(openface_program.calls(program)) == 2


def test_a_prediction_has_the_times_of_the_frames(proxies_run, filmed, tmp_path):
    level_two = TrainedLevelTwo(proxies_run, None, "cpu")
    backend = backend_for(level_two.preparation.feature_names, Options(device="cpu"))
    assert backend.name == "geometry"
    (item,) = TwoLevel(backend, level_two)(filmed / "Anna" / "second.mkv")
    assert (item.key, item.dimensions) == ("videos/second/second", ("valence", "arousal"))
    np.testing.assert_array_equal(item.time_s, np.arange(90) / 25)
    assert item.prediction.shape == (90, 2)
    assert np.isfinite(item.prediction).all()
    assert item.prediction.std() > 0
    assert np.isnan(item.reference).all()


def test_how_a_recording_lies_in_memory_changes_nothing(units_run):
    """A backend that reads a table hands over columns, a file of a cache rows."""
    clock = {"rate_hz": 25.0, "time_s": np.arange(3000) / 25.0}
    rows = builders.recording(frames=3000, **clock)
    columns = dataclasses.replace(rows, intensity=np.asfortranarray(rows.intensity))
    level_two = TrainedLevelTwo(units_run, None, "cpu")
    (one,), (other,) = level_two([rows]), level_two([columns])
    np.testing.assert_array_equal(one.prediction, other.prediction)


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers")
@pytest.mark.parametrize("kind", [str, Path])
def test_lightning_predicts_paths(proxies_run, filmed, tmp_path, kind):
    paths = [filmed / "Anna" / "first day.mkv", filmed / "0 guests" / "Ben.mkv"]
    loader = DataLoader([kind(path) for path in paths], batch_size=2, collate_fn=list)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    (tables,) = trainer.predict(TwoLevelModule(proxies_run), loader)
    assert not list(tmp_path.iterdir())
    for path, table in zip(paths, tables, strict=True):
        predict_videos(proxies_run, path, tmp_path / "o.csv", fold=None, options=Options())
        table.to_csv(tmp_path / "table.csv", index=False)
        assert (tmp_path / "table.csv").read_bytes() == (tmp_path / "o.csv").read_bytes()


class Watching(Listener):
    """Counts the batches of frames that are alive whenever one has been used."""

    def __init__(self):
        self.frames, self.alive = 0, []

    def advance(self, frames):
        self.frames += frames
        self.alive.append(batches_alive())


def batches_alive():
    return sum(type(item) is FrameBatch for item in gc.get_objects())


def test_pixels_are_let_go_batch_by_batch(proxies_run, tmp_path):
    path = film(tmp_path / "long.mkv", frames=160)
    level_two = TrainedLevelTwo(proxies_run, None, "cpu")
    model = TwoLevel(backend_for(PROXIES, Options(device="cpu")), level_two)
    listener = Watching()
    (recording,) = model.recordings(path, Place(CORPUS, "a", "b"), listener)
    assert (listener.frames, len(listener.alive)) == (160, 5)
    assert max(listener.alive) <= 2  # one is worked on, the next one is decoded
    assert batches_alive() == 0
    held = (getattr(recording, name) for name in ("intensity", "presence", "time_s", "confidence"))
    assert sum(values.nbytes for values in held) < 160 * 64


def test_only_what_must_be_seen_together_is_held_together(filmed):
    files = places_of(find_files([filmed]), filmed, CORPUS)
    names = {
        by_subject: [[place.name for place, _ in group] for group in _groups(files, by_subject)]
        for by_subject in (True, False)
    }
    assert names == {
        True: [["Ben"], ["first day", "second"]],
        False: [["Ben"], ["first day"], ["second"]],
    }


def test_nothing_but_the_csv_is_written(proxies_run, filmed, tmp_path):
    out = tmp_path / "out" / "out.csv"
    out.parent.mkdir()
    before = (
        "import tempfile\n"
        "import matplotlib.font_manager\n"  # torchmetrics takes it along, and it caches its fonts
        "tempfile.gettempdir()\n"  # tries a file once a process
    )
    arguments = ["predict", proxies_run.folder, filmed, "--out", out]
    fonts = matplotlib.get_configdir()
    written, left = written_by(arguments, tmp_path, before=before, MPLCONFIGDIR=fonts)
    temporary = {path for path in written if path.parent == out.parent and path.suffix == ".tmp"}
    assert written - {out.parent, Path(os.devnull)} == temporary
    assert not left
    assert list(out.parent.iterdir()) == [out]


# --- what can be mended ----------------------------------------------------------------------


def test_a_broken_video_stops_no_other(proxies_run, filmed, tmp_path, capsys):
    folder = tmp_path / "films"
    film(folder / "Anna" / "good.mkv", seed=1)
    (folder / "Anna" / "broken.mp4").write_bytes(b"nothing")
    film(folder / "Anna" / "slow.mkv", rate=10)
    expected = by_way_of_a_cache(proxies_run, folder / "Anna" / "good.mkv", tmp_path)
    out = tmp_path / "out.csv"
    capsys.readouterr()
    status, text, err = run(capsys, "predict", proxies_run.folder, folder, "--out", out, "--json")
    assert status == 2
    assert json.loads(text) == {
        "out": str(out),
        "recordings": 1,
        "frames": 60,
        "videos": 3,
        "failed": 2,
    }
    told = [line for line in err.splitlines() if line.startswith("affect: ")]
    assert len(told) == 3
    assert "broken.mp4: " in told[0]
    assert "slow.mkv: another frame rate: it has 10 frames a second, the network was" in told[1]
    assert told[2] == "affect: error: 2 of 3 videos failed"
    assert out.read_bytes().replace(b",Anna,", b",good,") == expected


def test_where_no_video_can_be_predicted_no_csv_is_written(proxies_run, tmp_path, capsys):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"nothing")
    out = tmp_path / "out.csv"
    out.write_text("what was there before")
    status, text, err = run(capsys, "predict", proxies_run.folder, tmp_path, "--out", out)
    assert (status, text) == (2, "")
    assert f"affect: error: 2 of 2 videos failed: {out} is not written" in err
    one = tmp_path / "a.mp4"
    status, text, err = run(capsys, "predict", proxies_run.folder, one, "--out", out)
    assert (status, text) == (2, "")
    assert [line for line in err.splitlines() if "a.mp4" in line] == err.splitlines()[-1:]
    assert out.read_text() == "what was there before"


def test_a_folder_for_the_csv_is_refused_before_any_video(proxies_run, filmed, tmp_path, capsys):
    status, _, err = run(capsys, "predict", proxies_run.folder, filmed, "--out", tmp_path)
    assert status == 2
    assert err == f"affect: error: {tmp_path} is a folder: give --out a file such as out.csv\n"


def test_sigterm_leaves_nothing_half_written(proxies_run, tmp_path):
    films, out = tmp_path / "films", tmp_path / "out"
    out.mkdir()
    for number in range(40):
        film(films / str(number) / "a.mkv")
    command = [sys.executable, "-m", "affect", "predict", proxies_run.folder, films]
    process = subprocess.Popen(
        [*map(str, command), "--out", str(out / "o.csv")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not list(out.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == f"affect: stopped: {out / 'o.csv'} is not written"
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.mp4", "missing.mp4: no such file or folder: check the name"),
        ("missing", "no cache at"),
        ("cache/toy/P0/1.h5", "1.h5: no video"),
    ],
)
def test_what_is_no_video_is_told(proxies_run, name, message, tmp_path, capsys):
    source = proxies_run.folder.parents[2] / name
    out = tmp_path / "out.csv"
    status, _, err = run(capsys, "predict", proxies_run.folder, source, "--out", out)
    assert status == 2
    assert message in err.splitlines()[-1]
    assert not out.exists()


def test_another_rate_is_refused_before_the_video_is_read(proxies_run, tmp_path):
    path = film(tmp_path / "slow.mkv", rate=10)
    model = TwoLevel(
        backend_for(PROXIES, Options(device="cpu")), TrainedLevelTwo(proxies_run, None, "cpu")
    )
    listener = Watching()
    with pytest.raises(UserError, match="another frame rate"):
        model.recordings(path, Place(CORPUS, "a", "b"), listener)
    assert listener.frames == 0


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("units_run", (), "needs OpenFace's model files: give --openface-home, or export"),
        ("units_run", ("--backend", "geometry"), "'AU01_r', which the network was trained on"),
        ("proxies_run", ("--backend", "openface"), "'AU12_proxy', which the network was trained"),
        ("proxies_run", ("--backend", "geometri"), "did you mean 'geometry'"),
        ("proxies_run", ("--backend", "openface-bin"), "'AU12_proxy', which the network was"),
        ("proxies_run", ("--backend", "openface-csv"), "reads no videos: put its tables into a"),
        ("proxies_run", ("--openface-bin", "x"), "--openface-bin is for the openface-bin backend"),
        ("proxies_run", ("--timeout", "9"), "--timeout is for the openface-bin backend"),
        ("proxies_run", ("--device", "cpu", "--gpu-decoding"), "--gpu-decoding is for videos"),
        ("proxies_run", ("--device", "quantum"), "no device 'quantum'"),
    ],
)
def test_a_backend_that_does_not_fit_is_told(
    name, flags, message, filmed, tmp_path, capsys, request
):
    finished, out = request.getfixturevalue(name), tmp_path / "out.csv"
    status, _, err = run(capsys, "predict", finished.folder, filmed, "--out", out, *flags)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_features_that_no_backend_makes_are_told():
    with pytest.raises(UserError, match=r"no backend makes 'pupil', .* predict on a cache"):
        backend_for(("AU01_r", "pupil"), Options())


@pytest.mark.parametrize(
    "flags",
    [
        ("--backend", "auto"),
        ("--openface-home", "x"),
        ("--openface-bin", "x"),
        ("--timeout", "0"),
        ("--faces", "all"),
        ("--gpu-decoding",),
    ],
)
def test_a_flag_of_videos_does_not_go_with_a_cache(proxies_run, tmp_path, capsys, flags):
    cache = builders.cache(tmp_path / "cache", subjects=1)
    arguments = ("predict", proxies_run.folder, cache, "--out", tmp_path / "o.csv", *flags)
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert f"{flags[0]} is for videos" in err


@pytest.mark.real_data
def test_a_real_clip_is_predicted_from_its_pixels(tmp_path):
    if not VIDEOS.is_dir():
        pytest.skip("no clips at ../shared/videos")
    finished, clip = trained(tmp_path / "run", rate_hz=30.0), VIDEOS / "single_face.mp4"
    expected = by_way_of_a_cache(finished, clip, tmp_path, "--device", "cpu")
    arguments = ["predict", finished.folder, clip, "--out", tmp_path / "o.csv", "--device", "cpu"]
    assert main([str(argument) for argument in arguments]) == 0
    assert (tmp_path / "o.csv").read_bytes() == expected
    assert len(expected.splitlines()) == 73
