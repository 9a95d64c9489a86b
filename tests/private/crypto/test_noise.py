"""What is drawn for ring-LWE: distributions, and how much a shift shows behind the flooding."""

import math

import numpy as np
import pytest

from parelu.private.crypto import he, noise
from parelu.private.crypto.prg import Stream, fresh_seed

WIDTHS = (4, 16, 64, 256, 1024, 4096)


def stream() -> Stream:
    return Stream(fresh_seed(), "test")


def flooding(width: int) -> np.ndarray:
    """The probabilities of a sum of three uniforms on `width` integers each."""
    one = np.full(width, 1 / width)
    return np.convolve(np.convolve(one, one), one)


def hellinger(f: np.ndarray, shift: int) -> float:
    """The squared distance between f and f shifted."""
    padded = np.sqrt(np.pad(f, shift))
    return 0.5 * float(((padded - np.roll(padded, shift)) ** 2).sum())


def distance(f: np.ndarray, shift: int) -> float:
    """The statistical one."""
    padded = np.pad(f, shift)
    return 0.5 * float(np.abs(padded - np.roll(padded, shift)).sum())


def test_the_information_of_a_sum_of_three_uniforms():
    """∫f'²/f for f = 3/4 − x² up to 1/2, and (3/2 − x)²/2 from there to 3/2, on both sides."""
    inner = 8 * (-0.5 + math.sqrt(3) / 2 * math.atanh(1 / math.sqrt(3)))
    x = (np.arange(200_000) + 0.5) / 400_000
    assert inner == pytest.approx(2 * (4 * x**2 / (0.75 - x**2)).mean() * 0.5, rel=1e-6)
    assert 4.56 < inner + 4 < noise.INFORMATION / 100


@pytest.mark.parametrize("width", WIDTHS)
def test_a_step_of_the_discrete_flooding_shows_as_much_as_of_the_continuous(width):
    """8·w²·H² of one step falls to the continuous information; the excess is below 1.4/w, nothing at 2^79."""
    found = 8 * width**2 * hellinger(flooding(width), 1)
    assert 4.5622 < found < 4.5622 + 1.4 * 4.5622 / width


@pytest.mark.parametrize("width", WIDTHS[1:])
@pytest.mark.parametrize("shift", [1, 2, 5, 13])
def test_shifts_show_no_more_than_the_bound(width, shift):
    f = flooding(width)
    step = hellinger(f, 1)
    assert hellinger(f, shift) <= shift**2 * step * (1 + 1e-9)
    assert distance(f, shift) <= math.sqrt(2 * hellinger(f, shift)) * (1 + 1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shift", [1, 2])
def test_several_coefficients_lose_by_their_square_root(count, shift):
    """By brute force over all values of so many coefficients: ½·shift·√(n·I), with the discrete I."""
    f, width = np.pad(flooding(16), shift), 16
    moved = np.roll(f, shift)
    one, other = f, moved
    for _ in range(count - 1):
        one, other = np.multiply.outer(one, f), np.multiply.outer(other, moved)
    exact = 0.5 * float(np.abs(one - other).sum())
    information = 8 * hellinger(flooding(width), 1)
    bound = 0.5 * shift * math.sqrt(count * information)
    assert exact <= bound
    assert exact > bound / 3, "the bound says something"


def test_what_covers_is_what_the_bound_says():
    for shift, coefficients in ((1 << 20, 1), (345_000_000, 200_714), ((1 << 33) + 1, 614_410)):
        exact = math.log2(0.5 * shift * math.sqrt(noise.INFORMATION / 100 * coefficients * 2**30)) + 40
        bits = math.ceil(exact)
        assert noise.covers(bits, shift, coefficients)
        assert not noise.covers(bits - 1, shift, coefficients)


def test_ternary_is_uniform():
    drawn = noise.ternary(stream(), 90_000)
    assert drawn.dtype == np.int64
    counts = np.bincount(drawn + 1, minlength=3)
    assert len(counts) == 3
    assert ((counts - 30_000) ** 2 / 30_000).sum() < 20


def test_errors_are_binomial():
    drawn = noise.binomial(stream(), 200_000)
    expected = np.array([math.comb(42, k) for k in range(43)]) / 2**42 * len(drawn)
    counts = np.bincount(drawn + 21, minlength=43)
    assert len(counts) == 43
    common = expected > 10
    assert ((counts - expected)[common] ** 2 / expected[common]).sum() < 75  # some 30 degrees
    assert not counts[expected < 1e-4].any()


@pytest.mark.parametrize("parameters", he.CHOICES)
def test_flooding_is_the_sum_of_three_uniforms_modulo_each_prime(parameters):
    primes, bits, count = he.context(parameters).primes, parameters.flood_bits, 3000
    seed = fresh_seed()
    rows = noise.flooding(Stream(seed, "flood"), bits, count, primes)
    modulus = math.prod(primes)
    basis = [modulus // p * pow(modulus // p, -1, p) for p in primes]
    values = [sum(int(x) * b for x, b in zip(column, basis, strict=True)) % modulus for column in rows.T]
    signed = [value - modulus if value > modulus // 2 else value for value in values]
    words = Stream(seed, "flood").blocks(3, count)
    terms = [[(int(b) >> (120 - bits) << 56) + (int(a) >> 8) for a, b in row] for row in words]
    assert all(0 <= u < 1 << bits and u.bit_length() > bits - 40 for row in terms for u in row)
    assert signed == [sum(column) - (3 << (bits - 1)) for column in zip(*terms, strict=True)]
    edges = [-1.5, -0.5, -0.25, 0, 0.25, 0.5, 1.5]
    quarter = 3 / 4 / 4 - 1 / 192  # ∫ of 3/4 − x² from 0 to 1/4
    expected = np.array([1 / 6, 1 / 3 - quarter, quarter, quarter, 1 / 3 - quarter, 1 / 6]) * count
    counts = np.histogram([value / 2.0**bits for value in signed], edges)[0]
    assert ((counts - expected) ** 2 / expected).sum() < 30
    assert len({value & 0xFFFFF for value in signed}) > 0.99 * count, "the low bits are drawn too"
