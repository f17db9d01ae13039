"""What a strategy adds to the gradients at a client, before they are clipped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector


class Proximal:
    """Pulls a client back to where the round started: mu (w - w0).

    Li et al. (2020), "Federated Optimization in Heterogeneous Networks", MLSys.

    Args:
        start: the round's first model.
        mu: how strongly.
    """

    def __init__(self, start: Float32[np.ndarray, "*K P"], mu: float) -> None:
        self.start = start
        self.mu = mu
        self._start = torch.from_numpy(start.copy())

    def addition(self, here: Float32[Tensor, "*K P"]) -> Float32[Tensor, "*K P"]:
        """The gradient of mu / 2 times the squared distance.

        Args:
            here: the client's model.
        """
        self._start = self._start.to(here.device)
        return self.mu * (here - self._start)


class Scaffold:
    """Corrects a client's drift by control variates, option II of algorithm 1.

    Karimireddy et al. (2020), "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
    ICML. Derived for plain gradient descent; with another optimiser it is a heuristic.

    Args:
        own: the client's control variate.
        servers: the server's.
    """

    def __init__(
        self, own: Float32[np.ndarray, "*K P"], servers: Float32[np.ndarray, "*K P"]
    ) -> None:
        self.own = own
        self.servers = servers
        self._added = torch.from_numpy(servers - own)

    def addition(self, here: Float32[Tensor, "*K P"]) -> Float32[Tensor, "*K P"]:
        """The server's variate without the client's.

        Args:
            here: the client's model.
        """
        self._added = self._added.to(here.device)
        return self._added

    def change(
        self,
        start: Float32[np.ndarray, " P"],
        end: Float32[np.ndarray, " P"],
        walked: float,
    ) -> Float32[np.ndarray, " P"]:
        """How the client's variate changes in a round.

        Args:
            start: the round's first model.
            end: the client's after training.
            walked: sum of its learning rates over its steps.
        """
        return ((start - end) / np.float32(walked) - self.servers).astype(np.float32)


Correction = Proximal | Scaffold


def correct(correction: Correction, parameters: Sequence[nn.Parameter]) -> None:
    """Add a correction to the gradients of parameters that have one."""
    vector = correction.addition(parameters_to_vector(parameters).detach())
    pieces = vector.split([parameter.numel() for parameter in parameters])
    for piece, parameter in zip(pieces, parameters, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(piece.view_as(parameter))


def stacked(corrections: Sequence[Correction | None]) -> Correction | None:
    """The corrections of several clients of one strategy as one, a row each."""
    near = [item for item in corrections if isinstance(item, Proximal)]
    if near:
        return Proximal(np.stack([item.start for item in near]), near[0].mu)
    drifting = [item for item in corrections if isinstance(item, Scaffold)]
    if not drifting:
        return None
    rows = zip(*((item.own, item.servers) for item in drifting), strict=True)
    return Scaffold(*(np.stack(row) for row in rows))
