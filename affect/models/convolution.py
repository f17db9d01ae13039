"""Residual convolution over time that no padding reaches: the block of two models."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class ResidualConvolution(nn.Module):
    """Two convolutions over time, each normalised, around a shortcut (He et al. 2016).

    The normalisation is LayerNorm over a frame's channels. BatchNorm would mix padding, and the
    other sequences of a batch, into each frame, and its running statistics have no meaningful
    average over clients whose subjects differ.

    Args:
        features: channels in.
        channels: channels out.
        kernel_size: frames under the kernel.
        dilation: frames between the kernel's taps.
        causal: see no later frame.
        dropout: after the first convolution, 0 to 1.
    """

    def __init__(
        self,
        features: int,
        channels: int,
        *,
        kernel_size: int,
        dropout: float,
        dilation: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        reach = (kernel_size - 1) * dilation
        before = reach if causal else reach // 2
        self.surround = (before, reach - before)
        self.first = nn.Conv1d(features, channels, kernel_size, dilation=dilation)
        self.second = nn.Conv1d(channels, channels, kernel_size, dilation=dilation)
        self.first_norm = nn.LayerNorm(channels)
        self.second_norm = nn.LayerNorm(channels)
        self.shortcut = (
            nn.Identity() if features == channels else nn.Linear(features, channels, bias=False)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, features: Float[Tensor, "N T F"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N T C"]:
        """Each frame's channels, rectified."""
        hidden = self.first_norm(self._over_time(self.first, features, mask))  # N T F -> N T C
        hidden = self.dropout(hidden.relu())
        hidden = self.second_norm(self._over_time(self.second, hidden, mask))  # N T C -> N T C
        return (self.shortcut(features) + hidden).relu()

    def _over_time(
        self, convolution: nn.Conv1d, values: Float[Tensor, "N T A"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N T B"]:
        """The convolution with zeros beyond a sequence's end, be it padding or the edge."""
        real = torch.where(mask.unsqueeze(-1), values, 0.0)
        surrounded = functional.pad(real.transpose(1, 2), self.surround)  # N T A -> N A T'
        return convolution(surrounded).transpose(1, 2)  # N A T' -> N T B
