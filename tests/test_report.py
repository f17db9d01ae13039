"""Comparisons against a plain NumPy bootstrap, and figures of small hand-written run folders."""

import dataclasses
import io
import itertools
import json

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image
from rich.console import Console

from affect import metrics, store
from affect.config import Experiment
from affect.data.splits import Fold
from affect.errors import UserError
from affect.prediction import Prediction
from affect.report import figures
from affect.report.compare import Interval, compare, multiplicities, resampled, subject_moments
from affect.training import run as runs

FRAMES = (40, 25, 60, 33, 51)


def predictions(noise=0.3, frames=FRAMES, *, seed=1, split="test", folds=1, step_s=0.2, two=()):
    """A subject for each number of frames; those in `two` have a second recording."""
    rng = np.random.default_rng(0)  # of the references, the same in every run
    errors = np.random.default_rng(seed)
    items = []
    for index, count in enumerate(frames):
        for name in ("1", "2")[: 2 if index in two else 1]:
            steps = rng.normal(size=(count, 2))
            reference = (np.cumsum(steps, axis=0) / np.sqrt(count)).astype(np.float32)
            error = noise * (1 + index) * errors.normal(size=reference.shape)
            items.append(
                Prediction(
                    corpus="toy",
                    subject=f"P{index}",
                    name=name,
                    split=split,
                    fold=index % folds,
                    time_s=np.arange(count) * step_s,
                    dimensions=("valence", "arousal"),
                    prediction=(0.8 * reference + error).astype(np.float32),
                    reference=reference,
                )
            )
    return items


def changed(items, index, **changes):
    """The predictions with other fields in one of them."""
    return [dataclasses.replace(x, **changes) if i == index else x for i, x in enumerate(items)]


def write_run(folder, items, *, folds=1, epochs=6, units=(), status="done", **settings):
    """A finished run's folder, as training leaves it."""
    experiment = Experiment(runs=str(folder), **settings)
    run = runs.create(experiment, "fit", [Fold(i, ("a",), ("b",), ("c",)) for i in range(folds)])
    run.update({"status": status, "wall_time_s": 12.5, "peak_memory_mib": 800.0})
    store.write_predictions(run.folder / "predictions.h5", items)
    rng = np.random.default_rng(3)
    columns = [f"{p}/{s}/mean" for p, s in itertools.product(("train", "val"), ("loss", "ccc"))]
    lines = [",".join(["step", "fold", "epoch", *columns])]
    for step, (fold, epoch) in enumerate(itertools.product(range(folds), range(epochs))):
        ccc = 1 - np.exp(-(epoch + 1) / 4) + 0.03 * rng.normal(size=2)
        values = (1 - ccc[0], ccc[0], 1.1 - ccc[1], ccc[1] - 0.1)
        lines.append(",".join(map(str, (step, fold, epoch, *values))))
    (run.folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    for fold in range(folds if units else 0):
        drops = [
            f"{unit},{0.01 * i + rng.normal() / 50},{rng.normal()}" for i, unit in enumerate(units)
        ]
        path = run.fold_folder(fold) / "importance.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["action_unit,valence,arousal", *drops]) + "\n")
    return run


def lin(x, y):
    """Lin's formula in NumPy float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    return 2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def looped(items, counts):
    """Each resample's CCC per dimension and their mean, from concatenated frames."""
    subjects = sorted({item.subject for item in items})
    rows = []
    for row in counts.numpy().astype(int):
        drawn = [
            item
            for subject, times in zip(subjects, row, strict=True)
            for item in [x for x in items if x.subject == subject] * times
        ]
        x = np.concatenate([item.prediction for item in drawn])
        y = np.concatenate([item.reference for item in drawn])
        known = np.isfinite(y)
        cccs = [lin(x[known[:, d], d], y[known[:, d], d]) for d in range(2)]
        rows.append([*cccs, np.mean(cccs)])
    return np.array(rows)


def with_gaps(items):
    """The same predictions with labels missing: scattered, a whole trace, and a whole recording."""
    rng = np.random.default_rng(5)
    references = [item.reference.copy() for item in items]
    for reference in references:
        reference[rng.random(reference.shape) < 0.2] = np.nan
    references[0][:, 1] = np.nan
    references[1][:] = np.nan
    return [dataclasses.replace(x, reference=r) for x, r in zip(items, references, strict=True)]


# --- compare ---------------------------------------------------------------------------------


def test_resampled_moments_score_as_the_concatenated_frames():
    items = with_gaps(predictions(two=(2,)))
    counts = multiplicities(len(FRAMES), 50, seed=4)
    scored = metrics.ccc(resampled(subject_moments(items), counts)).numpy()
    np.testing.assert_allclose(scored, looped(items, counts)[:, :2], rtol=1e-9, atol=1e-12)


def test_multiplicities_are_those_of_draws_with_replacement():
    counts = multiplicities(6, 4000, seed=0)
    assert (counts.sum(dim=1) == 6).all()
    # a subject's count is binomial(6, 1/6)
    assert counts.mean(dim=0).numpy() == pytest.approx(np.ones(6), abs=0.06)
    assert counts.var(dim=0).numpy() == pytest.approx(np.full(6, 5 / 6), rel=0.1)
    assert torch.equal(counts, multiplicities(6, 4000, seed=0))


def test_intervals_are_percentiles_of_a_plain_bootstrap(tmp_path):
    first, second = predictions(two=(1,)), predictions(0.2, seed=2, two=(1,))
    comparison = compare(
        [write_run(tmp_path / "a", first), write_run(tmp_path / "b", second[::-1])],
        resamples=200,
        seed=3,
    )
    counts = multiplicities(len(FRAMES), 200, seed=3)
    drawn = [looped(items, counts) for items in (first, second)]
    expected = [drawn[0], drawn[1], drawn[1] - drawn[0]]
    runs_ = comparison.runs
    for intervals, sample in zip(
        (runs_[0].ccc, runs_[1].ccc, runs_[1].difference), expected, strict=True
    ):
        bounds = np.quantile(sample, [0.025, 0.975], axis=0).T
        for interval, bound in zip(intervals.values(), bounds, strict=True):
            assert (interval.low, interval.high) == pytest.approx(tuple(bound), abs=1e-9)
    assert list(runs_[1].ccc) == ["valence", "arousal", "mean"]
    assert runs_[0].difference == {}
    assert (comparison.subjects, comparison.recordings) == (5, 6)


def test_scores_are_those_of_all_test_frames_and_of_no_others(tmp_path):
    tested = predictions()
    run = write_run(tmp_path, [*predictions(9.0, split="val"), *tested])
    standing = compare([run], resamples=20).runs[0]
    x = np.concatenate([item.prediction for item in tested]).astype(np.float64)
    y = np.concatenate([item.reference for item in tested]).astype(np.float64)
    each = [lin(item.prediction[:, 0], item.reference[:, 0]) for item in tested]
    expected = {
        "test/ccc/valence": lin(x[:, 0], y[:, 0]),
        "test/ccc/mean": np.mean([lin(x[:, d], y[:, d]) for d in range(2)]),
        "test/rmse/arousal": np.sqrt(np.mean((x[:, 1] - y[:, 1]) ** 2)),
        "test/pearson/valence": np.corrcoef(x[:, 0], y[:, 0])[0, 1],
        "test/ccc_per_recording/valence": np.mean(each),
    }
    assert {key: standing.metrics[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert standing.ccc["valence"].value == standing.metrics["test/ccc/valence"]
    cost = (standing.model, standing.kind, standing.wall_time_s, standing.peak_memory_mib)
    assert cost == ("bilstm", "fit", 12.5, 800.0)


def test_runs_that_predict_the_same_differ_by_exactly_nothing(tmp_path):
    items = with_gaps(predictions())
    shuffled = [items[index] for index in (3, 1, 4, 0, 2)]
    pair = [write_run(tmp_path / "a", items), write_run(tmp_path / "b", shuffled, folds=2)]
    standing = compare(pair, resamples=100).runs[1]
    assert set(standing.difference.values()) == {Interval(0.0, 0.0, 0.0)}


def test_a_better_run_has_a_difference_above_zero(tmp_path):
    pair = [
        write_run(tmp_path / "a", predictions(1.0)),
        write_run(tmp_path / "b", predictions(0.05)),
    ]
    interval = compare(pair, resamples=100).runs[1].difference["mean"]
    assert 0 < interval.low < interval.value < interval.high


def test_one_subject_has_no_interval_and_json_no_nan(tmp_path):
    comparison = compare([write_run(tmp_path, predictions(frames=(40,)))], resamples=10)
    assert np.isnan(comparison.runs[0].ccc["mean"].low)
    values = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert values["runs"][0]["ccc"]["mean"]["low"] is None
    assert values["runs"][0]["ccc"]["mean"]["value"] == comparison.runs[0].ccc["mean"].value
    assert values["dimensions"] == ["valence", "arousal"]


def test_table_has_a_row_a_run_and_fits_a_terminal(tmp_path):
    pair = [
        write_run(tmp_path / "a", predictions(), name="first"),
        write_run(tmp_path / "b", predictions(seed=2), name="[b]second"),
    ]
    comparison = compare(pair, resamples=50)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(comparison.to_table())
    text = console.export_text()
    better = comparison.runs[1].difference["mean"].value
    assert comparison.to_table().row_count == 2
    assert "[b]second" in text
    for shown in (f"{comparison.runs[0].ccc['mean'].low:.3f}…", f"{better:+.3f}", "5 subjects"):
        assert shown in text
    assert all(run.id in text for run in comparison.runs)


def relabelled(items):
    """The predictions with one label of the last recording moved."""
    reference = items[-1].reference.copy()
    reference[3, 0] += 0.01
    return changed(items, len(items) - 1, reference=reference)


REFUSED = {
    "subjects": (predictions(frames=FRAMES[:4]), "test subjects differ: it lacks toy/P4$"),
    "corpora": (
        [dataclasses.replace(item, corpus="other") for item in predictions()],
        "it alone has other/P0, other/P1, other/P2 and 2 more; it lacks toy/P0",
    ),
    "recordings": (predictions(two=(1,)), "test recordings differ: it alone has toy/P1/2$"),
    "references": (relabelled(predictions()), r"references of toy/P4/1 differ \(51 points and 51"),
    "lengths": (predictions(frames=(12, *FRAMES[1:])), r"toy/P0/1 differ \(12 points and 40"),
    "dimensions": (
        [dataclasses.replace(item, dimensions=("valence", "power")) for item in predictions()],
        "predicts valence, power, not valence, arousal$",
    ),
    "no test": (predictions(split="val"), "no test predictions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_runs_that_were_tested_otherwise_are_refused(tmp_path, case):
    items, message = REFUSED[case]
    first = write_run(tmp_path / "a", predictions())
    other = write_run(tmp_path / "b", items)
    with pytest.raises(UserError, match=message) as caught:
        compare([first, first, other], resamples=10)
    assert str(other.folder) in str(caught.value)


def test_missing_labels_are_no_difference_but_a_new_gap_is(tmp_path):
    items = with_gaps(predictions())
    pair = [write_run(tmp_path / "a", items), write_run(tmp_path / "b", items)]
    compare(pair, resamples=10)
    with pytest.raises(UserError, match="references of toy/P0/1"):
        compare([write_run(tmp_path / "c", predictions()), pair[0]], resamples=10)


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_unfinished_runs_are_refused(tmp_path, status):
    run = write_run(tmp_path, predictions(), status=status)
    with pytest.raises(UserError, match=rf"{run.folder} is not finished \({status}\)"):
        compare([run])


def test_no_run_and_no_resample_are_refused(tmp_path):
    with pytest.raises(UserError, match="no runs to compare"):
        compare([])
    with pytest.raises(UserError, match="0 resamples"):
        compare([write_run(tmp_path, predictions())], resamples=0)


# --- figures ---------------------------------------------------------------------------------

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
    assert figures.draw_comparison(compare(pair, resamples=20), path) == path
    assert_drawn(path)
