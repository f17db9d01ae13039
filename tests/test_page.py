"""The page of a comparison: whole, self-contained, true to its numbers, and drawn by a browser."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from matplotlib.colors import to_hex

from affect.config import FederationConfig, PrivacyConfig
from affect.errors import UserError
from affect.report import comparison_figures, page, protocol
from affect.report.compare import SCORES, compare
from affect.report.comparison_figures import COLOURS
from affect.report.drawing import INK, house_style
from affect.report.question import answers
from tests.run_folders import FRAMES, lin, predictions, with_gaps, write_run

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Reads a page and refuses tags that do not match; keeps attributes, text and table rows."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.texts, self.rows = [], [], [], []
        self.tags = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice"
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += ("|" if self.open[-1] == "small" else "") + data.strip()

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A centralised run, a federated one, and a private one, with their comparison and page."""
    folder = tmp_path_factory.mktemp("three")
    made = [
        write_run(folder, predictions(), name="central"),
        write_run(folder, predictions(0.25, seed=2), name="federated", kind="federate", epochs=9),
        write_run(
            folder,
            predictions(0.6, seed=3),
            name="private",
            kind="federate",
            spent=[3.14159],
            federation=FederationConfig(privacy=PrivacyConfig("central")),
        ),
    ]
    comparison = compare(made, resamples=100)
    path = page.write(comparison, made, folder / "new" / "report.html")
    return made, comparison, path.read_text()


def assert_stands_alone(text):
    """The page is well-formed, and nothing in it asks for anything beyond it."""
    read = Reader(text)
    ids = read.values("id")
    assert len(set(ids)) == len(ids)
    assert not {"script", "link", "img", "iframe", "object", "base"} & read.tags
    links = [value for name in ("href", "src", "srcset", "action") for value in read.values(name)]
    links += re.findall(r"url\((.*?)\)", text)
    assert links, "figures refer to their own parts"
    assert {link.strip("\"'") for link in links} <= {f"#{name}" for name in ids}
    assert "@import" not in text
    assert "//" not in text
    assert not re.search(r"\son\w+=", text)
    return read


def test_a_page_stands_alone_and_its_parts_have_names(three):
    _, _, text = three
    read = assert_stands_alone(text)
    assert text.startswith("<!DOCTYPE html>")
    assert ("html", "lang", "en") in read.attributes
    figures = [value for tag, name, value in read.attributes if (tag, name) == ("svg", "role")]
    described = [value for tag, name, value in read.attributes if name == "aria-label"]
    assert figures == ["img"] * (3 + 3 + 2 + 6 + 3)
    assert len([alt for alt in described if len(alt) > 40]) == len(figures)
    assert "default-src 'none'" in text


def test_the_tables_hold_the_comparison(three):
    _, comparison, text = three
    rows = Reader(text).rows
    shown = [row for row in rows if row[0] in comparison.columns]
    expected = [
        [name, *(f"{i.value:z.3f}|{i.low:z.3f}…{i.high:z.3f}" for i in items)]
        for score in SCORES
        for name in comparison.columns
        for items in [[run.scores[f"test/{score}/{name}"] for run in comparison.runs]]
    ]
    assert shown[:12] == expected
    differences = [
        [name, *(f"{i.value:+z.3f}|{i.low:+z.3f}…{i.high:+z.3f}" for i in items)]
        for score in SCORES
        for name in comparison.columns
        for items in [[run.differences[f"test/{score}/{name}"] for run in comparison.runs[1:]]]
    ]
    assert shown[12:] == differences
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["trained"] == ["6 epochs", "9 rounds", "6 rounds"]
    assert by_name["sent by clients"] == ["-", "5 MB", "5 MB"]
    assert by_name["received by clients"] == ["-", "7 MB", "7 MB"]
    assert by_name["privacy spent"] == ["-", "-", "ε 3.14 at δ 0.01"]


def test_bold_differences_are_those_whose_interval_excludes_zero(three):
    _, comparison, text = three
    decided = sum(
        item.low > 0 or item.high < 0
        for run in comparison.runs[1:]
        for item in run.differences.values()
    )
    assert 0 < decided < 24
    assert Reader(text).values("class").count("decided") == decided


def test_the_page_tells_where_its_numbers_come_from(three):
    made, comparison, text = three
    rows = {row[0]: row[1:] for row in Reader(text).rows}
    assert rows["run"] == [f"{run.record['experiment']}/{run.record['id']}" for run in made]
    assert rows["seed"] == ["0", "0", "0"]
    commit = made[0].record["git_commit"][:12]
    assert all(cell.startswith(commit) for cell in rows["commit"])
    assert rows["machine"] == [made[0].record["machine"]] * 3
    told = " ".join(" ".join(Reader(text).texts).split())
    for shown in (
        "5 recordings of 5 subjects",
        "by subject: 1 train, 1 validate, 1 test",
        "100 resamples, seed 0",
        "with 5 subjects percentile intervals are too narrow",
        f"affect compare {made[0].folder}",
        "data.gold_standard avec",
    ):
        assert shown in told
    assert all(sentence in told for sentence in answers(comparison))
    assert text.count('class="answer"') == 2


def test_the_same_comparison_is_the_same_page(three, tmp_path):
    made, comparison, text = three
    again = page.write(comparison, made, tmp_path / "report.html").read_text()
    path = re.compile(r"--out \S+report\.html")
    assert path.sub("", again) == path.sub("", text)


ODD = '<b>&"{{x}}'
KINDS = {
    "one run": [{"name": "alone"}],
    "folds": [{"name": "a", "folds": 2}, {"name": "b", "folds": 2, "kind": "federate"}],
    "many": [{"name": f"run {index}"} for index in range(8)],
    "odd names": [{"name": ODD}, {"name": "$x_1$", "kind": "federate"}],
}


@pytest.mark.parametrize("case", KINDS)
def test_every_kind_of_comparison_makes_a_page(tmp_path, case):
    items = with_gaps(predictions(folds=KINDS[case][0].get("folds", 1)))
    items[0] = type(items[0])(**{**vars(items[0]), "subject": "P<0>&"})
    made = [write_run(tmp_path, items, **settings) for settings in KINDS[case]]
    text = page.write(compare(made, resamples=10), made, tmp_path / "r.html").read_text()
    read = assert_stands_alone(text)
    assert made[0].record["experiment"] in "".join(read.texts)
    assert not {"b", "0"} & read.tags
    assert ("Paired differences" in text) == (len(made) > 1)
    assert ("of the 2 folds" in text) == (case == "folds")


def test_a_single_subject_without_labels_in_a_dimension_makes_a_page(tmp_path):
    (item,) = predictions(frames=(40,))
    reference = item.reference.copy()
    reference[:, 1] = np.nan
    made = [write_run(tmp_path, [type(item)(**{**vars(item), "reference": reference})])] * 2
    text = page.write(compare(made, resamples=10), made, tmp_path / "r.html").read_text()
    assert_stands_alone(text)
    assert "nan" not in "".join(Reader(text).texts).lower()


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path):
    made = [write_run(tmp_path, predictions())]
    comparison = compare(made, resamples=10)
    path = tmp_path / "out" / "report.html"
    path.parent.mkdir()
    path.write_text("old")
    (made[0].folder / "metrics.csv").unlink()
    with pytest.raises(UserError, match=r"metrics\.csv"):
        page.write(comparison, made, path)
    assert [item.read_text() for item in path.parent.iterdir()] == ["old"]
    made = [write_run(tmp_path, predictions())]
    with pytest.raises(UserError, match=r"cannot write .*report\.html/report"):
        page.write(compare(made, resamples=10), made, path / "report.html")


# --- figures ---------------------------------------------------------------------------------


def lines_of(panel):
    (axes,) = panel.figure.axes
    return axes, [(to_hex(line.get_color()), line) for line in axes.get_lines()]


def test_learning_curves_are_those_of_the_runs(three):
    made, comparison, _ = three
    with house_style():
        panels = comparison_figures.learning_curves(made, comparison)
    assert len(panels) == 2
    for panel, dimension in zip(panels, comparison.dimensions, strict=True):
        axes, lines = lines_of(panel)
        assert axes.get_xlabel() == "round or epoch"
        for place, run in enumerate(made):
            rows = pd.read_csv(run.folder / "metrics.csv")
            own = [line for colour, line in lines if colour == COLOURS[place]]
            curve, kept = own
            values = rows[f"val/ccc/{dimension}"]
            assert list(curve.get_xdata()) == list(range(1, len(rows) + 1))
            np.testing.assert_allclose(curve.get_ydata(), values)
            assert list(kept.get_xdata()) == [rows["val/ccc/mean"].argmax() + 1]
        assert f"federated {values_at_end(made[1], dimension):.3f} after 9 rounds" in panel.alt


def values_at_end(run, dimension):
    return pd.read_csv(run.folder / "metrics.csv")[f"val/ccc/{dimension}"].iloc[-1]


def test_curves_of_folds_are_their_mean_while_all_train(tmp_path):
    run = write_run(tmp_path, predictions(folds=2), folds=2, epochs=3)
    path = run.folder / "metrics.csv"
    rows = pd.read_csv(path).iloc[:-1]  # the second fold stopped after two epochs
    rows.to_csv(path, index=False)
    comparison = compare([run], resamples=5)
    assert comparison.runs[0].trained == (3, 2)
    with house_style():
        panel = comparison_figures.learning_curves([run], comparison)[0]
    curve = lines_of(panel)[1][0][1]
    column = rows["val/ccc/valence"]
    assert list(curve.get_xdata()) == [1, 2]
    np.testing.assert_allclose(
        curve.get_ydata(), [(column[i] + column[3 + i]) / 2 for i in range(2)]
    )


def test_traces_are_of_the_best_the_middle_and_the_worst_recording(three):
    made, comparison, _ = three
    tests = [protocol.tested(run) for run in made]
    with house_style():
        panels = comparison_figures.traces(tests, comparison)
    cccs = [
        np.mean(
            [
                lin(items[index].prediction[:, d], items[index].reference[:, d])
                for items in tests
                for d in range(2)
            ]
        )
        for index in range(len(FRAMES))
    ]
    order = np.argsort(cccs)[::-1]
    ranks = {0: "best", 2: "rank 3", 4: "worst"}
    places = [(rank, column) for rank in ranks for column in range(2)]
    for panel, (rank, column) in zip(panels, places, strict=True):
        items = [test[order[rank]] for test in tests]
        axes, lines = lines_of(panel)
        title = f"{items[0].subject}/1, {ranks[rank]} of 5: {comparison.dimensions[column]}"
        assert axes.get_title(loc="left") == title
        drawn = dict(lines)
        np.testing.assert_array_equal(drawn[INK].get_ydata(), items[0].reference[:, column])
        for place, item in enumerate(items):
            line = drawn[COLOURS[place]]
            np.testing.assert_array_equal(line.get_ydata(), item.prediction[:, column])
            np.testing.assert_array_equal(line.get_xdata(), item.time_s)
            ccc = lin(item.prediction[:, column], item.reference[:, column])
            assert f"{comparison.labels[place]} CCC {ccc:.2f}" in panel.alt


def test_bars_are_the_costs(three):
    _, comparison, _ = three
    with house_style():
        panels = comparison_figures.costs(comparison)
    widths = [[bar.get_width() for bar in panel.figure.axes[0].patches] for panel in panels]
    assert widths == [[12.5] * 3, [0, 5e6, 5e6], [0, 7e6, 7e6]]
    assert "federated 5 MB" in panels[1].alt


def test_intervals_are_drawn_where_they_lie(three):
    _, comparison, _ = three
    with house_style():
        panels = (
            comparison_figures.intervals(comparison),
            comparison_figures.differences(comparison),
        )
    for group, kind, first in zip(panels, ("scores", "differences"), (0, 1), strict=True):
        for panel, name in zip(group, comparison.columns, strict=True):
            _, lines = lines_of(panel)
            spans = [line for _, line in lines if len(line.get_xdata()) == 2][1:]
            for line, run in zip(spans, comparison.runs[first:], strict=True):
                item = getattr(run, kind)[f"test/ccc/{name}"]
                assert list(line.get_xdata()) == [item.low, item.high]
            assert to_hex(spans[0].get_color()) == COLOURS[first]


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture
def chromium(tmp_path):
    """Runs Chromium, without a network, on a file; returns what it says on both outputs."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--enable-logging=stderr", "--proxy-server=http://127.0.0.1:9"),
        f"--user-data-dir={tmp_path / 'profile'}",
    ]

    def run(path, *options):
        command = [program, *flags, *map(str, options), f"file://{path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return run


def saved(text, folder):
    path = folder / "report.html"
    path.write_text(text)
    return path


@pytest.mark.browser
def test_a_browser_draws_the_page_and_complains_of_nothing(three, chromium, tmp_path):
    path = saved(three[2], tmp_path)
    shot = tmp_path / "shot.png"
    _, complaints = chromium(path, f"--screenshot={shot}", "--window-size=1000,4000")
    assert complaints == []
    pixels = image.imread(shot)[..., :3]
    assert pixels.shape[:2] == (4000, 1000)
    inked = (pixels.mean(axis=2) < 0.5).mean(axis=1)
    assert (inked > 0).mean() > 0.4
    for colour in COLOURS[:3]:
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=2) < 0.02).sum() > 500, colour


@pytest.mark.browser
def test_the_browser_would_complain(three, chromium, tmp_path):
    broken = three[2].replace("</main>", '<img src="http://127.0.0.1:9/x.png" alt=""></main>')
    _, complaints = chromium(saved(broken, tmp_path), f"--screenshot={tmp_path / 'shot.png'}")
    assert "Content Security Policy" in "".join(complaints)


@pytest.mark.browser
@pytest.mark.parametrize("width", [340, 1200])
def test_the_page_is_no_wider_than_its_screen(three, chromium, tmp_path, width):
    frame = (
        f'<iframe style="width: {width}px; border: 0" srcdoc="{html.escape(three[2])}" onload="'
        "const page = this.contentDocument.documentElement;"
        "document.title = `${page.scrollWidth} of ${page.clientWidth}`"
        '"></iframe>'
    )
    out, complaints = chromium(
        saved(f"<!DOCTYPE html><title></title>{frame}", tmp_path), "--dump-dom"
    )
    assert complaints == []
    assert f"<title>{width} of {width}</title>" in out


@pytest.mark.browser
def test_the_page_can_be_printed(three, chromium, tmp_path):
    printed = tmp_path / "report.pdf"
    chromium(saved(three[2], tmp_path), f"--print-to-pdf={printed}")
    assert printed.read_bytes().startswith(b"%PDF")
