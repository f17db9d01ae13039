"""Bilinear resampling of frames as TensorFlow.js does it for the face networks.

Output pixel i of n lies i/n of the way, without the half pixel that most libraries add: face-api
feeds the networks so. What lies outside a frame is black.
"""

from __future__ import annotations

from math import gcd

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from affect.extraction.faces.regions import Regions


def squared(pixels: UInt8[Tensor, "N H W 3"], size: int) -> Float[Tensor, "N 3 size size"]:
    """Frames, made square with black below or at the right, at `size` pixels a side.

    Resampling with corners aligned samples at i * (input - 1) / (output - 1): the wanted places
    where black is added up to the next of the pixels that fall on an output pixel, and one more.
    """
    extents = pixels.shape[1:3]
    side = max(extents)
    step, output_step = (length // gcd(side, size) for length in (side, size))
    steps = [-(-extent // step) for extent in extents]
    below, beside = (n * step + 1 - extent for n, extent in zip(steps, extents, strict=True))
    filled = functional.pad(pixels, (0, 0, 0, beside, 0, below)).permute(0, 3, 1, 2).float()
    for axis, extent in enumerate(extents, start=2):
        if extent == side:  # where TensorFlow.js has no pixel left, it repeats the last one
            filled.select(axis, extent).copy_(filled.select(axis, extent - 1))
    resampled = functional.interpolate(
        filled,
        [n * output_step + 1 for n in steps],
        mode="bilinear",
        align_corners=True,
    )
    height, width = resampled.shape[2:]
    return functional.pad(resampled, (0, size - width, 0, size - height))


def cropped(
    pixels: UInt8[Tensor, "N H W 3"], regions: Regions, frames: Int[Tensor, " K"], size: int
) -> Float[Tensor, "K 3 size size"]:
    """Each region of its frame, turned upright, at `size` pixels a side.

    Args:
        pixels: frames.
        regions: squares, which may reach over a frame's border.
        frames: the frame of each region.
        size: pixels a side.
    """
    ends = torch.cartesian_prod(*[torch.arange(2.0, device=pixels.device)] * 2)  # down, across
    corners = regions.to_frame(ends.flip(-1)[None])  # K 4 2
    rows, columns = (_needed(corners[..., axis], pixels.shape[2 - axis]) for axis in (1, 0))
    part = pixels[:, rows, columns].index_select(0, frames).permute(0, 3, 1, 2).float()
    # grid_sample counts from -1 at the first pixel's middle to 1 at the last one's
    first = corners.new_tensor((columns.start, rows.start))
    extent = corners.new_tensor((part.shape[3], part.shape[2]))
    origin, right, down, _ = ((corners - first) * (2 / (extent - 1)) - 1).unbind(1)  # each K 2
    steps = torch.arange(size, device=pixels.device)[:, None] / size
    across = (right - origin)[:, None, None] * steps  # K 1 size 2
    grid = across + ((down - origin)[:, None] * steps + origin[:, None])[:, :, None]
    return functional.grid_sample(part, grid, padding_mode="zeros", align_corners=True)


def _needed(places: Float[Tensor, "K P"], extent: int) -> slice:
    """The rows or columns that places lie between, two at least."""
    start = min(max(int(places.amin()), 0), extent - 2)
    return slice(start, max(min(int(places.amax()) + 2, extent), start + 2))
