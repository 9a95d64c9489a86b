"""What is drawn for the lattice: known answers, the edges of rejection, and the flooding by its definition."""

import hashlib

import numpy as np
import pytest
from lattice_integers import by_both, is_balanced, signed, values

from parelu.private.crypto.lattice import residues, sampling
from parelu.private.crypto.lattice.parameters import FLOOD_BITS, KEPT, PRIMES, Q_KEPT, P, Q
from parelu.private.crypto.prg import Stream, fresh_seed

SEED = bytes(range(16))
BOUND = 1 << FLOOD_BITS


class Fixed:
    """A stream of these words."""

    def __init__(self, words, dtype):
        self.left = np.array(words, dtype).view(np.uint8)

    def bytes(self, count):
        drawn, self.left = self.left[:count], self.left[count:]
        return drawn


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


UNIFORM = [
    "89c5fdfaee8f2fb2",
    "ea84db60980ab4f1",
    "c21b4228ecd02777",
    "898ea3909d077b6f",
    "7a4f1b9776643c7a",
    "d3ecf6002cba4a48",
]


@pytest.mark.parametrize("k", range(6))
def test_uniform_residues_are_known_answers(k):
    drawn = by_both(lambda: sampling.uniform(Stream(SEED, "matrix", k), (50, 3, 7), k))
    assert drawn.dtype == np.int32
    assert digest(drawn) == UNIFORM[k]


@pytest.mark.parametrize("k", range(6))
def test_words_from_the_largest_multiple_of_the_prime_on_are_drawn_again(k):
    prime = PRIMES[k]
    limit = 2**32 // prime * prime
    words = [limit - 1, limit, 0, 2**32 - 1, prime // 2, prime // 2 + 1, limit, limit, prime, 5]
    drawn = by_both(lambda: sampling.uniform(Fixed(words, np.uint32), (6,), k))  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(drawn, [-1, 0, prime // 2, -(prime // 2), 0, 5])


@pytest.mark.parametrize("k", [0, 5])
def test_uniform_residues_are_uniform(k):
    drawn = sampling.uniform(Stream(fresh_seed(), "test"), (200_000,), k)
    assert is_balanced(drawn.astype(np.float64), k)
    counts = np.histogram(drawn, 50, (-PRIMES[k] / 2, PRIMES[k] / 2))[0]
    assert ((counts - 4000) ** 2 / 4000).sum() < 120, "49 degrees"
    assert np.bincount(drawn & 7, minlength=8).min() > 24_000, "the low bits too"


def test_streams_of_other_labels_give_other_residues():
    labels = [(kind, i) for kind in ("a", "M") for i in range(20)]
    drawn = {sampling.uniform(Stream(SEED, *label), (64,), 0).tobytes() for label in labels}
    assert len(drawn) == len(labels)


def test_secrets_and_errors_are_of_their_ranges_and_moments():
    stream = Stream(fresh_seed(), "test")
    secret, error = sampling.ternary(stream, (300, 400)), sampling.binomial(stream, (300, 400))
    assert secret.shape == error.shape == (300, 400)
    assert secret.dtype == error.dtype == np.float64
    assert set(np.unique(secret)) == {-1.0, 0.0, 1.0}
    assert np.abs(error).max() <= 21
    for drawn, variance in ((secret, 2 / 3), (error, 21 / 2)):
        assert abs(drawn.mean()) < 6 * (variance / drawn.size) ** 0.5
        assert (drawn**2).mean() == pytest.approx(variance, rel=0.03)


def flooding(words: np.ndarray) -> list[int]:
    """Three uniforms on [−B, B) of four words, each of a word and of 21 bits of the fourth."""
    out = []
    for row in words:
        *low, high = (int(word) for word in row)
        terms = [word + ((high >> 21 * i & (1 << 21) - 1) << 64) - BOUND for i, word in enumerate(low)]
        assert all(-BOUND <= term < BOUND for term in terms)
        out.append(sum(terms))
    return out


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1500])
def test_flooding_is_the_sum_of_three_uniforms_modulo_each_prime(count):
    seed = fresh_seed()
    drawn = by_both(lambda: sampling.flood(Stream(seed, "flood"), count))
    words = Stream(seed, "flood").bytes(32 * count).view(np.uint64).reshape(-1, 4)
    assert drawn.shape == (6, count)
    assert all(is_balanced(drawn[k], k) for k in range(6))
    assert [signed(value, Q) for value in values(drawn, PRIMES)] == flooding(words)


def test_the_widest_floodings_are_3_b_and_nothing_of_a_term_is_lost():
    rows = [
        [0] * 4,
        [2**64 - 1] * 4,
        *([1 << bit if i == word else 0 for i in range(4)] for word in range(4) for bit in range(64)),
    ]
    drawn = by_both(lambda: sampling.flood(Fixed(rows, np.uint64), len(rows)))  # pyright: ignore[reportArgumentType]
    found = [signed(value, Q) for value in values(drawn, PRIMES)]
    assert found[:2] == [-3 * BOUND, 3 * (BOUND - 1)]
    assert found == flooding(np.array(rows, np.uint64))
    assert sorted({value + 3 * BOUND for value in found[2:-1]}) == [1 << bit for bit in range(FLOOD_BITS + 1)]


def test_flooding_has_its_moments_and_is_fresh_for_each_output_and_each_draw():
    stream = Stream(fresh_seed(), "test")
    first, second = (
        np.array([signed(v, Q) for v in values(sampling.flood(stream, 4000), PRIMES)], object) for _ in range(2)
    )
    assert len({*first, *second}) == 8000
    share = np.array([float(x) / BOUND for x in (*first, *second)])
    assert abs(share.mean()) < 6 / 4000**0.5
    assert (share**2).mean() == pytest.approx(1, rel=0.1), "three times the variance 1/3 of a uniform on [−1, 1)"
    assert (share**4).mean() == pytest.approx(3 - 6 / 5 / 3, rel=0.15), "the excess of one uniform is −6/5"


def test_answers_are_flooded_also_where_sums_masks_and_weights_are_zero():
    zeros, nothing = np.zeros((6, 1000)), np.zeros(1000, np.uint64)
    stream = Stream(fresh_seed(), "test")
    one, other = (residues.answer(zeros, zeros, nothing, stream) for _ in range(2))
    shares = [[signed(v, Q_KEPT) * P / BOUND for v in values(rows, KEPT)] for rows in (one, other)]
    assert one.shape == (3, 1000)
    for found in shares:
        assert np.std(found) == pytest.approx(1, rel=0.1)
    assert abs(np.corrcoef(*shares)[0, 1]) < 0.1
