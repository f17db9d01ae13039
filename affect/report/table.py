"""A comparison in a terminal of 80 columns: runs and costs, score by score, and the answer."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from affect.report.bootstrap import UNKNOWN
from affect.report.compare import SCORES, Comparison, Standing
from affect.report.question import answers, remarks
from affect.report.wording import NONE, bounds, duration, number, passes, size


def to_tables(comparison: Comparison) -> Group:
    """What the runs are and cost, every score with its differences, and what it comes to."""
    sentences = [*answers(comparison), *remarks(comparison)]
    said = [Text(f"\n{sentence}") for sentence in sentences]
    return Group(_costs(comparison), "", _scores(comparison), *said)


def _costs(comparison: Comparison) -> Table:
    table = _plain("", padding=1)
    table.add_column("run", overflow="fold")
    for name in ("trained", "sent", "received", "time", "epsilon"):
        table.add_column(name, justify="right", no_wrap=True)
    for place, run in enumerate(comparison.runs, start=1):
        settings = f"{run.kind}, {run.model}, seed {run.seed}"
        table.add_row(
            Text(str(place)),
            Text(f"{run.experiment}\n{run.id}\n{settings}"),
            passes(run),
            size(run.bytes_sent) if run.kind == "federate" else NONE,
            size(run.bytes_received) if run.kind == "federate" else NONE,
            duration(run.wall_time_s),
            NONE if run.epsilon is None else f"{run.epsilon:.2f}",
        )
    return table


def _scores(comparison: Comparison) -> Table:
    """For each score in turn, a row a run, then the differences to the first."""
    caption = (
        f"95 % bootstrap intervals over {comparison.subjects} test subjects;\n"
        "differences (n - 1) are paired by subject"
    )
    table = _plain(caption, padding=0)
    for name in comparison.columns:
        table.add_column(name, justify="right", no_wrap=True)
    numbered = list(enumerate(comparison.runs, start=1))
    for score, title in SCORES.items():
        keys = [f"test/{score}/{name}" for name in comparison.columns]
        table.add_row(title)
        for place, run in numbered:
            table.add_row(f"  {place}", *(_cell(run, key) for key in keys))
        for place, run in numbered[1:]:
            table.add_row(f"  {place} - 1", *(_difference(run, key) for key in keys))
        table.add_section()
    return table


def _cell(run: Standing, key: str) -> str:
    item = run.scores[key]
    return f"{number(item.value)} {bounds(item)}".rstrip()


def _difference(run: Standing, key: str) -> str:
    item = run.differences.get(key, UNKNOWN)
    return f"{number(item.value, sign=True)} {bounds(item, sign=True)}".rstrip()


def _plain(caption: str, padding: int) -> Table:
    table = Table(
        caption=caption or None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, padding, 0, 0),
    )
    table.add_column("", overflow="fold")
    return table
