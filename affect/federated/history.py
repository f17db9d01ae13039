"""What each round came to, round by round: `metrics.csv`, W&B and `clients.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from affect.errors import UserError
from affect.federated.server import Round
from affect.files import write_whole
from affect.rows import Row, cut_row, read_rows
from affect.tracking import Tracker
from affect.training.run import Run


class History:
    """Reports a fold's rounds.

    Rows of rounds that a killed run had begun to report, and that are trained again, give way.

    Args:
        run: whose folder takes the files.
        fold: which fold.
        finished: rounds that are already there.
        tracker: takes the global metrics.

    Raises:
        UserError: `clients.csv` is not what a run wrote, or a row is cut that is not made again.
    """

    def __init__(self, run: Run, fold: int, finished: int, tracker: Tracker | None) -> None:
        self._fold = fold
        self._tracker = tracker
        rounds = run.experiment.federation.rounds
        self._first_step = run.record["folds"].index(fold) * rounds
        dimensions = run.experiment.data.dimensions
        self._scores = [f"{name}/{d}" for name in ("ccc", "loss") for d in dimensions]
        self._columns = [
            *("fold", "round", "client", "part", *self._scores),
            *("update_norm", "frames", "steps", "seconds"),
        ]
        self._path = run.folder / "clients.csv"
        rows, cut = read_rows(self._path, ["fold", "round"], self._columns)
        kept = [row for row in rows if _before(row, fold, finished)]
        if cut is not None and not _made_again(cut, rows, fold, finished):
            raise cut_row(self._path)
        write_whole(self._path, _lines(self._columns, kept, header=True).encode())

    def add(self, done: Round) -> None:
        """Report a round.

        Raises:
            UserError: the folder cannot be written.
        """
        place = {"fold": self._fold, "round": done.state.round}
        rows = [{**place, **row} for row in done.clients]
        try:
            with self._path.open("a", newline="") as file:
                file.write(_lines(self._columns, rows, header=False))
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror or error}") from error
        if self._tracker is not None:
            step = self._first_step + done.state.round - 1
            self._tracker.log(
                step, {**place, **done.metrics, **_costs(done)}, self._by_client(done)
            )

    def _by_client(self, done: Round) -> dict[str, list[float]]:
        """Each score's values over the clients of a part."""
        values: dict[str, list[float]] = {}
        for row in done.clients:
            for name in (*self._scores, "update_norm"):
                if name in row:
                    values.setdefault(f"clients/{row['part']}/{name}", []).append(float(row[name]))
        return values


def _costs(done: Round) -> dict[str, float]:
    """What a round cost, and how far the clients went apart."""
    norms = [float(row["update_norm"]) for row in done.clients if "update_norm" in row]
    costs: dict[str, float] = {
        **{f"seconds/{phase}": round(value, 4) for phase, value in done.seconds.items()},
        "bytes/down": done.bytes_down,
        "bytes/up": done.bytes_up,
        "clients/trained": sum(row["part"] == "train" for row in done.clients),
        "clients/failed": len(done.failures),
    }
    if norms:
        costs |= {"update_norm/mean": float(np.mean(norms)), "update_norm/max": max(norms)}
    if done.drift is not None:
        costs["client_drift"] = done.drift
    if done.epsilon:
        costs |= {"epsilon": done.epsilon, "clipping_norm": done.state.clipping_norm}
    return costs


def _before(row: Row, fold: int, finished: int) -> bool:
    return int(row["fold"]) != fold or int(row["round"]) <= finished


def _made_again(cut: Row, rows: Sequence[Row], fold: int, finished: int) -> bool:
    """Whether a row that was cut after these is of a round that is trained again."""
    if "round" in cut:
        return not _before(cut, fold, finished)
    return finished == 0 or bool(rows and not _before(rows[-1], fold, finished))


def _lines(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
