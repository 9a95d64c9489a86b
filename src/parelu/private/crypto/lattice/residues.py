"""Messages, answers and their residues modulo the six primes: scaling, dropping P, decoding, and the wire.

All of it is exact integer arithmetic; parameters.py has the bounds within which float64 is so. Arrays have the primes
first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu.errors import ProtocolError
from parelu.private.crypto.kernels import residue_kernels as kernels
from parelu.private.crypto.lattice.parameters import DROPPED, KEPT, PRIMES, Q_KEPT, P, Q
from parelu.private.crypto.lattice.sampling import (
    ALL_PRIMES,
    FLOOD_CONSTANTS,
    FLOOD_OFFSETS,
    WORDS,
)
from parelu.private.crypto.lattice.transforms import balanced
from parelu.private.crypto.prg import Stream
from parelu.private.crypto.ring import scratch

Residues = NDArray[np.float64]
Words = NDArray[np.uint64]

CHUNK = 4096  # outputs answered at a time: their words and residues stay in the cache
WORD = 1 << 64


def _row(values: list[int], prime: int) -> list[int]:
    return [balanced(value, prime) for value in values]


# round(q·r/2^64) = (q·r − s)/2^64 with s = q·r modulo 2^64, signed; modulo a prime of q it is −s/2^64.
SCALE = np.uint64(Q % WORD)
MESSAGE = np.array([_row([-(1 << bits) * pow(WORD, -1, p) for bits in (44, 22, 0)], p) for p in PRIMES], np.float64)
ANSWER = np.ascontiguousarray(np.hstack([-MESSAGE, FLOOD_CONSTANTS]))
# x modulo P is v1 + d1·v2 + d1·d2·v3 with balanced digits, which is the representative nearest to 0.
_D1, _D2, _D3 = DROPPED
MIXED = np.array(
    [balanced(pow(_D1, -1, _D2), _D2), balanced(pow(_D1 * _D2, -1, _D3), _D3), balanced(-pow(_D2, -1, _D3), _D3)],
    np.float64,
)
LIFT = np.array([_row([pow(P, -1, p) * factor for factor in (1, -1, -_D1, -_D1 * _D2)], p) for p in KEPT], np.float64)
DECODE = np.array([balanced(WORD * pow(Q_KEPT // p, -1, p), p) for p in KEPT], np.float64)
QUOTIENTS = np.array([-pow(p, -1, WORD) % WORD for p in KEPT], np.uint64)


def reduce(x: Residues, k: int) -> Residues:
    """x modulo PRIMES[k], balanced; |x| < 2^53 − p, integers."""
    out = np.empty(x.shape)
    kernels.reduce(np.ascontiguousarray(x).reshape(-1), float(PRIMES[k]), out.reshape(-1))
    return out


def message(values: Words) -> Residues:
    """round(q·r/2^64) modulo each prime: (count,) → (6, count)."""
    return ciphertext(np.zeros((len(PRIMES), len(values))), values)


def ciphertext(ready: Residues, values: Words) -> Residues:
    """ready + message(values), balanced: what a client sends; ready: (6, count), a·s + e, |ready| < 2^50."""
    out = np.empty(ready.shape)
    kernels.add_message(np.ascontiguousarray(ready), np.ascontiguousarray(values), SCALE, MESSAGE, ALL_PRIMES, out)
    return out


def drop(x: Residues) -> Residues:
    """round(x/P) modulo q', the rounding error below 1/2: (6, count), balanced → (3, count)."""
    out = np.empty((len(KEPT), x.shape[1]))
    kernels.drop(np.ascontiguousarray(x), ALL_PRIMES, MIXED, LIFT, out)
    return out


def decode(x: Residues) -> Words:
    """round(2^64·x/q') modulo 2^64: (3, count), |x| ≤ p → (count,); right unless within 2^−49 of halfway."""
    out = np.empty(x.shape[1], np.uint64)
    kernels.decode(np.ascontiguousarray(x), ALL_PRIMES, DECODE, QUOTIENTS, out)
    return out


def answer(sums: Residues, masks: Residues, values: Words, stream: Stream) -> Residues:
    """round((sums + masks − message(values) + flood)/P) modulo q': all that the server does to one layer's sums.

    Args:
        sums: (6, …), products of ciphertexts and weights, |sums| < 2^53 − p.
        masks: (6, …), ⟨β, u⟩, balanced.
        values: (…), uint64, what the server keeps of the result. It comes off modulo q, before P is dropped: the
            rounding would else tell of more than the difference.
        stream: what floods; each output takes 32 bytes.
    Returns:
        (3, …), balanced.
    """
    shape = values.shape
    outputs, slots = (shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else (len(values), 1)
    sums, masks = sums.reshape(len(PRIMES), outputs, slots), masks.reshape(len(PRIMES), outputs, slots)
    out, values = np.empty((len(KEPT), outputs, slots)), values.reshape(outputs, slots)
    step = max(1, CHUNK // max(1, slots))
    for first in range(0, outputs, step):
        part = slice(first, first + step)
        count = values[part].size
        words = stream.bytes(8 * WORDS * count).view(np.uint64).reshape(count, WORDS)
        rows = [np.ascontiguousarray(x[:, part]).reshape(len(PRIMES), count) for x in (sums, masks)]
        found = np.empty((len(KEPT), count))
        kernels.answer(
            *rows,
            np.ascontiguousarray(values[part]).reshape(-1),
            words,
            SCALE,
            ANSWER,
            FLOOD_OFFSETS,
            ALL_PRIMES,
            MIXED,
            LIFT,
            found,
        )
        out[:, part] = found.reshape(len(KEPT), *values[part].shape)
    return out.reshape(len(KEPT), *shape)


def columns(
    sequences: Residues, parts: NDArray[np.int32], taps: NDArray[np.int32], index: NDArray[np.int32]
) -> Residues:
    """What a convolution's weights are multiplied by: row c has sequences[k, parts[c], index[taps[c]]] for each k.

    sequences: (primes, V, entries); parts, taps: (columns,); index: (T, slots) → (columns, primes·slots), this thread's
    until the next call.
    """
    out = scratch("lattice columns", len(parts), len(sequences), index.shape[1])
    kernels.columns(np.ascontiguousarray(sequences), parts, taps, index, out)
    return out.reshape(len(parts), -1)


def packed_bytes(primes: tuple[int, ...], count: int) -> int:
    """The length of `pack` of so many residues a prime."""
    return sum(-(-count * prime.bit_length() // 8) for prime in primes)


def pack(x: Residues, primes: tuple[int, ...]) -> bytes:
    """Each prime's residues in [0, p), bit by bit, lowest first, and up to a byte; x: (primes, count), balanced."""
    parts = []
    for row, prime in zip(x, primes, strict=True):
        bits = prime.bit_length()
        words = np.empty(-(-len(row) * bits // 32), np.uint32)
        kernels.pack(np.ascontiguousarray(row), prime, bits, words)
        parts.append(words.view(np.uint8)[: packed_bytes((prime,), len(row))].tobytes())
    return b"".join(parts)


def unpack(body: NDArray[np.uint8], primes: tuple[int, ...], count: int) -> Residues:
    """The inverse of `pack`, (primes, count); raises ProtocolError for what `pack` makes of nothing."""
    if len(body) != packed_bytes(primes, count):
        raise ProtocolError(f"{len(body)} bytes of residues instead of {packed_bytes(primes, count)}")
    out = np.empty((len(primes), count))
    for row, part, prime in zip(out, _parts(body, primes, count), primes, strict=True):
        bits = prime.bit_length()
        words = np.zeros(-(-count * bits // 32) + 1, np.uint32)
        words.view(np.uint8)[: len(part)] = part
        if count * bits % 8 and part[-1] >> (count * bits % 8):
            raise ProtocolError("a bit is set behind the last residue")
        if not kernels.unpack(words, prime, bits, row):
            raise ProtocolError("a residue is not below its prime")
    return out


def _parts(body: NDArray[np.uint8], primes: tuple[int, ...], count: int) -> Iterator[Any]:
    at = 0
    for prime in primes:
        size = packed_bytes((prime,), count)
        yield body[at : at + size]
        at += size
