"""Delimited text as columns of numbers, with errors that name the file and the column."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Float64

from affect.errors import UserError

_SEPARATORS = ",;\t"
_MISSING = ["-nan(ind)"]
"""What OpenFace writes for NaN on Windows, beside what pandas knows."""


def header(path: Path) -> list[str]:
    """A delimited file's column names, without the blanks around them.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    return _header(path)[0]


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
        UserError: the file cannot be read, is empty, or repeats a column's name.
    """
    names, separator = _header(path)
    kept = [index for index, name in enumerate(names) if keep(name)]
    repeated = {names[index] for index in kept if names.count(names[index]) > 1}
    if repeated:
        raise UserError(f"{path}: two columns are called {min(repeated)!r}: rename one")
    if not kept:
        return pd.DataFrame()
    # Columns are chosen by position: names with blanks around them cannot be chosen by name.
    frame = parse_rows(
        path,
        sep=separator,
        skiprows=1,
        usecols=kept,
        dtype={index: str for index in kept if text(names[index])},
        na_values=_MISSING,
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
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error


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


def _header(path: Path) -> tuple[list[str], str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not line.strip():
        raise UserError(f"{path} is empty: export it again")
    separator = max(_SEPARATORS, key=line.count)
    names = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    return [name.strip() for name in names], separator
