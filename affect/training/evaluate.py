"""From a trained network to predictions of whole recordings, and from predictions to scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from affect import metrics
from affect.config import DataConfig, LossConfig
from affect.data.annotation import shift_forward
from affect.data.preparation import SeriesCache
from affect.data.windows import WindowDataset, collate
from affect.metrics import affect_loss
from affect.prediction import Prediction
from affect.training.module import AffectModule, window_mean
from affect.training.postprocess import Postprocessing

_Rows = tuple[Tensor, int, int]


def predict(
    module: AffectModule, dataset: WindowDataset, series: SeriesCache, config: DataConfig
) -> list[tuple[Float64[np.ndarray, " S"], Float32[np.ndarray, "S D"], Float32[np.ndarray, "S D"]]]:
    """Times, predictions and references of each of a dataset's recordings, in order.

    Under the target `frame` S is the number of frames and predictions are shifted forward by the
    annotation delay, beside the unshifted gold standard. Under `window_mean` S is the number of
    windows, times are their centres and references are the means of their labels.
    """
    rows = _rows_by_recording(module, dataset, config.eval_batch_size)
    pools = config.target == "window_mean"
    results = []
    for entry, items in zip(dataset.entries, rows, strict=True):
        item = series[entry]
        output = torch.cat([values for values, _, _ in items]).float().cpu().numpy()
        if pools:
            spans = [slice(start, start + length) for _, start, length in items]
            time_s = np.array([item.time_s[span].mean() for span in spans])
            labels = [window_mean(torch.from_numpy(item.labels[span])[None])[0] for span in spans]
            results.append((time_s, output, torch.cat(labels).numpy()))
        else:
            results.append((item.time_s, _undelayed(output, series), item.reference))
    return results


def predictions_of(
    module: AffectModule,
    dataset: WindowDataset,
    series: SeriesCache,
    config: DataConfig,
    *,
    split: str,
    fold: int,
    postprocessing: Postprocessing | None = None,
) -> list[Prediction]:
    """A Prediction of each of a dataset's recordings, post-processed where that is given."""
    results = predict(module, dataset, series, config)
    return [
        Prediction(
            corpus=entry.corpus,
            subject=entry.subject,
            name=entry.name,
            split=split,
            fold=fold,
            time_s=time_s,
            dimensions=tuple(config.dimensions),
            prediction=postprocessing(output) if postprocessing else output,
            reference=reference,
        )
        for entry, (time_s, output, reference) in zip(dataset.entries, results, strict=True)
    ]


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


def moments_of(item: Prediction) -> Float64[Tensor, "D 6"]:
    """The moments of one recording's prediction against its reference."""
    prediction = torch.from_numpy(item.prediction)
    everywhere = torch.ones(len(prediction), dtype=torch.bool)
    return metrics.moments(prediction, torch.from_numpy(item.reference), everywhere)


def _rows_by_recording(
    module: AffectModule, dataset: WindowDataset, batch_size: int
) -> list[list[_Rows]]:
    """Each recording's windows in order: output rows, first frame and number of frames."""
    rows: list[list[_Rows]] = [[] for _ in dataset.entries]
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=collate)
    module.eval()
    with torch.inference_mode():
        for batch in loader:
            output = module.predict_step(batch.to(module.device))  # N S D
            for index, recording in enumerate(batch.recording.tolist()):
                length = int(batch.mask[index].sum())
                values = output[index, :length]  # the one row of a window, or its real frames
                rows[recording].append((values, int(batch.start[index]), length))
    return rows


def _undelayed(
    output: Float32[np.ndarray, "T D"], series: SeriesCache
) -> Float32[np.ndarray, "T D"]:
    preparation = series.preparation
    columns = [
        shift_forward(output[:, column], delay_s, preparation.rate_hz)
        for column, delay_s in enumerate(preparation.delay_s)
    ]
    return np.stack(columns, axis=1)
