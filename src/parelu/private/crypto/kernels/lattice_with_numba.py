"""Inner loops of the lattice compiled by numba; what each computes stands in `lattice_with_numpy`."""

from __future__ import annotations

from typing import Any

import numpy as np

from parelu.network.cache import compiled

ROUND = 1.5 * 2.0**52  # x + ROUND − ROUND is x rounded to an integer, for |x| < 2^51
PIECE = 22
WIDE, LANES = 16, 4  # outputs of a dot from which on it pays to run along them; vectors at a time below
CHUNK = 512  # outputs at a time: their pieces stay in the cache
LOW, PART, TOP = np.uint64(0xFFFFFFFF), np.uint64((1 << 17) - 1), np.uint64((1 << 21) - 1)
_loop = compiled(nogil=True, error_model="numpy")  # without tests for a division by 0


@_loop
def _reduced(x: Any, p: float, over: float) -> Any:
    return x - ((x * over + ROUND) - ROUND) * p


@_loop
def _times(a: Any, w: float, w_over: float, p: float) -> Any:
    return a * w - ((a * w_over + ROUND) - ROUND) * p


@_loop
def reduce(x: Any, p: float, out: Any) -> None:
    over = 1.0 / p
    for i in range(len(x)):
        out[i] = _reduced(_reduced(x[i], p, over), p, over)


@_loop
def _reduce_run(x: Any, p: float) -> None:
    over = 1.0 / p
    for j in range(len(x)):
        x[j] = _reduced(x[j], p, over)


# Transforms take two stages at a time on four runs of memory, which are arguments so that the compiler sees them apart.


@_loop
def forward(x: Any, powers: Any, quotients: Any, p: float) -> None:
    n, batch = x.shape
    flat, groups = x.reshape(-1), 1
    while 4 * groups <= n:
        size = n // (4 * groups) * batch
        for group in range(groups):
            x0, x1, x2, x3 = _runs(flat, 4 * group * size, size)
            if groups == 16 or 8 * groups > n:  # six stages each added p/2, or they are the last
                _forward_four_reduced(x0, x1, x2, x3, powers, quotients, groups + group, p)
            else:
                _forward_four(x0, x1, x2, x3, powers, quotients, groups + group, p)
        groups *= 4
    if groups < n:
        for group in range(groups):
            x0, x1 = flat[2 * group * batch :][:batch], flat[(2 * group + 1) * batch :][:batch]
            _forward_two(x0, x1, powers, quotients, groups + group, p)
    elif n == 1:
        reduce(flat, p, flat)


@_loop
def _runs(flat: Any, at: int, size: int) -> Any:
    two, three, four = at + 2 * size, at + 3 * size, at + 4 * size
    return flat[at : at + size], flat[at + size : two], flat[two:three], flat[three:four]


@_loop
def _forward_four(x0: Any, x1: Any, x2: Any, x3: Any, powers: Any, quotients: Any, i: int, p: float) -> None:
    w, u, v = powers[i], powers[2 * i], powers[2 * i + 1]
    w_over, u_over, v_over = quotients[i], quotients[2 * i], quotients[2 * i + 1]
    for j in range(len(x0)):
        c, d = _times(x2[j], w, w_over, p), _times(x3[j], w, w_over, p)
        e, f = x0[j] + c, _times(x1[j] + d, u, u_over, p)
        g, h = x0[j] - c, _times(x1[j] - d, v, v_over, p)
        x0[j], x1[j], x2[j], x3[j] = e + f, e - f, g + h, g - h


@_loop
def _forward_four_reduced(x0: Any, x1: Any, x2: Any, x3: Any, powers: Any, quotients: Any, i: int, p: float) -> None:
    w, u, v = powers[i], powers[2 * i], powers[2 * i + 1]
    w_over, u_over, v_over, over = quotients[i], quotients[2 * i], quotients[2 * i + 1], 1.0 / p
    for j in range(len(x0)):
        c, d = _times(x2[j], w, w_over, p), _times(x3[j], w, w_over, p)
        e, f = x0[j] + c, _times(x1[j] + d, u, u_over, p)
        g, h = x0[j] - c, _times(x1[j] - d, v, v_over, p)
        x0[j], x1[j] = _reduced(e + f, p, over), _reduced(e - f, p, over)
        x2[j], x3[j] = _reduced(g + h, p, over), _reduced(g - h, p, over)


@_loop
def _forward_two(x0: Any, x1: Any, powers: Any, quotients: Any, i: int, p: float) -> None:
    w, w_over, over = powers[i], quotients[i], 1.0 / p
    for j in range(len(x0)):
        low, high = x0[j], _times(x1[j], w, w_over, p)
        x0[j], x1[j] = _reduced(low + high, p, over), _reduced(low - high, p, over)


@_loop
def inverse(x: Any, powers: Any, quotients: Any, scale: float, p: float) -> None:
    n, batch = x.shape
    flat, groups = x.reshape(-1), n
    stages = 0
    while 1 << stages < n:
        stages += 1
    if stages % 2:
        groups = n // 2
        for group in range(groups):
            x0, x1 = flat[2 * group * batch :][:batch], flat[(2 * group + 1) * batch :][:batch]
            _inverse_two(x0, x1, powers, quotients, groups + group, p)
    while groups > 1:
        groups //= 4
        size = n // (4 * groups) * batch
        for group in range(groups):
            x0, x1, x2, x3 = _runs(flat, 4 * group * size, size)
            _inverse_four(x0, x1, x2, x3, powers, quotients, groups + group, p)
    over = 1.0 / p
    for j in range(len(flat)):
        flat[j] = _reduced(flat[j] * scale, p, over)


@_loop
def _inverse_two(x0: Any, x1: Any, powers: Any, quotients: Any, i: int, p: float) -> None:
    w, w_over, over = powers[i], quotients[i], 1.0 / p
    for j in range(len(x0)):
        low, high = x0[j], x1[j]
        x0[j], x1[j] = _reduced(low + high, p, over), _times(low - high, w, w_over, p)


@_loop
def _inverse_four(x0: Any, x1: Any, x2: Any, x3: Any, powers: Any, quotients: Any, i: int, p: float) -> None:
    # Of inputs up to p only e + g can be more than p: it is up to 4p, and reduced.
    w, u, v = powers[i], powers[2 * i], powers[2 * i + 1]
    w_over, u_over, v_over, over = quotients[i], quotients[2 * i], quotients[2 * i + 1], 1.0 / p
    for j in range(len(x0)):
        e, f = x0[j] + x1[j], _times(x0[j] - x1[j], u, u_over, p)
        g, h = x2[j] + x3[j], _times(x2[j] - x3[j], v, v_over, p)
        x0[j], x1[j] = _reduced(e + g, p, over), f + h
        x2[j], x3[j] = _times(e - g, w, w_over, p), _times(f - h, w, w_over, p)


# Dots: RANK·K is a multiple of 3 and mostly of 6, so they take 6 products at a time, then 3, then one.


@_loop
def dot(h: Any, s: Any, p: float, out: Any) -> None:
    over = 1.0 / p
    if h.shape[2] < WIDE and s.shape[2] % LANES == 0:
        for y in range(len(h)):
            _dot_few(h[y], s[y], p, over, out[y])
        return
    sixes, threes = h.shape[1] // 6 * 6, h.shape[1] // 3 * 3
    for y in range(len(h)):
        rows = h[y]
        for i in range(s.shape[2]):
            factors, row = s[y, :, i], out[y, i]
            row[:] = 0.0
            for c in range(0, sixes, 6):
                _add_six(rows, factors, c, p, over, row)
            if threes > sixes:
                _add_three(rows, factors, sixes, p, over, row)
            for c in range(threes, len(rows)):
                _add_one(rows[c], factors[c], p, over, row)
            _reduce_run(row, p)


@_loop
def _add_six(rows: Any, factors: Any, c: int, p: float, over: float, out: Any) -> None:
    r0, r1, r2, r3, r4, r5 = rows[c], rows[c + 1], rows[c + 2], rows[c + 3], rows[c + 4], rows[c + 5]
    f0, f1, f2 = factors[c], factors[c + 1], factors[c + 2]
    f3, f4, f5 = factors[c + 3], factors[c + 4], factors[c + 5]
    for j in range(len(out)):
        low = r0[j] * f0 + r1[j] * f1 + r2[j] * f2
        high = r3[j] * f3 + r4[j] * f4 + r5[j] * f5
        out[j] += _reduced(low + high, p, over)


@_loop
def _add_three(rows: Any, factors: Any, c: int, p: float, over: float, out: Any) -> None:
    r0, r1, r2 = rows[c], rows[c + 1], rows[c + 2]
    f0, f1, f2 = factors[c], factors[c + 1], factors[c + 2]
    for j in range(len(out)):
        out[j] += _reduced(r0[j] * f0 + r1[j] * f1 + r2[j] * f2, p, over)


@_loop
def _add_one(row: Any, factor: float, p: float, over: float, out: Any) -> None:
    for j in range(len(out)):
        out[j] += _reduced(row[j] * factor, p, over)


# Where few outputs share a vector: four vectors at a time against one output, in registers.


@_loop
def _dot_few(h: Any, s: Any, p: float, over: float, out: Any) -> None:
    sixes, threes = len(h) // 6 * 6, len(h) // 3 * 3
    for j in range(h.shape[1]):
        for i in range(0, s.shape[1], LANES):
            a0, a1, a2, a3 = 0.0, 0.0, 0.0, 0.0
            for c in range(0, sixes, 6):
                f0, f1, f2 = np.float64(h[c, j]), np.float64(h[c + 1, j]), np.float64(h[c + 2, j])
                f3, f4, f5 = np.float64(h[c + 3, j]), np.float64(h[c + 4, j]), np.float64(h[c + 5, j])
                a0 += _reduced(_three(s, c, i, f0, f1, f2) + _three(s, c + 3, i, f3, f4, f5), p, over)
                a1 += _reduced(_three(s, c, i + 1, f0, f1, f2) + _three(s, c + 3, i + 1, f3, f4, f5), p, over)
                a2 += _reduced(_three(s, c, i + 2, f0, f1, f2) + _three(s, c + 3, i + 2, f3, f4, f5), p, over)
                a3 += _reduced(_three(s, c, i + 3, f0, f1, f2) + _three(s, c + 3, i + 3, f3, f4, f5), p, over)
            if threes > sixes:
                f0, f1, f2 = np.float64(h[sixes, j]), np.float64(h[sixes + 1, j]), np.float64(h[sixes + 2, j])
                a0 += _reduced(_three(s, sixes, i, f0, f1, f2), p, over)
                a1 += _reduced(_three(s, sixes, i + 1, f0, f1, f2), p, over)
                a2 += _reduced(_three(s, sixes, i + 2, f0, f1, f2), p, over)
                a3 += _reduced(_three(s, sixes, i + 3, f0, f1, f2), p, over)
            for c in range(threes, len(h)):
                f = np.float64(h[c, j])
                a0 += _reduced(s[c, i] * f, p, over)
                a1 += _reduced(s[c, i + 1] * f, p, over)
                a2 += _reduced(s[c, i + 2] * f, p, over)
                a3 += _reduced(s[c, i + 3] * f, p, over)
            out[i, j], out[i + 1, j] = _reduced(a0, p, over), _reduced(a1, p, over)
            out[i + 2, j], out[i + 3, j] = _reduced(a2, p, over), _reduced(a3, p, over)


@_loop
def _three(s: Any, c: int, i: int, f0: float, f1: float, f2: float) -> Any:
    return s[c, i] * f0 + s[c + 1, i] * f1 + s[c + 2, i] * f2


# Residues, by chunks of which the pieces stay in the cache. A row is taken before it is sliced, and is then known to be
# contiguous. A row of `pieces` is that of one multiple in every function here.


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
        out[i] = _reduced(x[i] + high[i] * a + middle[i] * b + low[i] * c, p, over)


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
        x[i] = _reduced(x[i] + r0[i] * a + r1[i] * b + r2[i] * c + r3[i] * d, p, over)


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
        digit = _reduced((x4[i] - first[i]) * a, p, p_over)
        second[i] = digit
        third[i] = _reduced((x5[i] - first[i]) * b + digit * c, r, r_over)


@_loop
def _lift(x: Any, first: Any, digits: Any, constants: Any, p: float, out: Any) -> None:
    a, b, c, d, over = constants[0], constants[1], constants[2], constants[3], 1.0 / p
    second, third = digits[0], digits[1]
    for i in range(len(out)):
        out[i] = _reduced(x[i] * a + first[i] * b + second[i] * c + third[i] * d, p, over)


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
        total = _reduced(x[i], p, over) + masks[i] + offset
        out[i] = total + high[i] * a + middle[i] * b + low[i] * c


@_loop
def decode(x: Any, primes: Any, constants: Any, quotients: Any, out: Any) -> None:
    x0, x1, x2 = x[0], x[1], x[2]
    p0, p1, p2 = primes[0], primes[1], primes[2]
    c0, c1, c2 = constants[0], constants[1], constants[2]
    q0, q1, q2 = quotients[0], quotients[1], quotients[2]
    over0, over1, over2 = 1.0 / p0, 1.0 / p1, 1.0 / p2
    for i in range(len(out)):
        r0, r1, r2 = _reduced(x0[i] * c0, p0, over0), _reduced(x1[i] * c1, p1, over1), _reduced(x2[i] * c2, p2, over2)
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
