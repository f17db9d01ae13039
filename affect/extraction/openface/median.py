"""Step 6: the person's running median, as a histogram of each descriptor element.

The median stands for the face at rest. It takes every other frame, and counts in fixed bins, so
that its cost does not grow with the video's length.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from affect.extraction.openface.weights import DESCRIPTORS

_FHOG = 4464
_FHOG_BINS, _FHOG_LOW, _FHOG_HIGH = 1000, -0.005, 1.0
_GEOMETRY_BINS, _GEOMETRY_LOW, _GEOMETRY_HIGH = 10_000, -60.0, 60.0


class RunningMedian:
    """The median of the descriptors seen so far, and how it moved.

    Args:
        device: where the descriptors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._frames = 0
        self._taken = 0
        self._fhog = _Histogram(_FHOG, _FHOG_BINS, _FHOG_LOW, _FHOG_HIGH, device)
        self._geometry = _Histogram(
            DESCRIPTORS - _FHOG, _GEOMETRY_BINS, _GEOMETRY_LOW, _GEOMETRY_HIGH, device
        )

    def update(self, descriptors: Float[Tensor, "T 4702"], success: Bool[Tensor, " T"]) -> None:
        """Take in the odd frames (first, third ... of the video) that succeeded."""
        chosen = descriptors[self._odd(success)]
        if len(chosen):
            fhog, geometry = chosen.split([_FHOG, DESCRIPTORS - _FHOG], dim=1)
            self._fhog.add(fhog)
            self._geometry.add(geometry)
            self._taken += len(chosen)

    def follow(
        self, descriptors: Float[Tensor, "T 4702"], success: Bool[Tensor, " T"]
    ) -> Float[Tensor, "T 4702"]:
        """The median at each frame's moment, which that frame has already entered."""
        moments = []
        taken = -1
        for frame in range(len(descriptors)):
            self.update(descriptors[frame : frame + 1], success[frame : frame + 1])
            moments.append(self.median() if self._taken > taken else moments[-1])
            taken = self._taken
        return torch.stack(moments)

    def median(self) -> Float[Tensor, " 4702"]:
        """The median now; 0 before the first frame."""
        fhog = self._fhog.median(self._taken).clamp(min=0)
        return torch.cat([fhog, self._geometry.median(self._taken)])

    def _odd(self, success: Bool[Tensor, " T"]) -> Bool[Tensor, " T"]:
        number = self._frames + 1 + torch.arange(len(success), device=success.device)
        self._frames += len(success)
        return success & (number % 2 == 1)


class _Histogram:
    """Counts of K elements in bins, and the bin of each element's median.

    The median's bin is moved from where it was: after the first frames by few bins only. Counts are
    narrow until one of them could overflow: most faces are not there for that long.
    """

    def __init__(
        self, elements: int, bins: int, low: float, high: float, device: torch.device
    ) -> None:
        self._bins, self._low, self._length = bins, low, high - low
        self._counts = torch.zeros(elements, bins, dtype=torch.int16, device=device)
        self._added = 0
        self._bin = torch.zeros(elements, dtype=torch.int64, device=device)
        self._below = torch.zeros(elements, dtype=torch.int32, device=device)
        self._only: Tensor | None = None

    def add(self, values: Float[Tensor, "T K"]) -> None:
        place = (values.double() - self._low) * self._bins / self._length
        place = place.trunc().long().clamp(0, self._bins - 1)
        self._added += len(values)
        if self._added > torch.iinfo(self._counts.dtype).max:
            self._counts = self._counts.int()
        ones = torch.ones_like(place, dtype=self._counts.dtype)
        self._counts.scatter_add_(1, place.T, ones.T)
        self._below += (place < self._bin).sum(0, dtype=torch.int32)
        self._only = values[0].double()

    def median(self, taken: int) -> Float[Tensor, " K"]:
        """Left edge and half a bin of the first bin that the count reaches; one value is itself."""
        if taken == 0:
            return torch.zeros(len(self._bin), dtype=torch.float64, device=self._bin.device)
        if taken == 1 and self._only is not None:
            return self._only
        self._move((taken + 1) // 2)
        return self._low + (self._bin.double() + 0.5) * self._length / self._bins

    def _move(self, target: int) -> None:
        """Find the first bin whose cumulative count reaches the target."""
        wanting = self._wanting(target)
        if int(wanting.count_nonzero()) > len(wanting) // 10:
            reached = self._counts.cumsum(1, dtype=torch.int32) >= target
            self._bin = reached.int().argmax(1)
            before = torch.arange(self._bins, device=self._bin.device) < self._bin.unsqueeze(1)
            self._below = (self._counts * before).sum(1, dtype=torch.int32)
            return
        while bool(wanting.any()):
            upwards = wanting > 0
            downwards = wanting < 0
            self._below += torch.where(upwards, self._at(self._bin), 0)
            self._bin += wanting
            self._below -= torch.where(downwards, self._at(self._bin), 0)
            wanting = self._wanting(target)

    def _wanting(self, target: int) -> Int[Tensor, " K"]:
        """1 where the median's bin lies further up, -1 where it lies further down, else 0."""
        up = self._below + self._at(self._bin) < target
        down = self._below >= target
        return up.long() - down.long()

    def _at(self, place: Int[Tensor, " K"]) -> Int[Tensor, " K"]:
        return self._counts.gather(1, place.unsqueeze(1)).squeeze(1)
