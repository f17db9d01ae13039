"""Step 4: Felzenszwalb's histogram of oriented gradients as dlib computes it.

Felzenszwalb, Girshick, McAllester and Ramanan, "Object Detection with Discriminatively Trained
Part-Based Models", PAMI 2010: 8-pixel cells, 18 signed and 9 unsigned directions, 4 textures.
Histograms are matrix products, so that the result is the same in every run on a GPU as well. On the
CPU dlib's own code serves where the package pyfhog is installed: it is eight times as fast.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from affect.extraction.openface.align import SIZE

_CELL = 8
_CELLS = SIZE // _CELL
_DIRECTIONS = 9
_COSINES = (1.0, 0.9397, 0.7660, 0.5, 0.1736, -0.1736, -0.5, -0.7660, -0.9397)
_SINES = (0.0, 0.3420, 0.6428, 0.8660, 0.9848, 0.9848, 0.8660, 0.6428, 0.3420)
_TRUNCATION = 0.2
_REGULARISER = 1e-4
_TEXTURE = 0.2357
INSTALLED = find_spec("pyfhog") is not None
"""Whether dlib's own code is there, in the package pyfhog."""


class Fhog(nn.Module):
    """The descriptor of aligned faces: 12 x 12 inner cells of 31 values, [T, 4464] in float32."""

    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spread", _spread())  # 14 110

    def forward(self, faces: UInt8[Tensor, "T 112 112 3"]) -> Float[Tensor, "T 4464"]:
        """Row, column, channel: 18 signed, 9 unsigned, 4 texture.

        Args:
            faces: blue, green, red; of equally strong gradients the first channel's counts.
        """
        if INSTALLED and faces.device.type == "cpu":
            return compiled(faces)
        return self.batched(faces)

    def batched(self, faces: UInt8[Tensor, "T 112 112 3"]) -> Float[Tensor, "T 4464"]:
        """The same in tensor operations, on any device."""
        histogram = self.histogram(*strongest_gradient(faces))  # T 18 14 14
        unsigned = histogram[:, :_DIRECTIONS] + histogram[:, _DIRECTIONS:]  # T 9 14 14
        energy = unsigned.square().sum(1)  # T 14 14
        pooled = energy[:, 1:] + energy[:, :-1]
        pooled = pooled[..., 1:] + pooled[..., :-1]  # T 13 13, the energy of 2 x 2 cells
        limit = _TRUNCATION * (pooled + _REGULARISER).sqrt()
        return _normalised(histogram[..., 1:-1, 1:-1], unsigned[..., 1:-1, 1:-1], limit)

    def histogram(
        self, dx: Float[Tensor, "T 110 110"], dy: Float[Tensor, "T 110 110"]
    ) -> Float[Tensor, "T 18 14 14"]:
        """Gradient magnitude by cell and signed direction, spread bilinearly over four cells."""
        magnitude = (dx.square() + dy.square()).sqrt().unsqueeze(1)
        planes = magnitude.new_zeros(len(dx), 2 * _DIRECTIONS, *dx.shape[1:])
        planes.scatter_(1, nearest_direction(dx, dy).unsqueeze(1), magnitude)
        return self.spread @ (planes @ self.spread.T)


def compiled(faces: UInt8[Tensor, "T 112 112 3"]) -> Float[Tensor, "T 4464"]:
    """The descriptor by dlib's own code, on the CPU; needs pyfhog."""
    import pyfhog

    rows = [pyfhog.extract_fhog_features(face, _CELL) for face in faces.numpy()]
    return torch.from_numpy(np.stack(rows)).view(len(faces), -1)


def strongest_gradient(
    faces: UInt8[Tensor, "T 112 112 3"],
) -> tuple[Float[Tensor, "T 110 110"], Float[Tensor, "T 110 110"]]:
    """Central differences to the right and down, of each pixel's channel with the longest one."""
    values = faces.permute(3, 0, 1, 2).float()  # 3 T 112 112; differences are exact
    across = values[..., 1:-1, 2:] - values[..., 1:-1, :-2]
    down = values[..., 2:, 1:-1] - values[..., :-2, 1:-1]
    dx, dy = across[0], down[0]
    strength = dx.square() + dy.square()
    for other_dx, other_dy in zip(across[1:], down[1:], strict=True):
        other = other_dx.square() + other_dy.square()
        stronger = other > strength
        strength = torch.where(stronger, other, strength)
        dx, dy = torch.where(stronger, other_dx, dx), torch.where(stronger, other_dy, dy)
    return dx, dy


def nearest_direction(
    dx: Float[Tensor, "T 110 110"], dy: Float[Tensor, "T 110 110"]
) -> Int64[Tensor, "T 110 110"]:
    """The signed direction, 0 to 17, along which each gradient is longest; of equals the first."""
    longest = torch.zeros_like(dx)
    nearest = torch.zeros_like(dx)
    for index, (cosine, sine) in enumerate(zip(_COSINES, _SINES, strict=True)):
        along = dx * cosine + dy * sine
        length = along.abs()
        longer = length > longest
        signed = torch.where(along > 0, float(index), float(index + _DIRECTIONS))
        nearest = torch.where(longer, signed, nearest)
        longest = torch.maximum(longest, length)
    return nearest.long()


def _normalised(
    signed: Float[Tensor, "T 18 12 12"],
    unsigned: Float[Tensor, "T 9 12 12"],
    limit: Float[Tensor, "T 13 13"],
) -> Float[Tensor, "T 4464"]:
    """Each cell by the energy of the four 2 x 2 blocks that hold it, truncated and summed."""
    directions = torch.zeros((), dtype=signed.dtype, device=signed.device)
    textures = []
    both = torch.cat([signed, unsigned], dim=1)  # T 27 12 12
    for down in (slice(1, None), slice(None, -1)):  # the lower blocks' textures come in between:
        for right in (slice(1, None), slice(None, -1)):
            block = limit[:, None, down, right]  # T 1 12 12
            cut = torch.minimum(both, block) * (_TRUNCATION / 2 / block)
            directions = directions + cut
            textures.append(cut[:, : 2 * _DIRECTIONS].sum(1, keepdim=True))
    lower_right, lower_left, upper_right, upper_left = textures
    texture = torch.cat([lower_right, upper_right, lower_left, upper_left], 1) * (2 * _TEXTURE)
    return torch.cat([directions, texture], dim=1).permute(0, 2, 3, 1).flatten(1)


def _spread() -> Float[Tensor, "14 110"]:
    """The share of each inner pixel in each cell, along one axis; what falls outside is lost."""
    pixel = torch.arange(1, SIZE - 1, dtype=torch.float64)
    place = (pixel + 0.5) / _CELL - 0.5
    cell = torch.arange(_CELLS, dtype=torch.float64)[:, None]
    return (1 - (place - cell).abs()).clamp(min=0).float()
