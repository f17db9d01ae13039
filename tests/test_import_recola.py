import numpy as np
import pandas as pd
import pytest

from affect.data import importing
from affect.errors import UserError
from affect.recording import check
from tests import corpora


def load(source, **options):
    found = {item.subject: item for item in importing.find("recola", source, options)}
    return {subject: item.load() for subject, item in found.items()}


def test_recordings_hold_the_corpus_numbers(tmp_path):
    recordings = load(corpora.recola(tmp_path))
    assert list(recordings) == ["P16", "P17"]
    recording = recordings["P17"]
    check(recording)
    assert recording.key == "recola/P17/P17"
    assert recording.rate_hz == 25
    assert recording.intensity_names == ("AU1", "AU12")
    assert recording.raters == corpora.RATERS
    assert recording.success.tolist() == [False] + [True] * 19
    assert recording.confidence.tolist() == pytest.approx([0] + [0.9] * 19)
    assert np.isnan(recording.intensity[0]).all()
    expected = np.random.default_rng(101)
    au1, au12 = (expected.uniform(0, 1, 20).round(4) for _ in range(2))
    np.testing.assert_array_equal(
        recording.intensity[1:], np.stack([au1, au12], axis=1)[1:].astype(np.float32)
    )
    raters = corpora.ratings(21, seed=3)[list(corpora.RATERS)].to_numpy().T
    np.testing.assert_array_equal(
        recording.annotations["valence"], raters[:, :20].astype(np.float32)
    )


def test_all_features_are_kept_on_request(tmp_path):
    recording = load(corpora.recola(tmp_path), features="all")["P16"]
    assert recording.intensity_names == ("AU1", "AU12", "AU12_delta", "Yaw", "Opt_mean")


def test_openface_replaces_the_corpus_features(tmp_path):
    root = corpora.recola(tmp_path / "RECOLA", rows=20)
    corpora.write_openface(tmp_path / "aus" / "P16.csv", corpora.faces(20))
    recordings = load(root, openface=str(tmp_path / "aus"))
    assert list(recordings) == ["P16"]
    assert recordings["P16"].intensity.shape == (20, 17)
    assert recordings["P16"].annotations["arousal"].shape == (6, 20)
    parameters = recordings["P16"].provenance.parameters
    assert parameters == {"features": "openface"}


def test_a_rater_missing_in_one_dimension_is_nan_there(tmp_path):
    root = corpora.recola(tmp_path, ["P16"])
    path = root / "RECOLA-Annotation/emotional_behaviour/valence/P16.csv"
    corpora.write_ratings(path, corpora.ratings(21, ("FM1", "FF3")))
    recording = load(root)["P16"]
    check(recording)
    missing = np.isnan(recording.annotations["valence"]).all(axis=1)
    assert recording.raters == corpora.RATERS
    assert missing.tolist() == [False, True, True, True, True, False]
    assert not np.isnan(recording.annotations["arousal"]).any()


def test_a_missing_dimension_is_absent(tmp_path):
    root = corpora.recola(tmp_path, ["P16"])
    folder = root / "RECOLA-Annotation/emotional_behaviour"
    (folder / "valence/P16.csv").unlink()
    assert set(load(root)["P16"].annotations) == {"arousal"}
    (folder / "arousal/P16.csv").unlink()
    recording = load(root)["P16"]
    assert (dict(recording.annotations), recording.raters) == ({}, ())


def test_missing_labels_and_features_stay_missing(tmp_path):
    root = corpora.recola(tmp_path, ["P16"])
    frame = corpora.ratings(21)
    frame.loc[5, "FM2"] = np.nan
    path = root / "RECOLA-Annotation/emotional_behaviour/arousal/P16.csv"
    path.write_text(corpora.write_ratings(path, frame).read_text().replace("nan", ""))
    video = root / "RECOLA-Video-features/P16.arff"
    lines = video.read_text().splitlines()
    cells = lines[-1].split(",")
    lines[-1] = ",".join([*cells[:3], "?", *cells[4:]])
    video.write_text("\n".join(lines))
    recording = load(root)["P16"]
    missing = np.argwhere(np.isnan(recording.annotations["arousal"]))
    assert missing.tolist() == [[1, 5]]
    assert np.argwhere(np.isnan(recording.intensity[1:])).tolist() == [[18, 0]]


def test_the_identity_follows_options_and_every_file(tmp_path):
    root = corpora.recola(tmp_path, ["P16"])

    def identity(**options):
        return next(iter(importing.find("recola", root, options))).provenance.identity

    first = identity()
    assert identity() == first
    assert identity(features="all") != first
    path = root / "RECOLA-Annotation/emotional_behaviour/arousal/P16.csv"
    corpora.write_ratings(path, corpora.ratings(21, seed=9))
    assert identity() != first


def test_files_in_capitals_are_found(tmp_path):
    root = corpora.recola(tmp_path)
    for path in [*root.rglob("P16.*")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    recordings = load(root)
    assert [set(recording.annotations) for recording in recordings.values()] == [
        {"arousal", "valence"}
    ] * 2


def test_unsorted_labels_are_sorted(tmp_path):
    root = corpora.recola(tmp_path, ["P16"])
    before = load(root)["P16"].annotations["arousal"]
    path = root / "RECOLA-Annotation/emotional_behaviour/arousal/P16.csv"
    frame = pd.read_csv(path, sep=";").rename(columns=str.strip).sample(frac=1, random_state=0)
    corpora.write_ratings(path, frame)
    np.testing.assert_array_equal(load(root)["P16"].annotations["arousal"], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "aus"}, "unknown features 'aus': did you mean 'au'"),
        ({"openface": "nowhere"}, r"looked for P16\.csv in nowhere"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        load(corpora.recola(tmp_path), **options)
