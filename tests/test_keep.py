"""`--keep`: what identifies people goes into recordings on wish alone."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from affect import store
from affect.cli import main
from affect.data.timeline import Place
from affect.extraction import pipeline
from affect.extraction.backends.choice import Options, make
from affect.extraction.backends.protocol import Listener
from affect.extraction.openface import weights
from affect.extraction.openface.stage import Stage
from tests import clips, openface_models
from tests.test_extraction import CentreNet, SquareDetector, film

FRAMES, LOST = 12, (3, 4)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """A lossless clip, and OpenFace's CSV beside it, in which two frames show no face."""
    path = tmp_path_factory.mktemp("film") / "Anna.mkv"
    landmarks, pictures = openface_models.poses(FRAMES)
    clips.write(path, list(pictures))
    success = [int(frame not in LOST) for frame in range(FRAMES)]
    columns = openface_models.columns(landmarks)
    table = pd.DataFrame({"confidence": 0.9, "success": success, **columns})
    table.to_csv(path.with_suffix(".csv"), index=False)
    return path


def extracted(path, cache, *arguments):
    return main(["extract", str(path), "--cache", str(cache), *map(str, arguments)])


def held(cache, name="Anna"):
    return store.read(store.path_of(cache, "videos", "Anna", name), identifying=True).identifying


@pytest.mark.parametrize(
    "wish", [("--keep", "landmarks", "descriptors"), ("--keep=descriptors", "--keep=landmarks")]
)
def test_what_is_kept_is_what_the_stage_saw(filmed, tmp_path, monkeypatch, wish):
    load = weights.load
    monkeypatch.setattr(weights, "load", lambda *a, **k: load(*a, **k, verify=False))
    home = openface_models.write_folder(tmp_path / "home")
    cache, backend = tmp_path / "cache", ("--backend", "openface", "--openface-home", home)
    assert extracted(filmed, cache, *backend, *wish) == 0
    kept = held(cache)
    store.verify(store.path_of(cache, "videos", "Anna", "Anna"))

    landmarks, pictures = openface_models.poses(FRAMES)
    with torch.inference_mode():
        stage = Stage(weights.load(home))
        descriptors = stage(torch.from_numpy(pictures), torch.from_numpy(landmarks)).numpy()
    expected = {"landmarks": landmarks, "descriptors": descriptors}
    assert kept.keys() == expected.keys()
    for name, values in expected.items():
        values[list(LOST)] = np.nan
        assert kept[name].dtype == np.float32
        np.testing.assert_allclose(kept[name], values, rtol=1e-6, atol=1e-5)


def test_a_recording_that_lacks_what_is_to_be_kept_is_made_again(filmed, tmp_path, capsys):
    def skipped(*arguments):
        assert extracted(filmed, tmp_path, "--backend", "geometry", "--json", *arguments) == 0
        return json.loads(capsys.readouterr().out)["skipped"]

    assert not skipped()
    assert held(tmp_path) == {}
    (plain,) = store.entries(tmp_path)
    assert not skipped("--keep", "landmarks")
    assert held(tmp_path).keys() == {"landmarks"}
    (kept,) = store.entries(tmp_path)
    assert (kept.identity, kept.identifying) == (plain.identity, ("landmarks",))
    assert skipped("--keep", "landmarks")
    assert skipped()
    assert held(tmp_path).keys() == {"landmarks"}
    assert not skipped("--force")
    assert held(tmp_path) == {}


def test_a_corpus_tells_what_identifying_data_it_holds(filmed, tmp_path, capsys):
    assert extracted(filmed, tmp_path, "--backend", "geometry") == 0
    geometry = ("--backend", "geometry", "--corpus", "faces", "--keep", "landmarks")
    assert extracted(filmed, tmp_path, *geometry) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path), "--json"]) == 0
    corpora = json.loads(capsys.readouterr().out)["corpora"]
    assert corpora["faces"]["identifying"] == ["landmarks"]
    assert corpora["videos"]["identifying"] == []


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        ("descriptors", "the geometry backend has no descriptors to keep: give --backend openface"),
        ("pixels", "invalid choice: 'pixels'"),
    ],
)
def test_what_cannot_be_kept_is_told(filmed, tmp_path, capsys, keep, told):
    assert extracted(filmed, tmp_path, "--backend", "geometry", "--keep", keep) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_face_that_comes_late_has_landmarks_from_there_on(tmp_path):
    places = [[(10, 20, 30, 200)] + [(100, 20, 30, 100)] * (frame >= 40) for frame in range(48)]
    path = clips.write(tmp_path / "two.mkv", list(film(places)))
    backend = make(Options("geometry", "cpu", faces="all", keep=frozenset({"landmarks"})))
    backend._detector, backend._network = SquareDetector(), CentreNet()
    place = Place("mine", "both", "two")
    late, early = backend.recordings(path, place, backend.provenance(path), Listener())
    assert (early.name, late.name) == ("two-face0", "two-face1")
    for recording, first in ((early, 0), (late, 40)):
        seen = ~np.isnan(recording.identifying["landmarks"]).any(axis=(1, 2))
        np.testing.assert_array_equal(seen, np.arange(48) >= first)
    (done,) = pipeline.extract({place: path}, tmp_path / "cache", backend)
    assert done.error == ""
