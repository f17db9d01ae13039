"""What identifies the person of a face, gathered frame by frame where the user asks for it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float, Float32
from torch import Tensor


class Identifying:
    """Keeps what it is told to of all that it is shown.

    Args:
        keep: names of `recording.IDENTIFYING`.
    """

    def __init__(self, keep: Collection[str]) -> None:
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in keep}

    def add(self, success: Bool[Tensor, " N"], **shown: Float[Tensor, "N ..."]) -> None:
        """Take in the next frames.

        Args:
            success: whether the face is there.
            shown: by its name, a row a frame.
        """
        for name, rows in self._rows.items():
            values = shown[name].float().cpu().numpy()
            there = success.cpu().numpy().reshape(-1, *[1] * (values.ndim - 1))
            rows.append(np.where(there, values, np.float32(np.nan)))

    def finish(self) -> dict[str, Float32[np.ndarray, "T ..."]]:
        """What was kept of all frames, NaN where there is no face."""
        return {name: np.concatenate(rows) for name, rows in self._rows.items()}
