"""How a run trained, epoch by epoch or round by round: its `metrics.csv` as a table."""

from __future__ import annotations

import pandas as pd
from pandas.api.types import is_numeric_dtype

from affect.errors import UserError
from affect.training.run import Run
from affect.training.scores import MONITOR


def history(run: Run) -> pd.DataFrame:
    """The rows of a run's `metrics.csv`.

    Raises:
        UserError: it is missing, empty or no table of scores.
    """
    path = run.folder / "metrics.csv"
    try:
        rows = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"cannot read {path} ({error}): the run has trained no epoch") from error
    if rows.empty:
        raise UserError(f"{path} has no rows: the run has trained no epoch")
    scores = [f"val/ccc/{name}" for name in run.experiment.data.dimensions]
    for name in ("fold", unit(rows), MONITOR, *scores):
        if name not in rows or rows[[name]].dropna().empty:
            raise UserError(f"{path} has no column {name!r} with numbers: it is no run's table")
    for name in rows:
        if not is_numeric_dtype(rows[name]):
            raise UserError(f"{path} has text among the numbers of column {name!r}: mend the file")
    return rows


def unit(rows: pd.DataFrame) -> str:
    """What a row is: a `round` of a federated run, an `epoch` of a centralised one."""
    return "round" if "round" in rows else "epoch"


def trained(rows: pd.DataFrame) -> tuple[int, ...]:
    """How many epochs or rounds each fold was trained, by the folds' indices."""
    return tuple(rows.groupby("fold")[unit(rows)].nunique())


def kept(rows: pd.DataFrame, keep: str) -> pd.DataFrame:
    """Each fold's row whose weights the run kept.

    Args:
        rows: of a run.
        keep: `best` or `last`, as `trainer.keep`.
    """
    known = rows.dropna(subset=[MONITOR])
    by_fold = known.groupby("fold")
    return by_fold.tail(1) if keep == "last" else known.loc[by_fold[MONITOR].idxmax()]
