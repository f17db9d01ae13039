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

    def __init__(self, start: Float32[np.ndarray, " P"], mu: float) -> None:
        self._start = torch.from_numpy(start.copy())
        self._mu = mu

    def apply(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add the gradient of mu / 2 times the squared distance."""
        here = parameters_to_vector(parameters).detach()
        _add(self._mu * (here - self._start.to(here.device)), parameters)


class Scaffold:
    """Corrects a client's drift by control variates, option II of algorithm 1.

    Karimireddy et al. (2020), "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
    ICML. Derived for plain gradient descent; with another optimiser it is a heuristic.

    Args:
        own: the client's control variate.
        servers: the server's.
    """

    def __init__(self, own: Float32[np.ndarray, " P"], servers: Float32[np.ndarray, " P"]) -> None:
        self.own = own
        self._servers = servers
        self._added = torch.from_numpy(servers - own)

    def apply(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add the server's variate and take the client's away."""
        _add(self._added.to(parameters[0].device), parameters)

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
        return ((start - end) / np.float32(walked) - self._servers).astype(np.float32)


Correction = Proximal | Scaffold


def _add(vector: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    pieces = vector.split([parameter.numel() for parameter in parameters])
    for piece, parameter in zip(pieces, parameters, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(piece.view_as(parameter))
