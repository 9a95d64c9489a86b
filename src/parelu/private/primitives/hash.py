"""The tweakable hash of garbling and oblivious transfer: TMMO over a fixed-key AES.

H(x, i) = π(π(x) ⊕ i) ⊕ π(x) (Guo, Katz, Wang, Yu 2020, section 7.4): tweakable circular correlation robust in the
ideal-permutation model. A tweak is (number of the instance, number of the use in the instance), 64 bits each, and
is used once under one key and one Δ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from parelu.private.primitives.kernels import kernels
from parelu.private.primitives.prg import Blocks

OT_DOMAIN = 1 << 63  # the second half of a tweak: gates count up from 0, oblivious transfers from here


class Hash:
    """key: 16 bytes, public, chosen at random for each connection or package. Not for two threads at once."""

    def __init__(self, key: bytes) -> None:
        # π is a public permutation under a public key: ECB is what the construction asks for.
        self._encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        self._scratch: dict[tuple[int, ...], tuple[_Buffer, _Buffer]] = {}

    def __call__(self, blocks: Blocks, first: int, use: int) -> Blocks:
        """H(blocks[i], (first + i, use)); blocks: (n, 2)."""
        return self.uses(blocks[None].copy(), first, (use,))[0].copy()

    def uses(self, blocks: Blocks, first: int, uses: Sequence[int]) -> Blocks:
        """H(blocks[k, i], (first + i, uses[k])); blocks: (k, n, 2), overwritten.

        The result is scratch: valid until the next call with this shape.
        """
        if blocks.shape not in self._scratch:
            self._scratch[blocks.shape] = _Buffer(blocks.shape), _Buffer(blocks.shape)
        inner, outer = self._scratch[blocks.shape]
        self._permute(blocks, inner)
        for k, use in enumerate(uses):
            kernels.add_tweaks(inner.blocks[k], np.uint64(first), np.uint64(use), blocks[k])
        self._permute(blocks, outer)
        return np.bitwise_xor(inner.blocks, outer.blocks, out=inner.blocks)

    def _permute(self, blocks: Blocks, out: _Buffer) -> None:
        self._encryptor.update_into(blocks.reshape(-1).view(np.uint8), out.bytes)  # pyright: ignore[reportArgumentType]


class _Buffer:
    """Blocks with the 15 spare bytes behind them that the cipher's interface asks for."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        words = np.empty(int(np.prod(shape)) + 2, np.uint64)
        self.bytes = words.view(np.uint8)[:-1]
        self.blocks = words[:-2].reshape(shape)
