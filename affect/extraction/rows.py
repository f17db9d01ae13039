"""Rows of a whole video, gathered batch by batch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

_FIRST = 4096


class Rows:
    """One array that doubles when it is full.

    A list of small arrays would lie scattered between the large ones that come and go with every
    batch, and keep the memory of those from being used again: 10 kB a frame.
    """

    def __init__(self) -> None:
        self._rows: np.ndarray | None = None
        self._count = 0

    def add(self, values: Shaped[Tensor, "N ..."]) -> None:
        """Take in the next rows, all of one shape and type."""
        new = values.cpu().numpy()
        if self._rows is None:
            self._rows = np.empty((_FIRST, *new.shape[1:]), new.dtype)
        end = self._count + len(new)
        if end > len(self._rows):
            room = np.empty((2 * end, *new.shape[1:]), new.dtype)
            room[: self._count] = self._rows[: self._count]
            self._rows = room
        self._rows[self._count : end] = new
        self._count = end

    def all(self) -> Shaped[np.ndarray, "T ..."]:
        """All rows, in memory of their own.

        Raises:
            ValueError: there was none.
        """
        if self._rows is None:
            raise ValueError("no rows were added")
        return self._rows[: self._count].copy()
