"""The networks by name: an encoder over time and a head, from a few numbers.

Adding a model is one new file and one line of `MODELS`. An encoder maps features [N, T, F] and a
mask [N, T] to [N, T, channels] and says its `channels`. The mask is True at real frames; padding
stands at the end of a sequence only, reads as zero, and may leave anything finite in the output,
but must not change the output of a real frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any, Literal

from affect.errors import UserError, suggestion
from affect.models.heads import AffectModel, FrameHead, WindowHead

MODELS: Mapping[str, str] = {
    "rnn": "affect.models.recurrent:rnn",
    "lstm": "affect.models.recurrent:lstm",
    "gru": "affect.models.recurrent:gru",
    "birnn": "affect.models.recurrent:birnn",
    "bilstm": "affect.models.recurrent:bilstm",
    "bigru": "affect.models.recurrent:bigru",
    "conv_bilstm": "affect.models.convolutional_recurrent:conv_bilstm",
    "conv_bigru": "affect.models.convolutional_recurrent:conv_bigru",
    "tcn": "affect.models.temporal_convolution:TemporalConvolution",
    "attention": "affect.models.attention:LocalAttention",
}
"""A model's name and the `module:factory` of its encoder, imported when it is built.

A factory takes `features`, `hidden_size`, `layers` and `dropout`, then options of its own.
"""

CAUSAL = frozenset({"rnn", "lstm", "gru"})
"""Models whose output at a frame never depends on a later one, whatever their options."""

_SHARED = ("features", "hidden_size", "layers", "dropout")


def build(
    name: str,
    *,
    features: int,
    dimensions: int,
    head: Literal["frame", "window"] = "frame",
    hidden_size: int,
    layers: int,
    dropout: float,
    input_dropout: float = 0.0,
    bounded: bool = False,
    **options: Any,
) -> AffectModel:
    """A model with fresh weights, drawn from torch's global generator.

    Args:
        name: a key of `MODELS`.
        features: F, columns of the input.
        dimensions: D, columns of the output.
        head: `frame` for one output a frame, `window` for one a sequence.
        hidden_size: the encoder's width, at least 1.
        layers: the encoder's depth, at least 1.
        dropout: between layers and before the head, 0 to 1.
        input_dropout: of the features, 0 to 1.
        bounded: squash the output into -1 to 1 with tanh.
        options: what this encoder alone knows, such as `kernel_size`.

    Raises:
        UserError: the name, or an option of that encoder, is unknown or out of range.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}: {suggestion(name, MODELS)}")
    module, factory_name = MODELS[name].split(":")
    factory = getattr(import_module(module), factory_name)
    known = [option for option in signature(factory).parameters if option not in _SHARED]
    for option in options:
        if option not in known:
            advice = suggestion(option, [*known, "bounded"])
            raise UserError(f"model {name!r} has no option {option!r}: {advice}")
    sizes = {"hidden_size": hidden_size, "layers": layers, "dropout": dropout}
    try:
        encoder = factory(features, **sizes, **options)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in {**sizes, **options}.items())
        raise UserError(f"model {name!r} cannot be built with {given}: {error}") from error
    heads = {"frame": FrameHead, "window": WindowHead}
    chosen = heads[head](encoder.channels, dimensions, bounded=bounded)
    return AffectModel(encoder, chosen, input_dropout=input_dropout, dropout=dropout)
