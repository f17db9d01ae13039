"""From a trained network to predictions of whole recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.utils.data import DataLoader

from affect.config import DataConfig
from affect.data.annotation import shift_forward
from affect.data.preparation import Preparation, Series, SeriesCache
from affect.data.windows import WindowDataset, collate
from affect.prediction import Prediction
from affect.store import Entry
from affect.training import postprocess
from affect.training.module import AffectModule
from affect.training.postprocess import Postprocessing


@dataclass(frozen=True)
class Output:
    """A network's output over one recording before post-processing; S frames or windows.

    Attributes:
        entry: the recording.
        time_s: seconds from the start of the video.
        values: [S, D]; frames are shifted forward by the annotation delay.
        reference: [S, D], the unshifted gold standard, or the mean label of each window.
    """

    entry: Entry
    time_s: Float64[np.ndarray, " S"]
    values: Float32[np.ndarray, "S D"]
    reference: Float32[np.ndarray, "S D"]


def outputs_of(
    module: AffectModule, dataset: WindowDataset, series: SeriesCache, config: DataConfig
) -> list[Output]:
    """The output of each of a dataset's recordings, in order.

    Under the target `frame` S is the number of frames. Under `window_mean` S is the number of
    windows, whose times are their centres.
    """
    join = _window_means if config.target == "window_mean" else _frames
    pieces = _pieces_by_recording(module, dataset, config.eval_batch_size)
    return [
        Output(entry, *join(items, series[entry], series.preparation))
        for entry, items in zip(dataset.entries, pieces, strict=True)
    ]


def fit_postprocessing(
    outputs: Sequence[Output], steps: Sequence[str], rate_hz: float
) -> Postprocessing:
    """The post-processing that raises the pooled CCC of these outputs."""
    values = [item.values for item in outputs]
    return postprocess.fit(values, [item.reference for item in outputs], steps, rate_hz)


def cross_fitted(
    outputs: Sequence[Output], steps: Sequence[str], rate_hz: float
) -> list[Postprocessing]:
    """For each output, the post-processing that the other subjects' outputs ask for.

    Validation scores with it have not seen their own labels, as test scores have not.
    """
    return postprocess.cross_fit(
        [item.values for item in outputs],
        [item.reference for item in outputs],
        [item.entry.subject for item in outputs],
        steps,
        rate_hz,
    )


def predictions_of(
    outputs: Sequence[Output],
    processing: Sequence[Postprocessing],
    dimensions: Sequence[str],
    *,
    split: str,
    fold: int,
) -> list[Prediction]:
    """A Prediction of each output, post-processed by its own entry of `processing`."""
    return [
        Prediction(
            corpus=item.entry.corpus,
            subject=item.entry.subject,
            name=item.entry.name,
            split=split,
            fold=fold,
            time_s=item.time_s,
            dimensions=tuple(dimensions),
            prediction=process(item.values),
            reference=item.reference,
        )
        for item, process in zip(outputs, processing, strict=True)
    ]


def output_rate_hz(preparation: Preparation, config: DataConfig) -> float:
    """Outputs a second: frames, or windows under the target `window_mean`."""
    frames = (config.window_frames or 1) if config.target == "window_mean" else 1
    return preparation.rate_hz / frames


@dataclass(frozen=True)
class _Piece:
    """A network's output over one window: [L, D], or [1, D] under `window_mean`."""

    values: Float32[np.ndarray, "L D"]
    labels: Float32[np.ndarray, "L D"]
    start: int
    frames: int


def _pieces_by_recording(
    module: AffectModule, dataset: WindowDataset, batch_size: int
) -> list[list[_Piece]]:
    """Each recording's windows in order."""
    pieces: list[list[_Piece]] = [[] for _ in dataset.entries]
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=collate)
    module.eval()
    with torch.inference_mode():
        for batch in loader:
            values = module.predict_step(batch.to(module.device))  # N S D
            labels, _ = module.targets(batch)  # N S D
            for index, recording in enumerate(batch.recording.tolist()):
                frames = int(batch.mask[index].sum())
                rows = slice(frames)  # the one row of a window, or its real frames
                pieces[recording].append(
                    _Piece(
                        _array(values[index, rows]),
                        _array(labels[index, rows]),
                        int(batch.start[index]),
                        frames,
                    )
                )
    return pieces


def _frames(
    pieces: Sequence[_Piece], series: Series, preparation: Preparation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = np.concatenate([piece.values for piece in pieces])  # T D
    columns = [
        shift_forward(values[:, column], delay_s, preparation.rate_hz)
        for column, delay_s in enumerate(preparation.delay_s)
    ]
    return series.time_s, np.stack(columns, axis=1), series.reference


def _window_means(
    pieces: Sequence[_Piece], series: Series, _: Preparation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    centres = [series.time_s[piece.start : piece.start + piece.frames].mean() for piece in pieces]
    values, labels = ([getattr(piece, name) for piece in pieces] for name in ("values", "labels"))
    return np.array(centres), np.concatenate(values), np.concatenate(labels)


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
