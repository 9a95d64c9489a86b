"""The lattice's one parameter set: primes, roots, and the bound on an answer's noise."""

from fractions import Fraction

import pytest

from parelu.private.crypto.lattice import parameters
from parelu.private.crypto.lattice.parameters import (
    DEGREE,
    DROPPED,
    KEPT,
    LARGEST_NORM,
    PRIMES,
    Q_KEPT,
    RANK,
    ROOTS,
    P,
    Q,
)


def is_prime(p: int) -> bool:
    return p > 1 and all(p % d for d in range(2, int(p**0.5) + 1))


@pytest.mark.parametrize(("primes", "bits"), [(KEPT, 26), (DROPPED, 24.5)])
def test_the_primes_are_the_largest_below_their_bound(primes, bits):
    candidates = (p for p in range(int(2**bits) // (2 * DEGREE) * 2 * DEGREE + 1, 0, -2 * DEGREE) if p < 2**bits)
    assert primes == tuple(p for p, _ in zip((p for p in candidates if is_prime(p)), range(3), strict=False))


def test_the_roots_have_order_4096():
    for root, prime in zip(ROOTS, PRIMES, strict=True):
        assert pow(root, DEGREE, prime) == prime - 1


def worst(norm: int, flood_bits: int) -> Fraction:
    """The largest noise of an answer in units of q'/2^64, term by term."""
    errors = 21 * norm + 21 * DEGREE * RANK + 21 * DEGREE * RANK  # e·w, ε·u, e'·s
    roundings = Fraction(norm, 2) + Fraction(1, 2) + Fraction(1, 2)  # of r, the mask and y
    dropped = Fraction(1, 2) + Fraction(DEGREE * RANK, 2)  # of the answer, and of the hint times s
    return ((3 * 2**flood_bits + errors + roundings) / Fraction(P) + dropped) * 2**64 / Q_KEPT


@pytest.mark.parametrize("bits", range(80, 88))
def test_holds_is_the_bound(bits, monkeypatch):
    monkeypatch.setattr(parameters, "FLOOD_BITS", bits)
    monkeypatch.setattr(parameters, "LARGEST_NORM", 1 << 90)
    room = Fraction(1, 2) - Fraction(1, 2**9)
    assert parameters.holds(LARGEST_NORM) == (worst(LARGEST_NORM, bits) <= room)
    edge = int(
        (room - worst(0, bits)) * Q / 2**64 / Fraction(43, 2)
    )  # the largest norm, each weight of which adds 21.5
    if edge > 0:
        assert parameters.holds(edge - 1)
        assert not parameters.holds(edge + 2)


def test_the_flooding_is_the_widest_that_the_bound_allows():
    assert parameters.holds(LARGEST_NORM)
    assert not parameters.holds(LARGEST_NORM + 1), "sums of products would not be exact"
    room = Fraction(1, 2) - Fraction(1, 2**9)
    assert worst(LARGEST_NORM, parameters.FLOOD_BITS) < Fraction(92, 100) * room
    assert worst(LARGEST_NORM, parameters.FLOOD_BITS + 1) > room


def test_the_description_names_what_two_parties_must_share():
    for value in (KEPT, DROPPED, ROOTS, RANK, DEGREE, parameters.FLOOD_BITS, parameters.MATRICES, LARGEST_NORM):
        assert str(value) in parameters.DESCRIPTION
