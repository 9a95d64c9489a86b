"""Gates: the sigmoid of squeeze-and-excitation as a piecewise linear function, so that it runs as it is.

A gate has one number a channel, or a position, so that a few ReLUs for each are little beside those of the maps. A
plan that drops them all leaves the gate open: 1 everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, fx

from parelu.network import functions
from parelu.network.canonical.builder import Builder

LARGEST_ERROR = 2.0**-10  # the step of an activation in fixed point


@dataclasses.dataclass(frozen=True)
class Knots:
    """A continuous piecewise linear function Σ slopes·relu(x − places), 0 before the first place.

    error: the most that it is off by.
    """

    places: tuple[float, ...]
    slopes: tuple[float, ...]
    error: float

    def __call__(self, x: Tensor) -> Tensor:
        rectified = torch.relu(x[..., None] - torch.tensor(self.places, dtype=x.dtype))
        return rectified @ torch.tensor(self.slopes, dtype=x.dtype)


def sigmoid_knots(largest_error: float) -> Knots:
    """As few knots as an error of at most `largest_error` takes, at the places where that error is least.

    The sigmoid is convex below 0 and odd about (0, 1/2). There the function's corners lie below it by the error, and
    its pieces touch a line above it by the error; the last piece goes through (0, 1/2).
    """
    corners = next(n for n in range(1, 64) if _is_met(n, largest_error))
    error = _bisected(lambda e: not _is_met(corners, e), 0.0, largest_error)
    below = _corners(corners, error)
    points = [(x, _sigmoid(x) - error) for x in below] + [(-x, 1 - _sigmoid(x) + error) for x in reversed(below)]
    points[0], points[-1] = (points[0][0], 0.0), (points[-1][0], 1.0)
    pieces = [(d - b) / (c - a) for (a, b), (c, d) in itertools.pairwise(points)]
    slopes = [after - before for before, after in zip([0.0, *pieces], [*pieces, 0.0], strict=True)]
    return Knots(tuple(x for x, _ in points), tuple(slopes), error)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _derivative(x: float) -> float:
    return _sigmoid(x) * _sigmoid(-x)


def _corners(number: int, error: float) -> list[float]:
    """The corners below 0: the first where the function leaves 0, each other the farthest that the error allows."""
    found = [-math.log(1 / error - 1)]
    while len(found) < number:
        start = found[-1]
        touch = _bisected(lambda x, a=start: _sigmoid(x) - _sigmoid(a) + 2 * error > _derivative(x) * (x - a), start, 0)
        slope = _derivative(touch)
        height = _sigmoid(start) - error

        def is_close(x: float, a: float = start, h: float = height, s: float = slope) -> bool:
            return h + s * (x - a) > _sigmoid(x) - error

        found.append(_bisected(is_close, touch, 0))
    return found


def _is_met(corners: int, error: float) -> bool:
    """Whether the last piece, from the last of so many corners to (0, 1/2), is off by no more than the error."""
    if not error:
        return False
    last = _corners(corners, error)[-1]
    slope = (0.5 - _sigmoid(last) + error) / -last if last else math.inf
    if slope >= _derivative(0):
        return True  # it lies below the sigmoid, by less and less
    most = _bisected(lambda x: _derivative(x) < slope, last, 0)
    return 0.5 + slope * most - _sigmoid(most) <= error


def _bisected(is_before: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that holds at first ends, to the last bits."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if is_before(middle) else (low, middle)
    return high


@functools.cache
def sigmoid() -> Knots:
    return sigmoid_knots(LARGEST_ERROR)


def is_gate(node: fx.Node) -> bool:
    """Whether a tensor has one number a channel or a position, and is not what the network returns."""
    shape = node.meta["shape"]
    return (math.prod(shape) == max(shape, default=1) or shape[0] == 1) and not _is_returned(node)


def _is_returned(node: fx.Node) -> bool:
    """Whether the network returns a tensor as it is, or in another shape."""
    size = math.prod(node.meta["shape"])
    return any(
        user.op == "output" or (math.prod(user.meta.get("shape", ())) == size and _is_view(user) and _is_returned(user))
        for user in node.users
    )


def _is_view(node: fx.Node) -> bool:
    return node.target in (torch.flatten, torch.reshape, torch.squeeze, "flatten", "reshape", "squeeze", "view")


def write(builder: Builder, source: fx.Node, knots: Knots) -> fx.Node:
    """Write a piecewise linear function: each number once for each knot, less its place, a ReLU, and their sum.

    The site is (positions, knots, 1), a channel for each number of the gate.
    """
    shape, number = source.meta["shape"], len(knots.places)
    column = builder.call(torch.reshape, source, (-1, math.prod(shape), 1, 1))
    places = functions.Affine((1, number, 1), trained=())
    places.bias = -torch.tensor(knots.places).view(1, -1, 1)
    repeated = builder.call(functions.select, column, 1, (0,) * number)
    rectified = builder.site(builder.layer(beside(builder, "knots"), places, repeated))
    slopes = functions.Resample(1, torch.tensor([knots.slopes]))
    return builder.call(torch.reshape, builder.layer(beside(builder, "slopes"), slopes, rectified), (-1, *shape))


def beside(builder: Builder, name: str) -> str:
    """The path of a layer that is written for a call: of a module, its own and the name, since a site takes its own."""
    return f"{builder.path}_{name}" if builder.node.op == "call_module" else builder.below(name)
