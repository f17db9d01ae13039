"""The paper's residual convolutions before a bidirectional LSTM or GRU (Mase et al. 2021)."""

from __future__ import annotations

from functools import partial
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from affect.models.convolution import ResidualConvolution
from affect.models.recurrent import Recurrent


class ConvolutionalRecurrent(nn.Module):
    """Two residual convolutions over time, then a bidirectional recurrent stack.

    Args:
        cell: `lstm` or `gru`.
        features: F, columns of the input.
        hidden_size: the convolutions' channels, and the width of a recurrent layer and direction.
        layers: recurrent layers.
        dropout: inside the convolutions and between recurrent layers, 0 to 1.
        kernel_size: frames under a convolution's kernel.
    """

    def __init__(
        self,
        cell: Literal["lstm", "gru"],
        features: int,
        *,
        hidden_size: int,
        layers: int,
        dropout: float,
        kernel_size: int = 5,
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            ResidualConvolution(inputs, hidden_size, kernel_size=kernel_size, dropout=dropout)
            for inputs in (features, hidden_size)
        )
        self.recurrent = Recurrent(
            cell, True, hidden_size, hidden_size=hidden_size, layers=layers, dropout=dropout
        )
        self.channels = self.recurrent.channels

    def forward(
        self, features: Float[Tensor, "N T F"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N T C"]:
        """The recurrent stack's state at each frame."""
        hidden = features
        for convolution in self.convolutions:
            hidden = convolution(hidden, mask)  # N T F -> N T H
        return self.recurrent(hidden, mask)  # N T H -> N T C


conv_bilstm = partial(ConvolutionalRecurrent, "lstm")
conv_bigru = partial(ConvolutionalRecurrent, "gru")
