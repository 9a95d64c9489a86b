"""benchmarks/tables.py: how two curves are told apart, against numpy's interpolation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import script

tables = script("benchmarks/tables.py")
CURVES = st.lists(
    st.tuples(st.integers(100, 10**6), st.floats(10, 90)), min_size=2, max_size=6, unique_by=lambda point: point[0]
).map(sorted)


@given(CURVES, CURVES)
def test_the_difference_is_interpolated_over_the_logarithm_of_the_relus(better, worse):
    found = tables.difference(better, worse, "all")
    relus, values = zip(*worse, strict=True)
    inside = [(n, a) for n, a in better if relus[0] < n < relus[-1] and all(abs(n - r) > 0.03 * n for r in relus)]
    if len(inside) == len(better):
        expected = [a - np.interp(math.log(n), np.log(relus), values) for n, a in inside]
        assert found == pytest.approx(np.mean(expected), abs=1e-9)
    elif found is None:
        assert not inside


@given(CURVES, st.floats(-20, 20))
def test_a_curve_is_ahead_of_itself_by_what_it_was_moved(curve, gap):
    moved = [(relus, accuracy + gap) for relus, accuracy in curve]
    for at in ("all", "fewest", "most"):
        if all(b >= 1.07 * a for (a, _), (b, _) in itertools.pairwise(curve)):
            assert tables.difference(moved, curve, at) == pytest.approx(gap)


def test_a_point_beyond_the_other_curve_is_not_compared():
    assert tables.difference([(100, 50.0)], [(200, 60.0), (400, 70.0)], "all") is None
    assert tables.difference([(100, 50.0), (200, 61.0)], [(200, 60.0), (400, 70.0)], "all") == pytest.approx(1)


@pytest.mark.parametrize(
    ("differences", "are_alike", "expected"),
    [
        ([0.1, 2.0, 1.0], False, "yes"),
        ([-0.1, 2.0, 1.0], False, "within the noise"),
        ([-0.1, -2.0], False, "no"),
        ([0.4, -1.2], True, "yes"),
        ([2.4, 1.2], True, "no"),
        ([2.4], False, "one seed says nothing"),
        ([0.2, 0.1, 0.3], False, "within the noise"),
    ],
)
def test_verdicts(differences, are_alike, expected):
    assert tables.verdict(differences, are_alike=are_alike) == expected
