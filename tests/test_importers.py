import csv
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affect import store
from affect.data import arff, columns, importing
from affect.errors import UserError
from tests import corpora

SCHEMA = "corpus: c\nsubject: file\ntime: t\nfeatures: [AU*]\nannotations: {valence: v}\n"


def sources(root):
    """One source of each format, by the format's name, with the options that it needs."""
    faces = corpora.write_openface(root / "faces" / "P1.csv", corpora.faces(10))
    table = corpora.write(root / "P1.csv", "t,AU1,v\n0,1,.1\n.1,2,.2\n.2,3,.3\n")
    schema = corpora.write(root / "schema.yaml", SCHEMA)
    return {
        "recola": (corpora.recola(root / "RECOLA"), {}),
        "avec": (corpora.avec2016(root / "AVEC2016"), {}),
        "openface-csv": (faces.parent, {}),
        "table": (table, {"schema": str(schema)}),
    }


@pytest.mark.parametrize("name", importing.IMPORTERS)
def test_an_import_fills_a_cache_that_verifies_and_is_skipped_again(tmp_path, name):
    source, options = sources(tmp_path)[name]
    cache = tmp_path / "cache"
    *_, (_, outcome) = importing.import_all(importing.find(name, source, options), cache)
    assert outcome.written
    assert not outcome.failed
    for path in store.recording_paths(cache):
        store.verify(path)
        provenance = store.read(path).provenance
        assert provenance.backend == f"import-{name}"
        assert len(provenance.source_sha256) == 64
        assert str(tmp_path) not in json.dumps(dict(provenance.parameters))
    *_, (_, again) = importing.import_all(importing.find(name, source, options), cache)
    assert (again.written, again.skipped) == ([], outcome.written)


def test_a_broken_recording_does_not_stop_the_others(tmp_path):
    root = corpora.recola(tmp_path / "RECOLA")
    corpora.write(root / "RECOLA-Video-features/P16.arff", "@relation x\n")
    pending = importing.find("recola", root, {})
    *_, (_, outcome) = importing.import_all(pending, tmp_path / "cache")
    assert outcome.written == ["recola/P17/P17"]
    assert "P16.arff has no line @data" in outcome.failed["recola/P16/P16"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("recola", r"looked for P16\.arff in .*RECOLA-Video-features"),
        ("avec", "looked for a folder ratings_gold_standard or labels"),
        ("openface-csv", r"holds no \*\.csv of OpenFace"),
        ("table", r"holds no table: looked for \.csv or \.parquet"),
    ],
)
def test_a_source_without_the_format_says_what_was_looked_for(tmp_path, name, message):
    options = {"schema": corpora.write(tmp_path / "schema.yaml", SCHEMA)} if name == "table" else {}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        list(importing.find(name, tmp_path / "empty", options))
    with pytest.raises(UserError, match="no file or folder at"):
        list(importing.find(name, tmp_path / "missing", options))


def test_recola_without_ratings_is_told(tmp_path):
    corpora.recola(tmp_path)
    (tmp_path / "RECOLA-Annotation").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no ratings of RECOLA: looked for"):
        list(importing.find("recola", tmp_path, {}))


def recola_file(root, dimension=None):
    if dimension is None:
        return root / "RECOLA-Video-features/P16.arff"
    return root / f"RECOLA-Annotation/emotional_behaviour/{dimension}/P16.csv"


def replaced(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def cut_off(path):
    """Lose the second half of the last line."""
    lines = path.read_text().splitlines()
    separator = max(",;", key=lines[-1].count)
    cells = lines[-1].split(separator)
    path.write_text("\n".join([*lines[:-1], separator.join(cells[:5])]))


def in_milliseconds(path):
    rows = (line.split(";", 1) for line in path.read_text().splitlines()[1:])
    path.write_text("time;a\n" + "".join(f"{float(t) * 1000};.1\n" for t, _ in rows))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: replaced(recola_file(r), "@data", ""), r"P16\.arff has no line @data"),
        (lambda r: recola_file(r).write_text(""), r"P16\.arff has no line @data"),
        (lambda r: recola_file(r).write_text("@data\n"), r"P16\.arff has no rows"),
        (lambda r: recola_file(r).write_bytes(b"\xff\xfe\x00"), r"cannot read .*P16\.arff"),
        (lambda r: replaced(recola_file(r), "LLD_AU", "LLD_X"), "no feature that matches"),
        (
            lambda r: replaced(recola_file(r), ",0.12,0.9", ",0.12,high"),
            "probability' holds 'high'",
        ),
        (lambda r: replaced(recola_file(r), ",0.12,0.9", ",?,0.9"), "no time in 1 rows"),
        (lambda r: replaced(recola_file(r), "frameTime", "when"), "no numeric attribute called"),
        (lambda r: replaced(recola_file(r), "0.9,0", "0.0,0"), "no frame with a face"),
        (lambda r: recola_file(r, "valence").write_text(""), r"valence/P16\.csv is empty"),
        (lambda r: recola_file(r, "valence").write_text("time;FM1\n"), "has no rows"),
        (lambda r: recola_file(r, "valence").write_text("t;FM1\n0;1\n"), "no column 'time'"),
        (lambda r: recola_file(r, "valence").write_text("time;a;a \n0;1;2\n"), "two columns"),
        (lambda r: recola_file(r, "valence").write_text("time;a\n0;good\n"), "'a' holds 'good'"),
        (lambda r: recola_file(r, "valence").write_text("time;a\n90;1\n91;1\n"), "not fit the"),
        (lambda r: in_milliseconds(recola_file(r, "valence")), "clock, in seconds"),
        (lambda r: cut_off(recola_file(r)), r"line 34 has 5 cells, the header 8: it was cut"),
        (lambda r: cut_off(recola_file(r, "valence")), "line 22 has 5 cells, the header 7"),
    ],
)
def test_what_is_broken_is_told_in_one_line_that_names_the_file(tmp_path, damage, message):
    root = corpora.recola(tmp_path, ["P16"])
    damage(root)
    (item,) = importing.find("recola", root, {})
    with pytest.raises(UserError, match=message) as error:
        item.load()
    assert "P16." in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("frame,timestamp,success\n1,0,1\n", "no AU columns"),
        ("frame,AU01_r\n1,0\n", "no column timestamp or frameTime"),
        ("timestamp,success,AU01_r\n0,1,low\n", "column 'AU01_r' holds 'low', not a number"),
        ("timestamp,success,AU01_r\n0,0,1\n.1,0,1\n", "no frame with a face"),
        ("timestamp,success,AU01_r\n,1,1\n.1,1,1\n", "no time in 1 rows"),
    ],
)
def test_broken_openface_files_are_told(tmp_path, text, message):
    (item,) = importing.find("openface-csv", corpora.write(tmp_path / "x.csv", text), {})
    with pytest.raises(UserError, match=message) as error:
        item.load()
    assert "x.csv" in str(error.value)


def test_arff_copes_with_comments_quotes_case_and_missing_values(tmp_path):
    text = (
        "% made by hand\n@RELATION x\n\n@ATTRIBUTE 'a name' STRING\n@attribute\tframeTime REAL\n"
        '@attribute "b c" numeric\n% more\n  @DATA  \n\n% rows\n\'x, y\', 0, ?\n"z",0.5,-1e-3\n'
    )
    frame = arff.read(corpora.write(tmp_path / "x.arff", text))
    assert list(frame.columns) == ["a name", "frameTime", "b c"]
    assert frame["a name"].tolist() == ["x, y", '"z"']
    np.testing.assert_array_equal(frame["b c"], [np.nan, -0.001])
    assert arff.numeric_names(frame) == ["frameTime", "b c"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,1\nb,2,3\n", "line 5 has 3 cells, the header 2"),
        ("a,1\n% x\n\nb\n", "line 7 has 1 cells, the header 2"),
        ("a,1,2\nb,3,4\n", "line 4 has 3 cells"),
        ("a\n", "line 4 has 1 cells"),
        ("'a,1'\n", "line 4 has 1 cells"),
    ],
)
def test_arff_rows_of_another_length_than_the_header_are_refused(tmp_path, rows, message):
    text = f"@attribute name string\n@attribute time numeric\n@data\n{rows}"
    with pytest.raises(UserError, match=message):
        arff.read(corpora.write(tmp_path / "x.arff", text))


def test_a_gold_standard_file_with_several_values_is_refused(tmp_path):
    root = corpora.avec2016(tmp_path)
    path = root / "ratings_gold_standard/arousal/train_1.arff"
    corpora.video_arff(path, 21)
    (item,) = (i for i in importing.find("avec", root, {}) if i.subject == "train_1")
    with pytest.raises(UserError, match="one numeric attribute beside the time"):
        item.load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("who,t,a\nx,0,1\ny,0,1,2\n", r"line 3 has 4 cells, the header 3: write decimals with a p"),
        ("who,t,a\nx,0,04,1,5\n", r"line 2 has 5 cells, the header 3: .* part cells with ';'"),
        ("who,t\nx,0,1\ny,0,1\n", r"line 2 has 3 cells, the header 2: .* name every column"),
        ("who,t,a\nx,0,1\n\ny,0", r"line 4 has 2 cells, the header 3: it was cut off"),
        ("who;t;a\r\nx;0;1\r\ny;0\r\n", "line 3 has 2 cells"),
        ("who,t,a\rx,0,1\ry,0\r", "line 3 has 2 cells"),
        ('who,t,a\nx,0,1\n"y,0",1\n', "line 3 has 2 cells"),
        ('who,t,a\n"x\n,",0,1\n"y",0\n', "line 4 has 2 cells"),
        ("\n ,\nwho,t,a\nx,0,1\ny,0\n", "line 5 has 2 cells"),
        ("who,t,a\n" + "x,0,1\n" * 400_000 + "y,0\n", "line 400002 has 2 cells"),
        ('who,t,a\nx,0,1\n"' + "y" * 200_000, "field larger than field limit"),
    ],
)
def test_a_row_of_other_cells_than_the_header_is_told_with_its_line(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    with pytest.raises(UserError, match=message):
        columns.read_csv(path, text={"who"}.__contains__)


@pytest.mark.parametrize(
    "text",
    [
        "who,t,a\nx,0,1\ny,1,2\n",
        "who,t,a\nx,0,1\ny,1,2",
        "who,t,a\n\nx,0,1\n\ny,1,2\n\n  \n",
        "who,t,a\nx,0,1,\ny,1,2,\n",
        "who,t,a,\nx,0,1\ny,1,2,\n",
        'who,t,a\n"x",0,1\ny, "1",2\n',
        "who,t,a\r\nx,0,1\r\ny,1,2\r\n",
        "who,t,a\rx,0,1\ry,1,2\r",
        "\ufeff\n , ,\nwho,t,a\nx,0,1\ny,1,2\n",
    ],
)
def test_rows_may_be_quoted_and_end_in_a_separator_and_lines_may_be_blank(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    frame = columns.read_csv(path, text={"who"}.__contains__)
    assert list(frame.columns) == ["who", "t", "a"]
    assert frame.to_numpy().tolist() == [["x", 0, 1], ["y", 1, 2]]


def test_a_quoted_cell_may_hold_separators_and_lines(tmp_path):
    path = corpora.write(tmp_path / "x.csv", 'who,t\n"a,b",0\n"c\nd",1\ne,2\n')
    frame = columns.read_csv(path, text={"who"}.__contains__)
    assert frame["who"].tolist() == ["a,b", "c\nd", "e"]


@given(
    st.lists(st.lists(st.sampled_from(["", "1", "a,b", "c\nd", "é"]), max_size=4), max_size=6),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_row_is_refused_exactly_where_its_cells_are_too_many_or_few(tmp_path, rows, end):
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator=end).writerows([["x", "y", "z"], *rows])
    fits = [len(row) == 3 or row[3:] == [""] for row in rows if row not in ([], [""])]
    try:
        columns.refuse_ragged(path, ["x", "y", "z"], skip=1)
        refused = False
    except UserError:
        refused = True
    assert refused == (not all(fits))


def test_na_is_a_missing_number_and_somebodys_name(tmp_path):
    text = "who,t,a\nNA,NA,-nan(ind)\nNone,,null\n,NaN,1\n"
    path = corpora.write(tmp_path / "x.csv", text)
    frame = columns.read_csv(path, text={"who"}.__contains__)
    assert frame["who"].tolist()[:2] == ["NA", "None"]
    assert frame.isna().to_numpy().tolist() == [[False, True, True]] * 2 + [[True, True, False]]


def test_folders_are_no_files_and_suffixes_may_be_in_capitals(tmp_path):
    (tmp_path / "P1.csv").mkdir()
    for name in ("P1.csv/a.csv", "P2.CSV", "P3.txt"):
        corpora.write(tmp_path / name, "")
    found = columns.files_in(tmp_path, ".csv", pattern="**/*")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["P1.csv/a.csv", "P2.CSV"]
