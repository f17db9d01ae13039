"""A run's figures, drawn from its folder alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from affect import metrics, store
from affect.prediction import Prediction
from affect.report.drawing import (
    BLUE,
    GREY,
    INK,
    LONG_S,
    VERMILION,
    house_style,
    legend_below,
    marker,
    save,
    scored,
    shortened,
)
from affect.report.training_history import history, kept, unit
from affect.training.run import Run, open_run
from affect.training.scores import moments_of

_RECORDINGS_SHOWN = 4
_MANY_POINTS = 2000
"""From here on a scatter plot shows density."""
_TITLE_LENGTH = 26


def draw(folder: Path) -> list[Path]:
    """The figures of a run, drawn into `<folder>/figures/` as PNG.

    `traces` and `scatter` where the run read the test, `learning_curves`, and `importance` where
    the run measured it.

    Args:
        folder: the run's.

    Returns:
        Their paths, in that order.

    Raises:
        UserError: the folder lacks the run, its predictions or metrics, or cannot be written.
    """
    run = open_run(folder)
    predictions = store.read_predictions(folder / "predictions.h5")
    tested = [item for item in predictions if item.split == "test"]
    importance = _importance_table(run)
    with house_style():
        figures: dict[str, Figure] = {}
        if tested:
            figures["traces"] = _traces(tested, _validation_rmse(predictions))
            figures["scatter"] = _scatter(tested)
        figures["learning_curves"] = _learning_curves(history(run), run.experiment.trainer.keep)
        if importance is not None:
            figures["importance"] = _importance(importance)
        return [save(item, folder / "figures" / f"{name}.png") for name, item in figures.items()]


# --- prediction against reference ------------------------------------------------------------


def _traces(tested: Sequence[Prediction], rmse: Mapping[int, Float64[Tensor, " D"]]) -> Figure:
    """Recordings from the best to the worst over time, with the error that validation expects."""
    ranked = _ranked(tested)
    places = np.linspace(0, len(ranked) - 1, min(_RECORDINGS_SHOWN, len(ranked)))
    chosen = [round(place) for place in places]
    dimensions = tested[0].dimensions
    size = (max(3.6 * len(dimensions), 5.0), 0.7 + 1.5 * len(chosen))
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(len(chosen), len(dimensions), squeeze=False, sharey="col")
    is_long = max(float(ranked[place].time_s[-1]) for place in chosen) > LONG_S
    for row, place in zip(grid, chosen, strict=True):
        item = ranked[place]
        cccs = metrics.ccc(moments_of(item)).tolist()
        for column, (axes, ccc) in enumerate(zip(row, cccs, strict=True)):
            band = float(rmse[item.fold][column]) if item.fold in rmse else np.nan
            _trace(axes, item, column, band, 60.0 if is_long else 1.0)
            title = f"{_place(item, place, len(ranked))}, {scored('CCC', ccc)}"
            axes.set_title(title, parse_math=False)  # a `$` in a subject's name is a `$`
            axes.set_ylabel(dimensions[column])
    for axes in grid[-1]:
        axes.set_xlabel("time (min)" if is_long else "time (s)")
    legend_below(figure)
    figure.suptitle("test recordings, ranked by their CCC averaged over dimensions", fontsize=8)
    return figure


def _trace(axes: Axes, item: Prediction, column: int, band: float, seconds: float) -> None:
    """One dimension of one recording; `seconds` is the unit of the time axis."""
    time = item.time_s / seconds
    predicted, reference = item.prediction[:, column], item.reference[:, column]
    points = marker(len(time))
    if not np.isnan(band):
        ends = (predicted - band, predicted + band)
        label = "prediction ± RMSE on validation"
        axes.fill_between(time, *ends, color=BLUE, alpha=0.2, linewidth=0, label=label)
    axes.plot(time, predicted, marker=points, color=BLUE, label="prediction")
    axes.plot(time, reference, marker=points, color=INK, label="reference")
    axes.margins(x=0.01)


def _scatter(tested: Sequence[Prediction]) -> Figure:
    """All test points of all recordings, one panel a dimension."""
    dimensions = tested[0].dimensions
    pooled = metrics.merge(torch.stack([moments_of(item) for item in tested]))
    scores = metrics.scores(pooled)
    reference = np.concatenate([item.reference for item in tested])
    predicted = np.concatenate([item.prediction for item in tested])
    figure = Figure((3.5 * len(dimensions), 3.2), layout="constrained")
    row = figure.subplots(1, len(dimensions), squeeze=False)[0]
    for column, (axes, name) in enumerate(zip(row, dimensions, strict=True)):
        known = np.isfinite(reference[:, column] + predicted[:, column])
        _points(axes, reference[known, column], predicted[known, column])
        ccc, r = float(scores["ccc"][column]), float(scores["pearson"][column])
        axes.set_title(f"{name}: {scored('CCC', ccc)}, {scored('r', r)}, n {known.sum():,}")
        axes.set_xlabel("reference")
        axes.set_ylabel("prediction")
    return figure


def _points(
    axes: Axes, reference: Float[np.ndarray, " T"], predicted: Float[np.ndarray, " T"]
) -> None:
    """Points, or their density where they would hide one another, and the line of identity."""
    if not len(reference):
        axes.text(0.5, 0.5, "no pairs", transform=axes.transAxes, ha="center")
        return
    both = np.concatenate([reference, predicted])
    low, high = float(both.min()), float(both.max())
    margin = 0.05 * (high - low) or 0.05
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, color=GREY, linestyle="--", zorder=0.5)
    if len(reference) < _MANY_POINTS:
        axes.plot(reference, predicted, "o", color=BLUE, alpha=0.5, markeredgewidth=0)
    else:
        cells = axes.hexbin(
            reference, predicted, gridsize=45, extent=(*ends, *ends), bins="log", mincnt=1
        )
        axes.figure.colorbar(cells, ax=axes, label="points", shrink=0.8)
    axes.set(xlim=ends, ylim=ends, aspect="equal")


def _ranked(tested: Sequence[Prediction]) -> list[Prediction]:
    """The recordings from the best to the worst CCC; without a reference only if all are."""
    cccs = [float(metrics.ccc(moments_of(item)).nanmean()) for item in tested]
    known = [(ccc, item) for ccc, item in zip(cccs, tested, strict=True) if not np.isnan(ccc)]
    return [item for _, item in sorted(known, key=lambda pair: -pair[0])] or list(tested)


def _validation_rmse(predictions: Sequence[Prediction]) -> dict[int, Float64[Tensor, " D"]]:
    """Each fold's error on its validation recordings, per dimension."""
    parts: dict[int, list[Tensor]] = {}
    for item in predictions:
        if item.split == "val":
            parts.setdefault(item.fold, []).append(moments_of(item))
    return {fold: metrics.rmse(metrics.merge(torch.stack(part))) for fold, part in parts.items()}


def _place(item: Prediction, place: int, count: int) -> str:
    """Which recording it is, and its rank from 0."""
    name = shortened(f"{item.subject}/{item.name}", _TITLE_LENGTH)
    rank = {count - 1: "worst", 0: "best"}.get(place, f"rank {place + 1}")
    return f"{name}, {rank} of {count}"


# --- training --------------------------------------------------------------------------------


def _learning_curves(epochs: pd.DataFrame, keep: str) -> Figure:
    """Loss and CCC of training and validation; thin lines are folds, thick ones their mean.

    Args:
        epochs: a run's `metrics.csv`.
        keep: which epoch's weights the run kept, `best` or `last`.
    """
    time, chosen = unit(epochs), kept(epochs, keep)
    figure = Figure((7.2, 2.8), layout="constrained")
    for axes, score, label in zip(
        figure.subplots(1, 2), ("loss", "ccc"), ("loss", "CCC"), strict=True
    ):
        _curve(axes, epochs, time, f"train/{score}/mean", VERMILION, "training")
        _curve(axes, epochs, time, f"val/{score}/mean", BLUE, "validation")
        axes.plot(
            chosen[time],
            chosen[f"val/{score}/mean"],
            "o",
            markersize=5,
            color=INK,
            fillstyle="none",
            label=f"weights kept ({keep})",
        )
        axes.set(xlabel=time, ylabel=f"{label}, mean over dimensions")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend_below(figure)
    return figure


def _curve(
    axes: Axes, epochs: pd.DataFrame, time: str, column: str, colour: str, label: str
) -> None:
    folds = epochs.pivot_table(index=time, columns="fold", values=column)
    if folds.shape[1] > 1:
        axes.plot(folds.index, folds.to_numpy(), color=colour, linewidth=0.5, alpha=0.35)
        label = f"{label}, mean of {folds.shape[1]} folds"
        folds = folds.dropna().mean(axis=1)  # only while every fold still trains
    points = marker(len(folds))
    axes.plot(folds.index, folds.to_numpy(), marker=points, lw=1.5, color=colour, label=label)


# --- importance -------------------------------------------------------------------------------


def _importance_table(run: Run) -> pd.DataFrame | None:
    """All folds' rows, one an action unit, where the run measured importance."""
    paths = [run.fold_folder(fold) / "importance.csv" for fold in run.record["folds"]]
    tables = [pd.read_csv(path, index_col="action_unit") for path in paths if path.exists()]
    return pd.concat(tables) if tables else None


def _importance(table: pd.DataFrame) -> Figure:
    """Bars of each action unit, the most important on top; whiskers are ±1 std over folds."""
    by_unit = table.groupby(level="action_unit")
    mean, spread = by_unit.agg("mean"), by_unit.agg("std")  # std of one fold is NaN: no whisker
    size = (max(3.4 * table.shape[1], 5.0), 0.8 + 0.16 * len(mean))
    figure = Figure(size, layout="constrained")
    row = figure.subplots(1, table.shape[1], squeeze=False)[0]
    for axes, dimension in zip(row, table.columns, strict=True):
        order = mean.sort_values(dimension).index
        axes.barh(
            order,
            mean.loc[order, dimension],
            xerr=spread.loc[order, dimension],
            color=BLUE,
            error_kw={"ecolor": INK, "elinewidth": 0.8},
        )
        axes.axvline(0.0, color=INK, linewidth=0.6)
        axes.margins(y=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_title(dimension)
    folds = len(table) // len(mean)
    spread_of = f", mean ± std of {folds} folds" if folds > 1 else ""
    label = f"drop of the validation CCC when an action unit is shuffled{spread_of}"
    figure.supxlabel(label, fontsize=8)
    return figure
