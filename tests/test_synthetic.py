"""The synthetic corpus: the same bytes for the same seed, and a truth that can be found again."""

from __future__ import annotations

import numpy as np
import pytest

from affect import store
from affect.data import annotation, synthetic
from affect.data.importing import import_all
from affect.errors import UserError
from affect.recording import OPENFACE_INTENSITIES, check


@pytest.fixture(scope="module")
def corpus():
    return [item.load() for item in synthetic.pending(subjects=7)]


def test_recordings_have_recolas_shape(corpus):
    assert len(list(synthetic.pending())) == 23
    for number, recording in enumerate(corpus, start=1):
        check(recording)
        assert recording.key == f"synthetic/P{number:02d}/1"
        assert recording.intensity.shape == (7501, 17)
        assert recording.intensity_names == OPENFACE_INTENSITIES
        assert (recording.time_s[0], recording.time_s[-1]) == (0.0, 300.0)
        assert recording.raters == ("FM1", "FM2", "FM3", "FF1", "FF2", "FF3")
        assert set(recording.annotations) == {"valence", "arousal"}


def test_every_action_unit_has_a_loading():
    assert tuple(synthetic.LOADINGS) == OPENFACE_INTENSITIES
    assert set(synthetic.SPEECH) < set(OPENFACE_INTENSITIES)


def test_values_keep_their_ranges(corpus):
    for recording in corpus:
        tracked = recording.intensity[recording.success]
        assert tracked.min() >= 0 and tracked.max() <= 5
        for traces in (recording.annotations, recording.truth):
            assert all(np.abs(traces[name]).max() <= 1 for name in synthetic.DIMENSIONS)
        delays = recording.truth["rater_delay_s"]
        assert delays.min() >= 2 and delays.max() <= 6


def test_a_lost_face_leaves_nan_and_low_confidence(corpus):
    for recording in corpus:
        lost = ~recording.success
        assert 0 < lost.mean() < 0.2
        assert np.isnan(recording.intensity[lost]).all()
        assert np.isfinite(recording.intensity[recording.success]).all()
        assert recording.confidence[lost].max() < 0.5 < recording.confidence[~lost].min()


def test_one_seed_gives_one_corpus_however_many_subjects():
    small = list(synthetic.pending(subjects=2, seconds=8.0, seed=4))
    large = list(synthetic.pending(subjects=5, seconds=8.0, seed=4, recordings_per_subject=2))
    by_key = {item.key: item for item in large}
    for item in reversed(small):
        assert item.provenance.identity == by_key[item.key].provenance.identity
        assert store.checksum(item.load()) == store.checksum(by_key[item.key].load())


def test_seeds_subjects_and_recordings_differ():
    items = [
        item
        for seed in (0, 1)
        for item in synthetic.pending(2, seconds=8.0, seed=seed, recordings_per_subject=2)
    ]
    assert len({item.provenance.identity for item in items}) == 8
    assert len({item.load().intensity.tobytes() for item in items}) == 8


def test_what_belongs_to_a_person_or_to_the_raters_stays(corpus):
    first, again = synthetic.generate(0, 0, 0, 8.0), synthetic.generate(0, 0, 1, 8.0)
    for name in ("expressiveness", "baseline"):
        np.testing.assert_array_equal(first.truth[name], again.truth[name])
        assert not np.array_equal(first.truth[name], corpus[1].truth[name])
    for recording in corpus:
        np.testing.assert_array_equal(
            recording.truth["rater_delay_s"], first.truth["rater_delay_s"]
        )


def test_the_truth_is_read_back_from_a_cache(tmp_path):
    items = list(synthetic.pending(subjects=1, seconds=8.0))
    *_, (_, outcome) = import_all(items, tmp_path)
    assert outcome.written == ["synthetic/P01/1"]
    (path,) = store.recording_paths(tmp_path)
    store.verify(path)
    stored, made = store.read(path), items[0].load()
    assert stored.provenance == items[0].provenance == made.provenance
    assert set(stored.truth) == set(made.truth)
    for name, values in made.truth.items():
        np.testing.assert_array_equal(stored.truth[name], values)
    *_, (_, outcome) = import_all(items, tmp_path)
    assert outcome.skipped == ["synthetic/P01/1"]


def test_smiles_follow_valence_and_brows_follow_arousal(corpus):
    def correlation(unit, dimension):
        column = OPENFACE_INTENSITIES.index(unit)
        return np.mean(
            [
                np.corrcoef(r.intensity[r.success, column], r.truth[dimension][r.success])[0, 1]
                for r in corpus
            ]
        )

    assert correlation("AU12_r", "valence") > 0.4
    assert correlation("AU04_r", "valence") < -0.3
    assert correlation("AU05_r", "arousal") > 0.3
    assert abs(correlation("AU45_r", "valence")) < 0.2


@pytest.mark.parametrize("dimension", synthetic.DIMENSIONS)
def test_the_raters_delays_are_found_again(corpus, dimension):
    features = [recording.intensity for recording in corpus]
    truth = corpus[0].truth["rater_delay_s"]
    found = [
        annotation.estimate_delay(features, [r.annotations[dimension][k] for r in corpus], 25.0)
        for k in range(len(truth))
    ]
    np.testing.assert_allclose(found, truth, atol=0.2)
    golds = [annotation.gold_standard(r.annotations[dimension]) for r in corpus]
    assert annotation.estimate_delay(features, golds, 25.0) == pytest.approx(truth.mean(), abs=0.2)


def test_the_ceiling_is_the_ccc_of_the_delayed_truth(corpus):
    frames = round(float(corpus[0].truth["rater_delay_s"].mean()) * 25)
    for dimension, reached in synthetic.ceiling(corpus).items():
        late, gold = [], []
        for recording in corpus:
            truth = recording.truth[dimension]
            late.extend([truth[0]] * frames + truth[:-frames].tolist())
            gold.extend(annotation.gold_standard(recording.annotations[dimension]).tolist())
        x, y = np.array(late), np.array(gold)
        lin = (
            2
            * np.mean((x - x.mean()) * (y - y.mean()))
            / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
        )
        assert reached == pytest.approx(lin, abs=1e-9)
        assert 0.85 < reached < 0.95


def test_noise_has_unit_variance_and_its_band():
    rng = np.random.default_rng(0)
    band = synthetic.band_noise(rng, 50_000, 4, 25.0, (0.1, 1.0))
    assert band.std() == pytest.approx(1.0, abs=0.03)
    power = (np.abs(np.fft.rfft(band, axis=0)) ** 2).mean(axis=1)
    hz = np.fft.rfftfreq(len(band), 1 / 25.0)

    def around(centre_hz):
        return power[(hz > 0.9 * centre_hz) & (hz < 1.1 * centre_hz)].mean()

    for edge_hz in (0.1, 1.0):
        assert around(edge_hz) / around(0.316) == pytest.approx(0.5, abs=0.1)
    assert max(around(0.01), around(10.0)) < 1e-3 * around(0.316)
    lagging = synthetic.lagging_noise(rng, 50_000, 4, 25.0, 0.2)
    assert lagging.std() == pytest.approx(1.0, abs=0.03)
    assert (lagging[5:] * lagging[:-5]).mean() == pytest.approx(np.exp(-1), abs=0.03)


def test_slow_noise_stays_slow_in_a_short_recording():
    short = synthetic.band_noise(np.random.default_rng(0), 100, 50, 25.0, (0.002, 0.01))
    assert short.std(axis=0).mean() < 0.1
    assert short.mean(axis=0).std() == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(
    "wrong",
    [{"subjects": 0}, {"seconds": 0.0}, {"rate_hz": -1.0}, {"seed": -1}],
)
def test_arguments_out_of_range_are_refused_at_once(wrong):
    with pytest.raises(UserError, match="must be above 0"):
        synthetic.pending(**wrong)


def test_recordings_may_be_very_short_and_slow():
    for rate_hz in (1.0, 5.0):
        (item,) = synthetic.pending(subjects=1, seconds=2.0, rate_hz=rate_hz)
        recording = item.load()
        check(recording)
        assert recording.frames == 2 * rate_hz + 1
