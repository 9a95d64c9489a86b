"""The accounting of answers: its moments against draws, its bound against distances by brute force."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.private.crypto import noise
from parelu.private.crypto.lattice import accounting, parameters
from parelu.private.crypto.prg import Stream, fresh_seed

DIMENSION = parameters.RANK * parameters.DEGREE
rows = st.lists(st.integers(-300, 300), min_size=1, max_size=20)


def shift_of(weight: list[int], outputs: int = 1) -> accounting.Shift:
    return accounting.row(sum(map(abs, weight)), sum(w * w for w in weight), outputs)


def draws(weight: np.ndarray, count: int) -> np.ndarray:
    """v of `count` outputs, all coins drawn, rounded as the protocol rounds, modulo q and 2^64 themselves."""
    stream = Stream(fresh_seed(), "test")
    q, t = parameters.Q, 1 << parameters.MESSAGE_BITS

    def rounding(value: int) -> int:
        return (2 * q * value + t) // (2 * t)

    found = []
    for _ in range(count):
        u, s = (noise.ternary(stream, DIMENSION) for _ in range(2))
        epsilon, own = (noise.binomial(stream, DIMENSION) for _ in range(2))
        errors = noise.binomial(stream, len(weight))
        *r, mask = (int(x) for x in stream.bytes(8 * (len(weight) + 1)).view(np.uint64))
        y = (sum(int(w) * x for w, x in zip(weight, r, strict=True)) - mask) % t
        messages = sum(int(w) * rounding(x) for w, x in zip(weight, r, strict=True)) - rounding(mask) - rounding(y)
        messages = (messages + q // 2) % q - q // 2
        found.append(int(errors @ weight + epsilon @ u - own @ s) + messages)
    return np.array(found, float)


@pytest.mark.parametrize("weight", [[0], [90, -70, 50], [400] * 6 + [-1]], ids=str)
def test_the_second_moment_is_that_of_what_is_drawn(weight):
    found, predicted = draws(np.array(weight), 2000), float(shift_of(weight).drawn)
    assert abs((found**2).mean() / predicted - 1) < 5 * math.sqrt(2 / len(found))
    assert np.abs(found).max() <= parameters.noise(sum(map(abs, weight)))


@given(rows, rows)
def test_what_is_chosen_tells_more_than_what_is_drawn_and_rows_add_up(one, other):
    both = shift_of(one, 3) + shift_of(other, 3)
    for shift in (both, shift_of(one)):
        assert 0 < shift.drawn <= shift.chosen <= shift.worst
    width = max(len(one), len(other))
    padded = np.array([row + [0] * (width - len(row)) for row in (one, other)])
    assert accounting.layer(padded[:, :, None, None], 3) == both


@given(st.integers(1, 2**80), st.integers(0, 40), st.integers(20, 90))
def test_it_grows_with_the_root_of_inferences_and_falls_with_the_width(squares, queries, bits):
    one = accounting.distance(Fraction(squares), 1, bits)
    assert accounting.distance(Fraction(squares), 4**queries, bits) == pytest.approx(one + queries)
    assert accounting.distance(Fraction(squares), 1, bits + 3) == pytest.approx(one - 3)
    assert accounting.distance(Fraction(0), 1) == -math.inf


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=2), st.integers(4, 6))
def test_no_distance_by_brute_force_is_beyond_the_bound(shifts, bits):
    """Of all values of one or two flooded outputs with these v, B = 2^bits."""
    one = np.full(2 << bits, 0.5 / (1 << bits))
    f = np.pad(np.convolve(np.convolve(one, one), one), 6)
    still, moved = np.ones(1), np.ones(1)
    for v in shifts:
        moved, still = np.multiply.outer(moved, np.roll(f, v)), np.multiply.outer(still, f)
    exact = 0.5 * np.abs(moved - still).sum()
    bound = 2.0 ** accounting.distance(Fraction(sum(v * v for v in shifts)), 1, bits)
    # 1.4/w is what a discrete step costs more than a continuous one: nothing at 2^85, but here
    assert exact <= bound * math.sqrt(1 + 1.4 / (2 << bits))


def test_a_bound_is_within_a_small_factor_of_what_one_output_loses():
    one = np.full(512, 1 / 512)
    f = np.pad(np.convolve(np.convolve(one, one), one), 8)
    exact = 0.5 * np.abs(np.roll(f, 8) - f).sum()
    assert exact > 2.0 ** accounting.distance(Fraction(64), 1, 8) / 3
