"""What each op of a fused network becomes: ops of the integer ring."""

from __future__ import annotations

import fractions
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.fusion import composition, weights
from parelu.fusion.factors import factors, uniform
from parelu.network import ops
from parelu.private.lowering import nonlinear
from parelu.private.lowering.lowered import WEIGHT_BITS
from parelu.private.lowering.ops import (
    ZERO,
    Add,
    Concat,
    Conv,
    Linear,
    Multiply,
    Permute,
    Pool,
    Resample,
    Reshape,
    Select,
    Shift,
)
from parelu.private.lowering.program import Program
from parelu.private.lowering.writer import FRACTION, SPARE_BITS, Value, Writer, bits_of, is_only_added, rounded

LARGEST_DIVISOR = 1 << 8  # of a resampling's matrix that goes into the unit


class Translation(Writer):
    """Walks the fused graph; `values` has the number and unit of each node's tensor."""

    def program(self, preprocessing: Mapping[str, list[float]]) -> Program:
        """Write it; raises ValueError where it is larger than a program may be."""
        for node, op in ops.read_all(self.network).items():
            match op:
                case ops.Input():
                    self.values[node] = Value(0, 2.0**-FRACTION, self.seen.values[node])
                case ops.Output() | ops.Number() | ops.Constant():
                    pass
                case _:
                    try:
                        self.values[node] = self._lowered(node, op)
                    except OverflowError as error:
                        raise UserError(f"{ops.path(node)}: {error}; train with weight decay") from error
        logits = self.values[self.output]
        output_bits = 2 + SPARE_BITS + bits_of(self.seen.values[self.output].largest / logits.unit)
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

    def _lowered(self, node: fx.Node, op: ops.Op) -> Value:
        """Emit what an op becomes; the value that it makes."""
        source = next(self.values[n] for n in node.all_input_nodes if n in self.values)
        match op:
            case ops.Identity():
                return source
            case ops.Activation(site):
                return nonlinear.activation(self, node, site, source)
            case ops.MaxPool():
                return nonlinear.max_pool(self, node, op, source)
            case ops.Convolution(layer):
                return self._convolution(node, op, layer, source)
            case ops.Linear(layer):
                return self._matrix(node, layer, source)
            case ops.BatchNorm() | ops.Affine() as op:
                return self._factors(node, source, op)
            case ops.Scaling(factor):
                return self.scaled(node, source, factor)
            case ops.Resample(layer):
                return self._resampled(node, source, layer.axis, layer.matrix)
            case ops.Pool(kernel, stride, padding):
                number = self.emit(node, Pool(source.number, kernel, stride, padding))
                number = self.emit(node, Reshape(number, node.meta["shape"]))
                unit = source.unit / math.prod(kernel)
                return Value(number, unit, self.seen.values[node], source.waiting)
            case ops.Addition(left, right):
                return self._sum(node, self.values[left], self.values[right])
            case ops.Product(left, right):
                return nonlinear.product(self, node, self.values[left], self.values[right])
            case ops.Concat(parts, axis):
                return self._concat(node, [self.values[part] for part in parts], axis)
            case ops.Reshape() | ops.Permute() | ops.Select():
                return self._moved(node, op, source)
            case _:
                raise AssertionError(f"{op} has no lowering and was not refused")

    def _convolution(self, node: fx.Node, op: ops.Convolution, layer: nn.Conv1d | nn.Conv2d, source: Value) -> Value:
        source = self.truncated(node, source)
        channels, *size = self.shapes[source.number]
        shape = composition.Convolution(
            channels, layer.out_channels, ops.two(size), *op.window, layer.groups, ops.two(layer.dilation)
        )
        run, weight = shape.expanded, weights.expanded(shape, layer.weight.detach())
        conv = Conv(source.number, layer.out_channels, run.kernel, run.stride, run.padding, run.groups)
        return self.linear(node, conv, source.unit, weight, layer.bias)

    def _matrix(self, node: fx.Node, layer: nn.Linear, source: Value) -> Value:
        """A linear layer on the last dimension: of a vector a matrix, else a 1×1 convolution of what else there is."""
        source = self.truncated(node, source)
        *others, _ = shape = self.shapes[source.number]
        if not others:
            return self.linear(node, Linear(source.number, layer.out_features), source.unit, layer.weight, layer.bias)
        rank = len(shape)
        size = tuple(others) if len(others) == 2 else (math.prod(others), 1)
        number = self.emit(node, Permute(source.number, (rank - 1, *range(rank - 1))))
        number = self.emit(node, Reshape(number, (shape[-1], *size)))
        conv = Conv(number, layer.out_features, (1, 1), (1, 1), (0, 0), 1)
        made = self.linear(node, conv, source.unit, layer.weight[:, :, None, None], layer.bias)
        number = self.emit(node, Reshape(made.number, (layer.out_features, *others)))
        return made.moved(self.emit(node, Permute(number, (*range(1, rank), 0))))

    def _factors(self, node: fx.Node, source: Value, op: ops.BatchNorm | ops.Affine) -> Value:
        """x·factor + summand that could not be folded: a shift, a depthwise 1×1 convolution, else a diagonal."""
        shape = self.shapes[source.number]
        factor = uniform(op)
        if factor is not None:
            assert isinstance(op, ops.Affine)
            return self._shifted(node, self.scaled(node, source, factor), op.layer.bias)
        source = self.truncated(node, source)
        numbers = factors(op, shape, 0)
        if numbers and len(shape) == 3:
            conv = Conv(source.number, shape[0], (1, 1), (1, 1), (0, 0), shape[0])
            return self.linear(node, conv, source.unit, numbers[0].view(-1, 1, 1, 1), numbers[1])
        if numbers:
            wide = [number.view(-1, *[1] * (len(shape) - 1)) for number in numbers]
        else:
            wide = [op.layer.weight, op.layer.bias]
        factor, summand = (number.expand(shape) for number in wide)
        return self.linear(node, Multiply(source.number), source.unit, factor, summand)

    def _shifted(self, node: fx.Node, source: Value, summand: Tensor) -> Value:
        if summand.is_meta:  # as a trained one is
            return source.moved(self.emit(node, Shift(source.number)), self.seen.values[node])
        if not summand.any():
            return source
        rank = len(self.shapes[source.number])
        wide = summand.detach().double().view(*[1] * (rank - summand.dim()), *summand.shape).numpy()
        number = self.emit(node, Shift(source.number))
        self.weights[number - 1] = {"bias": rounded(wide / source.unit)}
        return source.moved(number, self.seen.values[node])

    def _resampled(self, node: fx.Node, source: Value, axis: int, matrix: Tensor) -> Value:
        """A fixed matrix: its common divisor goes into the unit; where that is large, it has WEIGHT_BITS bits."""
        known = torch.eye(*matrix.shape) if matrix.is_meta else matrix  # an outline has no numbers
        real, seen = known.double().numpy(), self.seen.values[node]
        divisor, bits = _common_divisor(real), 0
        if not divisor:
            bits = min(max(WEIGHT_BITS - math.frexp(float(np.abs(real).max()))[1], 0), 30)
            divisor = 1 << bits
            source = self.truncated(node, source)
        integers = rounded(real * divisor)
        if not integers.any():
            nothing = np.full(len(integers), ZERO, np.int32)
            return source.moved(self.emit(node, Select(source.number, axis, nothing)), seen)
        rows, columns = (places.astype(np.int32) for places in integers.nonzero())
        factors = integers[rows, columns].astype(np.int32)
        number = self.emit(node, Resample(source.number, axis, len(integers), rows, columns, factors))
        made = Value(number, source.unit / divisor, seen, bits or source.waiting)
        return self.truncated(node, made) if bits else made

    def _sum(self, node: fx.Node, left: Value, right: Value) -> Value:
        """Emit an addition, and the truncation that its terms wait for, if any."""
        terms = self.same_unit(node, left, right)
        if not self.is_late:
            terms = [self.truncated(node, term) for term in terms]
        waiting = max(term.waiting for term in terms)
        first, second = (self.raised(node, term, waiting - term.waiting) for term in terms)
        unit = terms[0].truncated_unit / 2.0**waiting
        total = Value(self.emit(node, Add(first, second)), unit, self.seen.values[node], waiting)
        return total if is_only_added(node) else self.truncated(node, total)

    def _concat(self, node: fx.Node, parts: Sequence[Value], axis: int) -> Value:
        joined = parts[0]
        for part in parts[1:]:
            left, right = (self.truncated(node, value) for value in self.same_unit(node, joined, part))
            joined = left.moved(self.emit(node, Concat(left.number, right.number, axis)), self.seen.values[node])
        return joined

    def _moved(self, node: fx.Node, op: ops.Reshape | ops.Permute | ops.Select, source: Value) -> Value:
        number = source.number
        match op:
            case ops.Reshape(shape):
                number = self.emit(node, Reshape(number, shape))
            case ops.Permute(order):
                number = self.emit(node, Permute(number, order))
            case ops.Select(dimensions):
                for axis, indices in enumerate(dimensions):
                    number = self.selected(node, number, axis, indices)
        return source.moved(number, self.seen.values[node])


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
