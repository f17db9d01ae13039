"""Figures of several runs in common axes: intervals, learning curves, traces and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from affect import metrics
from affect.prediction import Prediction
from affect.report.bootstrap import UNKNOWN, Interval
from affect.report.compare import Comparison
from affect.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LONG_S,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    house_style,
    marker,
    save,
    scored,
    shortened,
)
from affect.report.training_history import history, kept, unit
from affect.report.wording import bounds, duration, number, size
from affect.training.run import Run
from affect.training.scores import moments_of

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("solid", "dashed", "dotted")
"""Of the runs, in their order; a line style for each round of the colours."""
_NARROW, _WIDE = 2.7, 3.8
"""Of a panel, in inches: its letters can be read on a phone, and three or two stand in a row."""
_LABEL_LENGTH = 22
_RECORDINGS_SHOWN = 3


@dataclass(frozen=True)
class Panel:
    """A small figure, and what it shows in words."""

    figure: Figure
    alt: str


def draw_comparison(comparison: Comparison, path: Path) -> Path:
    """A forest plot of the runs' test CCC, one panel a dimension and one for their mean.

    Args:
        comparison: its runs label the rows.
        path: PNG to write.

    Raises:
        UserError: the file cannot be written.
    """
    names, runs = comparison.columns, comparison.runs
    labels = [f"{run.experiment}\n{run.id}" for run in runs]
    with house_style():
        figure = Figure((1.5 + 2.3 * len(names), 0.8 + 0.45 * len(runs)), layout="constrained")
        row = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(row, names, strict=True):
            items = [run.scores[f"test/ccc/{name}"] for run in runs]
            _forest(axes, items, items[0].value)
            _number_rows(axes, items)
            axes.set_title(name)
        _name_rows(row[0], labels)
        figure.supxlabel(
            f"test CCC, 95 % bootstrap interval over {comparison.subjects} subjects", fontsize=8
        )
        return save(figure, path)


# --- scores ----------------------------------------------------------------------------------


def intervals(comparison: Comparison) -> list[Panel]:
    """The test CCC of every run, a panel a dimension and one for their mean."""
    panels = []
    for name in comparison.columns:
        items = [run.scores[f"test/ccc/{name}"] for run in comparison.runs]
        title = f"test CCC, {name}"
        panels.append(_forest_panel(title, comparison.labels, items, items[0].value))
    return panels


def differences(comparison: Comparison) -> list[Panel]:
    """How far the CCC of every other run is above the first one's; none of a single run."""
    others = comparison.runs[1:]
    panels = []
    for name in comparison.columns if others else ():
        items = [run.differences.get(f"test/ccc/{name}", UNKNOWN) for run in others]
        title = f"difference of the test CCC to {comparison.labels[0]}, {name}"
        panels.append(_forest_panel(title, comparison.labels[1:], items, 0.0, first=1))
    return panels


def _forest_panel(
    title: str, labels: Sequence[str], items: Sequence[Interval], zero: float, *, first: int = 0
) -> Panel:
    """Intervals of the runs from the `first` on; what comes last in the title stands above."""
    figure, axes = _panel(_NARROW, 0.62 + 0.26 * len(items))
    _forest(axes, items, zero, first=first)
    _name_rows(axes, [shortened(label, _LABEL_LENGTH) for label in labels])
    axes.set_title(title.rsplit(", ", 1)[-1])
    said = [
        f"{label} {_labelled(item, sign=first > 0)}"
        for label, item in zip(labels, items, strict=True)
    ]
    return Panel(figure, f"{title}: {'; '.join(said)}")


def _forest(axes: Axes, items: Sequence[Interval], zero: float, *, first: int = 0) -> None:
    """One line a run from the top, in its colour; dotted at `zero`."""
    axes.axvline(zero, color=GREY, linestyle=":", zorder=0.5)
    for place, item in enumerate(items):
        colour = COLOURS[(first + place) % len(COLOURS)]
        axes.plot([item.low, item.high], [place, place], color=colour, linewidth=1.5)
        axes.plot(item.value, place, "s", color=colour, markersize=4)
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.75)  # the first run on top


def _number_rows(axes: Axes, items: Sequence[Interval]) -> None:
    for place, item in enumerate(items):
        axes.annotate(
            _labelled(item),
            (item.value, place),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=6.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axes.margins(x=0.25)


def _labelled(item: Interval, *, sign: bool = False) -> str:
    ends = bounds(item, sign=sign)
    return number(item.value, sign=sign) + (f" [{ends}]" if ends else "")


# --- training --------------------------------------------------------------------------------


def learning_curves(runs: Sequence[Run], comparison: Comparison) -> list[Panel]:
    """The validation CCC of all runs over rounds or epochs, a panel a dimension."""
    rows = [history(run) for run in runs]
    units = sorted({unit(item) for item in rows}, reverse=True)
    panels = []
    for name in comparison.dimensions:
        figure, axes = _panel(_WIDE, 2.3)
        said = []
        for place, (run, item) in enumerate(zip(runs, rows, strict=True)):
            curve = _curve(item, f"val/ccc/{name}")
            axes.plot(curve.index, curve, marker=marker(len(curve)), **_look(place))
            chosen = kept(item, run.experiment.trainer.keep)
            steps = _counted(chosen)
            axes.plot(
                steps,
                chosen[f"val/ccc/{name}"],
                "o",
                markersize=6,
                fillstyle="none",
                color=_look(place)["color"],
            )
            last = f"{number(curve.iloc[-1])} after {curve.index[-1]} {unit(item)}s"
            said.append(f"{comparison.labels[place]} {last}")
        axes.set(xlabel=" or ".join(units), title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panels.append(Panel(figure, f"validation CCC of {name} in training: {'; '.join(said)}"))
    return panels


def _counted(rows: pd.DataFrame) -> pd.Series:
    """How many rounds or epochs are over at each row; epochs are numbered from 0."""
    return rows.loc[:, unit(rows)] + (unit(rows) == "epoch")


def _curve(rows: pd.DataFrame, column: str) -> pd.Series:
    """The mean over folds, while every fold still trains; rounds without validation left out."""
    known = rows.assign(step=_counted(rows)).dropna(subset=[column])
    by_fold = known.pivot_table(index="step", columns="fold", values=column).dropna()
    return pd.Series(by_fold.to_numpy().mean(axis=1), index=by_fold.index)


# --- predictions -----------------------------------------------------------------------------


def traces(tests: Sequence[Sequence[Prediction]], comparison: Comparison) -> list[Panel]:
    """The best, the middle and the worst test recording: the reference and every run over time.

    Args:
        tests: each run's predictions of the same recordings, in the same order; none of some runs,
            which are not shown.
        comparison: of those runs.
    """
    shown = [place for place, items in enumerate(tests) if items]
    tests, labels = [tests[place] for place in shown], [comparison.labels[place] for place in shown]
    cccs = np.stack([[metrics.ccc(moments_of(item)).numpy() for item in items] for items in tests])
    order = _ranked(cccs)
    chosen = np.linspace(0, len(order) - 1, min(_RECORDINGS_SHOWN, len(order))).round().astype(int)
    panels = []
    for rank in chosen.tolist():
        items = [items[order[rank]] for items in tests]
        place = f"{_place(rank, len(order))} of {len(order)}"
        for column, name in enumerate(comparison.dimensions):
            said = [
                f"{label} {scored('CCC', float(ccc))}"
                for label, ccc in zip(labels, cccs[:, order[rank], column].tolist(), strict=True)
            ]
            title = f"{shortened(f'{items[0].subject}/{items[0].name}', _LABEL_LENGTH)}, {place}"
            figure = _trace(dict(zip(shown, items, strict=True)), column, f"{title}: {name}")
            panels.append(Panel(figure, f"{name} of {title}, over time: {'; '.join(said)}"))
    return panels


def _ranked(cccs: Float64[np.ndarray, "R K D"]) -> list[int]:
    """Recordings from the best to the worst CCC; without labels only where all are."""
    known = ~np.isnan(cccs)
    counts = known.sum(axis=(0, 2))
    means = np.where(known, cccs, 0.0).sum(axis=(0, 2)) / np.maximum(counts, 1)
    order = np.argsort(-means, kind="stable")
    return [int(index) for index in order if counts[index]] or list(range(len(counts)))


def _place(rank: int, count: int) -> str:
    return {count - 1: "worst", 0: "best"}.get(rank, f"rank {rank + 1}")


def _trace(predicted: Mapping[int, Prediction], column: int, title: str) -> Figure:
    """One dimension of one recording, with every run's prediction, by the run's place."""
    first = next(iter(predicted.values()))
    figure, axes = _panel(_WIDE, 1.7)
    is_long = float(first.time_s[-1]) > LONG_S
    time = first.time_s / (60.0 if is_long else 1.0)
    points = marker(len(time))
    axes.plot(time, first.reference[:, column], marker=points, color=INK, linewidth=1.4)
    for place, item in predicted.items():
        axes.plot(time, item.prediction[:, column], marker=points, **_look(place))
    axes.set_xlabel("time (min)" if is_long else "time (s)")
    axes.set_title(title, parse_math=False)  # a `$` in a subject's name is a `$`
    axes.margins(x=0.01)
    return figure


# --- costs -----------------------------------------------------------------------------------


def costs(comparison: Comparison) -> list[Panel]:
    """What each run cost: seconds, and bytes where a run is federated."""
    runs = comparison.runs
    panels = [_bars("wall time", comparison.labels, [run.wall_time_s for run in runs], duration)]
    if any(run.kind == "federate" for run in runs):
        for title, values in (
            ("sent by clients", [run.bytes_sent for run in runs]),
            ("received by clients", [run.bytes_received for run in runs]),
        ):
            panels.append(_bars(title, comparison.labels, values, size))
    return panels


def _bars(
    title: str, labels: Sequence[str], values: Sequence[float], said: Callable[[float], str]
) -> Panel:
    figure, axes = _panel(_NARROW, 0.62 + 0.26 * len(values))
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(values))]
    bars = axes.barh(range(len(values)), values, height=0.6, color=colours)
    axes.bar_label(bars, [said(value) for value in values], padding=3, fontsize=7)
    _name_rows(axes, [shortened(label, _LABEL_LENGTH) for label in labels])
    axes.set_xlim(0, 1.3 * max(*values, 1e-9))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: said(value)))
    axes.set_title(title)
    each = [f"{label} {said(value)}" for label, value in zip(labels, values, strict=True)]
    return Panel(figure, f"{title}: {'; '.join(each)}")


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots()


def _look(place: int) -> dict[str, Any]:
    """Colour and line style of a run."""
    rounds, colour = divmod(place, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": DASHES[rounds % len(DASHES)]}
