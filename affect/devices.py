"""Where to compute: devices by the names that users give."""

from __future__ import annotations

import torch

from affect.errors import UserError


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # unknown, absent, another build's
        raise UserError(f"no device {name!r} here: choose auto or cpu") from error
    return device
