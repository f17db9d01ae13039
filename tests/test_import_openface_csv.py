import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from affect.data import importing
from affect.errors import UserError
from affect.recording import OPENFACE_INTENSITIES, OPENFACE_PRESENCES, check
from tests import corpora

REFERENCE = Path(__file__).parents[1] / ".." / "shared" / "openface-reference"


def load(source, **options):
    return [item.load() for item in importing.find("openface-csv", source, options)]


@pytest.mark.parametrize("separator", [", ", ","])
def test_openfaces_own_layout(tmp_path, separator):
    frame = corpora.faces(10)
    (recording,) = load(corpora.write_openface(tmp_path / "P1.csv", frame, separator))
    check(recording)
    assert recording.key == "openface/P1/P1"
    assert recording.rate_hz == 25
    assert recording.intensity_names == OPENFACE_INTENSITIES
    assert recording.presence_names == OPENFACE_PRESENCES
    seen = np.arange(10) != 2
    assert recording.success.tolist() == seen.tolist()
    assert recording.confidence.tolist() == pytest.approx([0.98 if ok else 0.02 for ok in seen])
    expected = frame[list(OPENFACE_INTENSITIES)].to_numpy(np.float32)
    expected[2] = np.nan
    np.testing.assert_array_equal(recording.intensity, expected)
    expected = frame[list(OPENFACE_PRESENCES)].to_numpy(np.uint8) * seen[:, None]
    np.testing.assert_array_equal(recording.presence, expected)


def test_avecs_layout_takes_success_from_the_confidence(tmp_path):
    frame = corpora.faces(10)
    frame["confidence"] = [0.98, 0.72, 0.02, 0.73, 0.725, *[0.9] * 5]
    (recording,) = load(corpora.write_avec_openface(tmp_path / "train_1.csv", frame))
    check(recording)
    assert recording.success.tolist() == [True, False, False, True, False, *[True] * 5]
    assert recording.presence_names == ()
    np.testing.assert_array_equal(
        recording.intensity[3], frame.loc[3, list(OPENFACE_INTENSITIES)].astype(np.float32)
    )


def test_windows_builds_write_a_mark_and_their_own_nan(tmp_path):
    frame = corpora.faces(4).drop(columns=["frame", "face_id"])
    path = corpora.write_openface(tmp_path / "x.csv", frame, ",")
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    cells[3] = "-nan(ind)"
    path.write_text("\n".join(["\ufeff" + lines[0], ",".join(cells), *lines[2:]]), "utf-8")
    (recording,) = load(path)
    assert np.argwhere(np.isnan(recording.intensity[:2])).tolist() == [[0, 0]]


def test_of_several_faces_the_most_tracked_stays(tmp_path):
    brief, main = corpora.faces(9, seed=1), corpora.faces(8, seed=2).assign(face_id=1)
    brief.loc[4:, "success"] = 0
    rows = pd.concat([brief, main]).sort_values(["timestamp", "face_id"])
    (recording,) = load(corpora.write_openface(tmp_path / "x.csv", rows))
    assert recording.frames == 8
    np.testing.assert_array_equal(
        recording.intensity[3], main.loc[3, list(OPENFACE_INTENSITIES)].astype(np.float32)
    )


def test_places_come_from_folders_and_names(tmp_path):
    for name in ("P2.csv", "P1/a.csv", "P1/b.csv", "site/P3/a.csv"):
        corpora.write_openface(tmp_path / name, corpora.faces(4))
    keys = [recording.key for recording in load(tmp_path, corpus="mine")]
    assert sorted(keys) == ["mine/P1/a", "mine/P1/b", "mine/P2/P2", "mine/P3/a"]


def test_files_in_capitals_are_found_and_folders_are_none(tmp_path):
    (tmp_path / "P1.csv").mkdir()
    corpora.write_openface(tmp_path / "P2.CSV", corpora.faces(4))
    assert [recording.key for recording in load(tmp_path)] == ["openface/P2/P2"]


def test_a_row_with_cells_too_many_is_refused(tmp_path):
    path = corpora.write_openface(tmp_path / "P1.csv", corpora.faces(9))
    lines = path.read_text().splitlines()
    corpora.write(path, "\n".join([*lines[:5], lines[5] + ", 0, 0", *lines[6:]]))
    with pytest.raises(UserError, match=r"P1\.csv: line 6 has 42 cells, the header 40"):
        load(path)


def test_times_in_milliseconds_are_refused(tmp_path):
    frame = corpora.faces(1500).assign(timestamp=np.arange(1500) * 40)
    with pytest.raises(UserError, match=r"0\.025 frames a second: give times in seconds"):
        load(corpora.write_openface(tmp_path / "P1.csv", frame))


def test_places_come_from_a_pattern(tmp_path):
    for name in ("day1/P1_x.csv", "day2/P1_x.csv", "day2/P2_y.csv"):
        corpora.write_openface(tmp_path / name, corpora.faces(4))
    keys = [r.key for r in load(tmp_path, pattern=r"(?P<recording>\w+)/(?P<subject>P\d)_.")]
    assert sorted(keys) == ["openface/P1/day1", "openface/P1/day2", "openface/P2/day2"]
    keys = [r.key for r in load(tmp_path / "day1", pattern=r"(?P<subject>P\d)_.")]
    assert keys == ["openface/P1/P1_x"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "no regular expression"),
        ("(?P<person>P1)", "no group"),
        (r"(?P<subject>P\d)", "does not match 'P1/a'"),
        (r"(?P<subject>P)\d/(?P<recording>a)", "are both recording 'a' of 'P'"),
    ],
)
def test_wrong_patterns(tmp_path, pattern, message):
    for name in ("P1/a.csv", "P2/a.csv"):
        corpora.write_openface(tmp_path / name, corpora.faces(4))
    with pytest.raises(UserError, match=message):
        load(tmp_path, pattern=pattern)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "frames", "tracked", "rate_hz"),
    [("WolfgangLanger_Pexels", 472, 471, 23.976), ("single_face", 72, 72, 30)],
)
def test_openfaces_output_for_real_clips(tmp_path, name, frames, tracked, rate_hz):
    path = REFERENCE / f"{name}.csv.gz"
    if not path.exists():
        pytest.skip("no ../shared/openface-reference with OpenFace's output")
    text = gzip.decompress(path.read_bytes()).decode()
    (recording,) = load(corpora.write(tmp_path / f"{name}.csv", text))
    check(recording)
    assert (recording.frames, int(recording.success.sum())) == (frames, tracked)
    assert recording.rate_hz == pytest.approx(rate_hz, rel=2e-4)
    # The oracle splits the lines by hand, without pandas.
    header, *rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    column = header.index("AU12_r")
    expected = [float(row[column]) if row[4] == "1" else np.nan for row in rows]
    found = recording.intensity[:, OPENFACE_INTENSITIES.index("AU12_r")]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
