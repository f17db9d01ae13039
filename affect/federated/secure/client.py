"""A client's part: it masks what it has learned, and helps to take the masks off the sum.

Each stage takes the round's secrets out of the vault and puts them back changed, so that none is
answered twice: no second update under the same masks, and of no neighbour both kinds of pieces.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.fernet import InvalidToken
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt
from flwr.common.secure_aggregation.secaggplus_utils import (
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)

from affect.config import SecureAggregationConfig
from affect.errors import UserError
from affect.federated.messages import (
    MakeKeys,
    Masked,
    Pieces,
    PublicKeys,
    SealedShares,
    ShareSecrets,
    TrainMasked,
    Unmask,
)
from affect.federated.secure.graph import threshold_of
from affect.federated.secure.masks import new_secret, pairwise, public_of, shared_key, stream
from affect.federated.secure.vault import Secrets, Vault

_SEED_BYTES = 32


class Masking:
    """What the clients at one place do in secure aggregation.

    Args:
        folder: of what the clients keep.
    """

    def __init__(self, folder: Path) -> None:
        self._vault = Vault(folder)

    def keys(self, request: MakeKeys) -> PublicKeys:
        """A client's public keys of a round; whatever secrets it had are forgotten."""
        masking, sealing = new_secret(), new_secret()
        seed = secrets.token_bytes(_SEED_BYTES).hex()
        made = Secrets(request.round, masking.hex(), sealing.hex(), seed)
        self._vault.keep(request.client, made)
        return PublicKeys(public_of(masking), public_of(sealing))

    def shares(self, request: ShareSecrets, config: SecureAggregationConfig) -> SealedShares:
        """A client's secrets in pieces, each sealed for one neighbour; its own it keeps.

        Raises:
            UserError: neighbours or their keys are not different, or the round is not at this
                stage.
        """
        client, mine = request.client, self._vault.taken(request.client, request.round)
        _refuse_alike(request, mine)
        count = len(request.neighbours) + 1
        own, *others = zip(
            create_shares(bytes.fromhex(mine.seed), threshold_of(count, config), count),
            create_shares(bytes.fromhex(mine.masking), threshold_of(count, config), count),
            strict=True,
        )
        names = [str(neighbour) for neighbour in request.neighbours]
        shared = replace(
            mine,
            publics=dict(zip(names, request.masking, strict=True)),
            sealing_publics=dict(zip(names, request.sealing, strict=True)),
            pieces={str(client): [piece.hex() for piece in own]},
        )
        sealed = [
            _sealed(client, name, pieces, shared)
            for name, pieces in zip(names, others, strict=True)
        ]
        self._vault.keep(client, shared)
        return SealedShares(sealed)

    def masked(
        self,
        request: TrainMasked,
        learned: Callable[[], Masked],
        config: SecureAggregationConfig,
    ) -> Masked:
        """A client's numbers under its own mask and those with the neighbours that are left.

        While it learns them, its secrets are in this process alone.

        Args:
            request: with the pieces that neighbours sealed.
            learned: gives the client's numbers.
            config: the threshold.

        Raises:
            UserError: too few are left, a piece is not from whom it should be, or the round is not
                at this stage.
        """
        client, mine = request.client, self._vault.taken(request.client, request.round)
        if mine.masked or len(request.sealed) != len(mine.publics):
            raise UserError(f"client {client} masks one update a round, after sharing its secrets")
        left = {n: item for n, item in zip(mine.publics, request.sealed, strict=True) if item}
        _refuse_few(len(left) + 1, len(mine.publics) + 1, config)
        opened = {name: _opened(client, name, item, mine) for name, item in left.items()}
        numbers = learned()
        values = np.concatenate([numbers.parameters, numbers.tallies])
        values += stream(bytes.fromhex(mine.seed), len(values))
        publics = {int(name): mine.publics[name] for name in left}
        values += pairwise(client, bytes.fromhex(mine.masking), publics, len(values))
        self._vault.keep(client, replace(mine, pieces={**mine.pieces, **opened}, masked=True))
        return Masked(*np.split(values, [len(numbers.parameters)]))

    def pieces(self, request: Unmask, config: SecureAggregationConfig) -> Pieces:
        """The pieces that take the masks off a sum; then the round's secrets are gone.

        Raises:
            UserError: both kinds are asked for of one client, one is unknown, or too few are left.
        """
        mine = self._vault.taken(request.client, request.round)
        asked = [str(client) for client in (*request.survivors, *request.dropped)]
        known = set(asked) <= mine.pieces.keys()
        if not mine.masked or not known or len(set(asked)) < len(asked):
            raise UserError("asked for pieces of secrets that would show a single update")
        _refuse_few(len(request.survivors), len(mine.publics) + 1, config)
        return Pieces(
            [mine.pieces[str(client)][0] for client in request.survivors],
            [mine.pieces[str(client)][1] for client in request.dropped],
        )


def _refuse_alike(request: ShareSecrets, mine: Secrets) -> None:
    """Refuse a client that is its own neighbour, and a key that comes twice."""
    clients = {request.client, *request.neighbours}
    own = (public_of(bytes.fromhex(secret)) for secret in (mine.masking, mine.sealing))
    keys = {*own, *request.masking, *request.sealing}
    count = len(request.neighbours) + 1
    if len(clients) != count or len(keys) != 2 * count or mine.publics:
        raise UserError(f"client {request.client} and its neighbours are not different")


def _refuse_few(left: int, pieces: int, config: SecureAggregationConfig) -> None:
    needed = threshold_of(pieces, config)
    if left < needed:
        raise UserError(f"{left} of {pieces} neighbours are left, {needed} are needed to hide one")


def _sealed(client: int, name: str, pieces: Sequence[bytes], mine: Secrets) -> str:
    """Pieces of a client's secrets, for a neighbour's eyes."""
    key = shared_key(bytes.fromhex(mine.sealing), mine.sealing_publics[name])
    return encrypt(key, share_keys_plaintext_concat(client, int(name), *pieces)).decode()


def _opened(client: int, name: str, sealed: str, mine: Secrets) -> list[str]:
    """The pieces that a neighbour sealed for the client."""
    key = shared_key(bytes.fromhex(mine.sealing), mine.sealing_publics[name])
    try:
        text = decrypt(key, sealed.encode())
    except InvalidToken:
        raise UserError(f"what client {name} sealed cannot be opened") from None
    sender, receiver, *pieces = share_keys_plaintext_separate(text)
    if (sender, receiver) != (int(name), client):
        raise UserError(f"a piece of client {sender} for {receiver} came as of {name} for {client}")
    return [piece.hex() for piece in pieces]
