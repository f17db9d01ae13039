"""Many recurrent networks of one form, each with weights of its own, computed at once.

Torch's own LSTM takes one set of weights. Here K networks stand in a stack, both directions of a
layer too: its inputs at all frames are projected by one batched product, and each frame is one
more. The gradient is written out: nothing is recorded frame by frame, and that of the recurrent
weights is one product over all frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from affect.errors import UserError
from affect.models.heads import AffectModel, WindowHead
from affect.models.recurrent import Recurrent, mirrored, reordered

STACKABLE = ("lstm", "bilstm")
"""Models, with any of their options, of which a stack computes the same."""

_ROWS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
_Named = Mapping[str, Float[Tensor, "K ..."]]


class Stack:
    """Networks like a model: row k of a tensor of parameters makes the k-th.

    Args:
        model: gives the form; its own weights do not matter.

    Raises:
        UserError: the model is none of `STACKABLE`.
    """

    def __init__(self, model: AffectModel) -> None:
        encoder = model.encoder
        if not isinstance(encoder, Recurrent) or not isinstance(encoder.forwards[0], nn.LSTM):
            raise UserError(f"a stack of networks takes {' or '.join(STACKABLE)} alone")
        self._shapes = {name: value.shape for name, value in model.named_parameters()}
        self._layers = len(encoder.forwards)
        self._directions = ["forwards", "backwards"] if encoder.backwards else ["forwards"]
        self._projects = not isinstance(encoder.projection, nn.Identity)
        self._pools = isinstance(model.head, WindowHead)
        self._bounded = any(isinstance(part, nn.Tanh) for part in model.head.modules())
        self._places = list(_places(model, encoder))

    @property
    def drops(self) -> bool:
        """Whether the model drops any value in training."""
        return any(place.dropout for place in self._places)

    def dropped(self, windows: int, frames: int, device: torch.device) -> list[Tensor | None]:
        """What one network of its own draws for a batch in training, from torch's generator.

        Args:
            windows: N, of its batch.
            frames: T, of its batch.
            device: where it computes.

        Returns:
            Masks [N, T, C] of 0 and 1 / (1 - dropout), one for each place where the model may drop
            values, in their order; None where it drops none.
        """
        return [place.draw(windows, frames, device) for place in self._places]

    def __call__(
        self,
        parameters: Float[Tensor, "K P"],
        features: Float[Tensor, "K N T F"],
        mask: Bool[Tensor, "K N T"],
        dropped: Sequence[Tensor | None] = (),
    ) -> Float[Tensor, "K N S D"]:
        """Each network's answer to a batch of its own, as `AffectModel` gives it.

        Args:
            parameters: of each network, in the model's order.
            features: action units, finite at real frames.
            mask: True at real frames; a window without any is padding.
            dropped: all networks' masks [K, N, T, C] in the order of `Stack.dropped`; empty in
                evaluation.
        """
        named = self._named(parameters)
        masks = iter(dropped or [None] * len(self._places))
        states = _thinned(torch.where(mask.unsqueeze(-1), features, 0.0), masks)
        if self._projects:
            states = _linear(states, named, "encoder.projection.0").relu()  # K N T F -> K N T P
            states = _thinned(states, masks)
        mirror = mirrored(mask.flatten(0, 1))
        for layer in range(self._layers):
            inputs = _thinned(states, masks) if layer else states
            states = _layer(inputs, mirror, self._weights(named, layer))  # K N T P -> K N T C
        return self._answer(_thinned(states, masks), mask, named)

    def _named(self, parameters: Float[Tensor, "K P"]) -> _Named:
        """Views of the parameters by the model's names."""
        pieces = parameters.split([shape.numel() for shape in self._shapes.values()], dim=1)
        named = zip(self._shapes.items(), pieces, strict=True)
        return {name: piece.unflatten(1, shape) for (name, shape), piece in named}

    def _weights(self, named: _Named, layer: int) -> list[Float[Tensor, "W K ..."]]:
        """A layer's weights and biases, those of each of its W directions."""
        return [
            torch.stack([named[f"encoder.{way}.{layer}.{row}"] for way in self._directions])
            for row in _ROWS
        ]

    def _answer(
        self, encoded: Float[Tensor, "K N T C"], mask: Bool[Tensor, "K N T"], named: _Named
    ) -> Float[Tensor, "K N S D"]:
        """See `FrameHead` and `WindowHead`."""
        name = "head.linear"
        if self._pools:
            name = "head.frame_head.linear"
            real = encoded.masked_fill(~mask.unsqueeze(-1), 0.0)
            encoded = real.sum(2, keepdim=True) / mask.sum(2).clamp(min=1)[..., None, None]
            mask = mask.any(2, keepdim=True)
        output = _linear(encoded, named, name)
        output = output.tanh() if self._bounded else output
        return output.masked_fill(~mask.unsqueeze(-1), 0.0)


@dataclass(frozen=True)
class _Place:
    """Where a model may drop values.

    Attributes:
        dropout: share of the values, at least 0 and below 1.
        channels: C, of the values there.
        time_first: how the values lie in memory, in which order they are drawn.
    """

    dropout: float
    channels: int
    time_first: bool = False

    def draw(
        self, windows: int, frames: int, device: torch.device
    ) -> Float[Tensor, "N T C"] | None:
        """Drawn by what `nn.Dropout` calls, hence the same values."""
        if not self.dropout:
            return None
        first, second = (frames, windows) if self.time_first else (windows, frames)
        ones = torch.ones(first, second, self.channels, device=device)
        return functional.dropout(ones.transpose(0, 1) if self.time_first else ones, self.dropout)


def _places(model: AffectModel, encoder: Recurrent) -> Iterator[_Place]:
    """In the order in which the model comes to them."""
    first = next(encoder.parameters())  # that reads the features
    yield _Place(model.input_dropout.p, first.shape[1])
    if not isinstance(encoder.projection, nn.Identity):
        yield _Place(encoder.dropout.p, first.shape[0])
    # torch's LSTM of one direction leaves its states with time first; two are joined without
    time_first = not encoder.backwards
    for _ in encoder.forwards[1:]:
        yield _Place(encoder.dropout.p, encoder.channels, time_first)
    yield _Place(model.dropout.p, encoder.channels, time_first)


def _thinned(
    values: Float[Tensor, "K N T C"], masks: Iterator[Tensor | None]
) -> Float[Tensor, "K N T C"]:
    mask = next(masks)
    return values if mask is None else values * mask


def _linear(values: Float[Tensor, "K N T C"], named: _Named, name: str) -> Float[Tensor, "K N T D"]:
    """A linear layer of each network."""
    weight, bias = named[f"{name}.weight"], named[f"{name}.bias"]
    flat = torch.baddbmm(bias.unsqueeze(1), values.flatten(1, 2), weight.mT)
    return flat.unflatten(1, values.shape[1:3])


def _layer(
    inputs: Float[Tensor, "K N T P"],
    mirror: Int[Tensor, "KN T"],
    weights: Sequence[Float[Tensor, "W K ..."]],
) -> Float[Tensor, "K N T C"]:
    """The states of a layer at each frame, its directions side by side."""
    networks, windows, frames, _ = inputs.shape

    def turned(values: Float[Tensor, "K N T C"]) -> Float[Tensor, "K N T C"]:
        return reordered(values.flatten(0, 1), mirror).unflatten(0, (networks, windows))

    ways = len(weights[0])
    both = torch.stack([inputs, turned(inputs)] if ways > 1 else [inputs])  # W K N T P
    # networks and directions are one stack of S, in which the batched products work
    into, across, bias, more = (item.flatten(0, 1) for item in weights)
    flat = both.flatten(0, 1).transpose(1, 2).flatten(1, 2)  # S TN P
    gates = torch.baddbmm((bias + more).unsqueeze(1), flat, into.mT)  # S TN 4H
    gates = gates.unflatten(1, (frames, windows)).transpose(0, 1).contiguous()  # T S N 4H
    states = _Recurrence.apply(gates, across)  # T S N H
    states = states.unflatten(1, (ways, networks))  # T W K N H
    forwards, *backwards = states.permute(1, 2, 3, 0, 4)  # K N T H each
    return torch.cat([forwards, *map(turned, backwards)], dim=-1)


class _Recurrence(torch.autograd.Function):
    """The recurrence of LSTMs and its gradient, with torch's gates: input, forget, cell, output.

    Hochreiter and Schmidhuber (1997), "Long Short-Term Memory", Neural Computation 9; the forget
    gate is that of Gers, Schmidhuber and Cummins (2000), "Learning to Forget", ibid. 12.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor) -> Tensor:
        """States [T, S, N, H] of inputs [T, S, N, 4H] and weights [S, 4H, H]."""
        gates = torch.empty_like(inputs)
        opening, candidate, output = _parts(gates, (2, 1, 1))
        cells, states = torch.empty_like(candidate), torch.empty_like(candidate)
        cell = state = torch.zeros_like(candidate[0])
        halves = opening.unflatten(-1, (2, -1)).unbind(-2)
        steps = (inputs, gates, opening, *halves, candidate, output, cells, states)
        # `unbind`, since to index a frame each time costs more than the frame
        for frame in zip(*(item.unbind(0) for item in steps), strict=True):
            added, gate, opened, let_in, kept, proposed, let_out, new_cell, new_state = frame
            torch.baddbmm(added, state, weights.mT, out=gate)
            opened.sigmoid_()
            proposed.tanh_()
            let_out.sigmoid_()
            cell = torch.mul(kept, cell, out=new_cell).addcmul_(let_in, proposed)
            state = torch.mul(let_out, cell.tanh(), out=new_state)
        ctx.save_for_backward(gates, cells, states, weights)
        return states

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the inputs and the weights from that of the states."""
        gates, cells, states, weights = ctx.saved_tensors
        kept = _parts(gates, (1, 1, 2))[1]
        of_gates, of_output, of_cell = _slopes(gates, cells)
        gradient = torch.empty_like(gates)
        inner, output = gradient.unflatten(-1, (4, -1)).split((3, 1), dim=-2)
        outer = output.squeeze(-2)
        state = upstream[-1]
        cell = torch.zeros_like(state)
        steps = (gradient, inner, outer, of_gates, of_output, of_cell, kept)
        before = [None, *upstream.unbind(0)[:-1]]
        backwards = [reversed(item.unbind(0)) for item in steps]
        for frame, earlier in zip(zip(*backwards, strict=True), reversed(before), strict=True):
            whole, into, out, gate_slopes, output_slope, cell_slope, keeps = frame
            cell = torch.addcmul(cell, state, cell_slope)
            torch.mul(gate_slopes, cell.unsqueeze(-2), out=into)
            torch.mul(output_slope, state, out=out)
            cell = cell * keeps
            if earlier is not None:
                state = torch.baddbmm(earlier, whole, weights)
        of_weights = torch.einsum("tsng,tsnh->sgh", gradient[1:], states[:-1])
        return gradient, of_weights


def _parts(gates: Float[Tensor, "T S N G"], sizes: Sequence[int]) -> list[Tensor]:
    """Views of adjacent gates, so many each."""
    width = gates.shape[-1] // 4
    return list(gates.split([size * width for size in sizes], dim=-1))


def _slopes(
    gates: Float[Tensor, "T S N G"], cells: Float[Tensor, "T S N H"]
) -> tuple[Float[Tensor, "T S N 3 H"], Float[Tensor, "T S N H"], Float[Tensor, "T S N H"]]:
    """Of cells by what enters three gates; of states by what enters the last one, and by cells."""
    let_in, kept, proposed, let_out = gates.unflatten(-1, (4, -1)).unbind(-2)
    earlier = functional.pad(cells[:-1], (0, 0, 0, 0, 0, 0, 1, 0))
    squashed = cells.tanh()
    of_gates = [
        proposed * let_in * (1 - let_in),
        earlier * kept * (1 - kept),
        let_in * (1 - proposed.square()),
    ]
    of_output = squashed * let_out * (1 - let_out)
    return torch.stack(of_gates, dim=-2), of_output, let_out * (1 - squashed.square())
