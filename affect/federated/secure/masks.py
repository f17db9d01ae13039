"""Masks: whole numbers modulo 2 ** 64 that look random alone and cancel in the sum.

A key stream of AES-256 in counter mode takes the place of `pseudo_rand_gen` of Flower, which folds
a seed to 32 bits, so that a server could try them all, and never draws the highest number.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes
from jaxtyping import UInt64

SECRET_BYTES = 48
"""Of a private key on the curve that Flower's keys lie on, P-384."""

_NUMBER_BYTES = 8
_NONCE = bytes(16)
"""The same always: no key is used twice."""


def stream(key: bytes, width: int) -> UInt64[np.ndarray, " W"]:
    """So many numbers that only who has the key tells from random ones.

    Args:
        key: 32 bytes, used once.
        width: how many.
    """
    encryptor = Cipher(algorithms.AES(key), modes.CTR(_NONCE)).encryptor()
    return np.frombuffer(encryptor.update(bytes(width * _NUMBER_BYTES)), "<u8")


def public_of(secret: bytes) -> str:
    """The public key of a secret one, as PEM."""
    return public_key_to_bytes(_private(secret).public_key()).decode()


def new_secret() -> bytes:
    """A new private key."""
    number = ec.generate_private_key(ec.SECP384R1()).private_numbers().private_value
    return number.to_bytes(SECRET_BYTES, "big")


def shared_key(secret: bytes, public: str) -> bytes:
    """What two share who have each other's public keys: 32 bytes in base 64.

    Raises:
        ValueError: a key is none.
    """
    return generate_shared_key(_private(secret), bytes_to_public_key(public.encode()))


def pairwise(
    client: int, secret: bytes, publics: Mapping[int, str], width: int
) -> UInt64[np.ndarray, " W"]:
    """The sum of a client's masks with its neighbours; theirs with it are the same, negated.

    Args:
        client: its index.
        secret: its private key.
        publics: its neighbours' public keys, by their indices.
        width: how many numbers.

    Raises:
        ValueError: a key is none.
    """
    total = np.zeros(width, np.uint64)
    for neighbour, public in publics.items():
        mask = stream(urlsafe_b64decode(shared_key(secret, public)), width)
        combine = np.add if client > neighbour else np.subtract
        combine(total, mask, out=total)
    return total


def _private(secret: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP384R1())
