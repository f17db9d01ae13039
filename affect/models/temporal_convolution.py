"""The temporal convolutional network: residual convolutions whose dilation doubles."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from affect.models.convolution import ResidualConvolution


class TemporalConvolution(nn.Module):
    """A stack of residual convolutions with dilations 1, 2, 4, ... (Bai et al. 2018).

    A frame's output depends on 1 + 2 (kernel_size - 1) (2^layers - 1) frames: centred on it, or,
    where the net is causal, ending with it. LayerNorm takes the place of the paper's weight
    normalisation.

    Args:
        features: F, columns of the input.
        hidden_size: channels.
        layers: residual blocks of two convolutions each.
        dropout: inside the blocks, 0 to 1.
        kernel_size: frames under the kernel.
        causal: see no later frame.
    """

    def __init__(
        self,
        features: int,
        *,
        hidden_size: int,
        layers: int,
        dropout: float,
        kernel_size: int = 5,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.channels = hidden_size
        self.blocks = nn.ModuleList(
            ResidualConvolution(
                hidden_size if layer else features,
                hidden_size,
                kernel_size=kernel_size,
                dilation=2**layer,
                causal=causal,
                dropout=dropout,
            )
            for layer in range(layers)
        )

    def forward(
        self, features: Float[Tensor, "N T F"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N T C"]:
        """The last block's channels at each frame."""
        hidden = features
        for block in self.blocks:
            hidden = block(hidden, mask)  # N T F -> N T C
        return hidden
