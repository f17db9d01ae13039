"""From predictions to scores, under the metric keys that every mode shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from affect import metrics
from affect.config import LossConfig
from affect.metrics import affect_loss
from affect.prediction import Prediction

MONITOR = "val/ccc/mean"
"""What checkpoints, early stopping and sweeps maximise: the validation CCC over all dimensions."""


def scores(predictions: Sequence[Prediction], split: str) -> dict[str, float]:
    """Metrics of one split over all folds, under the keys that every mode shares.

    `{split}/ccc/<dimension>`, `.../rmse/...` and `.../pearson/...` pool all recordings;
    `{split}/ccc_per_recording/...` averages the CCC of each recording; `mean` averages dimensions.

    Args:
        predictions: of any split.
        split: `train`, `val` or `test`.
    """
    chosen = [item for item in predictions if item.split == split]
    if not chosen:
        return {}
    parts = [moments_of(item) for item in chosen]
    pooled = metrics.merge(torch.stack(parts))
    values = {
        "ccc": metrics.ccc(pooled),
        "rmse": metrics.rmse(pooled),
        "pearson": metrics.pearson(pooled),
        "ccc_per_recording": metrics.per_recording(parts)["ccc"],
    }
    named = {
        f"{split}/{name}/{dimension}": float(value)
        for name, column in values.items()
        for dimension, value in zip(chosen[0].dimensions, column, strict=True)
    }
    means = {f"{split}/{name}/mean": float(values[name].mean()) for name in values}
    return {**named, **means}


def losses(predictions: Sequence[Prediction], split: str, config: LossConfig) -> dict[str, float]:
    """The loss of one split over all folds, `{split}/loss/<dimension>` and their `mean`.

    Args:
        predictions: of any split.
        split: `val` or `test`.
        config: which loss; each recording is a sequence.
    """
    chosen = [item for item in predictions if item.split == split]
    if not chosen:
        return {}
    frames = torch.tensor([len(item.time_s) for item in chosen])
    values = affect_loss(
        pad_sequence([torch.from_numpy(item.prediction) for item in chosen], batch_first=True),
        pad_sequence([torch.from_numpy(item.reference) for item in chosen], batch_first=True),
        torch.arange(int(frames.max())) < frames[:, None],
        **asdict(config),
    )
    named = dict(zip(chosen[0].dimensions, values.tolist(), strict=True))
    return {f"{split}/loss/{d}": v for d, v in {**named, "mean": float(values.mean())}.items()}


def phase_scores(
    phase: str,
    scores: Mapping[str, Tensor],
    dimensions: Sequence[str],
) -> dict[str, Tensor]:
    """What an epoch or a round logs of a phase, under the keys that every mode shares.

    Args:
        phase: `train` or `val`.
        scores: by name, each [D], with `ccc` and `loss` among them.
        dimensions: their names.
    """
    values = {
        f"{phase}/{name}/{dimension}": value
        for name, column in scores.items()
        # torchmetrics squeezes what has one element
        for dimension, value in zip(dimensions, column.reshape(-1), strict=True)
    }
    for name in ("ccc", "loss"):
        column = [values[f"{phase}/{name}/{dimension}"] for dimension in dimensions]
        values[f"{phase}/{name}/mean"] = torch.stack(column).mean()
    return values


def moments_of(item: Prediction) -> Float64[Tensor, "D 6"]:
    """The moments of one recording's prediction against its reference."""
    prediction = torch.from_numpy(item.prediction)
    everywhere = torch.ones(len(prediction), dtype=torch.bool)
    return metrics.moments(prediction, torch.from_numpy(item.reference), everywhere)
