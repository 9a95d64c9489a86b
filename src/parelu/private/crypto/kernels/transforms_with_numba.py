"""Transforms and dots of the lattice compiled by numba; what each computes stands in `transforms_with_numpy`."""

from __future__ import annotations

from typing import Any

import numpy as np

from parelu.network.cache import compiled

ROUND = 1.5 * 2.0**52  # x + ROUND − ROUND is x rounded to an integer, for |x| < 2^51
WIDE, LANES = 16, 4  # outputs of a dot from which on it pays to run along them; vectors at a time below
_loop = compiled(nogil=True, error_model="numpy")  # without tests for a division by 0


@_loop
def reduced(x: Any, p: float, over: float) -> Any:
    return x - ((x * over + ROUND) - ROUND) * p


@_loop
def _times(a: Any, w: float, w_over: float, p: float) -> Any:
    return a * w - ((a * w_over + ROUND) - ROUND) * p


@_loop
def _reduce_run(x: Any, p: float) -> None:
    over = 1.0 / p
    for j in range(len(x)):
        x[j] = reduced(x[j], p, over)


# Transforms take two stages at a time on four runs of memory, which are arguments so that the compiler sees them apart.


@_loop
def forward(x: Any, powers: Any, quotients: Any, p: float) -> None:
    n, batch = x.shape
    flat, groups = x.reshape(-1), 1
    while 4 * groups <= n:
        size = n // (4 * groups) * batch
        for group in range(groups):
            x0, x1, x2, x3 = _runs(flat, 4 * group * size, size)
            if groups == 16 or 4 * groups == n:  # six stages each added p/2, or they are the last
                _forward_fourreduced(x0, x1, x2, x3, powers, quotients, groups + group, p)
            else:
                _forward_four(x0, x1, x2, x3, powers, quotients, groups + group, p)
        groups *= 4
    if groups < n:
        for group in range(groups):
            x0, x1 = flat[2 * group * batch :][:batch], flat[(2 * group + 1) * batch :][:batch]
            _forward_two(x0, x1, powers, quotients, groups + group, p)
    elif n == 1:
        _reduce_run(flat, p)


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
def _forward_fourreduced(x0: Any, x1: Any, x2: Any, x3: Any, powers: Any, quotients: Any, i: int, p: float) -> None:
    w, u, v = powers[i], powers[2 * i], powers[2 * i + 1]
    w_over, u_over, v_over, over = quotients[i], quotients[2 * i], quotients[2 * i + 1], 1.0 / p
    for j in range(len(x0)):
        c, d = _times(x2[j], w, w_over, p), _times(x3[j], w, w_over, p)
        e, f = x0[j] + c, _times(x1[j] + d, u, u_over, p)
        g, h = x0[j] - c, _times(x1[j] - d, v, v_over, p)
        x0[j], x1[j] = reduced(e + f, p, over), reduced(e - f, p, over)
        x2[j], x3[j] = reduced(g + h, p, over), reduced(g - h, p, over)


@_loop
def _forward_two(x0: Any, x1: Any, powers: Any, quotients: Any, i: int, p: float) -> None:
    w, w_over, over = powers[i], quotients[i], 1.0 / p
    for j in range(len(x0)):
        low, high = x0[j], _times(x1[j], w, w_over, p)
        x0[j], x1[j] = reduced(low + high, p, over), reduced(low - high, p, over)


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
        flat[j] = reduced(flat[j] * scale, p, over)


@_loop
def _inverse_two(x0: Any, x1: Any, powers: Any, quotients: Any, i: int, p: float) -> None:
    w, w_over, over = powers[i], quotients[i], 1.0 / p
    for j in range(len(x0)):
        low, high = x0[j], x1[j]
        x0[j], x1[j] = reduced(low + high, p, over), _times(low - high, w, w_over, p)


@_loop
def _inverse_four(x0: Any, x1: Any, x2: Any, x3: Any, powers: Any, quotients: Any, i: int, p: float) -> None:
    # Of inputs up to p only e + g can be more than p: it is up to 4p, and reduced.
    w, u, v = powers[i], powers[2 * i], powers[2 * i + 1]
    w_over, u_over, v_over, over = quotients[i], quotients[2 * i], quotients[2 * i + 1], 1.0 / p
    for j in range(len(x0)):
        e, f = x0[j] + x1[j], _times(x0[j] - x1[j], u, u_over, p)
        g, h = x2[j] + x3[j], _times(x2[j] - x3[j], v, v_over, p)
        x0[j], x1[j] = reduced(e + g, p, over), f + h
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
        out[j] += reduced(low + high, p, over)


@_loop
def _add_three(rows: Any, factors: Any, c: int, p: float, over: float, out: Any) -> None:
    r0, r1, r2 = rows[c], rows[c + 1], rows[c + 2]
    f0, f1, f2 = factors[c], factors[c + 1], factors[c + 2]
    for j in range(len(out)):
        out[j] += reduced(r0[j] * f0 + r1[j] * f1 + r2[j] * f2, p, over)


@_loop
def _add_one(row: Any, factor: float, p: float, over: float, out: Any) -> None:
    for j in range(len(out)):
        out[j] += reduced(row[j] * factor, p, over)


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
                a0 += reduced(_three(s, c, i, f0, f1, f2) + _three(s, c + 3, i, f3, f4, f5), p, over)
                a1 += reduced(_three(s, c, i + 1, f0, f1, f2) + _three(s, c + 3, i + 1, f3, f4, f5), p, over)
                a2 += reduced(_three(s, c, i + 2, f0, f1, f2) + _three(s, c + 3, i + 2, f3, f4, f5), p, over)
                a3 += reduced(_three(s, c, i + 3, f0, f1, f2) + _three(s, c + 3, i + 3, f3, f4, f5), p, over)
            if threes > sixes:
                f0, f1, f2 = np.float64(h[sixes, j]), np.float64(h[sixes + 1, j]), np.float64(h[sixes + 2, j])
                a0 += reduced(_three(s, sixes, i, f0, f1, f2), p, over)
                a1 += reduced(_three(s, sixes, i + 1, f0, f1, f2), p, over)
                a2 += reduced(_three(s, sixes, i + 2, f0, f1, f2), p, over)
                a3 += reduced(_three(s, sixes, i + 3, f0, f1, f2), p, over)
            for c in range(threes, len(h)):
                f = np.float64(h[c, j])
                a0 += reduced(s[c, i] * f, p, over)
                a1 += reduced(s[c, i + 1] * f, p, over)
                a2 += reduced(s[c, i + 2] * f, p, over)
                a3 += reduced(s[c, i + 3] * f, p, over)
            out[i, j], out[i + 1, j] = reduced(a0, p, over), reduced(a1, p, over)
            out[i + 2, j], out[i + 3, j] = reduced(a2, p, over), reduced(a3, p, over)


@_loop
def _three(s: Any, c: int, i: int, f0: float, f1: float, f2: float) -> Any:
    return s[c, i] * f0 + s[c + 1, i] * f1 + s[c + 2, i] * f2
