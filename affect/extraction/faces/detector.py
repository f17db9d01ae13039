"""Where faces are: face-api's tiny face detector, batched.

A small YOLO over separable convolutions with one class, five anchors and a stride of 32 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from affect.extraction.faces.boxes import unsuppressed
from affect.extraction.faces.networks import SeparableConv, frozen
from affect.extraction.faces.sampling import squared
from affect.extraction.parts import InParts

WEIGHTS = "face_detector"

SIZES = (224, 416)
"""Input sizes in the order they are tried.

224 finds faces of an eighth to a half of the frame's longer side; greater sizes find smaller faces,
miss large ones and see more faces where there are none.
"""

THRESHOLD = 0.5

_STRIDE = 32
_OVERLAP = 0.4
_MEAN_RGB = (117.001, 114.697, 97.404)
_ANCHORS = (  # width and height in cells
    (1.603231, 2.094468),
    (6.041143, 7.080126),
    (2.882459, 3.518061),
    (4.266906, 5.178857),
    (9.041765, 10.66308),
)
_CHANNELS = (16, 32, 64, 128, 256, 512)
_SLOPE = 0.1


@dataclass(frozen=True, eq=False)
class Detections:
    """Faces of some frames, by frame, then best first; frames without a face are absent.

    Attributes:
        boxes: x_min, y_min, x_max, y_max in pixels; may reach over the frame's border.
        scores: 0 to 1.
        frames: the index of each face's frame.
    """

    boxes: Float[Tensor, "K 4"]
    scores: Float[Tensor, " K"]
    frames: Int[Tensor, " K"]


class FaceDetector(nn.Module):
    """Frames to boxes around faces."""

    anchors: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, _CHANNELS[0], kernel_size=3)
        for layer, channels in enumerate(pairwise(_CHANNELS), start=1):
            self.add_module(f"conv{layer}", SeparableConv(*channels))
        self._in_parts = InParts(cpu=4)
        self.conv8 = nn.Conv2d(_CHANNELS[-1], 5 * len(_ANCHORS), kernel_size=1)
        self.register_buffer("anchors", torch.tensor(_ANCHORS), persistent=False)
        self.register_buffer("mean", torch.tensor(_MEAN_RGB), persistent=False)

    def forward(
        self,
        pixels: UInt8[Tensor, "N H W 3"],
        sizes: Sequence[int] = SIZES,
        threshold: float = THRESHOLD,
        every_size: bool = False,
    ) -> Detections:
        """Find faces.

        Args:
            pixels: frames, BGR.
            sizes: input sizes, multiples of 32. A frame is tried at the next size only where those
                before found no face in it.
            threshold: a face's score lies above.
            every_size: try each frame at every size, to find small faces beside large ones.
        """
        untried = torch.arange(len(pixels), device=pixels.device)
        found = []
        for size in sizes:
            boxes, scores = self.candidates(pixels.index_select(0, untried), size)
            frame, place = (scores > threshold).nonzero(as_tuple=True)
            found.append((boxes[frame, place], scores[frame, place], untried[frame]))
            if not every_size:
                untried = untried[(scores <= threshold).all(dim=1)]
            if not len(untried):
                break
        boxes, scores, frames = map(torch.cat, zip(*found, strict=True))
        kept = unsuppressed(boxes, scores, frames, _OVERLAP)
        return Detections(boxes[kept], scores[kept], frames[kept])

    def candidates(
        self, pixels: UInt8[Tensor, "N H W 3"], size: int
    ) -> tuple[Float[Tensor, "N A 4"], Float[Tensor, "N A"]]:
        """The box and the score of every cell and anchor.

        Args:
            pixels: frames, BGR.
            size: the longer side of the frames is resampled to so many pixels; a multiple of 32.

        Raises:
            ValueError: size is no multiple of 32.
        """
        if size % _STRIDE:
            raise ValueError(f"the detector's input size must be a multiple of {_STRIDE}: {size}")

        def encoded_at_size(pixels: Tensor) -> Tensor:
            rgb = squared(pixels, size).flip(1)
            return self.encode((rgb - self.mean[:, None, None]) / 255)

        encoded = self._in_parts(encoded_at_size, pixels)  # [N 25 h w]
        return self._decoded(encoded, scale=max(pixels.shape[1:3]) / size)

    def encode(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 25 h w"]:
        """Five numbers an anchor for each cell: x, y, width, height and score, all encoded."""
        images = functional.leaky_relu_(self.conv0(images), _SLOPE)
        for layer in range(1, len(_CHANNELS)):
            images = functional.max_pool2d(images, 2, ceil_mode=True)
            images = functional.leaky_relu_(self.get_submodule(f"conv{layer}")(images), _SLOPE)
        images = functional.max_pool2d(
            functional.pad(images, (0, 1, 0, 1), value=-torch.inf), 2, stride=1
        )
        return self.conv8(images)

    def _decoded(
        self, encoded: Float[Tensor, "N 25 h w"], scale: float
    ) -> tuple[Float[Tensor, "N A 4"], Float[Tensor, "N A"]]:
        """Boxes in the frame's pixels, of which `scale` make one of the network's."""
        cells = encoded.permute(0, 2, 3, 1).unflatten(-1, (len(_ANCHORS), 5))  # [N h w 5 5]
        rows, columns = (torch.arange(extent, device=encoded.device) for extent in cells.shape[1:3])
        corner = torch.cartesian_prod(rows, columns).flip(-1).view(len(rows), -1, 1, 2)
        centre = (corner + cells[..., :2].sigmoid()) * (_STRIDE * scale)
        half = cells[..., 2:4].exp() * self.anchors * (_STRIDE * scale / 2)
        boxes = torch.cat((centre - half, centre + half), dim=-1)
        return boxes.flatten(1, 3), cells[..., 4].sigmoid().flatten(1)


def load_detector() -> FaceDetector:
    """The detector with its packaged weights, on the CPU."""
    return frozen(FaceDetector(), WEIGHTS)
