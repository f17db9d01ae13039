"""Delimited text as columns of numbers, with errors that name the file and the column."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from jaxtyping import Float64

from affect.errors import UserError

_SEPARATORS = ",;\t"
_BLOCK_BYTES = 1 << 20
_MISSING = (
    "",
    *("NA", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "<NA>", "NULL", "null", "None"),
    *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "-nan(ind)"),
)
"""What stands for a missing number: pandas' words, and OpenFace's on Windows. Text is missing only
where its cell is empty, since somebody may be called NA."""

_TOO_FEW = "it was cut off or damaged there: export it again"
_TOO_MANY = "write decimals with a point or part cells with ';', and name every column"


class Header(NamedTuple):
    """The line that names a delimited file's columns.

    Attributes:
        names: without the blanks around them.
        separator: `,`, `;` or a tab.
        lines: how many lines it takes, with blank ones before it.
    """

    names: list[str]
    separator: str
    lines: int


def files_in(folder: Path, *suffixes: str, pattern: str = "*") -> list[Path]:
    """A folder's files with one of the suffixes, in small or capital letters, sorted.

    Args:
        folder: where to look.
        suffixes: in small letters, such as `.csv`.
        pattern: which paths to look at; `**/*` for the subfolders as well.
    """
    paths = folder.glob(pattern)
    return sorted(path for path in paths if path.suffix.lower() in suffixes and not path.is_dir())


def header(path: Path) -> Header:
    """The names of a delimited file's columns, in its first line that is not blank.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = enumerate(file, 1)
            filled = ((number, line) for number, line in lines if line.strip(f"{_SEPARATORS} \r\n"))
            number, line = next(filled, (0, ""))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not line:
        raise UserError(f"{path} is empty: export it again")
    separator = max(_SEPARATORS, key=line.count)
    names = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    return Header([name.strip() for name in names], separator, number)


def read_csv(
    path: Path,
    keep: Callable[[str], bool] = lambda _: True,
    text: Callable[[str], bool] = lambda _: False,
) -> pd.DataFrame:
    """The chosen columns of a delimited file; its separator is `,`, `;` or a tab.

    Args:
        path: the file; its first line names the columns.
        keep: which columns to read, by their name without blanks around it.
        text: which of them hold identifiers, read as strings.

    Raises:
        UserError: the file cannot be read, is empty, repeats a column's name, or has a row of
            more or fewer cells than names.
    """
    names, separator, lines = header(path)
    kept = [index for index, name in enumerate(names) if name and keep(name)]
    repeated = {names[index] for index in kept if names.count(names[index]) > 1}
    if repeated:
        raise UserError(f"{path}: two columns are called {min(repeated)!r}: rename one")
    if not kept:
        return pd.DataFrame()
    refuse_ragged(path, names, skip=lines, separator=separator)
    texts = {index for index in kept if text(names[index])}
    # Columns are chosen by position: names with blanks around them cannot be chosen by name.
    frame = parse_rows(
        path,
        sep=separator,
        skiprows=lines,
        usecols=kept,
        dtype=dict.fromkeys(texts, str),
        keep_default_na=False,
        na_values={index: [""] if index in texts else _MISSING for index in kept},
        encoding="utf-8-sig",
    )
    return frame.rename(columns=dict(enumerate(names)))


def parse_rows(path: Path, **options: Any) -> pd.DataFrame:
    """pandas.read_csv without a header: columns are numbered from 0.

    Raises:
        UserError: the file cannot be read, or has no rows.
    """
    try:
        return pd.read_csv(path, header=None, skipinitialspace=True, low_memory=False, **options)
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} has no rows: export it again") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def refuse_ragged(
    path: Path,
    names: Sequence[str],
    *,
    skip: int,
    separator: str = ",",
    quote: str = '"',
    comment: str = "",
) -> None:
    """Refuse a row of more or fewer cells than names: pandas would shift or invent cells.

    A separator at the end of a row is no cell of its own.

    Args:
        path: the file.
        names: of the columns.
        skip: lines before the rows.
        separator: what stands between cells.
        quote: what stands around a cell that holds a separator.
        comment: what begins a line that is no row; empty: nothing does.

    Raises:
        UserError: naming the first such row, or the file cannot be read.
    """
    try:
        for index, (line, cells) in enumerate(_rows(path, skip, separator, quote, comment)):
            if len(cells) != len(names) and _width(cells) != _width(names):
                raise UserError(
                    f"{path}: line {line} has {len(cells)} cells, the header {len(names)}: "
                    + (_TOO_FEW if len(cells) < len(names) else _TOO_MANY)
                )
            if index == 0 and _all_alike(path, line, separator + quote + comment):
                return
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from error


def numbers(
    frame: pd.DataFrame, names: Sequence[str], path: Path
) -> Float64[np.ndarray, "rows names"]:
    """Columns as numbers; an empty cell is NaN.

    Raises:
        UserError: a cell holds something else than a number.
    """
    chosen = frame.loc[:, list(names)]
    try:
        if any(dtype.kind in "mM" for dtype in chosen.dtypes):
            raise TypeError("dates and times of day are no numbers")
        return chosen.to_numpy(np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        detail = _not_a_number(chosen) or str(error)
        raise UserError(f"{path}: {detail}") from error


def times(frame: pd.DataFrame, name: str, path: Path) -> Float64[np.ndarray, " rows"]:
    """A column of seconds.

    Raises:
        UserError: a cell is empty or not a finite number.
    """
    time_s = numbers(frame, [name], path)[:, 0]
    missing = int((~np.isfinite(time_s)).sum())
    if missing:
        raise UserError(f"{path}: column {name!r} holds no time in {missing} rows: remove them")
    return time_s


def to_numbers(cells: pd.Series) -> pd.Series:
    """Each cell as a number; NaN where it is none."""
    return cast("pd.Series", pd.to_numeric(cells, errors="coerce"))


def _not_a_number(frame: pd.DataFrame) -> str | None:
    """The first cell that is no number, in words."""
    for name, column in frame.items():
        wrong = column.loc[to_numbers(column.astype(str)).isna() & column.notna()]
        if len(wrong):
            return f"column {name!r} holds {str(wrong.iloc[0])!r}, not a number"
    return None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"cannot read {path}: {' '.join(str(error).split())}")


def _width(cells: Sequence[str]) -> int:
    """How many cells a row has; a separator at its end begins none."""
    return len(cells) - (not "".join(cells[-1:]).strip())


def _rows(
    path: Path, skip: int, separator: str, quote: str, comment: str
) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the number of its line, counted from 1."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = islice(file, skip, None)
        if comment:
            lines = ("" if line.lstrip().startswith(comment) else line for line in lines)
        reader = csv.reader(lines, delimiter=separator, quotechar=quote, skipinitialspace=True)
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                yield skip + reader.line_num, cells


def _all_alike(path: Path, line: int, marks: str) -> bool:
    """Whether all rows from a line on hold the same marks in the same order.

    Then all have as many cells as the first, which is known several times sooner than by
    counting them. False means only that it takes counting.
    """
    others = bytes({*range(256)} - {*f"{marks}\n".encode()})
    with path.open("rb") as file:
        *_, first = islice(file, line)
        if b"\r" in first.rstrip():  # lines end in the old Macintosh's way
            return False
        alike = first.translate(None, others)
        while block := file.read(_BLOCK_BYTES):
            block += file.readline()
            found = block.translate(None, others).rstrip(b"\n") + b"\n"
            if found != alike * found.count(b"\n"):
                return False
    return True
