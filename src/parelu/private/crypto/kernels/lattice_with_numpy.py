"""Inner loops of the lattice in numpy. Residues are integers in float64, balanced: at most p/2 in absolute value.

What stays below 2^53 is exact, so both sets of kernels agree whatever the order of their operations. Where a bound is
said, nothing is checked; parelu.private.crypto.lattice.parameters has the bounds' proofs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Residues = NDArray[np.float64]
Words = NDArray[np.uint64]

PIECE = 22  # bits of the pieces in which a message's remainder is multiplied
TOGETHER = 8  # products that are summed before they are reduced


def reduce(x: Residues, p: float, out: Residues) -> None:
    """out = x modulo p, balanced; |x| < 2^53 − p."""
    np.copyto(out, _reduced(_reduced(x, p), p))


def _reduced(x: Residues, p: float | Residues) -> Residues:
    """x modulo p: balanced for |x| < 2^51, at most 2 more up to 2^53."""
    return x - np.rint(x * (1 / p)) * p


def _times(a: Residues, w: Residues, quotient: Residues, p: float) -> Residues:
    """a·w modulo p, at most p/2 + 2, for |a| ≤ 4p; quotient: w/p."""
    return a * w - np.rint(a * quotient) * p


def forward(x: Residues, powers: Residues, quotients: Residues, p: float) -> None:
    """x, (n, batch), |x| ≤ p, becomes its transform, balanced; powers: the twiddles; quotients: they divided by p."""
    n, m = len(x), 1
    while m < n:
        pairs = x.reshape(m, 2, n // (2 * m), -1)
        low, high = pairs[:, 0].copy(), _times(pairs[:, 1], *_of_stage(powers, quotients, m), p)
        np.add(low, high, out=pairs[:, 0])
        np.subtract(low, high, out=pairs[:, 1])
        m *= 2
        if m == 64:  # six stages each added p/2
            x[:] = _reduced(x, p)
    x[:] = _reduced(x, p)


def inverse(x: Residues, powers: Residues, quotients: Residues, scale: float, p: float) -> None:
    """The inverse of `forward`; the twiddles are those of the inverse root, scale is 1/n modulo p, balanced."""
    n, m = len(x), len(x) // 2
    while m:
        pairs = x.reshape(m, 2, n // (2 * m), -1)
        low, high = pairs[:, 0].copy(), pairs[:, 1].copy()
        pairs[:, 0] = _reduced(low + high, p)
        pairs[:, 1] = _times(low - high, *_of_stage(powers, quotients, m), p)
        m //= 2
    x[:] = _reduced(x * scale, p)


def _of_stage(powers: Residues, quotients: Residues, m: int) -> tuple[Residues, Residues]:
    return powers[m : 2 * m, None, None], quotients[m : 2 * m, None, None]


def dot(h: NDArray[np.int32], s: Residues, p: float, out: Residues) -> None:
    """out[y, i, j] = Σ_c h[y, c, j]·s[y, c, i] modulo p, balanced; h: (n, c, m), s: (n, c, i), out: (n, i, m)."""
    out[:] = 0
    for first in range(0, h.shape[1], TOGETHER):
        block = slice(first, first + TOGETHER)
        out += _reduced(np.matmul(s[:, block].transpose(0, 2, 1), h[:, block].astype(np.float64)), p)
    out[:] = _reduced(out, p)


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
    np.copyto(out, _reduced(ready + constants @ message_pieces(values, scale), primes[:, None]))


def flood(words: Words, constants: Residues, offsets: Residues, primes: Residues, out: Residues) -> None:
    """out: (6, count), the residues of sums of three uniforms, less `offsets`; constants: (6, 4)."""
    np.copyto(out, _reduced(constants @ flood_pieces(words) + offsets[:, None], primes[:, None]))


def drop(x: Residues, primes: Residues, mixed: Residues, lift: Residues, out: Residues) -> None:
    """out = round(x/P) modulo the kept primes, balanced; x: (6, count), balanced.

    mixed: (3,), for the digits of x modulo P in the mixed radix of the dropped primes; lift: (3, 4), of x and digits.
    """
    first = x[3]
    second = _reduced((x[4] - first) * mixed[0], primes[4])
    third = _reduced((x[5] - first) * mixed[1] + second * mixed[2], primes[5])
    for k in range(3):
        total = x[k] * lift[k, 0] + first * lift[k, 1] + second * lift[k, 2] + third * lift[k, 3]
        out[k] = _reduced(total, primes[k])


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
    total = _reduced(_reduced(sums, column) + masks + constants @ pieces + offsets[:, None], column)
    drop(total, primes, mixed, lift, out)


def decode(x: Residues, primes: Residues, constants: Residues, quotients: Words, out: Words) -> None:
    """out = round(2^64·x/q') modulo 2^64; x: (3, count), |x| ≤ p.

    The remainder R of 2^64·y modulo p, y the digit of x for p in the Chinese remainder theorem, gives the quotient as
    −R/p modulo 2^64 and the fraction as R/p. constants: (3,), 2^64·(q'/p)^−1; quotients: (3,), −1/p modulo 2^64.
    """
    fraction = np.zeros(x.shape[1])
    out[:] = 0
    for k in range(3):
        remainder = _reduced(x[k] * constants[k], primes[k])
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
