import numpy as np
import pytest

from affect.data import importing
from affect.errors import UserError
from affect.recording import check
from tests import corpora


def load(source, **options):
    found = {item.subject: item for item in importing.find("avec", source, options)}
    return {subject: item.load() for subject, item in found.items()}


def uniform(seed, rows):
    return np.random.default_rng(seed).uniform(-1, 1, rows).round(6).astype(np.float32)


def test_2016_joins_the_features_of_both_dimensions(tmp_path):
    recordings = load(corpora.avec2016(tmp_path))
    assert list(recordings) == ["dev_1", "test_1", "train_1"]
    recording = recordings["dev_1"]
    check(recording)
    assert recording.key == "avec2016/dev_1/dev_1"
    assert recording.rate_hz == 25
    names = ("feat_0@arousal", "feat_1@arousal", "feat_0@valence", "feat_1@valence")
    assert recording.intensity_names == names
    random = np.random.default_rng(11)
    np.testing.assert_array_equal(
        recording.intensity[:, 2], random.normal(size=20).astype(np.float32)
    )
    np.testing.assert_array_equal(recording.annotations["arousal"], uniform(10, 21)[:20])
    np.testing.assert_array_equal(recording.annotations["valence"], uniform(11, 21)[:20])
    assert recording.raters == ()
    assert dict(recordings["test_1"].annotations) == {}


def test_2016_individual_ratings_replace_the_gold_standard(tmp_path):
    recording = load(corpora.avec2016(tmp_path), ratings="individual")["train_1"]
    expected = corpora.ratings(21, seed=1)[list(corpora.RATERS)].to_numpy().T
    assert recording.raters == corpora.RATERS
    np.testing.assert_array_equal(
        recording.annotations["valence"], expected[:, :20].astype(np.float32)
    )


@pytest.mark.parametrize("folder", ["openface", "features_openface"])
@pytest.mark.parametrize("write", [corpora.write_openface, corpora.write_avec_openface])
def test_2016_takes_openface_from_a_flat_folder(tmp_path, folder, write):
    root = corpora.avec2016(tmp_path)
    write(root / folder / "train_1.csv", corpora.faces(20))
    recordings = load(root, features="openface")
    assert list(recordings) == ["train_1"]
    assert recordings["train_1"].intensity.shape == (20, 17)
    assert recordings["train_1"].annotations["arousal"].shape == (20,)
    parameters = {"features": folder, "ratings": "ratings_gold_standard", "window_s": None}
    assert recordings["train_1"].provenance.parameters == parameters


def test_2016_takes_one_dimensions_features(tmp_path):
    root = corpora.avec2016(tmp_path)
    recording = load(root, features="video_geometric/valence")["train_1"]
    assert recording.intensity_names == ("feat_0", "feat_1")
    assert recording.provenance.parameters["features"] == "features_video_geometric/valence"


def test_provenance_names_a_folder_elsewhere_without_its_path(tmp_path):
    root = corpora.avec2016(tmp_path / "AVEC")
    corpora.write_openface(tmp_path / "aus" / "train_1.csv", corpora.faces(20))
    recording = load(root, features=str(tmp_path / "aus"))["train_1"]
    assert recording.provenance.parameters["features"] == "aus"


def test_different_clocks_of_two_dimensions_are_refused(tmp_path):
    root = corpora.avec2016(tmp_path)
    path = root / "features_video_geometric/valence/train_1.arff"
    corpora.video_arff(path, 20, period_s=0.08)
    with pytest.raises(UserError, match="different times"):
        load(root)


@pytest.mark.parametrize(("arousal", "valence"), [(20, 19), (19, 20)])
def test_2016_keeps_the_times_that_both_dimensions_have(tmp_path, arousal, valence):
    root = corpora.avec2016(tmp_path)
    folder = root / "features_video_geometric"
    corpora.video_arff(folder / "arousal/train_1.arff", arousal, seed=5)
    path = corpora.video_arff(folder / "valence/train_1.arff", valence, seed=6)
    header, rows = path.read_text().split("@data\n\n")
    path.write_text(header + "@data\n" + "\n".join(reversed(rows.splitlines())))
    recording = load(root)["train_1"]
    check(recording)
    assert recording.frames == 19
    first, other = (
        np.random.default_rng(seed).normal(size=n)[:19] for seed, n in ((5, arousal), (6, valence))
    )
    found = recording.intensity[:, [0, 2]]
    np.testing.assert_array_equal(found, np.stack([first, other], axis=1).astype(np.float32))


def test_suffixes_may_be_in_capitals(tmp_path):
    root = corpora.avec2016(tmp_path)
    for path in [*root.rglob("*.arff")]:
        path.rename(path.with_suffix(".ARFF"))
    recording = load(root)["train_1"]
    assert set(recording.annotations) == {"arousal", "valence"}


def test_2018_labels_come_onto_the_windows_clock(tmp_path):
    recordings = load(corpora.avec2018(tmp_path))
    recording = recordings["train_1"]
    check(recording)
    assert list(recordings) == ["dev_1", "test_1", "train_1"]
    assert recording.key == "avec2018/train_1/train_1"
    assert recording.rate_hz == 2.5
    np.testing.assert_array_equal(recording.annotations["arousal"], uniform(0, 52)[::10])
    assert dict(recordings["test_1"].annotations) == {}


def test_2018_several_windows_need_a_choice(tmp_path):
    root = corpora.avec2018(tmp_path, windows=("3.0", "5.0"))
    with pytest.raises(UserError, match=r"windows 3\.0, 5\.0 s: choose one with window_s"):
        load(root)
    with pytest.raises(UserError, match=r"no window of 4 s: it has 3\.0, 5\.0"):
        load(root, window_s=4)
    for window_s in (5, 5.0, "5"):
        recording = load(root, window_s=window_s)["train_1"]
        expected = np.random.default_rng(5).normal(size=6).astype(np.float32)
        np.testing.assert_array_equal(recording.intensity[:, 0], expected)
        assert recording.provenance.parameters["window_s"] == 5.0


def test_2018_two_hops_of_a_window_are_refused(tmp_path):
    root = corpora.avec2018(tmp_path)
    corpora.video_arff(root / "features/video/AU/dev_1_3.0_0.1.arff", 6)
    with pytest.raises(UserError, match="are both dev_1"):
        load(root)


def test_2018_several_gold_standards_need_a_choice(tmp_path):
    root = corpora.avec2018(tmp_path)
    for dimension in corpora.DIMENSIONS:
        corpora.gold_standard(root / f"labels/other/{dimension}/train_1.arff", 52, seed=7)
    with pytest.raises(UserError, match="gold_standard_1, other: choose one with ratings"):
        load(root)
    recordings = load(root, ratings="other", corpus="ges")
    assert recordings["train_1"].corpus == "ges"
    np.testing.assert_array_equal(
        recordings["train_1"].annotations["valence"], uniform(7, 52)[::10]
    )
    assert dict(recordings["dev_1"].annotations) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "audio"}, "no features 'audio'"),
        ({"ratings": "centred"}, "no ratings 'centred'"),
        ({"features": "ratings_individual/arousal/.."}, "holds no train_"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    root = corpora.avec2016(tmp_path)
    for path in (root / "ratings_individual").rglob("*.csv"):
        path.unlink()
    with pytest.raises(UserError, match=message):
        load(root, **options)
