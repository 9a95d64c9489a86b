"""Least squares without negative coefficients, beside scipy's, and what is recovered of known seconds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from parelu.private.cost.fit import fitted, non_negative


@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(0, 12))
def test_the_least_squares_are_scipys(seed, columns, more):
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(columns + more, columns)) * 10.0 ** rng.integers(-3, 4, columns)
    right = rng.normal(size=columns + more)
    found, expected = non_negative(left, right), nnls(left, right)[0]
    assert (found >= 0).all()
    assert np.linalg.norm(left @ found - right) == pytest.approx(np.linalg.norm(left @ expected - right), rel=1e-6)


def test_a_kind_of_work_that_is_never_done_alone_is_told_apart():
    rows = [({"a": float(a), "b": float(b)}, 2e-3 * a + 5e-2 * b) for a in range(1, 5) for b in range(3)]
    fit = fitted(rows)
    assert fit.coefficients == pytest.approx({"a": 2e-3, "b": 5e-2}, rel=1e-6)
    assert fit.seconds({"a": 10, "b": 0}) == pytest.approx(2e-2)
    assert max(fit.errors.values()) < 1e-8
    noisy = fitted([(features, seconds * (1.1 if k % 2 else 0.9)) for k, (features, seconds) in enumerate(rows)])
    assert 0 < noisy.errors["a"] < 1e-3, "an error grows with the noise"


def test_relative_errors_count():
    """A second that is off by a tenth outweighs no microseconds."""
    rows = [({"n": 1.0}, 1e-3), ({"n": 1000.0}, 2.0)]
    assert 1.2e-3 < fitted(rows, floor=1e-9).coefficients["n"] < 1.8e-3


def test_what_was_not_measured_is_no_zero():
    fit = fitted([({"a": 1.0}, 1.0)])
    with pytest.raises(KeyError, match="b"):
        fit.seconds({"a": 1.0, "b": 1.0})
