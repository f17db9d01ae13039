"""A client's secrets of one round: in a file that its user alone can read, until the round ends.

A round takes several messages, each of which another worker process may answer; what one of them
draws, the next one must find. A round that is begun anew draws new secrets.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from affect.errors import UserError

_NAME = "secrets.json"


@dataclass(frozen=True)
class Secrets:
    """What a client keeps to itself in a round; keys, seeds and pieces as hexadecimal digits.

    Attributes:
        round: 1 for the first.
        masking: private key of its masks with neighbours.
        sealing: private key with which it opens what neighbours sealed.
        seed: of the mask of its own.
        publics: its neighbours' keys for masks, by their indices as text.
        sealing_publics: their keys for sealing, likewise.
        pieces: of its own and its neighbours' seeds and masking keys, likewise.
        masked: whether it has sent what the masks hide.
    """

    round: int
    masking: str
    sealing: str
    seed: str
    publics: dict[str, str] = field(default_factory=dict)
    sealing_publics: dict[str, str] = field(default_factory=dict)
    pieces: dict[str, list[str]] = field(default_factory=dict)
    masked: bool = False


class Vault:
    """The secrets of the clients at one place.

    Args:
        folder: of what the clients keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, client: int, secrets: Secrets) -> None:
        """Keep a client's secrets, in place of those that it had.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self._path(client)
        fresh = path.with_suffix(".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            with os.fdopen(
                os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
            ) as file:
                json.dump(asdict(secrets), file)
            fresh.replace(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error

    def taken(self, client: int, round_: int) -> Secrets:
        """A client's secrets of a round, which are gone from here.

        Raises:
            UserError: there are none.
        """
        path = self._path(client)
        try:
            secrets = Secrets(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            secrets = None
        with suppress(OSError):
            path.unlink()
        if secrets is None or secrets.round != round_:
            raise UserError(f"there are no secrets of client {client} in round {round_}")
        return secrets

    def _path(self, client: int) -> Path:
        return self._folder / str(client) / _NAME
