"""Steps 2 and 3: bring each face to 112 x 112 pixels, and black out what is not face.

The warp follows OpenCV's fixed-point `warpAffine`, whose rounding the action-unit models have seen:
a warp in floating point costs an intensity error of .01.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from affect.extraction.openface.weights import POINTS, ShapeModel

SIZE = 112
"""Width and height of an aligned face, in pixels."""

_PIXELS_A_MILLIMETRE = 0.7
_RIGID_POINTS = (1, 2, 3, 4, 12, 13, 14, 15, 27, 28, 29, 31, 32, 33, 34, 35, 36, 39, 40, 41, 42)
_RIGID_POINTS += (45, 46, 47)
_OUTLINE = (*range(17), *range(26, 16, -1))
"""Jaw from ear to ear, then the brows back."""
_LIFTED = (0, 16, *range(17, 27))
_LIFT = 30.0
_FIXED = 1024
_PLACE_BITS = 5
_FRACTIONS = 2**_PLACE_BITS
_FRACTION_SHIFT = 5
_HALF_FRACTION = 16
"""From 1/1024 to 1/32 pixel, rounded."""
_BORDER = 2


class Alignment(nn.Module):
    """Turns, scales and masks faces as OpenFace does.

    Args:
        model: the point distribution model, whose mean shape is the target.
    """

    target: Tensor

    def __init__(self, model: ShapeModel) -> None:
        super().__init__()
        mean = torch.from_numpy(model.mean).view(3, POINTS)[:2].T  # 68 2
        target = _PIXELS_A_MILLIMETRE * mean[list(_RIGID_POINTS)]
        self.register_buffer("target", target - target.mean(0))

    def forward(
        self,
        pixels: UInt8[Tensor, "T H W 3"],
        landmarks: Float[Tensor, "T 68 2"],
        translation: Float[Tensor, "T 2"],
    ) -> UInt8[Tensor, "T 112 112 3"]:
        """Aligned, masked faces.

        Args:
            pixels: frames.
            landmarks: x and y in pixels.
            translation: of the fitted model, which comes to the image's centre.
        """
        landmarks, translation = landmarks.double(), translation.double()
        turn = self.similarity(landmarks)  # T 2 2
        offset = SIZE / 2 - (turn @ translation.unsqueeze(-1)).squeeze(-1)  # T 2
        faces = warp(pixels, turn, offset)
        outline = landmarks @ turn.mT + offset[:, None]
        return faces * inside(_lifted(outline)).unsqueeze(-1)

    def similarity(self, landmarks: Float[Tensor, "T 68 2"]) -> Float[Tensor, "T 2 2"]:
        """Scale times rotation that brings the rigid points nearest to the target.

        The rotation is Kabsch's without reflection; the scale is the ratio of root mean squares.
        """
        source = landmarks[:, list(_RIGID_POINTS)]
        source = source - source.mean(1, keepdim=True)
        x, y = source.unbind(-1)
        goal_x, goal_y = self.target.unbind(-1)
        along = (x * goal_x + y * goal_y).sum(1)
        across = (x * goal_y - y * goal_x).sum(1)
        length = torch.hypot(along, across)
        scale = self.target.square().mean().sqrt() / source.square().mean((1, 2)).sqrt()
        cosine, sine = scale * along / length, scale * across / length
        return torch.stack([cosine, -sine, sine, cosine], -1).view(-1, 2, 2)


def warp(
    pixels: UInt8[Tensor, "T H W 3"], turn: Float[Tensor, "T 2 2"], offset: Float[Tensor, "T 2"]
) -> UInt8[Tensor, "T 112 112 3"]:
    """Each frame seen through x -> turn x + offset, bilinear, black outside the frame.

    As in OpenCV, a source coordinate is rounded to 1/32 pixel; its two terms, of the column and of
    the row, are each rounded to 1/1024 before.
    """
    back = torch.linalg.inv(turn)
    shift = -(back @ offset.unsqueeze(-1))  # T 2 1
    places = torch.arange(SIZE, dtype=back.dtype, device=back.device)
    of_column = (back[:, :, :1] * places * _FIXED).round()  # T 2 112, the term of the column
    of_row = ((back[:, :, 1:] * places + shift) * _FIXED).round()
    sums = of_row.int().unsqueeze(-1) + of_column.int().unsqueeze(-2)  # T 2 112 112
    return _bilinear(pixels, (sums + _HALF_FRACTION) >> _FRACTION_SHIFT)


def inside(outline: Float[Tensor, "T 27 2"]) -> Bool[Tensor, "T 112 112"]:
    """Which pixels' centres lie inside the outline, by the even-odd rule.

    Each edge crosses a row at most once; a pixel is inside after an odd number of crossings.
    """
    x, y = outline.unsqueeze(1).unbind(-1)  # T 1 27
    next_x, next_y = x.roll(-1, -1), y.roll(-1, -1)
    rows = torch.arange(SIZE, dtype=outline.dtype, device=outline.device).view(1, SIZE, 1)
    crosses = (y > rows) != (next_y > rows)  # T 112 27
    slope = (next_x - x) / torch.where(next_y == y, 1.0, next_y - y)
    crossing = x + (rows - y) * slope
    first = crossing.ceil().clamp(0, SIZE).long().masked_fill(~crosses, SIZE)
    counts = torch.zeros(*first.shape[:2], SIZE + 1, dtype=torch.int32, device=outline.device)
    counts.scatter_add_(-1, first, torch.ones_like(first, dtype=torch.int32))
    return counts[..., :SIZE].cumsum(-1) % 2 == 1


def _bilinear(
    pixels: UInt8[Tensor, "T H W 3"], place: Int[Tensor, "T 2 112 112"]
) -> UInt8[Tensor, "T 112 112 3"]:
    """The pixels at places in 1/32 pixel, in whole numbers; rounded half up.

    A black border of two pixels stands for all that lies outside the frame.
    """
    x, y = (place >> _PLACE_BITS).unbind(1)
    columns, rows = _seen(x, pixels.shape[2]), _seen(y, pixels.shape[1])
    part = functional.pad(pixels[:, rows, columns], (0, 0, *[_BORDER] * 4))
    frames, height, width, _ = part.shape
    x = (x - columns.start + _BORDER).clamp(0, width - 2)
    y = (y - rows.start + _BORDER).clamp(0, height - 2)
    first = torch.arange(frames, device=pixels.device, dtype=x.dtype).view(-1, 1, 1)
    index = ((first * height + y) * width + x).flatten()
    right, down = (place & (_FRACTIONS - 1)).transpose(0, 1).flatten(1)
    left, up = _FRACTIONS - right, _FRACTIONS - down
    flat = part.view(-1, 3)
    total = torch.full((len(index), 3), _FRACTIONS**2 // 2, dtype=x.dtype, device=pixels.device)
    for step, weight in (
        (0, left * up),
        (1, right * up),
        (width, left * down),
        (width + 1, right * down),
    ):
        total += flat.index_select(0, index + step) * weight.unsqueeze(-1)
    return (total >> 2 * _PLACE_BITS).to(torch.uint8).view(frames, SIZE, SIZE, 3)


def _seen(places: Int[Tensor, "T 112 112"], extent: int) -> slice:
    """The rows or columns of a frame that places and their neighbours lie in; one at least."""
    start = min(max(int(places.amin()), 0), extent - 1)
    return slice(start, max(min(int(places.amax()) + 2, extent), start + 1))


def _lifted(outline: Float[Tensor, "T 68 2"]) -> Float[Tensor, "T 27 2"]:
    """Jaw and brows of aligned landmarks, temples and brows moved up to include the forehead."""
    lift = torch.zeros(POINTS, 2, dtype=outline.dtype, device=outline.device)
    lift[list(_LIFTED), 1] = _LIFT
    return (outline - lift)[:, list(_OUTLINE)]
