"""Sixty-eight points of a face: face-api's landmark network, batched.

Four blocks of separable convolutions, each of whose layers sees the sum of those before, then a
linear layer to x and y of the 68 points (iBUG's scheme, as OpenFace numbers them).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from affect.extraction.faces.networks import SeparableConv, frozen
from affect.extraction.faces.regions import Regions, around_boxes, around_landmarks
from affect.extraction.faces.sampling import cropped
from affect.extraction.parts import InParts

WEIGHTS = "face_landmarks"
POINTS = 68
SIZE = 112
"""Pixels a side of the network's input."""

_MEAN_RGB = (122.782, 117.001, 104.298)
_CHANNELS = (3, 32, 64, 128, 256)


def _mirrored_points() -> list[int]:
    """Where each point's counterpart on the other side of the face stands."""
    pairs = [(first, 16 - first) for first in range(8)]  # jaw
    pairs += [(17 + step, 26 - step) for step in range(5)]  # brows
    pairs += [(31, 35), (32, 34)]  # nostrils
    pairs += [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)]  # eyes
    pairs += [(48, 54), (49, 53), (50, 52), (55, 59), (56, 58)]  # outer lips
    pairs += [(60, 64), (61, 63), (65, 67)]  # inner lips
    order = list(range(POINTS))
    for right, left in pairs:
        order[right], order[left] = left, right
    return order


MIRRORED = tuple(_mirrored_points())


class DenseBlock(nn.Module):
    """Halves height and width; each further layer is added to the sum of those before."""

    def __init__(self, first: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv0 = first
        self.conv1 = SeparableConv(channels, channels)
        self.conv2 = SeparableConv(channels, channels)
        self.conv3 = SeparableConv(channels, channels)

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        """Filter."""
        total = functional.relu_(self.conv0(functional.pad(images, (0, 1, 0, 1))))
        total = self.conv1(total).add_(total)
        total = self.conv2(functional.relu(total)).add_(total)
        total = self.conv3(functional.relu(total)).add_(total)
        return functional.relu_(total)


class LandmarkNet(nn.Module):
    """Faces to landmarks in the frame's pixels."""

    mean: Tensor
    mirrored: Tensor

    def __init__(self) -> None:
        super().__init__()
        _, *channels = _CHANNELS
        firsts = [nn.Conv2d(3, channels[0], kernel_size=3, stride=2)]
        firsts += [SeparableConv(*pair, stride=2) for pair in pairwise(channels)]
        for block, (first, width) in enumerate(zip(firsts, channels, strict=True)):
            self.add_module(f"dense{block}", DenseBlock(first, width))
        self.fc = nn.Linear(channels[-1], 2 * POINTS)
        self._in_parts, self._cropped_in_parts = InParts(cpu=16), InParts(cpu=8)
        self.register_buffer("mean", torch.tensor(_MEAN_RGB), persistent=False)
        self.register_buffer("mirrored", torch.tensor(MIRRORED), persistent=False)

    def forward(
        self,
        pixels: UInt8[Tensor, "N H W 3"],
        boxes: Float[Tensor, "K 4"],
        frames: Int[Tensor, " K"] | None = None,
    ) -> Float[Tensor, "K 68 2"]:
        """Landmarks of the faces in boxes, in two passes.

        The first pass says where to look exactly, the second looks there with the eyes level, and
        at the mirror image too.

        Args:
            pixels: frames, BGR.
            boxes: a detector's.
            frames: the frame of each box; left out, one box a frame.
        """
        if frames is None:
            frames = torch.arange(len(pixels), device=pixels.device)
        first = self.in_regions(pixels, around_boxes(boxes), frames)
        return self.both_ways(pixels, around_landmarks(first), frames)[0]

    def in_regions(
        self,
        pixels: UInt8[Tensor, "N H W 3"],
        regions: Regions,
        frames: Int[Tensor, " K"],
        correction: Float[Tensor, "K 68 2"] | None = None,
    ) -> Float[Tensor, "K 68 2"]:
        """Landmarks of the faces in regions, in one pass.

        Args:
            pixels: frames, BGR.
            regions: a square about each face.
            frames: the frame of each region.
            correction: to add, as `both_ways` finds it.
        """
        points = self._in_parts(self.encode, self._crops(pixels, regions, frames))
        return regions.to_frame(points if correction is None else points + correction)

    def both_ways(
        self, pixels: UInt8[Tensor, "N H W 3"], regions: Regions, frames: Int[Tensor, " K"]
    ) -> tuple[Float[Tensor, "K 68 2"], Float[Tensor, "K 68 2"]]:
        """Landmarks averaged with those of the mirror image: less error, twice the work.

        Args:
            pixels: frames, BGR.
            regions: a square about each face.
            frames: the frame of each region.

        Returns:
            The landmarks, and how far they lie from those of one pass, in sides of their region.
        """
        faces = self._crops(pixels, regions, frames)
        points = self._in_parts(self.encode, faces)
        x, y = self._in_parts(self.encode, faces.flip(-1))[:, self.mirrored].unbind(-1)
        # Pixel i of the mirror image is pixel SIZE - 1 - i; pixel i lies at i / SIZE.
        correction = (torch.stack(((SIZE - 1) / SIZE - x, y), dim=-1) - points) / 2
        return regions.to_frame(points + correction), correction

    def _crops(
        self, pixels: UInt8[Tensor, "N H W 3"], regions: Regions, frames: Int[Tensor, " K"]
    ) -> Float[Tensor, "K 3 112 112"]:
        """The regions as the network takes them."""

        def crops(frames: Tensor, *square: Tensor) -> Tensor:
            rgb = cropped(pixels, Regions(*square), frames, SIZE).flip(1)
            return (rgb - self.mean[:, None, None]) / 255

        square = regions.centre, regions.side, regions.roll
        return self._cropped_in_parts(crops, frames, *square)

    def encode(self, faces: Float[Tensor, "N 3 112 112"]) -> Float[Tensor, "N 68 2"]:
        """Points across and down the square, 0 to 1."""
        for block in range(len(_CHANNELS) - 1):
            faces = self.get_submodule(f"dense{block}")(faces)
        return self.fc(faces.mean(dim=(2, 3))).unflatten(-1, (POINTS, 2))


def load_landmarks() -> LandmarkNet:
    """The landmark network with its packaged weights, on the CPU."""
    return frozen(LandmarkNet(), WEIGHTS)
