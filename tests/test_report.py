"""Figures of small hand-written run folders."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image

from affect.errors import UserError
from affect.report import figures
from affect.report.compare import compare
from affect.report.comparison_figures import draw_comparison
from tests.run_folders import FRAMES, changed, lin, predictions, with_gaps, write_run

ALWAYS = ["traces", "scatter", "learning_curves"]


def single(items):
    """The predictions of valence alone."""
    columns = [(item.prediction[:, :1], item.reference[:, :1]) for item in items]
    return [
        dataclasses.replace(item, dimensions=("valence",), prediction=x, reference=y)
        for item, (x, y) in zip(items, columns, strict=True)
    ]


def filled(items, prediction, reference):
    """The predictions with constant traces."""
    constants = {"prediction": prediction, "reference": reference}
    return [
        dataclasses.replace(
            item, **{name: np.full_like(item.reference, value) for name, value in constants.items()}
        )
        for item in items
    ]


LONG = single(predictions(frames=(1500, 1400), two=(0,)))
SHORT = predictions(frames=(12, 11, 12), step_s=30.0, folds=3)
DRAWN = {
    "density": ([*LONG, *single(predictions(split="val", frames=(90,)))], {}),
    "one epoch": (single(SHORT), {"epochs": 1}),
    "folds": (
        [*SHORT[:1], *predictions(frames=(12, 12, 12), folds=3, split="val")],
        {"folds": 3, "units": ("AU01_r", "AU12_r")},
    ),
    "gaps": ([*with_gaps(SHORT), *with_gaps(predictions(split="val"))], {}),
    "no label": (filled(single(SHORT), 0.5, np.nan), {}),
    "diverged": (filled(single(SHORT), np.nan, 0.5), {}),
    "constant": (filled(LONG, 1.0, 1.0), {}),
    "odd names": (changed(single(SHORT), 0, subject="a$_{$" * 12), {"name": "$a$ b_1"}),
}


@pytest.mark.parametrize("case", DRAWN)
def test_every_kind_of_run_is_drawn(tmp_path, case):
    items, options = DRAWN[case]
    run = write_run(tmp_path, items, **options)
    paths = figures.draw(run.folder)
    names = [*ALWAYS, *(["importance"] if "units" in options else [])]
    assert paths == [run.folder / "figures" / f"{name}.png" for name in names]
    for path in paths:
        assert_drawn(path)


def assert_drawn(path):
    """The file is a PNG of a figure's size that is neither blank nor transparent."""
    pixels = image.imread(path, format="png")[..., :3]
    height, width = pixels.shape[:2]
    assert min(height, width) > 150
    assert (pixels < 0.5).any()
    assert 0.5 < pixels.mean() < 0.999


def test_drawing_leaves_no_style_behind(tmp_path):
    before = dict(mpl.rcParams)
    figures.draw(write_run(tmp_path, single(predictions(frames=(12,)))).folder)
    assert dict(mpl.rcParams) == before


def test_drawing_needs_metrics(tmp_path):
    run = write_run(tmp_path, predictions())
    (run.folder / "metrics.csv").unlink()
    with pytest.raises(UserError, match=r"metrics\.csv.*trained no epoch"):
        figures.draw(run.folder)


def test_traces_go_from_the_best_to_the_worst_recording():
    items = with_gaps(predictions())  # noise grows with the subject; P1 has no label, P0 one trace
    figure = figures._traces(items, {0: torch.tensor([0.5, 0.5], dtype=torch.float64)})
    titles = [axes.get_title() for axes in figure.axes]
    expected = []
    for item, rank in ((items[0], "best"), (items[2], "rank 2"), (items[3], "rank 3")):
        for d in range(2):
            known = np.isfinite(item.reference[:, d])
            x, y = item.prediction[known, d], item.reference[known, d]
            score = f"CCC {lin(x, y):.2f}" if known.any() else "no CCC"
            expected.append(f"{item.subject}/1, {rank} of 4, {score}")
    assert titles[:6] == expected
    assert titles[6].startswith("P4/1, worst of 4")


def test_the_band_is_the_error_on_validation_of_the_same_fold():
    items = [*predictions(folds=2), *predictions(0.7, seed=8, folds=2, split="val")]
    bands = figures._validation_rmse(items)
    for fold in (0, 1):
        chosen = [item for item in items if item.split == "val" and item.fold == fold]
        errors = np.concatenate([x.prediction - x.reference for x in chosen]).astype(np.float64)
        rmse = np.sqrt((errors**2).mean(axis=0))
        np.testing.assert_allclose(bands[fold].numpy(), rmse, rtol=1e-6)


@pytest.mark.parametrize(("keep", "kept"), [("best", [1, 0]), ("last", [2, 1])])
def test_the_epoch_whose_weights_were_kept_is_marked(keep, kept):
    table = pd.DataFrame(
        {
            "fold": [0, 0, 0, 1, 1],
            "epoch": [0, 1, 2, 0, 1],
            "train/loss/mean": [0.9, 0.8, 0.7, 0.9, 0.8],
            "val/loss/mean": [0.9, 0.6, 0.7, 0.5, 0.8],
            "train/ccc/mean": [0.1, 0.2, 0.3, 0.1, 0.2],
            "val/ccc/mean": [0.1, 0.4, 0.3, 0.5, 0.2],
        }
    )
    figure = figures._learning_curves(table, keep)
    for axes, column in zip(figure.axes, ("val/loss/mean", "val/ccc/mean"), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        marked = lines[f"weights kept ({keep})"]
        assert list(marked.get_xdata()) == kept
        rows = [table[(table.fold == f) & (table.epoch == e)] for f, e in enumerate(kept)]
        assert list(marked.get_ydata()) == [row[column].item() for row in rows]
        mean = lines["validation, mean of 2 folds"]
        assert list(mean.get_xdata()) == [0, 1]  # the second fold stopped there
        assert mean.get_ydata()[1] == pytest.approx((table[column][1] + table[column][4]) / 2)


def test_importance_is_sorted_with_its_spread_over_folds():
    folds = [[0.1, 0.5], [0.3, -0.1], [0.2, 0.1]], [[0.1, 0.5], [0.5, -0.3], [0.4, 0.1]]
    names = pd.Index(["AU01_r", "AU04_r", "AU12_r"], name="action_unit")
    tables = [pd.DataFrame(rows, index=names, columns=["valence", "arousal"]) for rows in folds]
    figure = figures._importance(pd.concat(tables))
    valence, arousal = figure.axes
    assert [text.get_text() for text in valence.get_yticklabels()] == [
        "AU01_r",
        "AU12_r",
        "AU04_r",
    ]
    widths = [bar.get_width() for bar in valence.patches]
    assert widths == pytest.approx([0.1, 0.3, 0.4])
    whiskers = valence.collections[0].get_segments()
    spread = [(segment[1, 0] - segment[0, 0]) / 2 for segment in whiskers]
    assert spread == pytest.approx([0.0, np.std([0.2, 0.4], ddof=1), np.std([0.3, 0.5], ddof=1)])
    assert arousal.get_yticklabels()[0].get_text() == "AU04_r"


@pytest.mark.parametrize("frames", [FRAMES, (40,)])
def test_a_comparison_is_drawn_whatever_its_intervals(tmp_path, frames):
    pair = [
        write_run(tmp_path / "a", predictions(frames=frames), name="$a$"),
        write_run(tmp_path / "b", predictions(frames=frames, seed=2)),
    ]
    path = tmp_path / "new" / "forest.png"
    assert draw_comparison(compare(pair, resamples=20), path) == path
    assert_drawn(path)
