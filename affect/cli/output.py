"""How results and complaints are written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from affect.cli.command import Result

_LONGEST_LINE = 1000


def scores_of(metrics: Mapping[str, float], folder: Path) -> Result:
    """The metrics as a table: one row a split and dimension, one column a score."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        split, score, dimension = key.split("/")
        rows.setdefault((split, dimension), {})[score] = value
    columns = list(dict.fromkeys(score for row in rows.values() for score in row))
    cells = [
        (*place, *(f"{row[score]:.3f}" if score in row else "" for score in columns))
        for place, row in rows.items()
    ]
    table = table_of(("split", "dimension", *columns), cells, title=str(folder))
    return Result(table, {"run": str(folder), **metrics})


def table_of(
    columns: Iterable[str], rows: Iterable[Sequence[str]], title: str | None = None
) -> Any:
    """A table that rich renders."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def lines_of(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells below one another; the last cell of each may be as long as it likes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (zip(row[:-1], widths[:-1], strict=True) for row in rows)
    heads = ("".join(f"{cell:{width}}  " for cell, width in cells) for cells in padded)
    return "\n".join((head + row[-1]).rstrip() for head, row in zip(heads, rows, strict=True))


def show(content: Any) -> None:
    """Write text, or what rich renders, to standard output."""
    if isinstance(content, str):
        write(content)
    else:
        from rich.console import Console

        Console().print(content)


def write(text: str) -> None:
    """Write a text to standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def let_go_of_output() -> None:
    """Send what standard output still holds nowhere: its last flush must not fail again."""
    with suppress(OSError, ValueError):  # it is no file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """One line on standard error, whatever a file's name or a library's message holds."""
    sys.stderr.write(f"affect: {' '.join(text.split())[:_LONGEST_LINE]}\n")
