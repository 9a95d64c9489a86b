"""Inner loops in numpy. Blocks are uint64 (n, 2): 16 bytes, the colour is the top bit of the second word."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.uint64]
COLOUR = np.uint64(63)


def add_tweaks(blocks: Blocks, first: np.uint64, high: np.uint64, out: Blocks) -> None:
    """out[i] = blocks[i] ⊕ (first + i, high)."""
    np.bitwise_xor(blocks[:, 0], first + np.arange(len(blocks), dtype=np.uint64), out=out[:, 0])
    np.bitwise_xor(blocks[:, 1], high, out=out[:, 1])


def _where(colour_of: Blocks, blocks: Blocks) -> Blocks:
    """The block where the colour is 1, else zero."""
    return (colour_of[:, 1].view(np.int64) >> 63).view(np.uint64)[:, None] & blocks


def garble_half_gates(hashes: Blocks, a: Blocks, b: Blocks, delta: Blocks, table: Blocks, out: Blocks) -> None:
    """The two half gates of AND (Zahur, Rosulek, Evans 2015, figure 2).

    hashes: (4, n, 2), of a, a ⊕ Δ, b, b ⊕ Δ; a, b: (n, 2), zero labels; table: (2, n, 2) and out: (n, 2) are written.
    """
    generator = hashes[0] ^ hashes[1] ^ _where(b, delta)
    evaluator = hashes[2] ^ hashes[3]
    np.bitwise_xor(evaluator, a, out=table[1])
    table[0] = generator
    np.bitwise_xor(hashes[0] ^ _where(a, generator), hashes[2] ^ _where(b, evaluator), out=out)


def evaluate_half_gates(hashes: Blocks, a: Blocks, b: Blocks, table: Blocks, out: Blocks) -> None:
    """hashes: (2, n, 2), of the active labels a and b; table: (2, n, 2); out: (n, 2) is written."""
    np.bitwise_xor(hashes[0] ^ _where(a, table[0]), hashes[1] ^ _where(b, table[1] ^ a), out=out)


def select_labels(zeros: Blocks, delta: Blocks, values: NDArray[np.uint64], out: Blocks) -> None:
    """out[w, i] = zeros[w, i] ⊕ (bit w of values[i])·Δ; zeros, out: (wires, n, 2)."""
    shifts = np.arange(len(zeros), dtype=np.uint64)[:, None]
    chosen = np.uint64(0) - ((values[None, :] >> shifts) & np.uint64(1))
    np.bitwise_xor(zeros, chosen[:, :, None] & delta, out=out)


def transpose_bits(columns: NDArray[np.uint64], out: Blocks) -> None:
    """Bit i of columns[k] becomes bit k of out[i]; columns: (128, n / 64) of 64-bit words, out: (n, 2)."""
    for half in range(2):
        block = columns[64 * half : 64 * half + 64].copy()  # (64, words): row k of each 64 × 64 block
        width, mask = 32, np.uint64(0xFFFFFFFF)
        while width:
            rows = np.arange(64)
            upper = rows[(rows & width) == 0]
            shift = np.uint64(width)
            swapped = ((block[upper] >> shift) ^ block[upper + width]) & mask
            block[upper] ^= swapped << shift
            block[upper + width] ^= swapped
            width >>= 1
            mask ^= mask << np.uint64(width)
        out.reshape(-1, 64, 2)[:, :, half] = block.T
