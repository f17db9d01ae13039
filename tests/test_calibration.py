"""The calibration part: where it ends, that it is not scored, and that nothing else teaches."""

import dataclasses

import numpy as np
import pytest

from affect import config, store
from affect.config import DataConfig, SplitConfig
from affect.data.calibration import CalibrationSeries, calibrating, calibration_frames
from affect.data.preparation import SeriesCache, prepare
from affect.errors import UserError
from affect.report import protocol
from affect.training.fit import fit
from affect.training.inference import score_run
from tests import builders


def nothing(_):
    return []


def data(share, **changes):
    return DataConfig(split=SplitConfig(calibration_fraction=share), **{"delay_s": 0.0, **changes})


def written(folder, recordings):
    for recording in recordings:
        store.write(recording, folder)
    return store.entries(folder)


def lengths(entries, asked):
    frames = calibration_frames(entries, asked)
    return [frames.get(entry.path, 0) for entry in entries]


def test_a_long_recording_gives_its_beginning_and_of_short_ones_the_first(tmp_path):
    long = [builders.recording("A", frames=60)]
    short = [builders.recording("B", name=str(name), frames=10) for name in range(6)]
    entries = written(tmp_path, [*long, *short])
    assert lengths(entries, data(0.35)) == [21, *(10, 10, 1, 0, 0, 0)]
    assert lengths(entries, data(0.0)) == [0] * 7


def test_the_share_is_of_labels_in_the_order_of_time(tmp_path):
    valence = np.full(60, np.nan, np.float32)
    valence[[5, 20, 21, 50]] = 0.5
    none = np.full(60, np.nan, np.float32)
    rated = builders.recording("A", annotations={"valence": valence, "arousal": none})
    entries = written(tmp_path, [rated, builders.recording("B", annotations={"valence": none})])
    assert lengths(entries, data(0.5)) == [21, 0]
    assert lengths(entries, data(0.29)) == [6, 0]
    with pytest.raises(UserError, match=r"subject toy/A has 4 points .* 0\.2 takes none: raise it"):
        lengths(entries, data(0.2))
    assert lengths(entries, data(0.74)) == [21, 0]
    with pytest.raises(UserError, match=r"4 points .* 0\.99 leaves 1 to score: lower it"):
        lengths(entries, data(0.99))


def test_windows_are_never_cut(tmp_path):
    entries = written(tmp_path, [builders.recording("A", frames=n, name=str(n)) for n in (45, 50)])
    windows = {"target": "window_mean", "window_frames": 20}  # three a recording
    assert lengths(entries, data(0.34, **windows)) == [40, 0]
    assert lengths(entries, data(0.67, **windows)) == [45, 20]


def three_raters(subject):
    base = builders.recording(subject, frames=60)
    rng = np.random.default_rng(3)
    ratings = {
        name: (trace + rng.normal(size=(3, 60))).astype(np.float32)
        for name, trace in base.annotations.items()
    }
    return dataclasses.replace(base, annotations=ratings, raters=("R1", "R2", "R3"))


def test_later_ratings_change_no_calibration_label_and_earlier_ones_are_not_scored(tmp_path):
    first = three_raters("A")
    later = {name: trace.copy() for name, trace in first.annotations.items()}
    for trace in later.values():
        trace[:, 24:] += np.arange(36) * 0.1
    second = dataclasses.replace(first, annotations=later)
    found = []
    for name, recording in (("one", first), ("two", second)):
        entries = written(tmp_path / name, [recording])
        asked = data(0.4, delay_s=1.0)
        preparation = prepare({"train": entries}, asked)
        frames = calibration_frames(entries, asked)
        (part,) = calibrating(entries, frames)
        taught = CalibrationSeries(preparation, 2**20)[part]
        scored = SeriesCache(preparation, 2**20, unscored=frames)[entries[0]]
        whole = SeriesCache(preparation, 2**20)[entries[0]]
        assert len(taught.features) == len(taught.labels) == len(taught.time_s) == 24
        np.testing.assert_array_equal(taught.features, whole.features[:24])
        assert np.isfinite(taught.labels[:19]).all()
        assert np.isnan(taught.labels[19:]).all()  # given after the part's end: 1 s is 5 frames
        for given, all_of_it in (
            (scored.reference, whole.reference),
            (scored.labels, whole.labels),
        ):
            assert np.isnan(given[:24]).all()
            np.testing.assert_array_equal(given[24:], all_of_it[24:])
        found.append(taught.labels)
    np.testing.assert_array_equal(*found)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of `fit` that differ in nothing but what they leave for calibration."""
    folder = tmp_path_factory.mktemp("calibration")
    builders.cache(folder / "cache", subjects=6)
    asked = builders.experiment(folder)
    split = dataclasses.replace(asked.data.split, calibration_fraction=0.25)
    other = dataclasses.replace(asked, data=dataclasses.replace(asked.data, split=split))
    return fit(asked, draw=nothing), fit(other, draw=nothing)


def test_a_centralised_run_is_scored_on_the_rest_alone(runs):
    whole, rest = (store.read_predictions(run.folder / "predictions.h5") for run in runs)
    for item, left in zip(whole, rest, strict=True):
        assert np.isfinite(item.reference).all()
        assert np.isnan(left.reference[:15]).all()
        np.testing.assert_array_equal(left.reference[15:], item.reference[15:])
    for part in ("val", "test"):
        chosen = [item for item in rest if item.split == part]
        for column, name in enumerate(chosen[0].dimensions):
            x = np.concatenate([item.prediction[15:, column] for item in chosen]).astype(float)
            y = np.concatenate([item.reference[15:, column] for item in chosen]).astype(float)
            ccc = 2 * np.cov(x, y, bias=True)[0, 1]
            ccc /= x.var() + y.var() + (x.mean() - y.mean()) ** 2
            assert runs[1].record["metrics"][f"{part}/ccc/{name}"] == pytest.approx(ccc, abs=1e-9)


def test_scores_again_are_those_of_the_rest(runs):
    again = score_run(runs[1], "test", cache=None, device="cpu")
    for name, value in again.items():
        assert value == pytest.approx(runs[1].record["metrics"][name], abs=1e-12)


def test_runs_of_other_calibration_are_not_compared(runs):
    one, other = ((run, protocol.tested(run)) for run in runs)
    with pytest.raises(UserError, match=r"calibration_fraction is 0\.25, not 0\.0"):
        protocol.refuse_unlike(*other, *one)


@pytest.mark.parametrize("share", ["-0.1", "1"])
def test_a_share_of_all_or_less_than_nothing_is_refused(share):
    with pytest.raises(UserError, match="calibration_fraction must be at least 0 and below 1"):
        config.parse([f"--data.split.calibration_fraction={share}"])
