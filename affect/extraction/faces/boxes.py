"""Boxes around faces: how far two overlap, and which of several on one face remains.

A box is (x_min, y_min, x_max, y_max) in pixels; pixel i lies at coordinate i.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def overlaps(boxes: Float[Tensor, "N 4"], others: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Intersection over union of each pair; 0 where both are empty."""
    first, second = boxes[:, None], others[None]
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = _area(first) + _area(second) - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def _area(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def unsuppressed(
    boxes: Float[Tensor, "K 4"],
    scores: Float[Tensor, " K"],
    frames: Int[Tensor, " K"],
    limit: float,
) -> Int[Tensor, " k"]:
    """Indices of the boxes that non-maximum suppression leaves, by frame, then best score first.

    Of two boxes in one frame that overlap by more than `limit`, the one with the lower score goes,
    unless a third box has removed the other before. All frames are worked at once.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[frames[order].argsort(stable=True)]
    boxes, frames = boxes[order], frames[order]
    same_frame = frames[:, None] == frames[None]
    stronger = ((overlaps(boxes, boxes) > limit) & same_frame).tril(diagonal=-1)
    return order[_fixed_point(stronger)]


def _fixed_point(stronger: Bool[Tensor, "K K"]) -> Bool[Tensor, " K"]:
    """What the greedy loop keeps: those for which no kept box is `stronger`.

    Box i is settled as soon as those before it are, so the same vector twice is the answer; on
    faces that takes two or three rounds, however many frames there are.
    """
    kept = torch.ones(len(stronger), dtype=torch.bool, device=stronger.device)
    while True:
        renewed = ~(stronger & kept).any(dim=1)
        if torch.equal(renewed, kept):
            return kept
        kept = renewed
