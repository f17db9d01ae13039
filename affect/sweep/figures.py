"""A sweep's figures: all trials as lines through their parameters, and what matters most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from affect.errors import UserError
from affect.report.drawing import BLUE, GREY, house_style, save, shortened
from affect.sweep.file import SweepFile
from affect.sweep.folder import Trial
from affect.sweep.search import require_optuna, study_of
from affect.sweep.space import Parameter, searched

_LEAST = 4
"""Trials from which on importance means something."""
_LABEL_LENGTH = 14
_MOST_TICKS = 8


def draw(file: SweepFile, trials: Sequence[Trial], folder: Path) -> list[Path]:
    """`parallel.png`, and `importance.png` where Optuna is there and trials are enough.

    Args:
        file: the sweep.
        trials: those that are done.
        folder: where to draw.

    Raises:
        UserError: the folder cannot be written.
    """
    if not searched(file.space):
        return []
    with house_style():
        paths = [save(_parallel(file, trials), folder / "parallel.png")]
        shares = importance(file, trials)
        if shares:
            paths.append(save(_importance(shares, file.metric.name), folder / "importance.png"))
    return paths


def importance(file: SweepFile, trials: Sequence[Trial]) -> dict[str, float]:
    """Each parameter's share of the metric's variance by functional ANOVA, the largest first.

    Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014, as
    Optuna has it. Empty without Optuna, with few trials, or where all trials are alike.
    """
    values = {trial.value for trial in trials}
    if len(trials) < _LEAST or len(values) == 1:
        return {}
    try:
        optuna = require_optuna()
    except UserError:
        return {}
    study = study_of(file, [trial.tried for trial in trials])
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


# --- parallel coordinates --------------------------------------------------------------------


def _parallel(file: SweepFile, trials: Sequence[Trial]) -> Figure:
    """A line a trial, from axis to axis; its colour is the metric, the best ones lie on top."""
    parameters = searched(file.space)
    heights = np.array([[_height(p, trial.point[p.key]) for p in parameters] for trial in trials])
    values = np.array([trial.value for trial in trials], float)
    figure = Figure((max(1.5 * (len(parameters) + 1), 5.0), 3.4), layout="constrained")
    axes = figure.subplots()
    scale = Normalize(values.min(), values.max())
    colours = colormaps["cividis"]
    span = np.ptp(values) or 1.0
    lines = np.column_stack([heights, (values - values.min()) / span])
    order = np.argsort(values if file.metric.maximize else -values)
    for row in order:
        axes.plot(lines[row], color=colours(scale(values[row])), alpha=0.8)
    for place, parameter in enumerate(parameters):
        _axis(axes, place, _ticks(parameter))
    _axis(axes, len(parameters), {0.0: f"{values.min():.3g}", 1.0: f"{values.max():.3g}"})
    names = [*(p.key for p in parameters), file.metric.name]
    axes.set_xticks(range(len(names)), [name.replace(".", ".\n") for name in names])
    axes.set(xlim=(-0.1, len(names) - 0.4), ylim=(-0.04, 1.04), yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.colorbar(ScalarMappable(scale, "cividis"), ax=axes, label=file.metric.name, shrink=0.8)
    return figure


def _axis(axes: Axes, place: int, ticks: Mapping[float, str]) -> None:
    axes.axvline(place, color=GREY, linewidth=0.6, zorder=0.5)
    for height, label in ticks.items():
        axes.annotate(
            label, (place, height), (3, 0), textcoords="offset points", va="center", fontsize=6
        )


def _height(parameter: Parameter, coordinate: float) -> float:
    """Where a value lies on its axis, 0 to 1; quantiles lie where they are."""
    places = parameter.places
    if places is None:
        return coordinate
    if parameter.kind == "int_uniform":
        return (coordinate - places[0]) / (places[-1] - places[0])
    return places.index(coordinate) / max(len(places) - 1, 1) if coordinate in places else 0.0


def _ticks(parameter: Parameter) -> dict[float, str]:
    """Some values of an axis, at their heights."""
    places = parameter.places
    if places is None or len(places) > _MOST_TICKS:
        quantiles = (0.0, 0.5, 1.0)
        if parameter.kind.endswith(("normal", "beta")):
            quantiles = (0.05, 0.5, 0.95)
        coordinates = [parameter.coordinate(quantile) for quantile in quantiles]
    else:
        coordinates = list(places)
    return {_height(parameter, c): _label(parameter.value(c)) for c in coordinates}


def _label(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return shortened(text, _LABEL_LENGTH)


# --- importance ------------------------------------------------------------------------------


def _importance(shares: Mapping[str, float], metric: str) -> Figure:
    names = list(shares)[::-1]
    figure = Figure((5.0, 0.8 + 0.25 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [shares[name] for name in names], color=BLUE)
    axes.set(xlim=(0, 1), xlabel=f"share of the variance of {metric} (functional ANOVA)")
    return figure
