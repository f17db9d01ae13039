import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from affect import store
from affect.config import DataConfig
from affect.data.datamodule import AffectDataModule
from affect.data.preparation import Preparation, load_series, prepare
from affect.data.splits import Fold
from affect.data.standardisation import centred, merge, standardise, statistics_of
from affect.errors import UserError
from tests import builders

columns = arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.just(2)),
    elements=st.floats(-1e3, 1e3, width=32) | st.just(float("nan")),
)


@settings(deadline=None)
@given(st.lists(columns, min_size=1, max_size=5))
def test_merged_statistics_are_those_of_the_pooled_frames(parts):
    merged = merge(statistics_of(part) for part in parts)
    pooled = np.concatenate(parts).astype(np.float64)
    count = np.isfinite(pooled).sum(axis=0)
    np.testing.assert_array_equal(merged.count, count)
    for column in np.flatnonzero(count):
        np.testing.assert_allclose(merged.mean[column], np.nanmean(pooled[:, column]), atol=1e-9)
        np.testing.assert_allclose(
            merged.std[column], np.nanstd(pooled[:, column]), rtol=1e-9, atol=1e-9
        )


def test_standardised_features_have_mean_0_and_deviation_1():
    features = np.random.default_rng(0).normal(5, 3, (200, 3)).astype(np.float32)
    result = standardise([(features, None), (features, statistics_of(features))])
    np.testing.assert_array_equal(result[:, :3], features)
    np.testing.assert_allclose(result[:, 3:].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(result[:, 3:].std(axis=0), 1, atol=1e-5)


def test_lost_faces_and_constant_features_become_0():
    features = np.array([[1, 2], [np.nan, np.nan], [3, 2]], np.float32)
    result = standardise([(features, statistics_of(features))])
    np.testing.assert_allclose(result, [[-1, 0], [0, 0], [1, 0]], atol=1e-6)


def prepared(folder, **settings):
    entries = store.entries(builders.cache(folder / "cache", subjects=4))
    return prepare({"train": entries[:3], "val": entries[3:]}, DataConfig(**settings)), entries


def test_training_statistics_see_training_subjects_alone(tmp_path):
    preparation, entries = prepared(tmp_path, standardise=["train"])
    pooled = np.concatenate([store.read(entry.path).intensity for entry in entries[:3]])
    np.testing.assert_allclose(preparation.train.mean, pooled.astype(float).mean(axis=0))
    np.testing.assert_allclose(preparation.train.std, pooled.astype(float).std(axis=0))


def test_each_subject_is_standardised_over_all_its_recordings(tmp_path):
    cache = builders.cache(tmp_path / "cache", subjects=3)
    store.write(builders.recording("P1", name="2"), cache)
    entries = store.entries(cache)
    preparation = prepare({"train": entries}, DataConfig(standardise=["subject"]))
    both = [load_series(entry, preparation) for entry in entries if entry.subject == "P1"]
    pooled = np.concatenate([series.features for series in both])
    assert len(both) == 2
    np.testing.assert_allclose(pooled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(pooled.std(axis=0), 1, atol=1e-5)


def test_centred_features_lose_their_recordings_median(tmp_path):
    preparation, entries = prepared(tmp_path, standardise=["centred"])
    raw = [store.read(entry.path).intensity.astype(float) for entry in entries]
    rest = [values - np.median(values, axis=0) for values in raw]
    moments = np.concatenate(rest[:3])
    expected = (rest[3] - moments.mean(axis=0)) / moments.std(axis=0)
    np.testing.assert_allclose(load_series(entries[3], preparation).features, expected, atol=1e-5)


def test_the_median_is_that_of_frames_with_a_face():
    features = np.array([[1, 5], [np.nan, np.nan], [3, np.nan], [8, np.nan]], np.float32)
    nan = np.nan
    np.testing.assert_array_equal(centred(features), [[-2, 0], [nan, nan], [0, nan], [5, nan]])
    lost = np.full((2, 2), np.nan, np.float32)
    np.testing.assert_array_equal(centred(lost), lost)


def test_forms_stand_side_by_side_and_are_named(tmp_path):
    preparation, entries = prepared(tmp_path, standardise=["none", "subject"], features=["AU0*"])
    series = load_series(entries[0], preparation)
    assert preparation.feature_names == ("AU01_r", "AU04_r")
    assert preparation.input_names == [
        "AU01_r (none)",
        "AU04_r (none)",
        "AU01_r (subject)",
        "AU04_r (subject)",
    ]
    assert series.features.shape == (60, preparation.features)
    raw = store.read(entries[0].path).intensity[:, :2]
    np.testing.assert_array_equal(series.features[:, :2], raw)


def test_labels_are_shifted_back_and_the_reference_is_not(tmp_path):
    preparation, entries = prepared(tmp_path, delay_s={"valence": 2.0, "arousal": 0.0})
    series = load_series(entries[0], preparation)
    valence = store.read(entries[0].path).annotations["valence"]
    np.testing.assert_array_equal(series.reference[:, 0], valence)
    np.testing.assert_array_equal(series.labels[:-10, 0], valence[10:])
    np.testing.assert_array_equal(series.labels[:, 1], series.reference[:, 1])


def test_a_preparation_survives_json(tmp_path):
    preparation, entries = prepared(tmp_path, standardise=["train", "subject"])
    again = Preparation.from_json(json.loads(json.dumps(preparation.to_json())))
    for entry in entries:
        one, other = load_series(entry, preparation), load_series(entry, again)
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    assert again.feature_names == preparation.feature_names
    assert again.delay_s == preparation.delay_s


def test_a_dimension_without_annotation_is_missing_not_invented(tmp_path):
    cache = builders.cache(tmp_path / "cache", subjects=2)
    unlabelled = builders.recording("P9").with_annotations({})
    store.write(unlabelled, cache)
    entries = store.entries(cache)
    preparation = prepare({"train": entries[:2]}, DataConfig())
    with pytest.raises(UserError, match="no val recording has labels of 'valence'"):
        prepare({"train": entries[:2], "val": entries[2:]}, DataConfig())
    preparation = preparation.with_subjects(entries[2:])
    assert np.isnan(load_series(entries[2], preparation).labels).all()


def _changed(**changes):
    return lambda: builders.recording("P0", **changes)


@pytest.mark.parametrize(
    ("odd", "settings", "message"),
    [
        (_changed(rate_hz=25.0, time_s=np.arange(60) / 25.0), {}, "use recordings of one rate"),
        (
            _changed(intensity_names=("AU01_r", "AU04_r", "AU99_r")),
            {"features": ["AU12_r"]},
            "no action unit is named 'AU12_r'",
        ),
        (
            _changed(intensity=np.full((60, 3), np.nan, np.float32)),
            {},
            "has no frame with a face",
        ),
        (None, {"features": ["AU07*"]}, "no action unit is named 'AU07"),
        (None, {"dimensions": ["dominance"]}, "no train recording has labels of 'dominance'"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_refused(tmp_path, odd, settings, message):
    cache = builders.cache(tmp_path / "cache", subjects=3)
    if odd is not None:
        store.write(odd(), cache)
    entries = store.entries(cache)
    with pytest.raises(UserError, match=message):
        prepare({"train": entries[:2], "val": entries[2:]}, DataConfig(**settings))


def test_constant_labels_are_refused(tmp_path):
    constant = {"valence": np.full(60, 0.25, np.float32)}
    for index in range(2):
        store.write(builders.recording(f"P{index}").with_annotations(constant), tmp_path)
    store.write(builders.recording("P2"), tmp_path)
    *same, other = store.entries(tmp_path)
    for parts, part in (({"train": same}, "train"), ({"train": [other], "test": same}, "test")):
        with pytest.raises(UserError, match=f"'valence' are constant over all {part} subjects"):
            prepare(parts, DataConfig(dimensions=["valence"]))


@pytest.mark.parametrize("form", ["none", "train", "centred", "subject"])
def test_a_test_recording_without_a_face_is_refused_in_every_form(tmp_path, form):
    entries = store.entries(builders.cache(tmp_path, subjects=2))
    lost = builders.recording("P9", intensity=np.full((60, 3), np.nan, np.float32))
    entry = store.entry(store.write(lost, tmp_path))
    with pytest.raises(UserError, match="P9/1 has no frame with a face"):
        prepare({"train": entries, "test": [entry]}, DataConfig(standardise=[form]))


def test_a_delay_longer_than_every_recording_is_refused(tmp_path):
    with pytest.raises(UserError, match="is 4000 s, the longest training recording has 12 s"):
        prepared(tmp_path, delay_s=4000.0)


def delayed(folder, lengths, lag=15):
    for index, frames in enumerate(lengths):
        store.write(builders.recording(f"P{index}", frames=frames, lag=lag), folder)
    return store.entries(folder)


def test_an_estimated_delay_is_the_one_that_was_there(tmp_path):
    preparation = prepare({"train": delayed(tmp_path, [400] * 4)}, DataConfig(delay_s="auto"))
    assert preparation.delay_s == pytest.approx((3.0, 3.0), abs=0.2)


def test_recordings_too_short_for_the_longest_delay_are_left_out(tmp_path):
    long = prepare({"train": delayed(tmp_path / "a", [400] * 4)}, DataConfig(delay_s="auto"))
    mixed = delayed(tmp_path / "b", [400] * 4 + [41, 40, 20])
    assert prepare({"train": mixed[:6]}, DataConfig(delay_s="auto")).delay_s == pytest.approx(
        long.delay_s, abs=0.2
    )
    with pytest.raises(UserError, match=r"data\.delay_s: auto takes two training recordings"):
        prepare({"train": mixed[3:]}, DataConfig(delay_s="auto"))


def test_a_window_longer_than_every_training_recording_is_refused(tmp_path):
    entries = store.entries(builders.cache(tmp_path / "cache", subjects=3))
    with pytest.raises(UserError, match="the longest training recording has 60 frames"):
        AffectDataModule(
            entries, Fold(0, ("P0",), ("P1",), ("P2",)), DataConfig(window_frames=100), 0
        )


def _places(batch):
    return list(zip(batch.recording.tolist(), batch.start.tolist(), strict=True))


def test_training_batches_depend_on_seed_and_epoch_alone(tmp_path):
    entries = store.entries(builders.cache(tmp_path / "cache", subjects=4))
    fold = Fold(0, ("P0", "P1"), ("P2",), ("P3",))

    def order(seed, epoch):
        config = DataConfig(window_frames=10, batch_size=3)
        loader = AffectDataModule(entries, fold, config, seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [place for batch in loader for place in _places(batch)]

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == sorted(order(0, 1)) == sorted(order(1, 0))
    assert len({str(order(0, 0)), str(order(0, 1)), str(order(1, 0))}) == 3


def test_workers_give_the_same_batches(tmp_path):
    entries = store.entries(builders.cache(tmp_path / "cache", subjects=4))
    fold = Fold(0, ("P0", "P1"), ("P2",), ("P3",))
    batches = [
        list(
            AffectDataModule(
                entries, fold, DataConfig(window_frames=10, workers=workers), 0
            ).train_dataloader()
        )
        for workers in (0, 2)
    ]
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.labels, other.labels)
