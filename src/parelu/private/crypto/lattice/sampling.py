"""What is drawn for the lattice, from a stream: residues of public matrices, secrets, errors, and the flooding."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto import noise
from parelu.private.crypto.kernels import residue_kernels as kernels
from parelu.private.crypto.lattice.parameters import FLOOD_BITS, PRIMES
from parelu.private.crypto.lattice.transforms import balanced
from parelu.private.crypto.noise import TERMS
from parelu.private.crypto.prg import Stream

Residues = NDArray[np.float64]

WORDS = 4  # of 64 bits, for the three uniforms of one flooding: a word and 21 bits of the fourth each
ALL_PRIMES = np.array(PRIMES, np.float64)
FLOOD_CONSTANTS = np.array([[balanced(1 << bits, p) for bits in (0, 32, 49, 64)] for p in PRIMES], np.float64)
FLOOD_OFFSETS = np.array([balanced(-TERMS << FLOOD_BITS, p) for p in PRIMES], np.float64)
assert FLOOD_BITS + 1 == 64 + 21, "the bits that a uniform on [−B, B) is made of"


def uniform(stream: Stream, shape: tuple[int, ...], k: int) -> NDArray[np.int32]:
    """Uniform modulo PRIMES[k], balanced: the words of 32 bits that are below the largest multiple of it."""
    out, found = np.empty(math.prod(shape), np.int32), 0
    while found < len(out):
        words = stream.bytes(4 * (len(out) - found)).view(np.uint32)
        found += kernels.accept(words, PRIMES[k], out[found:])
    return out.reshape(shape)


def ternary(stream: Stream, shape: tuple[int, ...]) -> Residues:
    """Uniform in −1, 0 and 1."""
    return noise.ternary(stream, math.prod(shape)).astype(np.float64).reshape(shape)


def binomial(stream: Stream, shape: tuple[int, ...]) -> Residues:
    """Centred binomial in −21 to 21."""
    return noise.binomial(stream, math.prod(shape)).astype(np.float64).reshape(shape)


def flood(stream: Stream, count: int) -> Residues:
    """(6, count): sums of three uniforms on [−B, B), B = 2^FLOOD_BITS, modulo each prime, balanced."""
    out = np.empty((len(PRIMES), count))
    kernels.flood(flood_words(stream, count), FLOOD_CONSTANTS, FLOOD_OFFSETS, ALL_PRIMES, out)
    return out


def flood_words(stream: Stream, count: int) -> NDArray[np.uint64]:
    """(count, 4): what the kernels make floodings of."""
    return stream.bytes(8 * WORDS * count).view(np.uint64).reshape(count, WORDS)
