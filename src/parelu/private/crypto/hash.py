"""Hashes of garbling and oblivious transfer: the tweakable one, TMMO over a fixed-key AES, and a linear one for checks.

H(x, i) = π(π(x) ⊕ i) ⊕ π(x) (Guo, Katz, Wang, Yu 2020, section 7.4): tweakable circular correlation robust in the
ideal-permutation model. A tweak is (number of the instance, number of the use in the instance), 64 bits each, and
is used once under one key and one Δ.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.prg import Blocks

OT_DOMAIN = 1 << 63  # the second half of a tweak: gates count up from 0, oblivious transfers from here
LINEAR_BYTES = 16


def linear_hash(key: bytes, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """GHASH of each row, (n, bytes) → (n, 16): linear, and of equal value for two rows by chance only.

    A polynomial over GF(2^128) in H = AES_key(0), whose coefficients are the row's blocks (NIST SP 800-38D, section
    6.4): two rows of b blocks collide for at most b + 1 of the 2^128 values of H. What the tag of AES-GCM adds to
    it is the same for all rows of one length, and goes with the tag of zeros. key: 16 bytes, public.
    """
    cipher, nonce = AESGCM(key), bytes(12)
    tags = [cipher.encrypt(nonce, b"", row) for row in (bytes(rows.shape[1]), *rows)]
    hashed = np.frombuffer(b"".join(tags), np.uint8).reshape(-1, LINEAR_BYTES)
    return hashed[1:] ^ hashed[0]


class Hash:
    """key: 16 bytes, public, as good as random, another for each inference. Not for two threads at once."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        # π is a public permutation under a public key: ECB is what the construction asks for.
        self._encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        self._scratch: dict[tuple[int, ...], Scratch] = {}

    def __call__(self, blocks: Blocks, first: int, use: int) -> Blocks:
        """H(blocks[i], (first + i, use)); blocks: (n, 2)."""
        scratch = self.scratch(1, len(blocks))
        scratch.operands[0] = blocks
        inner, outer = self.halves(scratch, first, use)
        return inner[0] ^ outer[0]

    def scratch(self, operands: int, count: int) -> Scratch:
        """Buffers for `halves`, the same each time."""
        if (operands, count) not in self._scratch:
            self._scratch[operands, count] = Scratch(operands, count)
        return self._scratch[operands, count]

    def halves(self, scratch: Scratch, first: int, *uses: int) -> tuple[Blocks, Blocks]:
        """Two (k, n, 2) whose XOR is H(operands[k, i], (first + i, uses[k])); valid until the next call."""
        inner = self.permuted(scratch)
        kernels.add_tweaks(inner, np.uint64(first), np.array(uses, np.uint64), scratch.tweaked)
        self._permute(scratch.flat_tweaked, scratch.outer)
        return inner, scratch.outer.blocks

    def permuted(self, scratch: Scratch) -> Blocks:
        """π(operands[k, i]), (k, n, 2); valid until the next call."""
        self._permute(scratch.flat_operands, scratch.inner)
        return scratch.inner.blocks

    def _permute(self, flat: NDArray[np.uint8], out: _Buffer) -> None:
        self._encryptor.update_into(flat, out.bytes)  # pyright: ignore[reportArgumentType]


class Scratch:
    """operands: (k, n, 2), to be filled."""

    def __init__(self, operands: int, count: int) -> None:
        self.operands, self.tweaked = np.empty((2, operands, count, 2), np.uint64)
        self.flat_operands, self.flat_tweaked = (x.reshape(-1).view(np.uint8) for x in (self.operands, self.tweaked))
        self.inner, self.outer = _Buffer(self.operands.shape), _Buffer(self.operands.shape)


class _Buffer:
    """Blocks with the 15 spare bytes behind them that the cipher's interface asks for."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        words = np.empty(int(np.prod(shape)) + 2, np.uint64)
        self.bytes = words.view(np.uint8)[:-1]
        self.blocks = words[:-2].reshape(shape)
