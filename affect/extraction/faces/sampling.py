"""Bilinear resampling of frames as TensorFlow.js does it for the face networks.

Output pixel i of n lies i/n of the way, without the half pixel that most libraries add: face-api
feeds the networks so. What lies outside a frame is black.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from affect.extraction.faces.regions import Regions


def squared(pixels: UInt8[Tensor, "N H W 3"], size: int) -> Float[Tensor, "N size size 3"]:
    """Frames, made square with black below or at the right, at `size` pixels a side."""
    side = max(pixels.shape[1:3])
    return _along(2, _along(1, pixels, side, size), side, size)


def _along(
    axis: int, images: Shaped[Tensor, "N H W 3"], side: int, size: int
) -> Float[Tensor, "N h w 3"]:
    """Images sampled `size` times along one axis, which black continues to `side` pixels."""
    extent = images.shape[axis]
    places = torch.arange(size, device=images.device) * (side / size)
    low = places.floor().long()
    high = (low + 1).clamp(max=side - 1)
    share = places - low

    def tap(index: Int[Tensor, " n"], weight: Float[Tensor, " n"]) -> Float[Tensor, "N h w 3"]:
        weight = (weight * (index < extent)).view(-1, *[1] * (3 - axis))
        return images.index_select(axis, index.clamp(max=extent - 1)) * weight

    return tap(low, 1 - share) + tap(high, share)


def cropped(
    pixels: UInt8[Tensor, "N H W 3"], regions: Regions, frames: Int[Tensor, " K"], size: int
) -> Float[Tensor, "K size size 3"]:
    """Each region of its frame, turned upright, at `size` pixels a side.

    Args:
        pixels: frames.
        regions: squares, which may reach over a frame's border.
        frames: the frame of each region.
        size: pixels a side.
    """
    steps = torch.arange(size, device=pixels.device) / size
    places = regions.to_frame(torch.cartesian_prod(steps, steps).flip(-1)[None])  # [K size^2 2]
    low = places.floor()
    share = places - low
    total = torch.zeros(*places.shape[:2], 3, device=pixels.device)
    for corner in torch.cartesian_prod(*[torch.arange(2, device=pixels.device)] * 2):
        weight = torch.where(corner == 1, share, 1 - share).prod(dim=-1)
        total += _fetched(pixels, frames, low.long() + corner) * weight[..., None]
    return total.view(-1, size, size, 3)


def _fetched(
    pixels: UInt8[Tensor, "N H W 3"], frames: Int[Tensor, " K"], places: Int[Tensor, "K P 2"]
) -> Float[Tensor, "K P 3"]:
    """Pixels at whole-numbered places (x, y); 0 outside the frame."""
    _, height, width, _ = pixels.shape
    column, row = places.unbind(dim=-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    row = frames[:, None] * height + row.clamp(0, height - 1)
    flat = row * width + column.clamp(0, width - 1)
    return pixels.reshape(-1, 3)[flat] * inside[..., None].float()
