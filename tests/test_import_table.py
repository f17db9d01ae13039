from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from affect.data import importing
from affect.data.table_schema import Pivot, read_schema
from affect.errors import UserError
from affect.recording import check
from tests import corpora

ROOT = Path(__file__).parents[1]
HAINES = ROOT / ".." / "shared" / "data" / "haines_segments.csv"
PLAIN = "corpus: c\nsubject: who\ntime: t\nfeatures: [AU*]\nannotations: {valence: v}\n"
PIVOTED = (
    "corpus: c\nsubject: who\nrate_hz: 1\nsort_by: [clip]\nfeatures: [AU1, AU2]\n"
    "pivot: {index: clip, columns: part}\nannotations: {valence: v}\n"
)


def load(source, schema_text, folder):
    schema = corpora.write(folder / "schema.yaml", schema_text)
    return {item.key: item.load() for item in importing.find("table", source, {"schema": schema})}


def plain(subjects=("007", "8"), rows=5):
    random = np.random.default_rng(3)
    frames = [
        pd.DataFrame(random.uniform(0, 5, (rows, 2)).round(3), columns=["AU01", "AU12"]).assign(
            who=who, t=np.arange(rows) / 10, v=random.uniform(-1, 1, rows).round(3), note="text"
        )
        for who in subjects
    ]
    return pd.concat(frames, ignore_index=True)


def to_csv(frame, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    return path


def to_parquet(frame, path):
    frame.to_parquet(path)
    return path


@pytest.mark.parametrize(("save", "suffix"), [(to_csv, ".csv"), (to_parquet, ".parquet")])
def test_columns_become_recordings(tmp_path, save, suffix):
    frame = plain()
    recordings = load(save(frame, tmp_path / f"x{suffix}"), PLAIN, tmp_path)
    assert list(recordings) == ["c/007/007", "c/8/8"]
    recording = recordings["c/8/8"]
    check(recording)
    assert recording.rate_hz == 10
    assert recording.intensity_names == ("AU01", "AU12")
    own = frame[frame["who"] == "8"]
    np.testing.assert_array_equal(recording.intensity, own[["AU01", "AU12"]].to_numpy(np.float32))
    np.testing.assert_array_equal(recording.annotations["valence"], own["v"].to_numpy(np.float32))
    assert recording.confidence.tolist() == [1] * 5


def test_recordings_success_confidence_and_names(tmp_path):
    frame = plain().assign(video=["a", "a", "a", "b", "b"] * 2, ok=[1, 0, 1, 1, 1] * 2, sure=0.25)
    schema = PLAIN + "recording: video\nsuccess: ok\nconfidence: sure\nrename: {AU12: smile}\n"
    recordings = load(to_csv(frame, tmp_path / "x.csv"), schema, tmp_path)
    assert list(recordings) == ["c/007/a", "c/007/b", "c/8/a", "c/8/b"]
    recording = recordings["c/007/a"]
    assert recording.intensity_names == ("AU01", "smile")
    assert recording.success.tolist() == [True, False, True]
    assert np.isnan(recording.intensity[1]).all()
    assert recording.confidence.tolist() == [0.25] * 3


def test_raters_become_rows(tmp_path):
    frame = plain(rows=3).assign(r1=[1, 2, 3] * 2, r2=[4, 5, 6] * 2)
    schema = PLAIN.replace(
        "{valence: v}", "{valence: v, arousal: {ann: r1, bob: r2}, liking: {bob: r1}}"
    )
    recording = load(to_csv(frame, tmp_path / "x.csv"), schema, tmp_path)["c/8/8"]
    check(recording)
    assert recording.raters == ("ann", "bob")
    np.testing.assert_array_equal(recording.annotations["arousal"], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(recording.annotations["liking"], [[np.nan] * 3, [1, 2, 3]])
    assert recording.annotations["valence"].shape == (3,)


def test_rows_are_sorted_as_numbers_where_all_are(tmp_path):
    frame = plain(("p",), rows=3).assign(n=["10", "9", "1"], v=[3, 2, 1])
    schema = PLAIN.replace("time: t", "rate_hz: 2\nsort_by: n")
    recording = load(to_csv(frame, tmp_path / "x.csv"), schema, tmp_path)["c/p/p"]
    assert recording.annotations["valence"].tolist() == [1, 2, 3]
    assert recording.time_s.tolist() == [0, 0.5, 1]


def pivoted():
    rows = [("p", clip, part) for clip in (10, 9, 2) for part in (2, 1)]
    frame = pd.DataFrame(rows, columns=["who", "clip", "part"])
    frame["AU1"] = 10.0 * frame["clip"] + frame["part"]
    return frame.assign(AU2=-frame["AU1"], v=frame["clip"] / 10)


def test_pivoted_rows_become_one_frame(tmp_path):
    recording = load(to_csv(pivoted(), tmp_path / "x.csv"), PIVOTED, tmp_path)["c/p/p"]
    check(recording)
    assert recording.intensity_names == ("AU1@1", "AU1@2", "AU2@1", "AU2@2")
    np.testing.assert_array_equal(
        recording.intensity, [[21, 22, -21, -22], [91, 92, -91, -92], [101, 102, -101, -102]]
    )
    assert recording.annotations["valence"].tolist() == pytest.approx([0.2, 0.9, 1.0])


def test_a_missing_part_of_a_frame_is_nan(tmp_path):
    partial = pivoted().query("part == 1").assign(who="q")
    path = to_csv(pd.concat([pivoted().iloc[1:], partial]), tmp_path / "x.csv")
    recordings = load(path, PIVOTED, tmp_path)
    nan = np.nan
    np.testing.assert_array_equal(recordings["c/p/p"].intensity[2], [101, nan, -101, nan])
    np.testing.assert_array_equal(recordings["c/q/q"].intensity[0], [21, nan, -21, nan])
    assert recordings["c/p/p"].intensity_names == recordings["c/q/q"].intensity_names


def test_a_frames_success_and_confidence_are_the_least_of_its_parts(tmp_path):
    frame = pivoted().assign(ok=[1, 1, 0, 1, 1, 0], sure=[0.5, 0.25, 1, 1, 0.75, 1])
    schema = PIVOTED + "success: ok\nconfidence: sure\n"
    recording = load(to_csv(frame, tmp_path / "x.csv"), schema, tmp_path)["c/p/p"]
    assert recording.success.tolist() == [False, False, True]
    assert recording.confidence.tolist() == [0.75, 1, 0.25]


def test_parts_are_sorted_as_numbers(tmp_path):
    path = to_csv(pivoted().replace({"part": {1: 10}}), tmp_path / "x.csv")
    recording = load(path, PIVOTED, tmp_path)["c/p/p"]
    assert recording.intensity_names == ("AU1@2", "AU1@10", "AU2@2", "AU2@10")
    assert recording.intensity[0].tolist() == [22, 21, -22, -21]


def test_the_rows_of_a_frame_can_be_aggregated(tmp_path):
    schema = PIVOTED.replace("columns: part", "aggregate: [mean, max, min]")
    recording = load(to_csv(pivoted(), tmp_path / "x.csv"), schema, tmp_path)["c/p/p"]
    names = [f"{unit}@{part}" for unit in ("AU1", "AU2") for part in ("mean", "max", "min")]
    assert list(recording.intensity_names) == names
    np.testing.assert_array_equal(recording.intensity[0], [21.5, 22, 21, -21.5, -21, -22])
    np.testing.assert_array_equal(recording.intensity[2], [101.5, 102, 101, -101.5, -101, -102])


def test_a_folders_files_are_subjects_by_their_names(tmp_path):
    for who in ("P1", "P2"):
        to_csv(plain((who,)).drop(columns="who"), tmp_path / "data" / f"{who}.csv")
    schema = PLAIN.replace("subject: who", "subject: file")
    assert list(load(tmp_path / "data", schema, tmp_path)) == ["c/P1/P1", "c/P2/P2"]


def test_labels_of_another_rate_come_onto_the_features_clock(tmp_path):
    path = to_csv(plain(), tmp_path / "x.csv")
    labels = pd.DataFrame({"id": "8", "at": [0.0, 0.2, 0.4], "mood": [0.0, 1.0, 0.0]})
    to_csv(labels, tmp_path / "labels.csv")
    schema = PLAIN + (
        f"labels: {{file: {tmp_path / 'labels.csv'}, subject: id, time: at, "
        "annotations: {arousal: mood}}\n"
    )
    recordings = load(path, schema, tmp_path)
    assert recordings["c/8/8"].annotations["arousal"].tolist() == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert set(recordings["c/007/007"].annotations) == {"valence"}
    provenance = recordings["c/8/8"].provenance
    assert str(tmp_path) not in str(provenance.parameters)
    to_csv(labels.assign(mood=1.0), tmp_path / "labels.csv")
    changed = load(path, schema, tmp_path)["c/8/8"].provenance
    assert changed.identity != provenance.identity
    assert changed.parameters == provenance.parameters


def test_a_tables_features_are_parsed_once_and_only_when_needed(tmp_path, monkeypatch):
    schema = corpora.write(tmp_path / "schema.yaml", PLAIN)
    for name in ("a", "b"):
        subjects = [f"{name}{index}" for index in range(20)]
        to_csv(plain(subjects), tmp_path / "data" / f"{name}.csv")
    calls = []
    original = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *a, **k: (calls.append(k), original(*a, **k))[1])
    items = list(importing.find("table", tmp_path / "data", {"schema": schema}))
    assert [len(call["usecols"]) for call in calls] == [1, 1]
    assert len([item.load() for item in items]) == 40
    assert [len(call["usecols"]) for call in calls[2:]] == [5, 5]


def test_a_table_without_a_schema_is_told(tmp_path):
    with pytest.raises(UserError, match=r"give the option schema=FILE\.yaml"):
        list(importing.find("table", to_csv(plain(), tmp_path / "x.csv"), {}))


def test_only_needed_columns_are_read(tmp_path):
    frame = plain().assign(note="not a number")
    schema = corpora.write(tmp_path / "schema.yaml", PLAIN)
    (item, *_) = importing.find("table", to_csv(frame, tmp_path / "x.csv"), {"schema": str(schema)})
    assert item.load().intensity_names == ("AU01", "AU12")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (PLAIN + "anotations: {}\n", "unknown key 'anotations': did you mean 'annotations'"),
        (PIVOTED.replace("index:", "indices:"), "pivot: unknown key 'indices'"),
        (PIVOTED.replace("columns: part", "aggregate: [maxx]"), "unknown aggregate 'maxx'"),
        (PIVOTED.replace(", columns: part", ""), "give either columns"),
        (PLAIN.replace("subject: who\n", ""), "the key 'subject' is missing"),
        (PLAIN + "rate_hz: 3\n", "give either time .* or rate_hz"),
        (PLAIN.replace("time: t\n", ""), "give either time .* or rate_hz"),
        (PLAIN.replace("time: t", "rate_hz: -1"), "rate_hz: a number above 0"),
        (PLAIN.replace("time: t", "time: 3"), "time: a name was looked for, not 3"),
        (PLAIN.replace("{valence: v}", "[v]"), "annotations: dimensions and columns"),
        (PLAIN + "rename: smile\n", "rename: names and columns"),
        ("- a\n", "keys and values were looked for"),
        ("a: [", "cannot read"),
        (PLAIN.replace("[AU*]", "[AU12, AU02]"), "no column 'AU02': did you mean"),
        (PLAIN.replace("[AU*]", "[XY*]"), r"no column 'XY\*': "),
        (PLAIN.replace("[AU*]", "[v*]"), r"no column 'v\*': .*AU01"),
        (PLAIN.replace("[AU*]", "[AU*, v]"), "'v' is both a feature and an annotation: keep one"),
        (PLAIN.replace("valence: v", "valence: vv"), "no column 'vv': did you mean 'v'"),
        (PLAIN.replace("[AU*]", "[AU01, note]"), "column 'note' holds 'text', not a number"),
        (
            PLAIN + "labels: {file: x.csv, subject: who, time: t, annotations: {valence: v}}",
            "'valence' is annotated here and in labels",
        ),
        (
            PLAIN + "labels: {file: x.csv, subject: who, recording: v, time: t}",
            "name the column recording in the table and in labels",
        ),
        (
            PLAIN + "labels: {file: x.csv, subject: note, time: t, annotations: {a: v}}",
            "labels none of the recordings: its first is c/text/text",
        ),
    ],
)
def test_wrong_schemas_say_how_to_mend_them(tmp_path, schema, message):
    path = to_csv(plain(), tmp_path / "x.csv")
    with pytest.raises(UserError, match=message) as error:
        load(path, schema, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("schema", "change", "message"),
    [
        (PIVOTED, lambda f: pd.concat([f, f.iloc[:1]]), "frame '10' has part '2' twice"),
        (PIVOTED, lambda f: f.assign(v=range(6)), "'v' differs within frame"),
        (PIVOTED, lambda f: f.assign(clip=None), "column 'clip' is empty in 6 rows"),
        (PIVOTED, lambda f: f.assign(AU1=np.nan, AU2=np.nan), "no frame with a face"),
        (PIVOTED, lambda f: f.iloc[:0], "has no rows"),
        (PLAIN, lambda f: f.assign(t=""), "column 't' holds no time in 6 rows"),
    ],
)
def test_wrong_tables_say_how_to_mend_them(tmp_path, schema, change, message):
    path = to_csv(change(pivoted()), tmp_path / "x.csv")
    with pytest.raises(UserError, match=message):
        load(path, schema, tmp_path)


@pytest.mark.parametrize(("save", "suffix"), [(to_csv, ".CSV"), (to_parquet, ".PARQUET")])
def test_suffixes_may_be_in_capitals(tmp_path, save, suffix):
    (tmp_path / "data").mkdir()
    path = save(plain(), tmp_path / "data" / f"x{suffix}")
    for source in (path, path.parent):
        assert list(load(source, PLAIN, tmp_path)) == ["c/007/007", "c/8/8"]


def test_patterns_match_no_column_that_the_schema_names_otherwise(tmp_path):
    frame = plain(rows=3).drop(columns="note")
    frame = frame.assign(video="1", ok=1, sure=1, n=0, r1=0, r2=0, mood=0)
    schema = PLAIN.replace("[AU*]", '["*"]').replace(
        "{valence: v}", "{valence: v, a: {x: r1, y: r2}}"
    )
    schema += "recording: video\nsuccess: ok\nconfidence: sure\nsort_by: n\n"
    labels = pd.DataFrame({"id": "8", "at": [0.0, 0.1], "clip": "1", "mood": [0.0, 1.0]})
    to_csv(labels, tmp_path / "labels" / "labels.csv")
    schema += (
        "labels: {file: labels/labels.csv, subject: id, recording: clip, time: at, "
        "annotations: {m: mood}}\n"
    )
    recording = load(to_csv(frame, tmp_path / "x.csv"), schema, tmp_path)["c/8/1"]
    assert recording.intensity_names == ("AU01", "AU12")
    schema = PIVOTED.replace("[AU1, AU2]", '["*"]')
    recording = load(to_csv(pivoted(), tmp_path / "x.csv"), schema, tmp_path)["c/p/p"]
    assert recording.intensity_names == ("AU1@1", "AU1@2", "AU2@1", "AU2@2")


def test_a_named_column_may_serve_twice(tmp_path):
    frame = plain().assign(sure=0.5)
    schema = PLAIN.replace("[AU*]", "[AU*, sure]") + "confidence: sure\n"
    recording = load(to_csv(frame, tmp_path / "x.csv"), schema, tmp_path)["c/8/8"]
    assert recording.intensity_names == ("AU01", "AU12", "sure")


def test_a_decimal_comma_between_commas_is_refused(tmp_path):
    rows = "".join(f"P01,{n // 25},{n % 25 * 4:02d},0,30,0,20,0,020\n" for n in range(50))
    path = corpora.write(tmp_path / "x.csv", "who,t,AU06,AU12,v\n" + rows)
    with pytest.raises(UserError, match=r"x\.csv: line 2 has 9 cells, the header 5: .* a point"):
        load(path, PLAIN, tmp_path)


def test_a_second_session_in_one_recording_is_refused(tmp_path):
    frame = pd.concat([plain(("p",)).assign(day="1"), plain(("p",)).assign(day="2")])
    path = to_csv(frame, tmp_path / "x.csv")
    with pytest.raises(UserError, match="name a column with the schema's key recording"):
        load(path, PLAIN, tmp_path)
    recordings = load(path, PLAIN + "recording: day\n", tmp_path)
    assert [recording.frames for recording in recordings.values()] == [5, 5]


def test_labels_in_milliseconds_are_refused(tmp_path):
    labels = pd.DataFrame({"id": "8", "at": np.arange(5) * 100, "mood": 0.5})
    to_csv(labels, tmp_path / "labels.csv")
    schema = PLAIN + "labels: {file: labels.csv, subject: id, time: at, annotations: {a: mood}}\n"
    with pytest.raises(UserError, match="a labels from 0 to 400 s do not fit"):
        load(to_csv(plain(), tmp_path / "x.csv"), schema, tmp_path)


def test_somebody_may_be_called_na(tmp_path):
    path = to_csv(plain(("NA", "null")), tmp_path / "x.csv")
    assert list(load(path, PLAIN, tmp_path)) == ["c/NA/NA", "c/null/null"]


def test_a_whole_number_stored_as_a_fraction_is_a_name_without_a_point(tmp_path):
    frame = plain().assign(who=[1.0] * 5 + [20.0] * 5)
    assert list(load(to_parquet(frame, tmp_path / "x.parquet"), PLAIN, tmp_path)) == [
        "c/1/1",
        "c/20/20",
    ]
    frame = plain().assign(who=[1.5] * 5 + [2.0] * 5)
    assert list(load(to_parquet(frame, tmp_path / "x.parquet"), PLAIN, tmp_path)) == [
        "c/1.5/1.5",
        "c/2.0/2.0",
    ]


@pytest.mark.parametrize("index", ["t", "who", ["who", "t"], "AU01"])
def test_an_index_of_parquet_is_a_column(tmp_path, index):
    plain_path = to_parquet(plain(), tmp_path / "plain.parquet")
    indexed_path = to_parquet(plain().set_index(index), tmp_path / "indexed.parquet")
    expected = load(plain_path, PLAIN, tmp_path)
    for key, found in load(indexed_path, PLAIN, tmp_path).items():
        np.testing.assert_array_equal(found.time_s, expected[key].time_s)
        ordered = [found.intensity_names.index(n) for n in expected[key].intensity_names]
        np.testing.assert_array_equal(found.intensity[:, ordered], expected[key].intensity)


def test_a_damaged_page_of_parquet_is_told(tmp_path):
    path = to_parquet(plain(rows=500), tmp_path / "x.parquet")
    content = bytearray(path.read_bytes())
    content[4:4000] = b"\xff" * 3996
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*x\.parquet"):
        load(path, PLAIN, tmp_path)


BREAKS = {
    "a column is missing": (lambda path: to_csv(plain(("b",)).drop(columns="v"), path), "c/b/b"),
    "identifiers are missing": (lambda path: to_csv(plain(("b",)).drop(columns="who"), path), None),
    "a row is cut off": (lambda path: corpora.write(path, "who,t,AU01,AU12,v\nb,0,1\n"), None),
    "it is empty": (lambda path: corpora.write(path, ""), None),
    "it is no file": (lambda path: path.symlink_to("nowhere"), None),
}


@pytest.mark.parametrize(("break_it", "key"), BREAKS.values(), ids=BREAKS)
def test_of_several_tables_a_broken_one_fails_alone(tmp_path, break_it, key):
    for who in ("a", "c"):
        to_csv(plain((who,)), tmp_path / "data" / f"{who}.csv")
    break_it(tmp_path / "data" / "b.csv")
    labels = pd.DataFrame({"id": "b", "at": [0.0, 0.4], "mood": [0.0, 1.0]})
    to_csv(labels, tmp_path / "labels.csv")
    schema = PLAIN + "labels: {file: labels.csv, subject: id, time: at, annotations: {a: mood}}\n"
    options = {"schema": corpora.write(tmp_path / "schema.yaml", schema)}
    pending = importing.find("table", tmp_path / "data", options)
    *_, (_, outcome) = importing.import_all(pending, tmp_path / "cache")
    assert outcome.written == ["c/a/a", "c/c/c"]
    ((failed, message),) = outcome.failed.items()
    assert failed == key or (key is None and failed == "c/b/b.csv")
    assert str(tmp_path / "data" / "b.csv") in message


def test_dates_are_no_seconds(tmp_path):
    frame = plain()
    frame["t"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(frame["t"], unit="s")
    with pytest.raises(UserError, match="column 't' holds '2020-01-01 00:00:00', not a number"):
        load(to_parquet(frame, tmp_path / "x.parquet"), PLAIN, tmp_path)


def test_two_files_with_the_same_recording_are_refused(tmp_path):
    for name in ("a.csv", "b.csv"):
        to_csv(plain(), tmp_path / "data" / name)
    with pytest.raises(UserError, match="both hold recording '007' of '007'"):
        load(tmp_path / "data", PLAIN, tmp_path)
    recordings = load(tmp_path / "data", PLAIN + "recording: file\n", tmp_path)
    assert list(recordings) == ["c/007/a", "c/8/a", "c/007/b", "c/8/b"]


def test_the_schema_of_haines_reads():
    schema = read_schema(ROOT / "experiments" / "haines" / "table.yaml")
    assert schema.pivot == Pivot("clipNum", aggregate=("mean", "max", "min"))


@pytest.mark.real_data
def test_haines_has_125_subjects_and_4648_clips():
    if not HAINES.exists():
        pytest.skip("no ../shared/data/haines_segments.csv")
    schema = ROOT / "experiments" / "haines" / "table.yaml"
    items = list(importing.find("table", HAINES, {"schema": schema}))
    recordings = {item.subject: item.load() for item in items}
    assert (len(recordings), sum(r.frames for r in recordings.values())) == (125, 4648)
    assert {(r.rate_hz, len(r.intensity_names)) for r in recordings.values()} == {(1.0, 60)}
    rows = pd.read_csv(HAINES, dtype={"subjNum": str, "clipNum": str})
    rows = rows[rows["subjNum"] == "003"].sort_values(["clipNum", "segment"])
    names = [name for name in rows if name.startswith("AU")]
    segments = rows[names].to_numpy().reshape(-1, 3, 20)
    parts = [segments.mean(axis=1), segments.max(axis=1), segments.min(axis=1)]
    expected = np.stack(parts, axis=2).reshape(-1, 60)
    np.testing.assert_allclose(recordings["003"].intensity, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        recordings["003"].annotations["arousal_proxy"], rows["arousal_proxy"][::3].astype("f4")
    )
