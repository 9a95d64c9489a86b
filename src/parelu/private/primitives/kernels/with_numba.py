"""Inner loops compiled by numba; what each computes stands in `with_numpy`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_loop = numba.njit(cache=True, nogil=True)


@_loop
def add_tweaks(blocks: Any, first: int, high: int, out: Any) -> None:
    low, top = np.uint64(first), np.uint64(high)
    for i in range(len(blocks)):
        out[i, 0] = blocks[i, 0] ^ (low + np.uint64(i))
        out[i, 1] = blocks[i, 1] ^ top


@_loop
def garble_half_gates(hashes: Any, a: Any, b: Any, delta: Any, table: Any, out: Any) -> None:
    for i in range(len(a)):
        colour_a = np.uint64(np.int64(a[i, 1]) >> np.int64(63))
        colour_b = np.uint64(np.int64(b[i, 1]) >> np.int64(63))
        for word in range(2):
            generator = hashes[0, i, word] ^ hashes[1, i, word] ^ (colour_b & delta[word])
            evaluator = hashes[2, i, word] ^ hashes[3, i, word]
            table[0, i, word] = generator
            table[1, i, word] = evaluator ^ a[i, word]
            half = hashes[0, i, word] ^ (colour_a & generator)
            out[i, word] = half ^ hashes[2, i, word] ^ (colour_b & evaluator)


@_loop
def evaluate_half_gates(hashes: Any, a: Any, b: Any, table: Any, out: Any) -> None:
    for i in range(len(a)):
        colour_a = np.uint64(np.int64(a[i, 1]) >> np.int64(63))
        colour_b = np.uint64(np.int64(b[i, 1]) >> np.int64(63))
        for word in range(2):
            half = hashes[0, i, word] ^ (colour_a & table[0, i, word])
            out[i, word] = half ^ hashes[1, i, word] ^ (colour_b & (table[1, i, word] ^ a[i, word]))


@_loop
def select_labels(zeros: Any, delta: Any, values: Any, out: Any) -> None:
    for wire in range(len(zeros)):
        shift = np.uint64(wire)
        for i in range(zeros.shape[1]):
            chosen = np.uint64(0) - ((values[i] >> shift) & np.uint64(1))
            out[wire, i, 0] = zeros[wire, i, 0] ^ (chosen & delta[0])
            out[wire, i, 1] = zeros[wire, i, 1] ^ (chosen & delta[1])
