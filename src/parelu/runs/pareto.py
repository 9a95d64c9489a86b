"""Dominance, frontier, knee and hypervolume of points (cost, accuracy): lower cost and higher accuracy are better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parelu.errors import UserError

Point = tuple[float, float]


def dominates(a: Point, b: Point) -> bool:
    """Whether a costs at most as much as b and is at least as accurate, and better in one of the two."""
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def frontier(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, by rising cost; of equal points the first stands for all."""
    best, chosen = -math.inf, []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[index][1] > best:
            best = points[index][1]
            chosen.append(index)
    return chosen


def hypervolume(points: Sequence[Point], reference: Point, *, log: bool = False) -> float:
    """Area that the points dominate, up to a reference of higher cost and lower accuracy.

    Args:
        log: measure the cost as its decimal logarithm, so that each halving of the cost counts alike.

    Raises:
        UserError: a cost is not positive and `log` is asked for.
    """
    if log and min([reference[0], *(cost for cost, _ in points)]) <= 0:
        raise UserError("a cost of 0 has no logarithm; leave that point out, or measure with log=False")
    scale = math.log10 if log else float
    inside = [(scale(cost), accuracy) for cost, accuracy in points if cost < reference[0] and accuracy > reference[1]]
    steps = [inside[i] for i in frontier(inside)]
    ends = [*(cost for cost, _ in steps), scale(reference[0])]
    return sum((ends[i + 1] - cost) * (accuracy - reference[1]) for i, (cost, accuracy) in enumerate(steps))


def knee(points: Sequence[Point]) -> int:
    """Index of the frontier's point farthest above the line between its ends, the cost on a log scale.

    A point of cost 0 has no place on that scale; it is chosen only where there is no other.

    Raises:
        UserError: there is no point.
    """
    if not points:
        raise UserError("there is no point to choose from; give at least one")
    chosen = [i for i in frontier(points) if points[i][0] > 0]
    if not chosen:
        return frontier(points)[0]
    (x0, y0), (x1, y1) = ((math.log10(points[i][0]), points[i][1]) for i in (chosen[0], chosen[-1]))
    if x0 == x1:
        return chosen[0]
    slope = (y1 - y0) / (x1 - x0)
    return max(chosen, key=lambda i: points[i][1] - y0 - slope * (math.log10(points[i][0]) - x0))
