"""Transforms, dots and classes of the lattice: against integers, at the edge of exactness, and between both kernels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lattice_integers import agrees, by_both, is_balanced, product, random_residues

from parelu.private.crypto.lattice import residues, transforms
from parelu.private.crypto.lattice.parameters import DEGREE, PRIMES, RANK, ROOTS

SIZES = [1 << bits for bits in range(12)]
few = settings(deadline=None, max_examples=25)


def evaluated(x: np.ndarray, k: int, places: range) -> np.ndarray:
    """(n, batch) at some places of the transform: at odd powers of a root of order 2n, the place's bits reversed."""
    n, prime = len(x), PRIMES[k]
    bits = n.bit_length() - 1
    out = np.empty((len(places), x.shape[1]), object)
    for row, i in enumerate(places):
        exponent = 2 * int(f"{i:0{bits}b}"[::-1], 2) + 1 if bits else 1
        point = pow(ROOTS[k], DEGREE // n * exponent, prime)
        powers = np.array([pow(point, e, prime) for e in range(n)], object)
        out[row] = powers @ x.astype(np.int64).astype(object) % prime
    return out


@pytest.mark.parametrize("k", [0, 5])
@pytest.mark.parametrize("n", SIZES)
def test_a_transform_gives_the_values_at_the_odd_powers_of_a_root(n, k):
    places = range(0, n, max(1, n // 16 - 1))
    x = random_residues((n, 3 if n < 256 else 1), k)
    found = by_both(lambda: transforms.forward(x, k))
    assert is_balanced(found, k)
    assert agrees(found[places], evaluated(x, k, places), PRIMES[k])


@pytest.mark.parametrize("k", range(6))
@pytest.mark.parametrize("n", SIZES)
def test_the_inverse_of_a_transform_is_its_polynomial(n, k):
    for batch in (1, 5, 16):
        x = random_residues((n, batch), k)
        transformed = by_both(lambda x=x: transforms.forward(x, k))
        np.testing.assert_array_equal(by_both(lambda y=transformed: transforms.inverse(y, k)), x)


@few
@given(st.sampled_from(SIZES), st.integers(0, 5), st.integers(1, 9), st.integers(0, 2**32))
def test_inputs_up_to_p_of_any_signs_stay_exact(n, k, batch, seed):
    """Lazily reduced sums are largest where inputs are ±p and twiddles' products round alike."""
    signs = np.random.default_rng(seed).integers(0, 2, (n, batch)) * 2.0 - 1
    most = np.where(np.arange(n)[:, None] % 3 == 0, PRIMES[k], PRIMES[k] - np.arange(batch)) * signs
    for apply, back in ((transforms.forward, transforms.inverse), (transforms.inverse, transforms.forward)):
        found = by_both(lambda apply=apply: apply(most, k))
        assert is_balanced(found, k)
        again = by_both(lambda back=back, found=found: back(found, k))
        np.testing.assert_array_equal(again, by_both(lambda: residues.reduce(most, k)))


@pytest.mark.parametrize("k", [0, 5])
@pytest.mark.parametrize("stages", range(1, 11))
def test_a_sum_that_grows_by_half_the_prime_in_each_stage_stays_exact(stages, k):
    """Of p and, in each of so many stages, a product of p/2, multiplied in the next by one of the largest twiddles."""
    n, prime, powers = DEGREE, PRIMES[k], transforms.tables(DEGREE, k)[0]
    blocks = np.argsort(-np.abs(powers[1 << stages : 2 << stages]))[:8]
    x = np.zeros((n, len(blocks)))
    origin = n >> (stages + 1)  # multiplied in the stage after these, and in none of them
    for column, block in enumerate(blocks):
        x[origin, column] = prime
        for stage in range(1, stages + 1):
            path = int(block) >> (stages - stage)  # its highest bits say which group it is in, the lowest which half
            twiddle = int(powers[(1 << (stage - 1)) + (path >> 1)])
            grown = -(prime // 2) if path & 1 else prime // 2
            x[origin + (n >> stage), column] = transforms.balanced(grown * pow(twiddle, -1, prime), prime)
    found = by_both(lambda: transforms.forward(x, k))
    for column, block in enumerate(blocks):
        size = n >> stages
        places = range(int(block) * size, int(block) * size + size, -(-size // 8))
        assert agrees(found[places, column : column + 1], evaluated(x[:, column : column + 1], k, places), prime)


@few
@given(st.sampled_from(SIZES[:8]), st.integers(0, 5), st.integers(0, 2**32))
def test_products_of_transforms_are_those_of_polynomials_modulo_y_n_plus_1(n, k, seed):
    a, b = random_residues((n, 1), k, seed), random_residues((n, 1), k, seed + 1)
    of_both = transforms.forward(a, k) * transforms.forward(b, k)
    assert agrees(transforms.inverse(residues.reduce(of_both, k), k), product(a[:, 0], b[:, 0]), PRIMES[k])


def test_shapes_are_kept_and_inputs_left_alone():
    x = random_residues((32, 2, 3), 1)
    before = x.copy()
    y = transforms.forward(x, 1)
    assert y.shape == (32, 2, 3)
    np.testing.assert_array_equal(y[:, 1, 2], transforms.forward(x[:, 1, 2], 1))
    np.testing.assert_array_equal(y, transforms.forward(np.asfortranarray(x), 1))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("n", [3, 4096])
def test_sizes_that_are_no_powers_of_two_up_to_2048_are_refused(n):
    with pytest.raises(ValueError, match="power of two"):
        transforms.forward(np.zeros((n, 1)), 0)


SHAPES = [(2, 1, 1, 1), (3, 3, 5, 8), (2, 6, 40, 1), (2, 6, 3, 8), (1, 23, 7, 4), (2, 24, 17, 3), (1, 25, 3, 8)]


@pytest.mark.parametrize("k", [0, 5])
@pytest.mark.parametrize(("n", "terms", "outputs", "vectors"), SHAPES)
def test_dots_are_sums_of_products(n, terms, outputs, vectors, k):
    h = random_residues((n, terms, outputs), k).astype(np.int32)
    s = random_residues((n, terms, vectors), k, 1)
    found = by_both(lambda: transforms.dot(h, s, k))
    assert is_balanced(found, k)
    expected = np.einsum("ycj,yci->yij", h.astype(object), s.astype(np.int64).astype(object))
    assert agrees(found, expected, PRIMES[k])


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize(("outputs", "vectors"), [(1, 1), (20, 1), (2, 8)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_longest_dots_of_the_largest_residues_are_exact(outputs, vectors, sign, k):
    terms, half = RANK * DEGREE, PRIMES[k] // 2
    h = np.full((1, terms, outputs), half, np.int32)
    s = np.full((1, terms, vectors), sign * half, np.float64)
    s[0, ::5] += -sign * np.arange(vectors)
    expected = half * s[0].astype(np.int64).astype(object).sum(0)[:, None] * np.ones(outputs, object)
    assert agrees(by_both(lambda: transforms.dot(h, s, k)), expected, PRIMES[k])


@pytest.mark.parametrize("n", [1, 2, 16, 1024, 2048])
def test_classes_and_their_partners_give_class_0_of_the_product(n):
    rng = np.random.default_rng(n)
    h = rng.integers(-2, 3, (DEGREE, 2)).astype(np.float64)
    s = rng.integers(-1, 2, (DEGREE, 2)).astype(np.float64)
    split, partner = transforms.classes(h, n), transforms.partner(s, n)
    assert split.shape == partner.shape == (n, DEGREE // n, 2)
    np.testing.assert_array_equal(split[:, -1, 1], h[DEGREE // n - 1 :: DEGREE // n, 1])
    for column in range(2):
        whole = np.convolve(h[:, column], s[:, column])
        whole = whole[:DEGREE] - np.append(whole[DEGREE:], 0)
        sums = np.zeros(n)
        for v in range(DEGREE // n):
            part = np.convolve(split[:, v, column], partner[:, v, column])
            sums += part[:n] - np.append(part[n:], 0)
        np.testing.assert_array_equal(sums, whole[:: DEGREE // n])
