"""What is drawn for ring-LWE, from a stream: ternary and binomial polynomials, and the noise that drowns a product's.

The flooding is a sum of three uniforms. Its Fisher information is finite, so that what n coefficients lose to a shift
grows with √n and not with n. With I the information, a shift of all n coefficients by at most v leaves a squared
Hellinger distance of at most n·v²·I/8, and a statistical one of at most ½·v·√(n·I).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.prg import Stream

ETA = 21  # a binomial error is the difference of two sums of so many bits: of variance 21/2, as SEAL draws its own
INFORMATION = 457  # hundredths: I·w² of a sum of three uniforms of width w is 4.562…
TERMS = 3  # uniforms in a sum
STATISTICAL, INFERENCES = 40, 30  # bits: the distance after 2^30 inferences with one model is at most 2^−40

Ints = NDArray[np.int64]


def ternary(stream: Stream, count: int) -> Ints:
    """Uniform in −1, 0 and 1: bytes below 255 modulo 3."""
    found = np.zeros(0, np.uint8)
    while len(found) < count:
        drawn = stream.bytes(count - len(found))
        found = np.concatenate([found, drawn[drawn < 255]])
    return (found % 3).astype(np.int64) - 1


def binomial(stream: Stream, count: int) -> Ints:
    """Centred binomial in −21 to 21."""
    words, ones = stream.bytes(8 * count).view(np.uint64), np.uint64((1 << ETA) - 1)
    plus, minus = np.bitwise_count(words & ones), np.bitwise_count((words >> np.uint64(ETA)) & ones)
    return plus.astype(np.int64) - minus.astype(np.int64)


def flooding(stream: Stream, bits: int, count: int, primes: tuple[int, ...]) -> NDArray[np.uint64]:
    """(primes, count): sums of three uniforms, each in [−2^(bits − 1), 2^(bits − 1)), 64 < bits ≤ 112, as residues."""
    words = stream.blocks(TERMS, count)
    low = (words[..., 0] >> np.uint64(8)).sum(0)  # 56 bits, and 2 of the sum
    high = (words[..., 1] >> np.uint64(64 + 56 - bits)).sum(0)
    centre = TERMS << (bits - 1)
    rows = []
    for prime in primes:
        p, step = np.uint64(prime), 64 - prime.bit_length()
        value = high % p
        for done in range(0, 56, step):
            value = (value << np.uint64(min(step, 56 - done))) % p
        rows.append((value + low % p + np.uint64(-centre % prime)) % p)
    return np.stack(rows)


def covers(bits: int, shift: int, coefficients: int) -> bool:
    """Whether flooding of this width hides a noise of at most `shift`: ½·shift·√(n·2^30·I) ≤ 2^−40.

    coefficients: n, that are sent in an inference.
    """
    return INFORMATION * coefficients * shift**2 << (2 * STATISTICAL + INFERENCES) <= 400 << (2 * bits)
