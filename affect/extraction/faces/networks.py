"""The packaged weights of the face networks: found, restored, identified; and their one block.

Origin, version and licence stand in `weights/NOTICE.md`.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import TypeVar

import torch
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

Net = TypeVar("Net", bound=nn.Module)

_MANY = 16
"""Images from which on torch's 1 x 1 convolution is fast on a single thread."""


def packaged(name: str) -> bytes:
    """The content of `weights/<name>.safetensors`."""
    return (
        resources.files("affect.extraction.faces") / "weights" / f"{name}.safetensors"
    ).read_bytes()


@cache
def sha256(name: str) -> str:
    """SHA-256 of a network's packaged weights, hexadecimal: what a Recording names as provenance.

    Args:
        name: `face_detector` or `face_landmarks`.
    """
    return hashlib.sha256(packaged(name)).hexdigest()


def restored(name: str) -> dict[str, Tensor]:
    """The packaged weights by torch's names, float32.

    They are kept as uint8 with a scale and a minimum each; like TensorFlow.js, the value is
    computed in float64 and rounded once, so that it is theirs to the bit.
    """
    stored = load(packaged(name))
    return {
        key: (number.double() * stored[f"{key}.scale"] + stored[f"{key}.minimum"]).float()
        for key, number in stored.items()
        if number.dtype == torch.uint8
    }


def frozen(network: Net, name: str) -> Net:
    """The network with its packaged weights, for inference alone.

    Its memory is laid out channels last: twice as fast on a CPU as torch's default.
    """
    network.load_state_dict(restored(name))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network.eval().requires_grad_(False)


class SeparableConv(nn.Module):
    """A 3 x 3 filter a channel, then a 1 x 1 convolution with bias.

    Pads with 0 to the same size at stride 1 and not at all otherwise: TensorFlow pads strided
    convolutions on one side only, which is the caller's to do.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels_in,
            channels_in,
            kernel_size=3,
            stride=stride,
            padding=1 if stride == 1 else 0,
            groups=channels_in,
            bias=False,
        )
        self.pointwise = nn.Conv2d(channels_in, channels_out, kernel_size=1)

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        """Filter."""
        images = self.depthwise(images)
        if len(images) >= _MANY:
            return self.pointwise(images)
        # Channels last, a 1 x 1 convolution is a linear layer, whatever the batch.
        weight = self.pointwise.weight.flatten(1)
        pixels = functional.linear(images.permute(0, 2, 3, 1), weight, self.pointwise.bias)
        return pixels.permute(0, 3, 1, 2)
