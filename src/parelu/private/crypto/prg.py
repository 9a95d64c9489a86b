"""Randomness: seeds from the operating system, and AES-128 in counter mode to stretch them.

Every secret of the protocol is drawn from a `Stream`; the key of a stream is derived from its seed and a label, so
that two purposes never share bytes.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

SEED_BYTES = 16
Blocks = NDArray[np.uint64]  # (…, 2): 16-byte blocks as two little-endian words


def fresh_seed() -> bytes:
    """16 bytes of the operating system's generator."""
    return os.urandom(SEED_BYTES)


def derive(seed: bytes, *labels: str | int) -> bytes:
    """A key for one purpose, 16 bytes: BLAKE2b of the labels, each with its length, keyed by a seed of at most 64."""
    parts = [str(label).encode() for label in labels]
    message = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return hashlib.blake2b(message, key=seed, digest_size=SEED_BYTES, person=b"parelu-prg").digest()


class Stream:
    """The bytes of AES-128-CTR under a key derived from a seed and labels, in order, each once."""

    def __init__(self, seed: bytes, *labels: str | int) -> None:
        cipher = Cipher(algorithms.AES(derive(seed, *labels)), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """The next `count` bytes."""
        out = np.empty(count + 15, np.uint8)
        self._encryptor.update_into(np.zeros(count, np.uint8), out)  # pyright: ignore[reportArgumentType]
        return out[:count]

    def fill(self, out: NDArray[np.uint8], zeros: bytes) -> None:
        """The next bytes, as many as there are zeros, into `out`, which has at least 15 bytes more."""
        self._encryptor.update_into(zeros, out)  # pyright: ignore[reportArgumentType]

    def blocks(self, *shape: int) -> Blocks:
        """uint64 (*shape, 2): uniform 16-byte blocks."""
        count = 16 * int(np.prod(shape))
        return self.bytes(count).view(np.uint64).reshape(*shape, 2)

    def elements(self, *shape: int) -> NDArray[np.uint64]:
        """uint64 (*shape,): uniform modulo 2^64, and so in every ring."""
        return self.bytes(8 * int(np.prod(shape))).view(np.uint64).reshape(shape)

    def bits(self, count: int) -> NDArray[np.uint8]:
        """uint8 (count,) of 0 and 1."""
        return np.unpackbits(self.bytes(-(-count // 8)), count=count, bitorder="little")
