"""Parameters of a network as one vector, in which they travel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn
from torch.nn.utils import parameters_to_vector

from affect.errors import UserError


class FlatParameters:
    """Some parameters of a network, read and written as one vector.

    They stay where they are in memory, as cuDNN wants it of recurrent layers.

    Args:
        parameters: P numbers, in this order; whoever calls keeps them on their device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        # on a CPU the parameters' own memory
        self._host = [parameter.numpy(force=True) for parameter in self.parameters]
        stops = np.cumsum([array.size for array in self._host], dtype=int)
        self._slices = [
            slice(stop - array.size, stop) for array, stop in zip(self._host, stops, strict=True)
        ]

    def read(self) -> Float32[np.ndarray, " P"]:
        """A copy of what they are."""
        if not self.parameters:
            return np.zeros(0, np.float32)
        return parameters_to_vector(self.parameters).numpy(force=True)

    def write(self, values: Float32[np.ndarray, " P"]) -> None:
        """Let them be these values.

        Raises:
            UserError: there are more or fewer.
        """
        expected = sum(array.size for array in self._host)
        if len(values) != expected:
            raise UserError(f"{len(values)} parameters came where {expected} are expected")
        parts = zip(self.parameters, self._host, self._slices, strict=True)
        with torch.no_grad():
            for parameter, host, part in parts:
                host[...] = values[part].reshape(host.shape)
                if parameter.is_cuda:
                    parameter.copy_(torch.from_numpy(host))
