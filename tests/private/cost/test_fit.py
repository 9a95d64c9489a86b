"""What fits recover of known seconds, without negative coefficients."""

import pytest

from parelu.private.cost.fit import fitted


def test_a_kind_of_work_that_is_never_done_alone_is_told_apart():
    rows = [({"a": float(a), "b": float(b)}, 2e-3 * a + 5e-2 * b) for a in range(1, 5) for b in range(3)]
    fit = fitted(rows)
    assert fit.coefficients == pytest.approx({"a": 2e-3, "b": 5e-2}, rel=1e-6)
    assert fit.seconds({"a": 10, "b": 0}) == pytest.approx(2e-2)
    assert max(fit.errors.values()) < 1e-8
    noisy = fitted([(features, seconds * (1.1 if k % 2 else 0.9)) for k, (features, seconds) in enumerate(rows)])
    assert 0 < noisy.errors["a"] < 1e-3, "an error grows with the noise"


def test_no_kind_of_work_takes_less_than_nothing():
    """The best line without that bound falls with b."""
    rows = [({"a": 1.0}, 2.0), ({"a": 1.0, "b": 1.0}, 1.0), ({"a": 2.0, "b": 1.0}, 3.0)]
    assert fitted(rows).coefficients["b"] == 0


def test_relative_errors_count():
    """A second that is off by a tenth outweighs no microseconds."""
    rows = [({"n": 1.0}, 1e-3), ({"n": 1000.0}, 1.1)]
    assert 1.03e-3 < fitted(rows, floor=1e-9).coefficients["n"] < 1.07e-3


def test_longer_and_shorter_by_the_same_factor_weigh_the_same():
    rows = [({"n": float(n)}, 1e-2 * n * factor) for n in range(1, 10) for factor in (1.2, 1 / 1.2)]
    assert fitted(rows).coefficients["n"] == pytest.approx(1e-2, rel=0.03)


def test_what_was_disturbed_pulls_nothing():
    rows = [({"n": float(n)}, 1e-2 * n * (1 + 0.05 * (n % 3 - 1))) for n in range(1, 31)]
    disturbed = [(features, seconds * (8 if k % 6 == 0 else 1)) for k, (features, seconds) in enumerate(rows)]
    assert fitted(disturbed).coefficients["n"] == pytest.approx(fitted(rows).coefficients["n"], rel=0.03)


def test_what_is_known_is_not_fitted():
    rows = [({"n": float(n), "known": 5.0 / n}, 0.1 * n + 5.0 / n) for n in range(1, 10)]
    assert fitted(rows, known="known").coefficients == pytest.approx({"n": 0.1})


def test_what_was_not_measured_is_no_zero():
    fit = fitted([({"a": 1.0}, 1.0)])
    with pytest.raises(KeyError, match="b"):
        fit.seconds({"a": 1.0, "b": 1.0})
