"""What is not linear: sites, max-pools and products, as ReLUs and squares of the ring."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from parelu.errors import UserError
from parelu.network import maxpool, ops
from parelu.network.sites import IDENTITY, Site
from parelu.private.lowering.calibrate import Seen, max_pool_levels, spread, squares
from parelu.private.lowering.lowered import Range
from parelu.private.lowering.ops import (
    Activation,
    Add,
    Concat,
    Multiply,
    Reshape,
    Shape,
)
from parelu.private.lowering.writer import SPARE_BITS, Value, Writer, bits_of, fine, fraction_for, rounded

MOST_EXTRA = 6  # bits after the point that a ReLU's input may have more than is fit for its values
SQUARED_BITS = 14  # of the magnitude of what a product squares

NONE = np.zeros(0, np.int64)  # no positions


def activation(writer: Writer, node: fx.Node, site: Site, source: Value) -> Value:
    """Polynomials of degree 1 as a linear op, then ReLUs and squares together."""
    source = _lines(writer, node, site, source)
    relus, positions = (_positions(where) for where in (site.mask, squares(site)))
    if not (len(relus) or len(positions)):
        return source
    source = _for_relus(writer, node, source)
    bits = _relu_bits(writer, node, site.name, writer.seen.relus[node], source.unit, len(relus))
    c0, c1, c2 = (spread(c, site.shape)[squares(site)].double().numpy() for c in site.coefficients)
    truncation = _squares(writer, node, (c0, c1, c2), source.unit) if len(positions) else 0
    op = Activation(source.number, relus, bits, positions, truncation)
    return Value(writer.emit(node, op), source.unit, writer.seen.values[node])


def _for_relus(writer: Writer, node: fx.Node, value: Value) -> Value:
    """Truncated, and not much finer than it need be, or its ReLUs would take more bits."""
    return writer.coarse(node, value, fraction_for(value.seen.largest) + MOST_EXTRA)


def _relu_bits(writer: Writer, node: fx.Node, name: str, seen: Seen, unit: float, count: int) -> int:
    """m of ReLUs on what was seen."""
    bits = 1 + SPARE_BITS + bits_of(seen.largest / unit)
    if bits > writer.ring.bits:
        raise UserError(f"{name}: activations reach {seen.largest:.3g}: more than the ring holds")
    if count:
        writer.record(node, "relu", seen, unit, count, bits)
    return bits


def _lines(writer: Writer, node: fx.Node, site: Site, source: Value) -> Value:
    """Emit c0 + c1·x where a site has that and it is not the identity."""
    identity = torch.tensor(IDENTITY)[:, None]
    of_channels = (site.coefficients != identity).any(0) & (site.coefficients[2] == 0)
    lines = spread(of_channels, site.shape) & ~site.mask
    if not lines.any():
        return source
    c0, c1, _ = (spread(c, site.shape) for c in site.coefficients)
    factor, summand = torch.where(lines, c1, torch.ones(())), torch.where(lines, c0, torch.zeros(()))
    source = writer.truncated(node, source)
    return writer.linear(node, Multiply(source.number), source.unit, factor, summand)


def _squares(writer: Writer, node: fx.Node, coefficients: Sequence[NDArray[np.float64]], unit: float) -> int:
    """Write the numbers of the squares for the next op; the bits that it truncates them by."""
    c0, c1, c2 = coefficients
    truncation = fine(unit) + writer.square_bits - min(2, math.frexp(float(np.abs(c2).max()))[1])
    scale = 2.0**truncation
    writer.weights[len(writer.ops)] = {
        "c0": rounded(c0 / unit * scale),
        "c1": rounded(c1 * scale),
        "c2": rounded(c2 * unit * scale),
    }
    writer.record(node, "square", writer.seen.squares[node], unit / scale, len(c2), truncation)
    return truncation


def max_pool(writer: Writer, node: fx.Node, op: ops.MaxPool, source: Value) -> Value:
    """Levels of max(a, b) = b + relu(a − b), one round each."""
    value = _for_relus(writer, node, source)
    number = value.number
    for level, seen in zip(max_pool_levels(node, op), writer.seen.levels[node], strict=True):
        left, right = (writer.selected(node, number, level.axis, side) for side in (level.left, level.right))
        if level.comparisons:
            difference = writer.emit(node, Add(left, writer.minus(node, right)))
            bits = _relu_bits(writer, node, ops.path(node), seen, value.unit, level.comparisons)
            relus = _compared(level)
            larger = writer.emit(node, Activation(difference, relus, bits, NONE, 0))
            number = writer.emit(node, Add(right, larger))
        else:
            number = left
    number = writer.emit(node, Reshape(number, node.meta["shape"]))
    return value.moved(number, writer.seen.values[node])


def product(writer: Writer, node: fx.Node, left: Value, right: Value) -> Value:
    """4·a·b = (a + b)² − (a − b)² of the integers, all squares in one round; a·a is one square."""
    seen, sizes = writer.seen.values[node], writer.seen.products[node]
    left, right = (
        writer.coarse(node, value, SQUARED_BITS - math.frexp(value.seen.largest)[1]) for value in (left, right)
    )
    first, second = (_broadcast(writer, node, value.number, node.meta["shape"]) for value in (left, right))
    mean = sum(size.mean / value.unit**2 for size, value in zip(sizes, (left, right), strict=True)) / 2
    unit = left.unit * right.unit
    if first == second:
        squared, bits = _squared(writer, node, first, mean, unit, seen)
        return Value(squared, unit * 2.0**bits, seen)
    plus, minus = (writer.emit(node, Add(first, other)) for other in (second, writer.minus(node, second)))
    both, bits = _squared(writer, node, writer.emit(node, Concat(plus, minus, 0)), 4 * mean, unit / 4, seen)
    count = writer.shapes[plus][0]
    first, second = (writer.selected(node, both, 0, range(start, start + count)) for start in (0, count))
    return Value(writer.emit(node, Add(first, writer.minus(node, second))), unit / 4 * 2.0**bits, seen)


def _squared(writer: Writer, node: fx.Node, number: int, mean: float, unit: float, seen: Seen) -> tuple[int, int]:
    """The squares of integers, divided by 2^bits so that those, worth `unit` before, are fit for what was seen.

    mean: of the squares. Returns the value's number, and bits.
    """
    count, bits = math.prod(writer.shapes[number]), max(1, fine(unit) - fraction_for(seen.largest))
    nothing = np.zeros(count, np.int64)
    writer.weights[len(writer.ops)] = {"c0": nothing, "c1": nothing, "c2": nothing + 1}
    writer.ranges.append(Range(ops.path(node), "square", seen.largest, mean * unit, unit, count, bits))
    return writer.emit(node, Activation(number, NONE, 2, np.arange(count), bits)), bits


def _broadcast(writer: Writer, node: fx.Node, number: int, shape: Shape) -> int:
    """A value with its dimensions of size 1 repeated."""
    for axis, size in enumerate(shape):
        number = writer.selected(node, number, axis, None if writer.shapes[number][axis] == size else [0] * size)
    return number


def _compared(level: maxpool.Level) -> NDArray[np.int64]:
    """Positions of the comparisons in the level's output."""
    wide = np.array(level.compared).reshape(-1, *[1] * (len(level.shape) - level.axis - 1))
    return np.flatnonzero(np.broadcast_to(wide, level.shape))


def _positions(where: Tensor) -> NDArray[np.int64]:
    return np.flatnonzero(where.flatten().numpy())
