"""Local self-attention: each frame attends to its neighbours in time, at a cost linear in T."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from affect.errors import UserError


class LocalAttention(nn.Module):
    """Pre-norm transformer layers in which a frame sees `context_frames` to either side.

    The sequence is cut into blocks of `context_frames`; a block's frames attend to their own block
    and its two neighbours, which hold all they may see (Beltagy et al. 2020, "Longformer"). The
    order of frames enters as rotary positions (Su et al. 2021), which depend on distance alone, so
    that neither padding nor the place in a recording changes a result.

    Args:
        features: F, columns of the input.
        hidden_size: width; a multiple of twice `heads`.
        layers: how many.
        dropout: of attention weights and residuals, 0 to 1.
        heads: attention heads a layer.
        context_frames: how far a frame sees in one layer.

    Raises:
        UserError: the heads do not divide the width into pairs.
    """

    def __init__(
        self,
        features: int,
        *,
        hidden_size: int,
        layers: int,
        dropout: float,
        heads: int = 4,
        context_frames: int = 50,
    ) -> None:
        super().__init__()
        if hidden_size % (2 * heads):
            raise UserError(
                f"attention's hidden_size is {hidden_size}: give a multiple of {2 * heads}, "
                f"twice its {heads} heads, or set the option `heads`"
            )
        self.channels = hidden_size
        self.context_frames = context_frames
        self.input = nn.Linear(features, hidden_size)
        self.layers = nn.ModuleList(
            _Layer(hidden_size, heads, context_frames, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def forward(
        self, features: Float[Tensor, "N T F"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N T C"]:
        """The last layer's channels at each frame."""
        frames = features.shape[1]
        excess = -frames % self.context_frames
        hidden = functional.pad(self.input(features), (0, 0, 0, excess))  # N T F -> N BL C
        visible = _visible(functional.pad(mask, (0, excess)), self.context_frames)
        for layer in self.layers:
            hidden = layer(hidden, visible)  # N BL C -> N BL C
        return self.norm(hidden)[:, :frames]  # N BL C -> N T C


class _Layer(nn.Module):
    """Attention, then a perceptron of twice the width, each normalised before and added after."""

    angles: Tensor

    def __init__(self, channels: int, heads: int, context_frames: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.context_frames, self.rate = heads, context_frames, dropout
        self.attention_norm = nn.LayerNorm(channels)
        self.queries_keys_values = nn.Linear(channels, 3 * channels, bias=False)
        self.output = nn.Linear(channels, channels)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 2 * channels),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * channels, channels),
        )
        self.dropout = nn.Dropout(dropout)
        angles = _angles(3 * context_frames, channels // heads)
        self.register_buffer("angles", angles, persistent=False)

    def forward(
        self, hidden: Float[Tensor, "N BL C"], visible: Bool[Tensor, "NB 1 L M"]
    ) -> Float[Tensor, "N BL C"]:
        attended = self._attend(self.attention_norm(hidden), visible)
        hidden = hidden + self.dropout(self.output(attended))
        return hidden + self.dropout(self.perceptron(hidden))

    def _attend(
        self, hidden: Float[Tensor, "N BL C"], visible: Bool[Tensor, "NB 1 L M"]
    ) -> Float[Tensor, "N BL C"]:
        length = self.context_frames
        queries, keys, values = self.queries_keys_values(hidden).chunk(3, dim=-1)
        queries = self._split(queries.unflatten(1, (-1, length)))  # N BL C -> NB H L C/H
        keys = self._split(_neighbours(keys, length))  # N BL C -> NB H M C/H
        values = self._split(_neighbours(values, length))
        # a block's own frames are the middle third of those that its keys come from
        queries = _rotate(queries, self.angles[length : 2 * length])
        attended = functional.scaled_dot_product_attention(
            queries,
            _rotate(keys, self.angles),
            values,
            attn_mask=visible,
            dropout_p=self.rate if self.training else 0.0,
        )
        return attended.transpose(1, 2).reshape(hidden.shape)  # NB H L C/H -> N BL C

    def _split(self, blocks: Float[Tensor, "N B K C"]) -> Float[Tensor, "NB H K CH"]:
        """Blocks and heads in front, as batch dimensions of the product."""
        return blocks.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _neighbours(values: Float[Tensor, "N BL C"], length: int) -> Float[Tensor, "N B M C"]:
    """Each block of L frames with the one before and the one after: M = 3 L, zero beyond ends."""
    surrounded = functional.pad(values, (0, 0, length, length))
    return surrounded.unfold(1, 3 * length, length).transpose(2, 3)


def _visible(mask: Bool[Tensor, "N BL"], length: int) -> Bool[Tensor, "NB 1 L M"]:
    """Which of its block's neighbours a frame attends to: the real ones at most L away.

    A frame of padding that would see none sees all: softmax over nothing is NaN.
    """
    real = functional.pad(mask, (length, length)).unfold(1, 3 * length, length)  # N B M
    query = torch.arange(length, device=mask.device).unsqueeze(1)
    key = torch.arange(3 * length, device=mask.device) - length
    visible = real.flatten(0, 1).unsqueeze(1) & ((key - query).abs() <= length)  # NB L M
    return (visible | ~visible.any(-1, keepdim=True)).unsqueeze(1)


def _angles(positions: int, channels: int) -> Float[Tensor, "positions half"]:
    """Rotary angles: position times 10000^(-2 i / channels) for the i-th pair of channels."""
    frequencies = 10000.0 ** (-torch.arange(0, channels, 2) / channels)
    return torch.outer(torch.arange(positions), frequencies)


def _rotate(
    values: Float[Tensor, "NB H K CH"], angles: Float[Tensor, "K half"]
) -> Float[Tensor, "NB H K CH"]:
    """Each pair of channels turned by its frame's angle, so that products see distance alone."""
    first, second = values.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    turned = torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return turned.to(values.dtype)
