"""What identifies the person of a face, gathered frame by frame where the user asks for it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from affect.extraction.rows import Rows


class Identifying:
    """Keeps what it is told to of all that it is shown.

    Args:
        keep: names of `recording.IDENTIFYING`.
    """

    def __init__(self, keep: Collection[str]) -> None:
        self._rows = {name: Rows() for name in keep}

    def add(self, success: Bool[Tensor, " N"], **shown: Float[Tensor, "N ..."]) -> None:
        """Take in the next frames.

        Args:
            success: whether the face is there.
            shown: by its name, a row a frame.
        """
        for name, rows in self._rows.items():
            values = shown[name].float()
            lost = ~success.to(values.device).view(-1, *[1] * (values.ndim - 1))
            rows.add(values.masked_fill(lost, torch.nan))

    def finish(self) -> dict[str, Float32[np.ndarray, "T ..."]]:
        """What was kept of all frames, NaN where there is no face."""
        return {name: rows.all() for name, rows in self._rows.items()}
