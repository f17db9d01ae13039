"""The recurrent family: stacked RNN, LSTM or GRU layers, in one direction or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

CELLS: Mapping[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """A stack of recurrent layers, behind a linear projection where one is asked for.

    It computes what torch's stacked, bidirectional layer computes on packed sequences, and starts
    from torch's initial weights. The backward direction reads each sequence reversed within its own
    length instead of packed: on a CPU, packing loses oneDNN's LSTM, which is several times faster,
    and on a GPU it would wait for the lengths.

    Args:
        cell: `rnn` (tanh), `lstm` or `gru`.
        bidirectional: read the sequence from both ends; doubles `channels`.
        features: F, columns of the input.
        hidden_size: width of a layer and direction.
        layers: how many.
        dropout: between layers and after the projection, 0 to 1.
        projection: width of a linear layer with ReLU before the recurrence; 0 for none.
    """

    def __init__(
        self,
        cell: Literal["rnn", "lstm", "gru"],
        bidirectional: bool,
        features: int,
        *,
        hidden_size: int,
        layers: int,
        dropout: float,
        projection: int = 0,
    ) -> None:
        super().__init__()
        self.channels = hidden_size * (2 if bidirectional else 1)
        self.dropout = nn.Dropout(dropout)
        self.projection = (
            nn.Sequential(nn.Linear(features, projection), nn.ReLU(), self.dropout)
            if projection
            else nn.Identity()
        )
        widths = [projection or features, *[self.channels] * (layers - 1)]
        self.forwards = _stack(cell, widths, hidden_size)
        self.backwards = _stack(cell, widths if bidirectional else [], hidden_size)

    def forward(
        self, features: Float[Tensor, "N T F"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N T C"]:
        """The last layer's state at each frame, both directions side by side."""
        mirror = mirrored(mask)
        states = self.projection(features)  # N T F -> N T P
        for layer, forwards in enumerate(self.forwards):
            inputs = self.dropout(states) if layer else states
            states = _run(forwards, inputs)  # N T P -> N T H, then N T C -> N T H
            if self.backwards:
                reversed_states = _run(self.backwards[layer], reordered(inputs, mirror))
                states = torch.cat([states, reordered(reversed_states, mirror)], dim=-1)  # N T C
        return states


def _stack(cell: str, widths: list[int], hidden_size: int) -> nn.ModuleList:
    return nn.ModuleList(CELLS[cell](width, hidden_size, batch_first=True) for width in widths)


def _run(layer: nn.Module, inputs: Float[Tensor, "N T P"]) -> Float[Tensor, "N T H"]:
    """A layer's state at each frame.

    On a CPU it runs in float32 under autocast too: PyTorch's oneDNN LSTM fails in bfloat16 on
    processors without AVX-512.
    """
    if inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return layer(inputs.float())[0]
    return layer(inputs)[0]


def mirrored(mask: Bool[Tensor, "N T"]) -> Int[Tensor, "N T"]:
    """Which frame stands at each place once every sequence is reversed; padding stays behind."""
    place = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, mask.sum(1, keepdim=True) - 1 - place, place)


def reordered(values: Float[Tensor, "N T C"], places: Int[Tensor, "N T"]) -> Float[Tensor, "N T C"]:
    """The values of each sequence, taken from these places."""
    return values.gather(1, places.unsqueeze(-1).expand_as(values))


rnn = partial(Recurrent, "rnn", False)
lstm = partial(Recurrent, "lstm", False)
gru = partial(Recurrent, "gru", False)
birnn = partial(Recurrent, "rnn", True)
bilstm = partial(Recurrent, "lstm", True)
bigru = partial(Recurrent, "gru", True)
