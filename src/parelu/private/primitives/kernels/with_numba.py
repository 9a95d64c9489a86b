"""Inner loops compiled by numba; what each computes stands in `with_numpy`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_loop = numba.njit(cache=True, nogil=True)


@_loop
def add_tweaks(blocks: Any, first: Any, high: Any, out: Any) -> None:
    for i in range(len(blocks)):
        out[i, 0] = blocks[i, 0] ^ (first + np.uint64(i))
        out[i, 1] = blocks[i, 1] ^ high


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


@_loop
def transpose_bits(columns: Any, out: Any) -> None:
    block = np.empty(64, np.uint64)
    for word in range(columns.shape[1]):
        for half in range(2):
            for k in range(64):
                block[k] = columns[64 * half + k, word]
            width, mask = 32, np.uint64(0xFFFFFFFF)
            while width:
                shift = np.uint64(width)
                for start in range(0, 64, 2 * width):
                    for k in range(start, start + width):
                        swapped = ((block[k] >> shift) ^ block[k + width]) & mask
                        block[k] ^= swapped << shift
                        block[k + width] ^= swapped
                width >>= 1
                mask ^= mask << np.uint64(width)
            for k in range(64):
                out[64 * word + k, half] = block[k]
