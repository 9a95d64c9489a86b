"""What a fused network is written into: ops of the ring, the server's integers, and what one integer is worth.

A value of the program stands for one tensor of the network: an integer of it is worth `unit`. What changes the unit
alone costs nothing: a factor, the divisor of an average. A truncation brings a linear layer's output back to
2^-FRACTION, or what calibration says is fit for values that are all small, or very large.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from parelu.fusion.factors import uniform
from parelu.network import nodes, ops
from parelu.network.sites import Network
from parelu.private.crypto.ring import Ring
from parelu.private.lowering.calibrate import Ranges, Seen
from parelu.private.lowering.lowered import WEIGHT_BITS, Integers, Range
from parelu.private.lowering.ops import (
    ZERO,
    Activation,
    Op,
    Permute,
    Reshape,
    Scale,
    Select,
    Shape,
    Shift,
    Truncate,
    shape_of,
)

FRACTION = 10  # bits after the point of an activation
SPARE_BITS = 1  # the calibrated range may be exceeded so often by a factor of two
MOST_FINER, MOST_WHOLE = 20, 10  # bits that small values have more after the point; before it, of large ones
MOST_RAISED = 30  # bits of a public factor


@dataclasses.dataclass(frozen=True)
class Value:
    """seen: how large the numbers are that it stands for; waiting: bits of a truncation that is still to come."""

    number: int
    unit: float
    seen: Seen
    waiting: int = 0

    @property
    def truncated_unit(self) -> float:
        return self.unit * 2.0**self.waiting

    def moved(self, number: int, seen: Seen | None = None) -> Value:
        """Value `number`, of the same unit."""
        return dataclasses.replace(self, number=number, seen=seen or self.seen)


class Writer:
    """Writes a program, op by op; `values` has the number and unit of each node's tensor.

    is_late: whether a truncation waits until behind an addition that alone reads its value. A sum is then rounded
    once, and what a residual block's ReLU reads comes from a truncation, which a ReLU protocol can do exactly.
    """

    def __init__(self, network: Network, seen: Ranges, ring: Ring, square_bits: int, is_late: bool) -> None:
        self.network, self.seen, self.ring = network, seen, ring
        self.square_bits, self.is_late = square_bits, is_late
        self.ops: list[Op] = []
        self.shapes: list[Shape] = [network.input_shape]
        self.layers: list[str] = []
        self.weights: dict[int, Integers] = {}
        self.ranges: list[Range] = []
        self.values: dict[fx.Node, Value] = {}
        self.output = next(iter(network.graph.find_nodes(op="output"))).all_input_nodes[0]
        self._known: dict[tuple[Any, ...], int] = {}

    def emit(self, node: fx.Node, op: Op) -> int:
        """The number of the value that an op makes; one that is there is made once, a move of nothing not at all."""
        shape = shape_of(op, self.shapes)
        if isinstance(op, (Reshape, Permute)) and self._moves_nothing(op, shape):
            return op.source
        key = (type(op), *map(_hashable, (getattr(op, field.name) for field in dataclasses.fields(op))))
        number = self._known.get(key)
        if number is None or op.is_secret or isinstance(op, (Activation, Shift)):
            self.ops.append(op)
            self.shapes.append(shape)
            self.layers.append(str(node.target) if node.op == "call_module" else nodes.owner(node) or node.name)
            self._known[key] = number = len(self.ops)
        return number

    def _moves_nothing(self, op: Reshape | Permute, shape: Shape) -> bool:
        if isinstance(op, Reshape):
            return shape == self.shapes[op.source]
        return op.order == tuple(range(len(op.order)))

    def linear(self, node: fx.Node, op: Op, unit: float, weight: Tensor, bias: Tensor | None) -> Value:
        """Emit a linear op with weights of WEIGHT_BITS bits; a truncation follows unless it makes the logits."""
        seen, total = self.seen.values[node], node
        while is_only_added(total):
            total = next(iter(total.users))
        fraction = fraction_for(self.seen.values[total].largest)
        number = self.emit(node, op)
        bits = WEIGHT_BITS
        if not weight.is_meta:  # an outline has no integers
            bits, self.weights[number - 1] = integers(weight, bias, unit, fraction)
        scale = 2.0 ** (fraction + bits)
        value = Value(number, 1 / scale, seen)
        if node is self.output:
            return value
        value = dataclasses.replace(value, waiting=bits)
        return value if self.is_late and is_only_added(node) else self.truncated(node, value)

    def truncated(self, node: fx.Node, value: Value) -> Value:
        """What waits is done now."""
        if not value.waiting:
            return value
        before = len(self.ops)
        number = self.emit(node, Truncate(value.number, value.waiting))
        if len(self.ops) > before:
            elements = math.prod(self.shapes[number])
            self.record(node, "truncate", value.seen, value.unit, elements, value.waiting)
        return Value(number, value.truncated_unit, value.seen)

    def same_unit(self, node: fx.Node, left: Value, right: Value) -> tuple[Value, Value]:
        """Two values that have one unit once both are truncated.

        One that is finer by a power of two loses those bits; else, as after an average pool, a public factor brings
        what has another unit to 2^-FRACTION.
        """
        bits = math.log2(left.truncated_unit / right.truncated_unit)
        if math.isclose(bits, round(bits), abs_tol=1e-12):
            return self._finer(node, left, -round(bits)), self._finer(node, right, round(bits))
        return self.same_unit(node, self._rescaled(node, left), self._rescaled(node, right))

    def _finer(self, node: fx.Node, value: Value, bits: int) -> Value:
        """A value that is finer by so many bits, if any, which it then waits to lose; many at once."""
        if bits <= 0:
            return value
        value = dataclasses.replace(value, waiting=value.waiting + bits)
        return value if value.waiting <= MOST_RAISED else self.truncated(node, value)

    def _rescaled(self, node: fx.Node, value: Value) -> Value:
        """A value whose unit is a power of two once it is truncated; 2^-FRACTION where it was none."""
        target = 2.0**-FRACTION
        if math.frexp(value.truncated_unit)[0] == 0.5:
            return value
        value = self.truncated(node, value)
        bits = max(WEIGHT_BITS - math.frexp(value.unit / target)[1], 0)
        number = self.emit(node, Scale(value.number, round(value.unit / target * 2.0**bits)))
        return Value(number, target / 2.0**bits, value.seen, bits)

    def coarse(self, node: fx.Node, value: Value, most: int) -> Value:
        """Truncated, with so many bits after the point at the most."""
        value = self.truncated(node, value)
        finer = fine(value.unit) - most
        return self.truncated(node, dataclasses.replace(value, waiting=finer)) if finer > 0 else value

    def scaled(self, node: fx.Node, source: Value, factor: float) -> Value:
        """Times a number, which the unit takes but for its sign."""
        number, seen = source.number, self.seen.values[node]
        if not factor:
            nothing = np.full(self.shapes[number][0], ZERO, np.int32)
            return Value(self.emit(node, Select(number, 0, nothing)), 2.0**-FRACTION, seen)
        if factor < 0:
            number = self.minus(node, number)
        return Value(number, source.unit * abs(factor), seen, source.waiting)

    def raised(self, node: fx.Node, value: Value, bits: int) -> int:
        """The number of the value times 2^bits."""
        return self.emit(node, Scale(value.number, 1 << bits)) if bits else value.number

    def selected(self, node: fx.Node, number: int, axis: int, indices: Sequence[int] | None) -> int:
        if indices is None or tuple(indices) == tuple(range(self.shapes[number][axis])):
            return number
        return self.emit(node, Select(number, axis, np.array(indices, np.int32)))

    def minus(self, node: fx.Node, number: int) -> int:
        return self.emit(node, Scale(number, -1))

    def record(self, node: fx.Node, kind: str, seen: Seen, unit: float, elements: int, bits: int) -> None:
        self.ranges.append(Range(ops.path(node), kind, seen.largest, seen.mean, unit, elements, bits))


def integers(
    weight: Tensor, bias: Tensor | None, unit: float, fraction: int
) -> tuple[int, dict[str, NDArray[np.int64]]]:
    """Bits after the point of a weight whose largest number takes WEIGHT_BITS; its integers, and those of the bias.

    unit: of what the layer reads; fraction: bits after the point of what it makes.
    """
    real = weight.detach().double().numpy() * unit * 2.0**fraction
    largest = float(np.abs(real).max(initial=0.0))
    bits = min(max(WEIGHT_BITS - (math.frexp(largest)[1] if largest else WEIGHT_BITS - 1), 1), 30)
    summand = np.zeros(len(real)) if bias is None else bias.detach().double().numpy()
    return bits, {"weight": rounded(real * 2.0**bits), "bias": rounded(summand * 2.0 ** (fraction + bits))}


def fraction_for(largest: float) -> int:
    """Bits after the point of values up to `largest`: more where all are small, fewer where some are very large."""
    whole = math.frexp(largest)[1] if largest else 0
    return FRACTION - min(max(whole, -MOST_FINER), 0) - max(whole - MOST_WHOLE, 0)


def fine(unit: float) -> int:
    """Bits after the point that a unit is worth."""
    return 1 - math.frexp(unit)[1]


def is_only_added(node: fx.Node) -> bool:
    """Whether nothing but one addition reads the value, of another value or of numbers of the server's.

    What waits for its truncation goes through these: a ReLU behind them then reads the truncation, and can do it
    exactly.
    """
    match [ops.read(user) for user in node.users]:
        case [ops.Addition()]:
            return True
        case [ops.Affine() as op]:
            return uniform(op) == 1
        case _:
            return False


def _hashable(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else value


def rounded(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Raises OverflowError where one is no integer of 62 bits."""
    if values.size and not float(np.abs(values).max()) < 2.0**62:
        raise OverflowError("its numbers are too large for integers of 64 bits")
    return np.rint(values).astype(np.int64)


def bits_of(largest: float) -> int:
    """Bits of the magnitude of integers up to `largest`."""
    return max(math.ceil(largest), 1).bit_length()
