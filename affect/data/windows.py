"""Windows of recordings: where they start, how they are cut and padded, how they form a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from affect.data.preparation import Series, SeriesCache
from affect.store import Entry


@dataclass(frozen=True)
class Window:
    """A slice of a recording, before padding; L frames.

    Attributes:
        features: [L, F].
        labels: [L, D], NaN where missing.
        recording: index of its recording in the dataset.
        start: its first frame in that recording.
    """

    features: Float32[Tensor, "L F"]
    labels: Float32[Tensor, "L D"]
    recording: int
    start: int


@dataclass(frozen=True)
class Batch:
    """N windows, padded at their ends to the longest; T frames.

    Attributes:
        features: [N, T, F], 0 where padded.
        labels: [N, T, D], NaN where missing or padded.
        mask: [N, T], True at real frames.
        recording: index of each window's recording.
        start: each window's first frame.
    """

    features: Float[Tensor, "N T F"]
    labels: Float[Tensor, "N T D"]
    mask: Bool[Tensor, "N T"]
    recording: Int64[Tensor, " N"]
    start: Int64[Tensor, " N"]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for faster copies to a GPU."""
        return Batch(*(getattr(self, name).pin_memory() for name in self.__dataclass_fields__))


def window_count(frames: int, window_frames: int | None, hop_frames: int | None) -> int:
    """How many windows cover a recording; the last one may reach past its end.

    Args:
        frames: of the recording, at least 1.
        window_frames: length; None for the whole recording.
        hop_frames: from start to start; None for `window_frames`.
    """
    if window_frames is None or frames <= window_frames:
        return 1
    hop = hop_frames or window_frames
    return 1 + -(-(frames - window_frames) // hop)


def collate(windows: Sequence[Window]) -> Batch:
    """The batch of some windows, padded at their ends."""
    lengths = torch.tensor([len(window.features) for window in windows])
    return Batch(
        features=pad_sequence([window.features for window in windows], batch_first=True),
        labels=pad_sequence(
            [window.labels for window in windows], batch_first=True, padding_value=torch.nan
        ),
        mask=torch.arange(int(lengths.max())) < lengths[:, None],
        recording=torch.tensor([window.recording for window in windows]),
        start=torch.tensor([window.start for window in windows]),
    )


class WindowDataset(Dataset[Window]):
    """Windows of prepared recordings, read when they are asked for.

    Memory grows with the number of recordings, not of windows; recordings are opened in the
    process that asks.

    Args:
        entries: the recordings.
        series: prepares and keeps recordings.
        window_frames: length; None for whole recordings.
        hop_frames: from start to start; None for `window_frames`.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        series: SeriesCache,
        window_frames: int | None = None,
        hop_frames: int | None = None,
    ) -> None:
        self.entries = list(entries)
        self._series = series
        self._window_frames = window_frames
        self._hop_frames = hop_frames or window_frames or 0
        counts = [window_count(e.frames, window_frames, hop_frames) for e in self.entries]
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Window:
        recording = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[recording - 1]) if recording else 0
        start = (index - first) * self._hop_frames
        return _cut(self._series[self.entries[recording]], recording, start, self._window_frames)


def _cut(series: Series, recording: int, start: int, window_frames: int | None) -> Window:
    stop = None if window_frames is None else start + window_frames
    return Window(
        torch.from_numpy(series.features[start:stop]),
        torch.from_numpy(series.labels[start:stop]),
        recording,
        start,
    )
