"""What each op of a fused network becomes: ops of the integer ring, the server's integers, and what each is worth.

A value of the program stands for one tensor of the network: an integer of it is worth `unit`. What changes the unit
alone costs nothing: a factor, the divisor of an average. A truncation brings a linear layer's output back to
2^-FRACTION, or what calibration says is fit for values that are all small, or very large.
"""

from __future__ import annotations

import dataclasses
import fractions
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.fusion import composition
from parelu.fusion.factors import factors, uniform
from parelu.network import maxpool, nodes, ops
from parelu.network.sites import IDENTITY, Network, Site
from parelu.private.crypto.ring import Ring
from parelu.private.lowering.calibrate import Calibration, Seen, max_pool_levels, spread, squares
from parelu.private.lowering.ops import (
    ZERO,
    Activation,
    Add,
    Concat,
    Conv,
    Linear,
    Multiply,
    Op,
    Permute,
    Pool,
    Resample,
    Reshape,
    Scale,
    Select,
    Shape,
    Shift,
    Truncate,
    shape_of,
)
from parelu.private.lowering.program import Program

FRACTION = 10  # bits after the point of an activation
WEIGHT_BITS = 12  # the largest weight of a layer takes so many, and the largest c2 of a site
SPARE_BITS = 1  # the calibrated range may be exceeded so often by a factor of two
LARGEST_DIVISOR = 1 << 8  # of a resampling's matrix that goes into the unit
MOST_FINER, MOST_WHOLE = 20, 10  # bits that small values have more after the point; before it, of large ones
MOST_RAISED = 30  # bits of a public factor
MOST_EXTRA = 6  # bits after the point that a ReLU's input may have more than is fit for its values
SQUARED_BITS = 14  # of the magnitude of what a product squares

Integers = Mapping[str, NDArray[np.int64]]  # weight, bias of a linear op; c0, c1, c2 of an activation's squares
NONE = np.zeros(0, np.int64)  # no positions


@dataclasses.dataclass(frozen=True)
class Range:
    """What calibration saw of one value of the network.

    largest, mean: of |x|; unit: what one integer is worth; bits: what a ReLU or a truncation there works on.
    """

    layer: str
    kind: str
    largest: float
    mean: float
    unit: float
    elements: int
    bits: int


@dataclasses.dataclass(frozen=True)
class _Value:
    """seen: how large the numbers are that it stands for; waiting: bits of a truncation that is still to come."""

    number: int
    unit: float
    seen: Seen
    waiting: int = 0

    @property
    def truncated_unit(self) -> float:
        return self.unit * 2.0**self.waiting

    def moved(self, number: int, seen: Seen | None = None) -> _Value:
        """Value `number`, of the same unit."""
        return dataclasses.replace(self, number=number, seen=seen or self.seen)


class Translation:
    """Walks the fused graph and writes ops; `values` has the number and unit of each node's tensor.

    is_late: whether a truncation waits until behind an addition that alone reads its value. A sum is then rounded
    once, and what a residual block's ReLU reads comes from a truncation, which a ReLU protocol can do exactly.
    """

    def __init__(self, network: Network, seen: Calibration, ring: Ring, square_bits: int, is_late: bool) -> None:
        self.network, self.seen, self.ring = network, seen, ring
        self.square_bits, self.is_late = square_bits, is_late
        self.ops: list[Op] = []
        self.shapes: list[Shape] = [network.input_shape]
        self.layers: list[str] = []
        self.weights: dict[int, dict[str, NDArray[np.int64]]] = {}
        self.ranges: list[Range] = []
        self.values: dict[fx.Node, _Value] = {}
        self.output = next(iter(network.graph.find_nodes(op="output"))).all_input_nodes[0]
        self._known: dict[tuple[Any, ...], int] = {}

    def program(self, preprocessing: Mapping[str, list[float]]) -> Program:
        """Write it; raises ValueError where it is larger than a program may be."""
        for node, op in ops.read_all(self.network).items():
            match op:
                case ops.Input():
                    self.values[node] = _Value(0, 2.0**-FRACTION, self.seen.values[node])
                case ops.Output() | ops.Number():
                    pass
                case _:
                    try:
                        self.values[node] = self._lowered(node, op)
                    except OverflowError as error:
                        raise UserError(f"{ops.path(node)}: {error}; train with weight decay") from error
        logits = self.values[self.output]
        output_bits = 2 + SPARE_BITS + _bits(self.seen.values[self.output].largest / logits.unit)
        normalising = zip(preprocessing["mean"], preprocessing["std"], strict=True)
        edges = [(side - m) / s * 2.0**FRACTION for m, s in normalising for side in (0.0, 1.0)]
        return Program(
            input_shape=self.network.input_shape,  # pyright: ignore[reportArgumentType]
            fraction=FRACTION,
            low=math.floor(min(edges)),
            high=math.ceil(max(edges)),
            output_unit=logits.unit,
            output_bits=min(output_bits, self.ring.bits),
            ops=tuple(self.ops),
            layers=tuple(self.layers),
            preprocessing=preprocessing,
            ring=self.ring,
        )

    @property
    def places(self) -> dict[fx.Node, tuple[int, float]]:
        """Node → number and unit of the value that stands for its tensor."""
        return {node: (value.number, value.unit) for node, value in self.values.items()}

    def _lowered(self, node: fx.Node, op: ops.Op) -> _Value:
        """Emit what an op becomes; the value that it makes."""
        source = next(self.values[n] for n in node.all_input_nodes if n in self.values)
        match op:
            case ops.Identity():
                return source
            case ops.Activation(site):
                return self._site(node, site, source)
            case ops.MaxPool():
                return self._max_pool(node, op, source)
            case ops.Convolution(layer):
                return self._convolution(node, op, layer, source)
            case ops.Linear(layer):
                return self._matrix(node, layer, source)
            case ops.BatchNorm() | ops.Affine() as op:
                return self._factors(node, source, op)
            case ops.Scaling(factor):
                return self._scaled(node, source, factor)
            case ops.Resample(layer):
                return self._resampled(node, source, layer.axis, layer.matrix)
            case ops.Pool(kernel, stride, padding):
                number = self._emit(node, Pool(source.number, kernel, stride, padding))
                number = self._emit(node, Reshape(number, node.meta["shape"]))
                unit = source.unit / math.prod(kernel)
                return _Value(number, unit, self.seen.values[node], source.waiting)
            case ops.Addition(left, right):
                return self._sum(node, self.values[left], self.values[right])
            case ops.Product(left, right):
                return self._product(node, self.values[left], self.values[right])
            case ops.Concat(parts, axis):
                return self._concat(node, [self.values[part] for part in parts], axis)
            case ops.Reshape() | ops.Permute() | ops.Select():
                return self._moved(node, op, source)
            case _:
                raise AssertionError(f"{op} has no lowering and was not refused")

    def _emit(self, node: fx.Node, op: Op) -> int:
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

    # Linear layers

    def _linear(self, node: fx.Node, op: Op, unit: float, weight: Tensor, bias: Tensor | None) -> _Value:
        """Emit a linear op with weights of WEIGHT_BITS bits; a truncation follows unless it makes the logits."""
        seen, total = self.seen.values[node], node
        while _is_only_added(total):
            total = next(iter(total.users))
        fraction = _fraction(self.seen.values[total].largest)
        real = weight.detach().double().numpy() * unit * 2.0**fraction
        largest = float(np.abs(real).max(initial=0.0))
        bits = min(max(WEIGHT_BITS - (math.frexp(largest)[1] if largest else WEIGHT_BITS - 1), 1), 30)
        summand = np.zeros(len(real)) if bias is None else bias.detach().double().numpy()
        scale = 2.0 ** (fraction + bits)
        number = self._emit(node, op)
        self.weights[number - 1] = {"weight": _rounded(real * 2.0**bits), "bias": _rounded(summand * scale)}
        value = _Value(number, 1 / scale, seen)
        if node is self.output:
            return value
        value = dataclasses.replace(value, waiting=bits)
        return value if self.is_late and _is_only_added(node) else self._truncated(node, value)

    def _convolution(self, node: fx.Node, op: ops.Convolution, layer: nn.Conv1d | nn.Conv2d, source: _Value) -> _Value:
        source = self._truncated(node, source)
        channels, *size = self.shapes[source.number]
        shape = composition.Convolution(
            channels, layer.out_channels, ops.two(size), *op.window, layer.groups, ops.two(layer.dilation)
        )
        run, weight = shape.expanded, composition.expanded(shape, layer.weight.detach())
        conv = Conv(source.number, layer.out_channels, run.kernel, run.stride, run.padding, run.groups)
        return self._linear(node, conv, source.unit, weight, layer.bias)

    def _matrix(self, node: fx.Node, layer: nn.Linear, source: _Value) -> _Value:
        """A linear layer on the last dimension: of a vector a matrix, else a 1×1 convolution of what else there is."""
        source = self._truncated(node, source)
        *others, _ = shape = self.shapes[source.number]
        if not others:
            return self._linear(node, Linear(source.number, layer.out_features), source.unit, layer.weight, layer.bias)
        rank = len(shape)
        size = tuple(others) if len(others) == 2 else (math.prod(others), 1)
        number = self._emit(node, Permute(source.number, (rank - 1, *range(rank - 1))))
        number = self._emit(node, Reshape(number, (shape[-1], *size)))
        conv = Conv(number, layer.out_features, (1, 1), (1, 1), (0, 0), 1)
        made = self._linear(node, conv, source.unit, layer.weight[:, :, None, None], layer.bias)
        number = self._emit(node, Reshape(made.number, (layer.out_features, *others)))
        return made.moved(self._emit(node, Permute(number, (*range(1, rank), 0))))

    def _factors(self, node: fx.Node, source: _Value, op: ops.BatchNorm | ops.Affine) -> _Value:
        """x·factor + summand that could not be folded: a shift, a depthwise 1×1 convolution, else a diagonal."""
        shape = self.shapes[source.number]
        factor = uniform(op)
        if factor is not None:
            assert isinstance(op, ops.Affine)
            return self._shifted(node, self._scaled(node, source, factor), op.layer.bias)
        source = self._truncated(node, source)
        numbers = factors(op, shape, 0)
        if numbers and len(shape) == 3:
            conv = Conv(source.number, shape[0], (1, 1), (1, 1), (0, 0), shape[0])
            return self._linear(node, conv, source.unit, numbers[0].view(-1, 1, 1, 1), numbers[1])
        if numbers:
            wide = [number.view(-1, *[1] * (len(shape) - 1)) for number in numbers]
        else:
            wide = [op.layer.weight, op.layer.bias]
        factor, summand = (number.expand(shape) for number in wide)
        return self._linear(node, Multiply(source.number), source.unit, factor, summand)

    def _shifted(self, node: fx.Node, source: _Value, summand: Tensor) -> _Value:
        if not summand.any():
            return source
        rank = len(self.shapes[source.number])
        wide = summand.detach().double().view(*[1] * (rank - summand.dim()), *summand.shape).numpy()
        number = self._emit(node, Shift(source.number))
        self.weights[number - 1] = {"bias": _rounded(wide / source.unit)}
        return source.moved(number, self.seen.values[node])

    # Units

    def _truncated(self, node: fx.Node, value: _Value) -> _Value:
        """What waits is done now."""
        if not value.waiting:
            return value
        before = len(self.ops)
        number = self._emit(node, Truncate(value.number, value.waiting))
        if len(self.ops) > before:
            elements = math.prod(self.shapes[number])
            self._range(node, "truncate", value.seen, value.unit, elements, value.waiting)
        return _Value(number, value.truncated_unit, value.seen)

    def _same_unit(self, node: fx.Node, left: _Value, right: _Value) -> tuple[_Value, _Value]:
        """Two values that have one unit once both are truncated.

        One that is finer by a power of two loses those bits; else, as after an average pool, a public factor brings
        what has another unit to 2^-FRACTION.
        """
        bits = math.log2(left.truncated_unit / right.truncated_unit)
        if math.isclose(bits, round(bits), abs_tol=1e-12):
            return self._finer(node, left, -round(bits)), self._finer(node, right, round(bits))
        return self._same_unit(node, self._rescaled(node, left), self._rescaled(node, right))

    def _finer(self, node: fx.Node, value: _Value, bits: int) -> _Value:
        """A value that is finer by so many bits, if any, which it then waits to lose; many at once."""
        if bits <= 0:
            return value
        value = dataclasses.replace(value, waiting=value.waiting + bits)
        return value if value.waiting <= MOST_RAISED else self._truncated(node, value)

    def _rescaled(self, node: fx.Node, value: _Value) -> _Value:
        """A value whose unit is a power of two once it is truncated; 2^-FRACTION where it was none."""
        target = 2.0**-FRACTION
        if math.frexp(value.truncated_unit)[0] == 0.5:
            return value
        value = self._truncated(node, value)
        bits = max(WEIGHT_BITS - math.frexp(value.unit / target)[1], 0)
        number = self._emit(node, Scale(value.number, round(value.unit / target * 2.0**bits)))
        return _Value(number, target / 2.0**bits, value.seen, bits)

    def _scaled(self, node: fx.Node, source: _Value, factor: float) -> _Value:
        """Times a number, which the unit takes but for its sign."""
        number, seen = source.number, self.seen.values[node]
        if not factor:
            nothing = np.full(self.shapes[number][0], ZERO, np.int32)
            return _Value(self._emit(node, Select(number, 0, nothing)), 2.0**-FRACTION, seen)
        if factor < 0:
            number = self._minus(node, number)
        return _Value(number, source.unit * abs(factor), seen, source.waiting)

    def _resampled(self, node: fx.Node, source: _Value, axis: int, matrix: Tensor) -> _Value:
        """A fixed matrix: its common divisor goes into the unit; where that is large, it has WEIGHT_BITS bits."""
        real, seen = matrix.double().numpy(), self.seen.values[node]
        divisor, bits = _common_divisor(real), 0
        if not divisor:
            bits = min(max(WEIGHT_BITS - math.frexp(float(np.abs(real).max()))[1], 0), 30)
            divisor = 1 << bits
            source = self._truncated(node, source)
        integers = _rounded(real * divisor)
        if not integers.any():
            nothing = np.full(len(integers), ZERO, np.int32)
            return source.moved(self._emit(node, Select(source.number, axis, nothing)), seen)
        rows, columns = (places.astype(np.int32) for places in integers.nonzero())
        factors = integers[rows, columns].astype(np.int32)
        number = self._emit(node, Resample(source.number, axis, len(integers), rows, columns, factors))
        made = _Value(number, source.unit / divisor, seen, bits or source.waiting)
        return self._truncated(node, made) if bits else made

    # Joins and moves

    def _sum(self, node: fx.Node, left: _Value, right: _Value) -> _Value:
        """Emit an addition, and the truncation that its terms wait for, if any."""
        terms = self._same_unit(node, left, right)
        if not self.is_late:
            terms = [self._truncated(node, term) for term in terms]
        waiting = max(term.waiting for term in terms)
        first, second = (self._raised(node, term, waiting - term.waiting) for term in terms)
        unit = terms[0].truncated_unit / 2.0**waiting
        total = _Value(self._emit(node, Add(first, second)), unit, self.seen.values[node], waiting)
        return total if _is_only_added(node) else self._truncated(node, total)

    def _raised(self, node: fx.Node, value: _Value, bits: int) -> int:
        """The number of the value times 2^bits."""
        return self._emit(node, Scale(value.number, 1 << bits)) if bits else value.number

    def _concat(self, node: fx.Node, parts: Sequence[_Value], axis: int) -> _Value:
        joined = parts[0]
        for part in parts[1:]:
            left, right = (self._truncated(node, value) for value in self._same_unit(node, joined, part))
            joined = left.moved(self._emit(node, Concat(left.number, right.number, axis)), self.seen.values[node])
        return joined

    def _moved(self, node: fx.Node, op: ops.Reshape | ops.Permute | ops.Select, source: _Value) -> _Value:
        number = source.number
        match op:
            case ops.Reshape(shape):
                number = self._emit(node, Reshape(number, shape))
            case ops.Permute(order):
                number = self._emit(node, Permute(number, order))
            case ops.Select(dimensions):
                for axis, indices in enumerate(dimensions):
                    number = self._selected(node, number, axis, indices)
        return source.moved(number, self.seen.values[node])

    def _selected(self, node: fx.Node, number: int, axis: int, indices: Sequence[int] | None) -> int:
        if indices is None or tuple(indices) == tuple(range(self.shapes[number][axis])):
            return number
        return self._emit(node, Select(number, axis, np.array(indices, np.int32)))

    # Activations

    def _site(self, node: fx.Node, site: Site, source: _Value) -> _Value:
        """Polynomials of degree 1 as a linear op, then ReLUs and squares together."""
        source = self._lines(node, site, source)
        relus, positions = (_positions(where) for where in (site.mask, squares(site)))
        if not (len(relus) or len(positions)):
            return source
        source = self._for_relus(node, source)
        bits = self._relu_bits(node, site.name, self.seen.relus[node], source.unit, len(relus))
        c0, c1, c2 = (spread(c, site.shape)[squares(site)].double().numpy() for c in site.coefficients)
        truncation = self._squares(node, (c0, c1, c2), source.unit) if len(positions) else 0
        op = Activation(source.number, relus, bits, positions, truncation)
        return _Value(self._emit(node, op), source.unit, self.seen.values[node])

    def _coarse(self, node: fx.Node, value: _Value, most: int) -> _Value:
        """Truncated, with so many bits after the point at the most."""
        value = self._truncated(node, value)
        finer = _fine(value.unit) - most
        return self._truncated(node, dataclasses.replace(value, waiting=finer)) if finer > 0 else value

    def _for_relus(self, node: fx.Node, value: _Value) -> _Value:
        """Truncated, and not much finer than it need be, or its ReLUs would take more bits."""
        return self._coarse(node, value, _fraction(value.seen.largest) + MOST_EXTRA)

    def _relu_bits(self, node: fx.Node, name: str, seen: Seen, unit: float, count: int) -> int:
        """m of ReLUs on what was seen."""
        bits = 1 + SPARE_BITS + _bits(seen.largest / unit)
        if bits > self.ring.bits:
            raise UserError(f"{name}: activations reach {seen.largest:.3g}: more than the ring holds")
        if count:
            self._range(node, "relu", seen, unit, count, bits)
        return bits

    def _max_pool(self, node: fx.Node, op: ops.MaxPool, source: _Value) -> _Value:
        """Levels of max(a, b) = b + relu(a − b), one round each."""
        value = self._for_relus(node, source)
        number = value.number
        for level, seen in zip(max_pool_levels(node, op), self.seen.levels[node], strict=True):
            left, right = (self._selected(node, number, level.axis, side) for side in (level.left, level.right))
            if level.comparisons:
                difference = self._emit(node, Add(left, self._minus(node, right)))
                bits = self._relu_bits(node, ops.path(node), seen, value.unit, level.comparisons)
                relus = _compared(level)
                larger = self._emit(node, Activation(difference, relus, bits, NONE, 0))
                number = self._emit(node, Add(right, larger))
            else:
                number = left
        number = self._emit(node, Reshape(number, node.meta["shape"]))
        return value.moved(number, self.seen.values[node])

    def _lines(self, node: fx.Node, site: Site, source: _Value) -> _Value:
        """Emit c0 + c1·x where a site has that and it is not the identity."""
        identity = torch.tensor(IDENTITY)[:, None]
        of_channels = (site.coefficients != identity).any(0) & (site.coefficients[2] == 0)
        lines = spread(of_channels, site.shape) & ~site.mask
        if not lines.any():
            return source
        c0, c1, _ = (spread(c, site.shape) for c in site.coefficients)
        factor, summand = torch.where(lines, c1, torch.ones(())), torch.where(lines, c0, torch.zeros(()))
        source = self._truncated(node, source)
        return self._linear(node, Multiply(source.number), source.unit, factor, summand)

    def _squares(self, node: fx.Node, coefficients: Sequence[NDArray[np.float64]], unit: float) -> int:
        """Write the numbers of the squares for the next op; the bits that it truncates them by."""
        c0, c1, c2 = coefficients
        truncation = _fine(unit) + self.square_bits - min(2, math.frexp(float(np.abs(c2).max()))[1])
        scale = 2.0**truncation
        self.weights[len(self.ops)] = {
            "c0": _rounded(c0 / unit * scale),
            "c1": _rounded(c1 * scale),
            "c2": _rounded(c2 * unit * scale),
        }
        self._range(node, "square", self.seen.squares[node], unit / scale, len(c2), truncation)
        return truncation

    def _product(self, node: fx.Node, left: _Value, right: _Value) -> _Value:
        """4·a·b = (a + b)² − (a − b)² of the integers, all squares in one round; a·a is one square."""
        seen, sizes = self.seen.values[node], self.seen.products[node]
        left, right = (
            self._coarse(node, value, SQUARED_BITS - math.frexp(value.seen.largest)[1]) for value in (left, right)
        )
        first, second = (self._broadcast(node, value.number, node.meta["shape"]) for value in (left, right))
        mean = sum(size.mean / value.unit**2 for size, value in zip(sizes, (left, right), strict=True)) / 2
        unit = left.unit * right.unit
        if first == second:
            squared, bits = self._squared(node, first, mean, unit, seen)
            return _Value(squared, unit * 2.0**bits, seen)
        plus, minus = (self._emit(node, Add(first, other)) for other in (second, self._minus(node, second)))
        both, bits = self._squared(node, self._emit(node, Concat(plus, minus, 0)), 4 * mean, unit / 4, seen)
        count = self.shapes[plus][0]
        first, second = (self._selected(node, both, 0, range(start, start + count)) for start in (0, count))
        return _Value(self._emit(node, Add(first, self._minus(node, second))), unit / 4 * 2.0**bits, seen)

    def _squared(self, node: fx.Node, number: int, mean: float, unit: float, seen: Seen) -> tuple[int, int]:
        """The squares of integers, divided by 2^bits so that those, worth `unit` before, are fit for what was seen.

        mean: of the squares. Returns the value's number, and bits.
        """
        count, bits = math.prod(self.shapes[number]), max(1, _fine(unit) - _fraction(seen.largest))
        nothing = np.zeros(count, np.int64)
        self.weights[len(self.ops)] = {"c0": nothing, "c1": nothing, "c2": nothing + 1}
        self.ranges.append(Range(ops.path(node), "square", seen.largest, mean * unit, unit, count, bits))
        return self._emit(node, Activation(number, NONE, 2, np.arange(count), bits)), bits

    def _broadcast(self, node: fx.Node, number: int, shape: Shape) -> int:
        """A value with its dimensions of size 1 repeated."""
        for axis, size in enumerate(shape):
            number = self._selected(node, number, axis, None if self.shapes[number][axis] == size else [0] * size)
        return number

    def _minus(self, node: fx.Node, number: int) -> int:
        return self._emit(node, Scale(number, -1))

    def _range(self, node: fx.Node, kind: str, seen: Seen, unit: float, elements: int, bits: int) -> None:
        self.ranges.append(Range(ops.path(node), kind, seen.largest, seen.mean, unit, elements, bits))


def _fraction(largest: float) -> int:
    """Bits after the point of values up to `largest`: more where all are small, fewer where some are very large."""
    whole = math.frexp(largest)[1] if largest else 0
    return FRACTION - min(max(whole, -MOST_FINER), 0) - max(whole - MOST_WHOLE, 0)


def _fine(unit: float) -> int:
    """Bits after the point that a unit is worth."""
    return 1 - math.frexp(unit)[1]


def _is_only_added(node: fx.Node) -> bool:
    """Whether nothing but one addition reads the value."""
    return [type(ops.read(user)) for user in node.users] == [ops.Addition]


def _common_divisor(matrix: NDArray[np.float64]) -> int:
    """The least d up to LARGEST_DIVISOR for which d·matrix is of integers; 0 where there is none."""
    values = np.unique(matrix)
    divisor = 1
    for value in values:
        divisor = math.lcm(divisor, fractions.Fraction(float(value)).limit_denominator(LARGEST_DIVISOR).denominator)
        if divisor > LARGEST_DIVISOR:
            return 0
    is_exact = np.allclose(np.rint(values * divisor), values * divisor, rtol=0, atol=1e-5)
    return divisor if is_exact and np.abs(values).max() * divisor < 1 << 20 else 0


def _compared(level: maxpool.Level) -> NDArray[np.int64]:
    """Positions of the comparisons in the level's output."""
    wide = np.array(level.compared).reshape(-1, *[1] * (len(level.shape) - level.axis - 1))
    return np.flatnonzero(np.broadcast_to(wide, level.shape))


def _hashable(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else value


def _positions(where: Tensor) -> NDArray[np.int64]:
    return np.flatnonzero(where.flatten().numpy())


def _rounded(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Raises OverflowError where one is no integer of 62 bits."""
    if values.size and not float(np.abs(values).max()) < 2.0**62:
        raise OverflowError("its numbers are too large for integers of 64 bits")
    return np.rint(values).astype(np.int64)


def _bits(largest: float) -> int:
    """Bits of the magnitude of integers up to `largest`."""
    return max(math.ceil(largest), 1).bit_length()
