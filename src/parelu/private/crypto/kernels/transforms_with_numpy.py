"""Transforms and dots of the lattice in numpy. Residues are integers in float64, balanced: at most p/2 in size.

What stays below 2^53 is exact, so both sets of kernels agree whatever the order of their operations. Where a bound is
said, nothing is checked; parelu.private.crypto.lattice.parameters has the bounds' proofs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Residues = NDArray[np.float64]

TOGETHER = 8  # products that are summed before they are reduced


def reduced(x: Residues, p: float | Residues) -> Residues:
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
            x[:] = reduced(x, p)
    x[:] = reduced(x, p)


def inverse(x: Residues, powers: Residues, quotients: Residues, scale: float, p: float) -> None:
    """The inverse of `forward`; the twiddles are those of the inverse root, scale is 1/n modulo p, balanced."""
    n, m = len(x), len(x) // 2
    while m:
        pairs = x.reshape(m, 2, n // (2 * m), -1)
        low, high = pairs[:, 0].copy(), pairs[:, 1].copy()
        pairs[:, 0] = reduced(low + high, p)
        pairs[:, 1] = _times(low - high, *_of_stage(powers, quotients, m), p)
        m //= 2
    x[:] = reduced(x * scale, p)


def _of_stage(powers: Residues, quotients: Residues, m: int) -> tuple[Residues, Residues]:
    return powers[m : 2 * m, None, None], quotients[m : 2 * m, None, None]


def dot(h: NDArray[np.int32], s: Residues, p: float, out: Residues) -> None:
    """out[y, i, j] = Σ_c h[y, c, j]·s[y, c, i] modulo p, balanced; h: (n, c, m), s: (n, c, i), out: (n, i, m)."""
    out[:] = 0
    for first in range(0, h.shape[1], TOGETHER):
        block = slice(first, first + TOGETHER)
        out += reduced(np.matmul(s[:, block].transpose(0, 2, 1), h[:, block].astype(np.float64)), p)
    out[:] = reduced(out, p)
