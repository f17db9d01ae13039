"""What a run's error is made of: bias, subjects, frames, and what knowing a subject would gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from rich.table import Table

from affect import metrics
from affect.errors import UserError
from affect.prediction import Prediction

_WORST = 0.1
_LABELS: Mapping[str, str] = {
    "ccc": "CCC, pooled",
    "mse": "mean squared error",
    "global_share": "share of it: one offset for all",
    "subject_share": "share of it: each subject's own offset",
    "within_share": "share of it: within subjects",
    "worst_subjects_share": "share of it: worst tenth of subjects",
    "worst_frames_share": "share of it: worst tenth of frames",
    "subject_ccc_10": "a subject's CCC, 10 % of subjects below",
    "subject_ccc_50": "a subject's CCC, median",
    "subject_ccc_90": "a subject's CCC, 90 % of subjects below",
    "ccc_mean_known": "CCC if each subject's mean were known",
    "ccc_scale_known": "CCC if mean and deviation were known",
}


def error_parts(predictions: Sequence[Prediction], split: str) -> dict[str, dict[str, float]]:
    """By dimension with a reference, the parts of the error of one split, pooled over folds.

    With e the error, m its mean and m_s its mean for subject s with n_s of n frames, the mean
    squared error is m^2 + sum_s n_s/n (m_s - m)^2 + the mean of (e - m_s)^2: one offset for all,
    each subject's own, and the rest (the decomposition of a one-way analysis of variance).

    Args:
        predictions: of any split.
        split: `val` or `test`.

    Raises:
        UserError: no prediction of that split has a reference.
    """
    chosen = [item for item in predictions if item.split == split]
    dimensions = chosen[0].dimensions if chosen else ()
    frames = [_frames(chosen, column) for column in range(len(dimensions))]
    known = {name: frame for name, frame in zip(dimensions, frames, strict=True) if len(frame)}
    if not known:
        raise UserError(f"no {split} prediction has a reference: there is no error to explain")
    return {name: _parts(frame) for name, frame in known.items()}


def to_table(parts: Mapping[str, Mapping[str, float]]) -> Table:
    """The parts as a table, one column a dimension."""
    table = Table()
    table.add_column("")
    for dimension in parts:
        table.add_column(dimension, justify="right")
    for name, label in _LABELS.items():
        share = name.endswith("_share")
        cells = (f"{part[name]:.1%}" if share else f"{part[name]:.4f}" for part in parts.values())
        table.add_row(label, *cells)
    return table


def _frames(predictions: Sequence[Prediction], column: int) -> pd.DataFrame:
    """One row a frame that has a reference: subject, prediction x, reference y and error e."""
    rows = [
        pd.DataFrame(
            {
                "subject": f"{item.corpus}/{item.subject}",
                "x": item.prediction[:, column].astype(np.float64),
                "y": item.reference[:, column].astype(np.float64),
            }
        )
        for item in predictions
    ]
    frame = pd.concat(rows, ignore_index=True).dropna()
    return frame.assign(e=frame["x"] - frame["y"])


def _parts(frame: pd.DataFrame) -> dict[str, float]:
    subject, x, y, error = (frame.loc[:, name] for name in ("subject", "x", "y", "e"))
    squares = error**2
    mse = float(squares.mean())
    offsets = error.groupby(subject).transform("mean")
    alone = [_ccc(own.loc[:, "x"], own.loc[:, "y"]) for _, own in frame.groupby("subject")]
    low, middle, high = np.quantile(alone, (0.1, 0.5, 0.9))
    centred = x - offsets
    means = y.groupby(subject).transform("mean")
    spread = x.groupby(subject).transform("std", ddof=0)
    scale = (y.groupby(subject).transform("std", ddof=0) / spread).where(spread > 0, 1.0)
    values = {
        "ccc": _ccc(x, y),
        "mse": mse,
        "global_share": error.mean() ** 2 / mse,
        "subject_share": ((offsets - error.mean()) ** 2).mean() / mse,
        "within_share": ((error - offsets) ** 2).mean() / mse,
        "worst_subjects_share": _worst(squares.groupby(subject).sum()),
        "worst_frames_share": _worst(squares),
        "subject_ccc_10": low,
        "subject_ccc_50": middle,
        "subject_ccc_90": high,
        "ccc_mean_known": _ccc(centred, y),
        "ccc_scale_known": _ccc(means + scale * (centred - means), y),
    }
    return {name: float(value) for name, value in values.items()}


def _worst(squares: pd.Series) -> float:
    """The share of the sum that its largest tenth holds, at least one item."""
    return float(squares.nlargest(max(round(len(squares) * _WORST), 1)).sum() / squares.sum())


def _ccc(x: pd.Series, y: pd.Series) -> float:
    prediction, reference = (torch.tensor(values.to_numpy())[:, None] for values in (x, y))
    everywhere = torch.ones(len(x), dtype=torch.bool)
    return float(metrics.ccc(metrics.moments(prediction, reference, everywhere))[0])
