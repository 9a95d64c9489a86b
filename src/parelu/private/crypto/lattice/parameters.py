"""The one parameter set: module-LWE of rank 3 over Z[X]/(X^2048 + 1), modulo six primes of at most 26 bits.

A ciphertext is modulo q = q'·P. Hints and answers are modulo q', of the three kept primes; P, of the three dropped
ones, is rounded away. Messages are modulo 2^64 and stand at q/2^64. Secrets are uniform ternary, errors centred
binomial of 21 pairs. An answer is flooded by the sum of three uniforms on [−B, B), B = 2^FLOOD_BITS.

A residue is a float64 of at most half its prime in absolute value (balanced), so that a product of two is below 2^50,
a sum of eight products below 2^53, and both are exact; so is the product of a row of integer weights of Σ|w| ≤ 2^28.
"""

from __future__ import annotations

import math

from parelu.private.crypto.noise import ETA, TERMS

DEGREE, RANK = 2048, 3
MATRICES = 8  # outputs that share a u under different public matrices
KEPT = (67104769, 67084289, 67043329)  # the largest below 2^26 that are 1 modulo 4096
DROPPED = (23719937, 23715841, 23703553)  # the largest below 2^24.5
PRIMES = KEPT + DROPPED
Q_KEPT, P = math.prod(KEPT), math.prod(DROPPED)
Q = Q_KEPT * P
MESSAGE_BITS = 64
FLOOD_BITS = 84
LARGEST_NORM = 1 << 28  # Σ|w| of a row, for sums of |w|·2^25 to be exact
DECODED = 9  # an answer decodes rightly where its noise is below (1/2 − 2^−9)·q'/2^64
EXACT = 1 << 53  # integers up to here are exact in float64
REDUCED = 1 << 51  # below, one reduction gives the balanced residue: x/p in float64 errs by less than 1/2p
LARGEST = max(PRIMES)


def _root(prime: int) -> int:
    """A primitive root of unity of order 2·DEGREE, of the smallest base that gives one."""
    candidates = (pow(base, (prime - 1) // (2 * DEGREE), prime) for base in range(2, prime))
    return next(root for root in candidates if pow(root, DEGREE, prime) == prime - 1)


ROOTS = tuple(_root(prime) for prime in PRIMES)


def noise(norm: int) -> int:
    """|v|, the noise of an answer without its flooding, before the drop, for Σ|w| ≤ norm: at most this.

    v = Σ e_i·w − Σ θ_i·w + θ_mask + θ_y + ⟨ε, u⟩ − ⟨e', s⟩, where θ are roundings of messages, of at most 1/2.
    """
    return ETA * norm + -(-norm // 2) + 1 + 2 * ETA * DEGREE * RANK


def holds(norm: int) -> bool:
    """Whether every answer of rows with Σ|w| ≤ norm is computed exactly and decodes rightly, whatever was drawn.

    (flood + v)/P, and the roundings of the answer and, times s, of the hint, stay below (1/2 − 2^−9)·q'/2^64.
    """
    drowned = (TERMS << FLOOD_BITS) + noise(norm)
    roundings = 1 + DEGREE * RANK  # halves
    least, room = 2 * drowned + roundings * P, ((1 << (DECODED - 1)) - 1) * Q
    return norm <= LARGEST_NORM and least << (MESSAGE_BITS + DECODED - 1) <= room


DESCRIPTION = (
    f"module-LWE rank {RANK} degree {DEGREE} kept {KEPT} dropped {DROPPED} roots {ROOTS} message {MESSAGE_BITS} "
    f"ternary binomial {ETA} flood {TERMS} uniforms {FLOOD_BITS} matrices {MATRICES} norm {LARGEST_NORM}"
)

assert all(prime % (2 * DEGREE) == 1 for prime in PRIMES) and len(set(PRIMES)) == len(PRIMES)
assert holds(LARGEST_NORM)
# With two to spare in each residue, by which a reduction of up to 2^53 may miss the balanced one:
assert 8 * (LARGEST // 2 + 2) ** 2 < EXACT - LARGEST, "a sum of eight products"
assert (4 * LARGEST + 16) * (LARGEST // 2) < EXACT - LARGEST, "a butterfly of a value up to 4p"
assert LARGEST_NORM * (LARGEST // 2) < EXACT - LARGEST, "a row of weights"
assert RANK * DEGREE * LARGEST < REDUCED, "a sum of as many products as a dot has, each reduced"
assert LARGEST * (LARGEST // 2) < REDUCED - LARGEST, "a product of a balanced residue and one up to p"
