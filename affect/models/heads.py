"""From an encoder's channels to valence and arousal: the heads, and the model they complete.

`FrameHead` answers every frame, [N, T, D], and stands beside labels [N, T, D] and a mask [N, T].
`WindowHead` answers every sequence, [N, 1, D], and stands beside labels [N, 1, D] and a mask
[N, 1], so that one loss and one metric serve both.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class FrameHead(nn.Module):
    """One output a frame; 0 in padding.

    Args:
        channels: C, the encoder's width.
        dimensions: D.
        bounded: squash the output into -1 to 1 with tanh.
    """

    def __init__(self, channels: int, dimensions: int, *, bounded: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, dimensions)
        self.activation = nn.Tanh() if bounded else nn.Identity()

    def forward(
        self, encoded: Float[Tensor, "N T C"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N T D"]:
        """The output of each frame."""
        output = self.activation(self.linear(encoded))
        return output.masked_fill(~mask.unsqueeze(-1), 0.0)


class WindowHead(nn.Module):
    """One output a sequence, from the mean over its real frames; 0 for an empty sequence.

    Args:
        channels: C, the encoder's width.
        dimensions: D.
        bounded: squash the output into -1 to 1 with tanh.
    """

    def __init__(self, channels: int, dimensions: int, *, bounded: bool = False) -> None:
        super().__init__()
        self.frame_head = FrameHead(channels, dimensions, bounded=bounded)

    def forward(
        self, encoded: Float[Tensor, "N T C"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N 1 D"]:
        """The output of each sequence."""
        real = encoded.masked_fill(~mask.unsqueeze(-1), 0.0)
        frames = mask.sum(1).clamp(min=1).view(-1, 1, 1)
        pooled = real.sum(1, keepdim=True) / frames  # N T C -> N 1 C
        return self.frame_head(pooled, mask.any(1, keepdim=True))


class AffectModel(nn.Module):
    """An encoder and a head; padding never changes the output of a real frame.

    Args:
        encoder: see `affect.models` for what it promises.
        head: `FrameHead` or `WindowHead`.
        input_dropout: of the features, 0 to 1.
        dropout: of the encoder's channels before the head, 0 to 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: FrameHead | WindowHead,
        *,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_dropout = nn.Dropout(input_dropout)
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(
        self, features: Float[Tensor, "N T F"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N S D"]:
        """Valence and arousal of each frame (S is T) or of each sequence (S is 1).

        Args:
            features: action units, finite at real frames.
            mask: True at real frames, which all stand before a sequence's padding.
        """
        # selected, not multiplied: a NaN in padding would survive a product with zero
        features = torch.where(mask.unsqueeze(-1), features, 0.0)
        encoded = self.encoder(self.input_dropout(features), mask)  # N T F -> N T C
        return self.head(self.dropout(encoded), mask)  # N T C -> N S D
