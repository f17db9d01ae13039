"""What clients keep between rounds: on their own disk, and never sent.

A client's state after a round has that round in its name. A round is trained from the latest state
before it, so that a round that is trained again, after a kill, starts from the same state.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from affect.errors import UserError
from affect.files import write_whole

_KEPT = 2
"""States of a client: the latest may be of a round that the server has lost."""


class Memory:
    """States of the clients at one place.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, client: int, round_: int) -> dict[str, np.ndarray]:
        """The client's latest state from before a round; empty where there is none.

        Raises:
            UserError: its file cannot be read.
        """
        earlier = [path for path in self._states(client) if int(path.stem) < round_]
        if not earlier:
            return {}
        try:
            return load(earlier[-1].read_bytes())
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {earlier[-1]}: {error}") from error

    def keep(self, client: int, round_: int, state: dict[str, np.ndarray]) -> None:
        """Keep the client's state after a round.

        Raises:
            UserError: the folder cannot be written.
        """
        for path in self._states(client):
            if int(path.stem) > round_:
                path.unlink()  # of a round that the server has lost
        write_whole(self._folder / str(client) / f"{round_}.safetensors", save(state))
        for path in self._states(client)[:-_KEPT]:
            path.unlink()

    def _states(self, client: int) -> list[Path]:
        """The client's states, earliest first."""
        folder = self._folder / str(client)
        return sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem))
