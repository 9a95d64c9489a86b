"""Frontier, knee and hypervolume against brute force and their laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parelu.errors import UserError
from parelu.runs.pareto import dominates, frontier, hypervolume, knee

points = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=25)


@given(points)
def test_frontier_is_what_nothing_dominates(cloud):
    chosen = frontier(cloud)
    undominated = {p for p in cloud if not any(dominates(q, p) for q in cloud)}
    assert {cloud[i] for i in chosen} == undominated
    assert len(chosen) == len(undominated), "equal points count once"
    costs = [cloud[i][0] for i in chosen]
    assert costs == sorted(costs)


@given(st.data(), points)
def test_nothing_depends_on_the_order(data, cloud):
    shuffled = data.draw(st.permutations(cloud))
    assert [cloud[i] for i in frontier(cloud)] == [shuffled[i] for i in frontier(shuffled)]
    assert hypervolume(cloud, (31, 0)) == pytest.approx(hypervolume(shuffled, (31, 0)))
    assert cloud[knee(cloud)] == shuffled[knee(shuffled)]


@given(points)
def test_of_equal_points_the_first_stands(cloud):
    assert frontier([*cloud, *cloud]) == frontier(cloud)


@given(points, points)
def test_a_dominated_point_changes_nothing(cloud, more):
    worse = [p for p in more if any(dominates(q, p) for q in cloud)]
    assert frontier([*cloud, *worse]) == frontier(cloud)
    assert hypervolume([*cloud, *worse], (31, 0)) == hypervolume(cloud, (31, 0))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=3, max_size=3))
def test_dominance_is_a_strict_order(triple):
    a, b, c = triple
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))
    assert dominates(a, c) or not (dominates(a, b) and dominates(b, c))


@given(points)
def test_hypervolume_is_the_area_of_unit_squares(cloud):
    squares = sum(any(cost <= x and accuracy > y for cost, accuracy in cloud) for x in range(1, 31) for y in range(31))
    assert hypervolume(cloud, (31, 0)) == pytest.approx(squares)


@given(points, st.tuples(st.integers(1, 30), st.integers(0, 30)))
def test_hypervolume_grows_only_by_undominated_points(cloud, point):
    before, after = hypervolume(cloud, (31, 0)), hypervolume([*cloud, point], (31, 0))
    assert after >= before
    if any(dominates(p, point) or p == point for p in cloud):
        assert after == pytest.approx(before)


def test_hypervolume_on_a_log_scale():
    assert hypervolume([(10, 50.0), (100, 80.0)], (1000, 0), log=True) == pytest.approx(50 + 80)


def test_hypervolume_on_a_log_scale_by_sampling():
    cloud = [(3.0, 20.0), (40.0, 65.0), (50.0, 60.0), (700.0, 90.0), (5000.0, 99.0)]
    sample = np.random.default_rng(0).uniform((0, 0), (3, 100), (200_000, 2))
    inside = [(sample[:, 0] >= np.log10(cost)) & (sample[:, 1] <= accuracy) for cost, accuracy in cloud]
    assert hypervolume(cloud, (1000, 0), log=True) == pytest.approx(300 * np.mean(np.any(inside, axis=0)), rel=0.01)


def test_a_cost_of_zero_has_no_logarithm():
    with pytest.raises(UserError, match="no logarithm"):
        hypervolume([(0, 50.0)], (10, 0), log=True)
    assert hypervolume([(0, 50.0)], (10, 0)) == 500
    assert knee([(0, 10.0), (10, 60.0), (100, 99.0), (1000, 100.0)]) == 2
    assert knee([(0, 10.0)]) == 0
    with pytest.raises(UserError, match="at least one"):
        knee([])


def test_knee_stands_out():
    assert knee([(1000, 80.0), (100, 79.0), (10, 40.0), (1, 10.0)]) == 1
    assert knee([(5, 1.0)]) == 0


@given(points)
def test_knee_is_on_the_frontier(cloud):
    assert knee(cloud) in frontier(cloud)
