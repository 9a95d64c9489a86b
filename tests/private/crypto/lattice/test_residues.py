"""Scaling, dropping, decoding, answers and the wire: against integers, at their edges, and between both kernels."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lattice_integers import agrees, by_both, is_balanced, random_residues, using, values

from parelu.errors import ProtocolError
from parelu.private.crypto import kernels
from parelu.private.crypto.lattice import residues, sampling
from parelu.private.crypto.lattice.parameters import DROPPED, KEPT, LARGEST_NORM, PRIMES, Q_KEPT, P, Q
from parelu.private.crypto.prg import Stream

WORD = 1 << 64
SEED = bytes(range(16))
few = settings(deadline=None, max_examples=40)
elements = st.lists(st.integers(0, WORD - 1) | st.sampled_from([0, 1, WORD // 2, WORD - 1]), min_size=1, max_size=5)


def rounded(numerator: int, denominator: int) -> int:
    """To the nearest integer, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def rows_of(integers: list[int], primes: tuple[int, ...]) -> np.ndarray:
    """Their balanced residues."""
    rows = [[(x + p // 2) % p - p // 2 for x in integers] for p in primes]
    return np.array(rows, np.float64).reshape(len(primes), -1)


def full(count: int, seed: int = 0) -> np.ndarray:
    return np.stack([random_residues((count,), k, seed + k) for k in range(6)])


@pytest.mark.parametrize("k", range(6))
def test_reducing_is_exact_up_to_2_to_the_53(k):
    prime, most = PRIMES[k], 2**53 - PRIMES[k]
    multiples = [most // prime * prime + shift for shift in (-prime, -prime // 2, -prime // 2 - 1, -1, 0)]
    x = np.array([0, 1, prime // 2, prime // 2 + 1, 2**51, 2**52 - 1, most, *multiples], np.float64)
    halves = (most // prime - np.arange(1, 500)) * prime + prime // 2  # which the first of two reductions may miss
    x = np.concatenate([x, halves, halves + 1.0])
    x = np.concatenate([x, -x, np.random.default_rng(k).integers(-most, most, 1000)])
    found = by_both(lambda: residues.reduce(x, k))
    assert is_balanced(found, k)
    assert agrees(found, [int(v) for v in x], prime)


@few
@given(elements)
def test_a_message_is_the_rounded_multiple_of_q_over_2_to_the_64(integers):
    r = np.array(integers, np.uint64)
    found = by_both(lambda: residues.message(r))
    assert values(found, PRIMES) == [rounded(Q * value, WORD) % Q for value in integers]


def test_a_message_whose_scaling_is_halfway_is_rounded_up():
    r = pow(Q, -1, WORD) * (WORD // 2) % WORD  # q·r = 2^63 modulo 2^64
    assert values(by_both(lambda: residues.message(np.array([r], np.uint64))), PRIMES) == [
        (Q * r + WORD // 2) // WORD % Q
    ]


def test_a_ciphertext_is_what_is_ready_and_the_message():
    ready, r = full(1200), np.random.default_rng(1).integers(0, WORD, 1200, np.uint64)
    ready += np.sign(ready) * 2**40
    found = by_both(lambda: residues.ciphertext(ready, r))
    assert all(is_balanced(found[k], k) for k in range(6))
    pairs = zip(values(ready, PRIMES), r, strict=True)
    assert values(found, PRIMES) == [(x + rounded(Q * int(value), WORD)) % Q for x, value in pairs]


@pytest.mark.parametrize("count", [1, 512, 700])
def test_dropping_divides_by_p_and_rounds_to_the_nearest(count):
    x = full(count)
    found = by_both(lambda: residues.drop(x))
    assert all(is_balanced(found[k], k) for k in range(3))
    assert values(found, KEPT) == [rounded(value, P) % Q_KEPT for value in values(x, PRIMES)]


def test_dropping_is_exact_on_both_sides_of_halfway():
    near = [P * times + shift for times in (0, 1, Q_KEPT // 2, Q_KEPT - 1) for shift in (-P // 2, -(P // 2), 0, P // 2)]
    near += [x + 1 for x in near]
    found = by_both(lambda: residues.drop(rows_of(near, PRIMES)))
    assert values(found, KEPT) == [rounded(value % Q, P) % Q_KEPT for value in near]


@pytest.mark.parametrize("sign", [-1, 1])
def test_decoding_is_right_at_every_fraction_up_to_the_threshold(sign):
    """x = q'/2^64·(value + f), of every f in steps of 2^−8 and at 1/2 − 2^−9, and a hair below 1/2."""
    steps = [Fraction(i, 256) for i in range(128)] + [
        Fraction(1, 2) - Fraction(1, 2**9),
        Fraction(1, 2) - Fraction(1, 2**12),
    ]
    wanted = [0, 1, 12345, WORD // 2 - 1, WORD // 2, WORD - 1, 0x123456789ABCDEF0]
    exact = [(value, Fraction(Q_KEPT, WORD) * (value + sign * step)) for value in wanted for step in steps]
    rows = rows_of([int(x) for _, x in exact], KEPT)  # cut towards 0, so at most one of q'/2^64 = 2^14 off
    found = by_both(lambda: residues.decode(rows))
    assert found.tolist() == [value for value, _ in exact]


def test_decoding_beyond_a_half_gives_the_neighbour():
    beyond = [Fraction(Q_KEPT, WORD) * (value + Fraction(1, 2) + Fraction(1, 2**12)) for value in (0, 7, WORD - 1)]
    assert residues.decode(rows_of([int(x) for x in beyond], KEPT)).tolist() == [1, 8, 0]


def test_decoding_takes_differences_of_balanced_residues():
    x = np.stack([2 * random_residues((900,), k) for k in range(3)])
    found = by_both(lambda: residues.decode(x))
    assert found.tolist() == [rounded(WORD * value, Q_KEPT) % WORD for value in values(x, KEPT)]


SHAPES = [(1,), (1200,), (3, 7), (40, 30), (2, 600), (4, 3, 5), (0,), (3, 0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_is_its_parts_taken_together(shape, monkeypatch):
    rng, count = np.random.default_rng(1), int(np.prod(shape))
    most = 2**53 - max(PRIMES) - 1
    sums = rng.integers(-most, most, (6, *shape), endpoint=True).astype(np.float64)
    masks = full(count).reshape(6, *shape)
    r = rng.integers(0, WORD, shape, np.uint64)
    monkeypatch.setattr(residues, "CHUNK", 600)
    found = by_both(lambda: residues.answer(sums, masks, r, Stream(SEED, "flood")))
    flood = sampling.flood(Stream(SEED, "flood"), count)
    parts = (sums.reshape(6, -1), masks.reshape(6, -1), residues.message(r.reshape(-1)), flood)
    totals = [a + b - c + d for a, b, c, d in zip(*(values(part, PRIMES) for part in parts), strict=True)]
    assert found.shape == (3, *shape)
    assert values(found.reshape(3, -1), KEPT) == [rounded(total % Q, P) % Q_KEPT for total in totals]


def test_an_answer_takes_arrays_of_any_strides():
    sums, masks = (full(6 * 200, seed).reshape(6, 30, 40) for seed in (0, 9))
    r = np.random.default_rng(1).integers(0, WORD, (40, 30), np.uint64)
    arguments = [sums.transpose(0, 2, 1), masks.transpose(0, 2, 1)]
    found = residues.answer(*arguments, r, Stream(SEED, "flood"))
    copied = residues.answer(*(x.copy() for x in arguments), r.copy(), Stream(SEED, "flood"))
    np.testing.assert_array_equal(found, copied)


def test_products_of_rows_at_the_largest_norm_are_exact_in_float64():
    """What the columns hold, times weights, by whatever BLAS does: every partial sum is an integer below 2^53."""
    rng = np.random.default_rng(2)
    for k in range(6):
        cuts = np.sort(rng.integers(0, LARGEST_NORM, 199))
        sizes = np.diff([0, *cuts, LARGEST_NORM])
        weight = (sizes * rng.choice([-1, 1], 200))[None].repeat(3, 0)
        half = PRIMES[k] // 2
        columns = np.stack([half * np.sign(weight[0]), -half * np.sign(weight[0]), random_residues((200,), k)], 1)
        found = weight.astype(np.float64) @ columns
        assert np.abs(weight[0]).sum() == LARGEST_NORM
        assert (found == weight.astype(object) @ columns.astype(np.int64).astype(object)).all()
        assert np.abs(found).max() < 2**53 - PRIMES[k], "what an answer takes"


def test_columns_are_the_entries_at_the_indices():
    draw = np.random.default_rng(0)
    b = np.stack([random_residues((3, 50), k) for k in range(6)])
    index, parts, taps = (draw.integers(0, n, s).astype(np.int32) for n, s in ((50, (4, 9)), (3, 12), (4, 12)))
    found = by_both(lambda: residues.columns(b, parts, taps, index))
    assert found.shape == (12, 54)
    for c, k, i in np.ndindex(12, 6, 9):
        assert found[c, k * 9 + i] == b[k, parts[c], index[taps[c], i]]


# The wire


@few
@given(st.sampled_from([PRIMES, KEPT, DROPPED, KEPT[:1]]), st.integers(0, 100), st.integers(0, 2**32))
def test_packed_residues_come_back(primes, count, seed):
    x = np.stack([random_residues((count,), PRIMES.index(p), seed) for p in primes])
    body = by_both(lambda: np.frombuffer(residues.pack(x, primes), np.uint8))
    assert len(body) == residues.packed_bytes(primes, count)
    np.testing.assert_array_equal(by_both(lambda: residues.unpack(body, primes, count)), x)


@pytest.mark.parametrize("count", [1, 7, 31, 32, 33])
def test_packed_residues_are_the_bits_of_the_least_representatives(count):
    x = np.stack([random_residues((count,), k) for k in range(6)])
    expected = b""
    for row, prime in zip(x, PRIMES, strict=True):
        bits = prime.bit_length()
        number = sum(int(value) % prime << bits * i for i, value in enumerate(row))
        expected += number.to_bytes(-(-bits * count // 8), "little")
    assert residues.pack(x, PRIMES) == expected


@pytest.mark.parametrize("k", range(6))
@pytest.mark.parametrize("place", [0, 3, 8])
def test_a_residue_that_is_not_below_its_prime_is_refused(k, place):
    prime, bits, count = PRIMES[k], PRIMES[k].bit_length(), 9

    def body(value):
        return np.frombuffer((value << bits * place).to_bytes(-(-bits * count // 8), "little"), np.uint8)

    found = by_both(lambda: residues.unpack(body(prime - 1), (prime,), count))
    assert found[0, place] == -1
    for value in (prime, (1 << bits) - 1):
        for name in kernels.NAMES:
            with using(name), pytest.raises(ProtocolError, match="below its prime"):
                residues.unpack(body(value), (prime,), count)


def test_other_lengths_and_bits_behind_the_last_residue_are_refused():
    body = np.frombuffer(residues.pack(np.zeros((6, 5)), PRIMES), np.uint8)
    for wrong in (body[:-1], np.append(body, np.uint8(0)), body[:0]):
        with pytest.raises(ProtocolError, match="bytes of residues"):
            residues.unpack(wrong, PRIMES, 5)
    ends = np.cumsum([residues.packed_bytes((p,), 5) for p in PRIMES]) - 1
    for end, prime in zip(ends, PRIMES, strict=True):
        used = 5 * prime.bit_length() % 8
        for bit in range(used, 8):
            spoilt = body.copy()
            spoilt[end] |= 1 << bit
            with pytest.raises(ProtocolError, match="behind the last"):
                residues.unpack(spoilt, PRIMES, 5)


@few
@given(st.integers(1, 40), st.data())
def test_any_bytes_are_either_residues_that_pack_to_them_or_refused(count, data):
    size = residues.packed_bytes(KEPT, count)
    body = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    try:
        found = residues.unpack(body, KEPT, count)
    except ProtocolError:
        return
    assert residues.pack(found, KEPT) == body.tobytes()
