"""Tables that a run adds rows to, read when it goes on: a kill may have cut the last row."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from affect.errors import UserError

Row = dict[str, str]


def read_rows(
    path: Path, places: Sequence[str], columns: Sequence[str] | None = None
) -> tuple[list[Row], Row | None]:
    """The rows of a CSV file, and what is left of a last one that was cut.

    Args:
        path: the file; where it is not there, there are no rows.
        places: columns of whole numbers, by which rows are found again.
        columns: all that it must have; None for any.

    Returns:
        The whole rows, and the whole fields of one that was cut; None where none was.

    Raises:
        UserError: it is another file.
    """
    if not path.exists():
        return [], None
    try:
        whole, end, rest = path.read_bytes().decode().rpartition("\n")
        found = list(csv.reader(io.StringIO(whole + end, newline=""), strict=True))
        header = found.pop(0) if found else []
        _refuse_other_header(header, places, columns)
        rows = [dict(zip(header, row, strict=True)) for row in found]
        cut = dict(zip(header, next(csv.reader([rest]))[:-1], strict=False)) if rest else None
        for row in [*rows, *([cut] if cut else [])]:
            for name in row.keys() & set(places):
                int(row[name])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        detail = " ".join(str(error).split())
        raise UserError(
            f"{path} is not the table that the run wrote ({detail}): put it back, or remove it to "
            "go on without its rows"
        ) from error
    return rows, cut


def cut_row(path: Path) -> UserError:
    """What is told of a table whose last row was cut and is not made again."""
    return UserError(
        f"the last row of {path} is cut, and what it told is not trained again: put the file back, "
        "or remove the rest of that row to go on without it"
    )


def _refuse_other_header(
    header: Sequence[str], places: Sequence[str], columns: Sequence[str] | None
) -> None:
    missing = [name for name in columns or places if name not in header]
    if missing:
        raise ValueError(f"it has no column {missing[0]!r}")
    if columns is not None and list(columns) != list(header):
        raise ValueError("its columns are others")
