"""Negacyclic transforms in float64, dots of transforms, and the split of a polynomial into classes.

Arrays have the points of the transform first and the batch last, so that one twiddle serves a run of memory. A
transform modulo Y^n + 1 gives the values at the odd powers of a root of order 2n: at place i, the power 2·r + 1, r
being i with its bits reversed. Butterflies are Cooley and Tukey's forward, Gentleman and Sande's back; a product modulo
p is a·w − rint(a·(w/p))·p, exact for |a| ≤ 4p (parameters.py), and sums are reduced as late as that allows.

With Y = X^K and n = 2048/K a polynomial h of X has the classes h_v(Y) = Σ_i h[v + K·i]·Y^i.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.kernels import transform_kernels as kernels
from parelu.private.crypto.lattice.parameters import DEGREE, PRIMES, ROOTS

Residues = NDArray[np.float64]
Stored = NDArray[np.int32]


def forward(x: Residues, k: int) -> Residues:
    """The transform modulo PRIMES[k]: (n, …), n a power of two up to 2048 → balanced; |x| ≤ p."""
    out = np.array(x, np.float64, order="C")
    powers, quotients, _ = tables(len(x), k)
    kernels.forward(out.reshape(len(x), -1), powers, quotients, float(PRIMES[k]))
    return out


def inverse(y: Residues, k: int) -> Residues:
    """The polynomial of this transform: as `forward`."""
    out = np.array(y, np.float64, order="C")
    powers, quotients, scale = tables(len(y), k, -1)
    kernels.inverse(out.reshape(len(y), -1), powers, quotients, scale, float(PRIMES[k]))
    return out


def dot(h: Stored, s: Residues, k: int) -> Residues:
    """out[y, i, j] = Σ_c h[y, c, j]·s[y, c, i] modulo PRIMES[k], balanced.

    h: balanced, (n, c, m); s: balanced, (n, c, i), c at most 6144; → (n, i, m).
    """
    out = np.empty((len(h), s.shape[2], h.shape[2]))
    kernels.dot(np.ascontiguousarray(h), np.ascontiguousarray(s), float(PRIMES[k]), out)
    return out


def classes(polynomials: Residues, n: int) -> Residues:
    """(2048, …) → (n, K, …): the classes h_v, a view."""
    return polynomials.reshape(n, DEGREE // n, *polynomials.shape[1:])


def partner(polynomials: Residues, n: int) -> Residues:
    """σ_v with Σ_v h_v·σ_v modulo Y^n + 1 the class 0 of h·s: s_0, and Y·s_(K−v); (2048, …) → (n, K, …)."""
    split = classes(polynomials, n)
    out = np.empty_like(split)
    out[:, 0] = split[:, 0]
    out[1:, 1:] = split[:-1, :0:-1]
    np.negative(split[-1, :0:-1], out=out[0, 1:])
    return out


@functools.cache
def tables(n: int, k: int, sign: int = 1) -> tuple[Residues, Residues, float]:
    """Twiddles of n points modulo PRIMES[k] for ψ^sign, each also divided by the prime, and 1/n.

    At place i: ψ to the power of i with its bits reversed; the groups of the stage with m groups stand from m on.
    """
    prime, bits = PRIMES[k], n.bit_length() - 1
    if n < 1 or n & (n - 1) or n > DEGREE:
        raise ValueError(f"{n} points: a power of two up to {DEGREE} is meant")
    root = pow(ROOTS[k], sign * (DEGREE // n), prime)
    powers = np.array([balanced(pow(root, _reversed(i, bits), prime), prime) for i in range(n)], np.float64)
    return powers, powers / prime, float(balanced(pow(n, -1, prime), prime))


def balanced(value: int, prime: int) -> int:
    """The representative of at most prime/2 in absolute value."""
    value %= prime
    return value - prime if value > prime // 2 else value


def _reversed(i: int, bits: int) -> int:
    return int(f"{i:0{bits}b}"[::-1], 2) if bits else 0
