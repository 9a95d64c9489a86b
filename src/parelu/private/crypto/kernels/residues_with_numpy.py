"""Residues of the lattice in numpy: messages, floodings, answers, decoding, the wire. As `transforms_with_numpy`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.kernels.transforms_with_numpy import Residues, reduced

Words = NDArray[np.uint64]

PIECE = 22  # bits of the pieces in which a message's remainder is multiplied


def reduce(x: Residues, p: float, out: Residues) -> None:
    """out = x modulo p, balanced; |x| < 2^53 − p."""
    np.copyto(out, reduced(reduced(x, p), p))


def message_pieces(values: Words, scale: np.uint64) -> Residues:
    """(3, count): s in three pieces, s = values·scale modulo 2^64 in [−2^63, 2^63), highest first."""
    s, piece = (values * scale).view(np.int64), np.int64((1 << PIECE) - 1)
    parts = (s >> np.int64(2 * PIECE), (s >> np.int64(PIECE)) & piece, s & piece)
    return np.stack(parts).astype(np.float64)


def flood_pieces(words: Words) -> Residues:
    """(4, count): of a sum of three uniforms below 2^85 the multiples of 1, 2^32, 2^49 and 2^64.

    words: (count, 4): the fourth has 21 bits for each of the other three, its highest bit is not used.
    """
    low = (words[:, :3] & np.uint64(0xFFFFFFFF)).sum(1)
    high = (words[:, :3] >> np.uint64(32)).sum(1)
    top = sum((words[:, 3] >> np.uint64(21 * i)) & np.uint64((1 << 21) - 1) for i in range(3))
    parts = (low, high & np.uint64((1 << 17) - 1), high >> np.uint64(17), top)
    return np.stack(parts).astype(np.float64)


def add_message(
    ready: Residues, values: Words, scale: np.uint64, constants: Residues, primes: Residues, out: Residues
) -> None:
    """out = ready + round(q·values/2^64), balanced; ready: (6, count), |ready| < 2^50; constants: (6, 3)."""
    np.copyto(out, reduced(ready + constants @ message_pieces(values, scale), primes[:, None]))


def flood(words: Words, constants: Residues, offsets: Residues, primes: Residues, out: Residues) -> None:
    """out: (6, count), the residues of sums of three uniforms, less `offsets`; constants: (6, 4)."""
    np.copyto(out, reduced(constants @ flood_pieces(words) + offsets[:, None], primes[:, None]))


def drop(x: Residues, primes: Residues, mixed: Residues, lift: Residues, out: Residues) -> None:
    """out = round(x/P) modulo the kept primes, balanced; x: (6, count), balanced.

    mixed: (3,), for the digits of x modulo P in the mixed radix of the dropped primes; lift: (3, 4), of x and digits.
    """
    first = x[3]
    second = reduced((x[4] - first) * mixed[0], primes[4])
    third = reduced((x[5] - first) * mixed[1] + second * mixed[2], primes[5])
    for k in range(3):
        total = x[k] * lift[k, 0] + first * lift[k, 1] + second * lift[k, 2] + third * lift[k, 3]
        out[k] = reduced(total, primes[k])


def answer(
    sums: Residues,
    masks: Residues,
    values: Words,
    words: Words,
    scale: np.uint64,
    constants: Residues,
    offsets: Residues,
    primes: Residues,
    mixed: Residues,
    lift: Residues,
    out: Residues,
) -> None:
    """out = round((sums + masks − message(values) + flood)/P), (3, count), balanced.

    sums: (6, count), |sums| < 2^53 − p; masks: (6, count), balanced; constants: (6, 7), of the pieces of −message and
    of the flooding.
    """
    column = primes[:, None]
    pieces = np.concatenate([message_pieces(values, scale), flood_pieces(words)])
    total = reduced(reduced(sums, column) + masks + constants @ pieces + offsets[:, None], column)
    drop(total, primes, mixed, lift, out)


def decode(x: Residues, primes: Residues, constants: Residues, quotients: Words, out: Words) -> None:
    """out = round(2^64·x/q') modulo 2^64; x: (3, count), |x| ≤ p.

    The remainder R of 2^64·y modulo p, y the digit of x for p in the Chinese remainder theorem, gives the quotient as
    −R/p modulo 2^64 and the fraction as R/p. constants: (3,), 2^64·(q'/p)^−1; quotients: (3,), −1/p modulo 2^64.
    """
    fraction = np.zeros(x.shape[1])
    out[:] = 0
    for k in range(3):
        remainder = reduced(x[k] * constants[k], primes[k])
        out += remainder.astype(np.int64).view(np.uint64) * quotients[k]
        fraction += remainder * (1 / primes[k])
    out += np.rint(fraction).astype(np.int64).view(np.uint64)


def pack(x: Residues, p: int, bits: int, out: NDArray[np.uint32]) -> None:
    """The residues, in [0, p), one behind the other, lowest bit first; x: (count,), balanced; out: the words."""
    values = x.astype(np.int64)
    values += p & (values >> np.int64(63))
    groups = np.zeros((-(-len(x) // 32), 32), np.uint64)
    groups.reshape(-1)[: len(x)] = values
    words = np.zeros((len(groups), bits), np.uint64)
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        words[:, word] |= groups[:, i] << np.uint64(shift)
        if shift + bits > 32:
            words[:, word + 1] |= groups[:, i] >> np.uint64(32 - shift)
    out[:] = words.astype(np.uint32, casting="unsafe").reshape(-1)[: len(out)]


def unpack(words: NDArray[np.uint32], p: int, bits: int, out: Residues) -> bool:
    """The inverse of `pack`; Says whether all are below p, as they must be."""
    start = np.arange(len(out), dtype=np.int64) * bits
    low, high = (words[(start >> 5) + i].astype(np.uint64) for i in range(2))
    values = (low | high << np.uint64(32)) >> (start & 31).astype(np.uint64) & np.uint64((1 << bits) - 1)
    np.copyto(out, values.view(np.int64))
    out -= p * (out > p // 2)
    return bool((values < np.uint64(p)).all())


def accept(words: NDArray[np.uint32], p: int, out: NDArray[np.int32]) -> int:
    """The words below the largest multiple of p, modulo p, balanced; how many they are; out has room for all."""
    kept = words[words < np.uint32((1 << 32) // p * p)] % np.uint32(p)
    out[: len(kept)] = kept.astype(np.int64) - p * (kept > p // 2)
    return len(kept)


def columns(
    sequences: Residues,
    parts: NDArray[np.int32],
    taps: NDArray[np.int32],
    index: NDArray[np.int32],
    out: Residues,
) -> None:
    """out[c, k, i] = sequences[k, parts[c], index[taps[c], i]].

    sequences: (6, V, entries); parts, taps: (columns,); index: (T, slots); out: (columns, 6, slots).
    """
    for k, sequence in enumerate(sequences):
        out[:, k] = sequence[parts[:, None], index[taps]]
