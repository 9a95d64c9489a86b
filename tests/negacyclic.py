"""Products of integer polynomials modulo X^n + 1 and q, without transforms, and residues as integers."""

import math

import numpy as np

from parelu.private.crypto.lattice.parameters import DROPPED, KEPT, MESSAGE_BITS, PRIMES, Q

T = 1 << MESSAGE_BITS
BYTES = 40  # a coefficient of a product, in which q² and the degree have room


def times(x, y, q=Q):
    """As one product of large integers (Kronecker)."""
    n = len(x)
    one, other = (int.from_bytes(b"".join(int(c % q).to_bytes(BYTES, "little") for c in p), "little") for p in (x, y))
    body = (one * other).to_bytes(2 * n * BYTES, "little")
    found = [int.from_bytes(body[i : i + BYTES], "little") for i in range(0, len(body), BYTES)]
    return np.array([(low - high) % q for low, high in zip(found[:n], found[n:], strict=True)], object)


def inner(xs, ys, q=Q):
    """Σ of the products, pair by pair."""
    return np.sum([times(x, y, q) for x, y in zip(xs, ys, strict=True)], axis=0) % q


def balanced(x):
    """The representatives modulo q nearest to 0."""
    return (x + Q // 2) % Q - Q // 2


def scaled(values, q=Q):
    """round(q·values/t), exactly."""
    return np.array([(2 * q * int(value) + T) // (2 * T) for value in np.ravel(values)], object).reshape(
        np.shape(values)
    )


def integers(residues):
    """(6, …) residues → the integers modulo q, balanced."""
    basis = [Q // p * pow(Q // p, -1, p) for p in PRIMES]
    terms = [row.astype(np.int64).astype(object) * b for row, b in zip(residues, basis, strict=True)]
    return balanced(np.sum(terms, axis=0))


assert math.prod(KEPT + DROPPED) == Q
