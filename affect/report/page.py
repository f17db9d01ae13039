"""A comparison as one HTML file that opens without a network: tables, figures and provenance."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from affect import __version__
from affect.config import to_yaml
from affect.files import write_whole
from affect.report import comparison_figures, svg
from affect.report.bootstrap import UNKNOWN
from affect.report.compare import SCORES, Comparison, Standing
from affect.report.comparison_figures import COLOURS, DASHES, Panel
from affect.report.configuration import differing
from affect.report.drawing import GREY, INK, house_style
from affect.report.protocol import of_sites, settings, tested
from affect.report.question import answers, remarks
from affect.report.wording import NONE, bounds, duration, number, passes, size
from affect.training.run import Run, git_commit

_COMMIT_LENGTH = 12
_PAGE_COLOURS = {
    **{colour: f"var(--run-{place})" for place, colour in enumerate(COLOURS)},
    INK: "var(--ink)",
    GREY: "var(--quiet)",
}


def write(comparison: Comparison, runs: Sequence[Run], path: Path) -> Path:
    """Write the page.

    Args:
        comparison: of the runs.
        runs: in the comparison's order.
        path: of the HTML file, which is replaced where it is there.

    Raises:
        UserError: a run's files cannot be read any more, or the page cannot be written.
    """
    source = files("affect.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.from_string(source).render(
        answers=answers(comparison),
        remarks=remarks(comparison),
        comparison=comparison,
        keys=_keys(comparison),
        scores=_scores(comparison.runs, comparison.columns, _score),
        differences=_scores(comparison.runs[1:], comparison.columns, _difference),
        costs=_costs(comparison.runs),
        figures=_figures(comparison, runs),
        settings=_settings(runs[0]),
        folds=runs[0].folds,
        provenance=_provenance(runs),
        differing=differing(runs),
        experiments=[to_yaml(run.experiment) for run in runs],
        command=_command(comparison, runs, path),
        version=__version__,
        commit=git_commit(),
    )
    write_whole(path, text.encode(errors="replace"))
    return path


# --- tables ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """A number with the bounds of its interval, and whether these exclude zero."""

    number: str
    bounds: str
    decided: bool


def _scores(
    runs: Sequence[Standing], columns: Sequence[str], cell: Callable[[Standing, str], _Cell]
) -> list[tuple[str, list[tuple[str, list[_Cell]]]]]:
    """A group of rows for each score: a row a dimension, a cell a run."""
    return [
        (title, [(name, [cell(run, f"test/{score}/{name}") for run in runs]) for name in columns])
        for score, title in SCORES.items()
    ]


def _score(run: Standing, key: str) -> _Cell:
    item = run.scores[key]
    return _Cell(number(item.value), bounds(item), decided=False)


def _difference(run: Standing, key: str) -> _Cell:
    item = run.differences.get(key, UNKNOWN)
    shown = number(item.value, sign=True), bounds(item, sign=True)
    return _Cell(*shown, decided=item.low > 0 or item.high < 0)


def _costs(runs: Sequence[Standing]) -> list[tuple[str, list[str]]]:
    """What each run took; a dash where it has no such cost."""

    def of_federated(shown: Callable[[Standing], str]) -> list[str]:
        return [shown(run) if run.kind == "federate" else NONE for run in runs]

    rows = [
        ("trained", [passes(run) for run in runs]),
        ("sent by clients", of_federated(lambda run: size(run.bytes_sent))),
        ("received by clients", of_federated(lambda run: size(run.bytes_received))),
        ("wall time", [duration(run.wall_time_s) for run in runs]),
        ("peak memory, workers left out", [f"{run.peak_memory_mib:,.0f} MiB" for run in runs]),
        ("privacy spent", [_privacy(run) for run in runs]),
    ]
    return [row for row in rows if any(cell != NONE for cell in row[1])]


def _privacy(run: Standing) -> str:
    return NONE if run.epsilon is None else f"ε {run.epsilon:.2f} at δ {run.delta:.2g}"


def _settings(run: Run) -> dict[str, str]:
    """The protocol that all runs share."""
    values = settings(run)
    return {key: ", ".join(v) if isinstance(v, list) else str(v) for key, v in values.items()}


def _provenance(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Which runs they are, and where each came from."""
    records = [run.record for run in runs]
    commands = [
        "deployment/run.sh" if of_sites(run) else f"affect {run.record['kind']}" for run in runs
    ]
    return [
        ("run", [f"{record['experiment']}/{record['id']}" for record in records]),
        ("command", commands),
        ("network", [run.experiment.model.name for run in runs]),
        ("seed", [str(record["seed"]) for record in records]),
        ("started", [record.get("started", NONE).replace("T", " ") for record in records]),
        ("commit", [_commit(record.get("git_commit", "")) for record in records]),
        ("machine", [record.get("machine", NONE) for record in records]),
        ("versions", [_versions(record.get("versions", {})) for record in records]),
    ]


def _commit(commit: str) -> str:
    if not commit:
        return NONE
    return commit[:_COMMIT_LENGTH] + (" with changes" if commit.endswith("+") else "")


def _versions(known: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {known[name]}" for name in ("affect", "python", "torch", "flwr") if name in known
    )


def _command(comparison: Comparison, runs: Sequence[Run], path: Path) -> str:
    folders = [str(run.folder) for run in runs]
    resamples = f"--resamples={comparison.resamples}"
    return shlex.join(["affect", "compare", *folders, resamples, "--out", str(path)])


# --- figures ---------------------------------------------------------------------------------


def _keys(comparison: Comparison) -> list[dict[str, str]]:
    """How each run is shown in every figure."""
    return [
        {
            "label": label,
            "colour": f"var(--run-{place % len(COLOURS)})",
            "dash": DASHES[place // len(COLOURS) % len(DASHES)],
        }
        for place, label in enumerate(comparison.labels)
    ]


def _figures(comparison: Comparison, runs: Sequence[Run]) -> dict[str, list[Markup]]:
    """The panels of each figure, ready to stand in the page."""
    with house_style():
        panels = {
            "intervals": comparison_figures.intervals(comparison),
            "differences": comparison_figures.differences(comparison),
            "learning": comparison_figures.learning_curves(runs, comparison),
            "traces": comparison_figures.traces([tested(run) for run in runs], comparison),
            "costs": comparison_figures.costs(comparison),
        }
        return {name: _elements(name, items) for name, items in panels.items()}


def _elements(name: str, panels: Sequence[Panel]) -> list[Markup]:
    return [
        Markup(svg.element(panel.figure, f"{name}-{place}", panel.alt, _PAGE_COLOURS))
        for place, panel in enumerate(panels)
    ]
