"""Residues of the lattice compiled by numba; what each function computes stands in `residues_with_numpy`.

Outputs are taken by chunks, whose pieces stay in the cache. A row is taken before it is sliced: it is then known to be
contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parelu.network.cache import compiled
from parelu.private.crypto.kernels.transforms_with_numba import ROUND, reduced

PIECE = 22  # bits of the pieces in which a message's remainder is multiplied
CHUNK = 512
LOW, PART, TOP = np.uint64(0xFFFFFFFF), np.uint64((1 << 17) - 1), np.uint64((1 << 21) - 1)
_loop = compiled(nogil=True, error_model="numpy")  # without tests for a division by 0


@_loop
def reduce(x: Any, p: float, out: Any) -> None:
    over = 1.0 / p
    for i in range(len(x)):
        out[i] = reduced(reduced(x[i], p, over), p, over)


@_loop
def _message_pieces(values: Any, scale: Any, pieces: Any) -> None:
    mask = np.int64((1 << PIECE) - 1)
    high, middle, low = pieces[0], pieces[1], pieces[2]
    for i in range(len(values)):
        s = np.int64(values[i] * scale)
        high[i] = np.float64(s >> np.int64(2 * PIECE))
        middle[i] = np.float64((s >> np.int64(PIECE)) & mask)
        low[i] = np.float64(s & mask)


@_loop
def _flood_pieces(words: Any, pieces: Any) -> None:
    r0, r1, r2, r3 = pieces[0], pieces[1], pieces[2], pieces[3]
    shift, half, part = np.uint64(32), np.uint64(17), np.uint64(21)
    for i in range(len(words)):
        a, b, c, d = words[i, 0], words[i, 1], words[i, 2], words[i, 3]
        high = (a >> shift) + (b >> shift) + (c >> shift)
        top = (d & TOP) + (d >> part & TOP) + (d >> (part + part) & TOP)
        r0[i] = np.float64(np.int64((a & LOW) + (b & LOW) + (c & LOW)))
        r1[i] = np.float64(np.int64(high & PART))
        r2[i] = np.float64(np.int64(high >> half))
        r3[i] = np.float64(np.int64(top))


@_loop
def add_message(ready: Any, values: Any, scale: Any, constants: Any, primes: Any, out: Any) -> None:
    pieces = np.empty((3, CHUNK))
    for first in range(0, len(values), CHUNK):
        last = min(first + CHUNK, len(values))
        _message_pieces(values[first:last], scale, pieces)
        for k in range(len(primes)):
            _add_message(ready[k][first:last], pieces, constants[k], primes[k], out[k][first:last])


@_loop
def _add_message(x: Any, pieces: Any, constants: Any, p: float, out: Any) -> None:
    a, b, c, over = constants[0], constants[1], constants[2], 1.0 / p
    high, middle, low = pieces[0], pieces[1], pieces[2]
    for i in range(len(x)):
        out[i] = reduced(x[i] + high[i] * a + middle[i] * b + low[i] * c, p, over)


@_loop
def flood(words: Any, constants: Any, offsets: Any, primes: Any, out: Any) -> None:
    pieces = np.empty((4, CHUNK))
    for first in range(0, len(words), CHUNK):
        last = min(first + CHUNK, len(words))
        _flood_pieces(words[first:last], pieces)
        for k in range(len(primes)):
            row = out[k][first:last]
            row[:] = offsets[k]
            _add_flood(row, pieces, constants[k], primes[k])


@_loop
def _add_flood(x: Any, pieces: Any, constants: Any, p: float) -> None:
    a, b, c, d, over = constants[0], constants[1], constants[2], constants[3], 1.0 / p
    r0, r1, r2, r3 = pieces[0], pieces[1], pieces[2], pieces[3]
    for i in range(len(x)):
        x[i] = reduced(x[i] + r0[i] * a + r1[i] * b + r2[i] * c + r3[i] * d, p, over)


@_loop
def drop(x: Any, primes: Any, mixed: Any, lift: Any, out: Any) -> None:
    rows, digits = np.empty((6, CHUNK)), np.empty((2, CHUNK))
    for first in range(0, x.shape[1], CHUNK):
        last = min(first + CHUNK, x.shape[1])
        for k in range(len(x)):
            _copy(x[k][first:last], rows[k])
        _drop(rows, primes, mixed, lift, digits, first, last, out)


@_loop
def _copy(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = x[i]


@_loop
def _drop(rows: Any, primes: Any, mixed: Any, lift: Any, digits: Any, first: int, last: int, out: Any) -> None:
    _mix(rows, last - first, primes, mixed, digits)
    for k in range(len(lift)):
        _lift(rows[k], rows[3], digits, lift[k], primes[k], out[k][first:last])


@_loop
def _mix(rows: Any, count: int, primes: Any, mixed: Any, digits: Any) -> None:
    first, x4, x5, second, third, p, r = rows[3], rows[4], rows[5], digits[0], digits[1], primes[4], primes[5]
    a, b, c, p_over, r_over = mixed[0], mixed[1], mixed[2], 1.0 / p, 1.0 / r
    for i in range(count):
        digit = reduced((x4[i] - first[i]) * a, p, p_over)
        second[i] = digit
        third[i] = reduced((x5[i] - first[i]) * b + digit * c, r, r_over)


@_loop
def _lift(x: Any, first: Any, digits: Any, constants: Any, p: float, out: Any) -> None:
    a, b, c, d, over = constants[0], constants[1], constants[2], constants[3], 1.0 / p
    second, third = digits[0], digits[1]
    for i in range(len(out)):
        out[i] = reduced(x[i] * a + first[i] * b + second[i] * c + third[i] * d, p, over)


@_loop
def answer(
    sums: Any,
    masks: Any,
    values: Any,
    words: Any,
    scale: Any,
    constants: Any,
    offsets: Any,
    primes: Any,
    mixed: Any,
    lift: Any,
    out: Any,
) -> None:
    message, flooding = np.empty((3, CHUNK)), np.empty((4, CHUNK))
    rows, digits = np.empty((6, CHUNK)), np.empty((2, CHUNK))
    for first in range(0, len(values), CHUNK):
        last = min(first + CHUNK, len(values))
        _message_pieces(values[first:last], scale, message)
        _flood_pieces(words[first:last], flooding)
        for k in range(len(primes)):
            row, p = rows[k][: last - first], primes[k]
            _add_sums(sums[k][first:last], masks[k][first:last], message, constants[k], offsets[k], p, row)
            _add_flood(row, flooding, constants[k][3:], p)
        _drop(rows, primes, mixed, lift, digits, first, last, out)


@_loop
def _add_sums(x: Any, masks: Any, pieces: Any, constants: Any, offset: float, p: float, out: Any) -> None:
    a, b, c, over = constants[0], constants[1], constants[2], 1.0 / p
    high, middle, low = pieces[0], pieces[1], pieces[2]
    for i in range(len(x)):
        total = reduced(x[i], p, over) + masks[i] + offset
        out[i] = total + high[i] * a + middle[i] * b + low[i] * c


@_loop
def decode(x: Any, primes: Any, constants: Any, quotients: Any, out: Any) -> None:
    x0, x1, x2 = x[0], x[1], x[2]
    p0, p1, p2 = primes[0], primes[1], primes[2]
    c0, c1, c2 = constants[0], constants[1], constants[2]
    q0, q1, q2 = quotients[0], quotients[1], quotients[2]
    over0, over1, over2 = 1.0 / p0, 1.0 / p1, 1.0 / p2
    for i in range(len(out)):
        r0, r1, r2 = reduced(x0[i] * c0, p0, over0), reduced(x1[i] * c1, p1, over1), reduced(x2[i] * c2, p2, over2)
        fraction = np.int64((r0 * over0 + r1 * over1 + r2 * over2 + ROUND) - ROUND)
        whole = np.uint64(np.int64(r0)) * q0 + np.uint64(np.int64(r1)) * q1 + np.uint64(np.int64(r2)) * q2
        out[i] = whole + np.uint64(fraction)


@_loop
def pack(x: Any, p: int, bits: int, out: Any) -> None:
    held, filled, at = np.uint64(0), 0, 0
    for i in range(len(x)):
        value = np.int64(x[i])
        value += np.int64(p) & (value >> np.int64(63))
        held |= np.uint64(value) << np.uint64(filled)
        filled += bits
        if filled >= 32:
            out[at] = np.uint32(held & LOW)
            held >>= np.uint64(32)
            filled -= 32
            at += 1
    if filled:
        out[at] = np.uint32(held & LOW)


@_loop
def unpack(words: Any, p: int, bits: int, out: Any) -> Any:
    mask, prime, half = np.int64((1 << bits) - 1), np.int64(p), np.int64(p // 2)
    worst, held, filled, at = np.int64(0), np.int64(0), 0, 0
    for i in range(len(out)):
        if filled < bits:
            held |= np.int64(words[at]) << np.int64(filled)
            filled += 32
            at += 1
        value = held & mask
        held >>= np.int64(bits)
        filled -= bits
        worst = max(worst, value)
        out[i] = np.float64(value - (prime & ((half - value) >> np.int64(63))))
    return worst < prime


@_loop
def accept(words: Any, p: int, out: Any) -> int:
    prime = np.uint32(p)
    limit, half, kept = np.uint32((1 << 32) // p * p), np.int32(p // 2), 0
    for word in words:
        if word < limit:
            value = np.int32(word % prime)
            out[kept] = value - np.int32(p) if value > half else value
            kept += 1
    return kept


@_loop
def columns(sequences: Any, parts: Any, taps: Any, index: Any, out: Any) -> None:
    for c in range(len(parts)):
        for k in range(len(sequences)):
            _gather(sequences[k, parts[c]], index[taps[c]], out[c, k])


@_loop
def _gather(x: Any, index: Any, out: Any) -> None:
    for i in range(len(index)):
        out[i] = x[index[i]]
