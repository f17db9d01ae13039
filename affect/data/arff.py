"""ARFF files, as RECOLA and AVEC use them, as pandas tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64

from affect.data import columns
from affect.errors import UserError

_ATTRIBUTE = re.compile(r"""@attribute\s+('[^']*'|"[^"]*"|\S+)\s+(\S+)""", re.IGNORECASE)
_NUMERIC = {"numeric", "real", "integer"}
_TIMES = {"frametime", "time", "timestamp"}


def read(path: Path) -> pd.DataFrame:
    """One column an attribute: numbers (`?` is NaN) or strings.

    scipy's reader refuses string attributes, which every file of these corpora has.

    Raises:
        UserError: the file cannot be read, lacks `@data` or rows, a row has more or fewer cells
            than attributes, or a numeric attribute holds something else than numbers.
    """
    kinds: dict[str, str] = {}
    lines = 0
    for line in _header_lines(path):
        lines += 1
        if match := _ATTRIBUTE.match(line):
            kinds[match[1].strip("'\"")] = match[2].lower()
    names = list(kinds)
    columns.refuse_ragged(path, names, skip=lines, quote="'", comment="%")
    frame = columns.parse_rows(
        path,
        skiprows=lines,
        usecols=range(len(names)),
        comment="%",
        quotechar="'",
        na_values="?",
        dtype={index: str for index, name in enumerate(names) if kinds[name] not in _NUMERIC},
    )
    frame.columns = names
    numeric = [name for name in names if kinds[name] in _NUMERIC]
    frame[numeric] = columns.numbers(frame, numeric, path)
    return frame


def numeric_names(frame: pd.DataFrame) -> list[str]:
    """The names of a table's numeric columns, in order."""
    return [str(name) for name in frame.select_dtypes("number").columns]


def split_time(
    frame: pd.DataFrame, path: Path
) -> tuple[Float64[np.ndarray, " rows"], pd.DataFrame]:
    """The seconds of each row, and the other numeric columns.

    Raises:
        UserError: no attribute holds the time, or it is missing in a row.
    """
    numeric = frame.select_dtypes("number")
    found = [name for name in map(str, numeric.columns) if name.lower() in _TIMES]
    if not found:
        raise UserError(f"{path}: no numeric attribute called frameTime, time or timestamp")
    return columns.times(numeric, found[0], path), numeric.drop(columns=found[0])


def _header_lines(path: Path) -> Iterator[str]:
    """The lines up to and with `@data`."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield line.strip()
                if line.strip().lower() == "@data":
                    return
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    raise UserError(f"{path} has no line @data: is it an ARFF file?")
