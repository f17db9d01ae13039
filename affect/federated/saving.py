"""A federation's state on disk: written whole after every round, read again on resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from affect.data.preparation import Preparation
from affect.errors import UserError
from affect.federated.server import State
from affect.files import write_whole

_SLOT = "slot/"
_COUNTS = ("round", "best_round", "waited", "bytes_down", "bytes_up")
_NUMBERS = (*_COUNTS, "clipping_norm", "best_ccc")


def save_state(path: Path, state: State, preparation: Preparation) -> None:
    """Write a state and the preparation that its clients have agreed on.

    Raises:
        UserError: the folder cannot be written.
    """
    arrays: dict[str, np.ndarray] = {
        "parameters": state.parameters,
        "best_parameters": state.best_parameters,
        **{_SLOT + name: np.asarray(value) for name, value in state.slots.items()},
    }
    numbers = {**{name: getattr(state, name) for name in _NUMBERS}, "memories": state.memories}
    metadata = {"state": json.dumps(numbers), "preparation": json.dumps(preparation.to_json())}
    write_whole(path, save(arrays, metadata))


def load_state(path: Path) -> tuple[State, Preparation]:
    """The state that `save_state` wrote, to the bit.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        _refuse_uneven(arrays)
        state = State(
            parameters=arrays["parameters"],
            best_parameters=arrays["best_parameters"],
            slots={k.removeprefix(_SLOT): v for k, v in arrays.items() if k.startswith(_SLOT)},
            **_checked(json.loads(metadata["state"])),
        )
        return state, Preparation.from_json(json.loads(metadata["preparation"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"cannot read {path} ({error}): remove it, and the fold is trained from its start"
        ) from error


def _refuse_uneven(arrays: Mapping[str, np.ndarray]) -> None:
    for name, values in arrays.items():
        if values.shape != arrays["parameters"].shape:
            raise ValueError(f"{name} has shape {values.shape}")


def _checked(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata tells of a state, of the types that it had."""
    for name in _NUMBERS:
        if not isinstance(numbers[name], int if name in _COUNTS else int | float):
            raise ValueError(f"{name} is {numbers[name]!r}")
    memories = {int(client): int(round_) for client, round_ in numbers["memories"].items()}
    return {**numbers, "memories": memories}
