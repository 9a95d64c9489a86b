"""The ops of a program: what each reads, what shape it makes, and what a party computes of it alone."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from parelu.errors import UserError
from parelu.private.crypto.ring import Elements, Ring

LARGEST_VALUE = 1 << 26  # elements of one value
MOST_DIMENSIONS = 5
MOST_PRODUCTS = 1 << 30  # multiply-adds of a resampling or a pool
MOST_TAPS = 1 << 24  # outputs of a resampling, times the numbers of its longest row


Shape = tuple[int, ...]


Pair = tuple[int, int]


Positions = NDArray[np.int64]  # sorted positions in the flattened value


Indices = NDArray[np.int32]


ZERO = -1  # an index of a selection that reads nothing


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
    """source: number of the value it reads."""

    kind: ClassVar[str]
    is_secret: ClassVar[bool] = False  # a linear map whose numbers only the server knows

    source: int

    def shape(self, source: Shape) -> Shape:
        """Of the value it makes; raises ValueError where it does not take the source."""
        return source

    def check(self, ring: Ring) -> None:
        """Raises ValueError where the ring has too few bits for it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Conv(Op):
    """A convolution with zero padding and a bias."""

    kind: ClassVar[str] = "conv"
    is_secret: ClassVar[bool] = True

    outputs: int
    kernel: Pair
    stride: Pair
    padding: Pair
    groups: int

    def shape(self, source: Shape) -> Shape:
        if self.outputs < 1 or self.groups < 1 or source[0] % self.groups or self.outputs % self.groups:
            raise ValueError(f"{self.outputs} outputs of {source[0]} channels in {self.groups} groups")
        return self.outputs, *_window(source, self.kernel, self.stride, self.padding)

    def weight_shape(self, source: Shape) -> Shape:
        return self.outputs, source[0] // self.groups, *self.kernel


@dataclasses.dataclass(frozen=True, eq=False)
class Linear(Op):
    """A matrix and a bias; the source is (C,)."""

    kind: ClassVar[str] = "linear"
    is_secret: ClassVar[bool] = True

    outputs: int

    def shape(self, source: Shape) -> Shape:
        if len(source) != 1 or self.outputs < 1:
            raise ValueError(f"a matrix with {self.outputs} outputs on shape {source}")
        return (self.outputs,)

    def weight_shape(self, source: Shape) -> Shape:
        return self.outputs, source[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Multiply(Op):
    """Each position times a secret number, plus another: polynomials of degree 1."""

    kind: ClassVar[str] = "multiply"
    is_secret: ClassVar[bool] = True

    def weight_shape(self, source: Shape) -> Shape:
        return source


@dataclasses.dataclass(frozen=True, eq=False)
class Shift(Op):
    """A number that only the server knows added to each position: to its own share, so that it costs nothing."""

    kind: ClassVar[str] = "shift"


@dataclasses.dataclass(frozen=True, eq=False)
class Join(Op, abc.ABC):
    """other: number of the second value it reads."""

    other: int

    @abc.abstractmethod
    def joined(self, source: Shape, other: Shape) -> Shape:
        """As `shape`, of two values."""


@dataclasses.dataclass(frozen=True, eq=False)
class Add(Join):
    """The sum of two values."""

    kind: ClassVar[str] = "add"

    def joined(self, source: Shape, other: Shape) -> Shape:
        if source != other:
            raise ValueError(f"a sum of shapes {source} and {other}")
        return source


@dataclasses.dataclass(frozen=True, eq=False)
class Concat(Join):
    """One value behind another along one dimension."""

    kind: ClassVar[str] = "concat"

    axis: int

    def joined(self, source: Shape, other: Shape) -> Shape:
        before, behind = _around(source, self.axis), _around(other, self.axis)
        if before != behind:
            raise ValueError(f"shapes {source} and {other} joined along dimension {self.axis}")
        return *before[0], source[self.axis] + other[self.axis], *before[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Reshape(Op):
    """The same numbers in the same order."""

    kind: ClassVar[str] = "reshape"

    to: Shape

    def shape(self, source: Shape) -> Shape:
        if not 1 <= len(self.to) <= MOST_DIMENSIONS or min(self.to) < 1 or math.prod(self.to) != math.prod(source):
            raise ValueError(f"shape {source} read as {self.to}")
        return self.to


@dataclasses.dataclass(frozen=True, eq=False)
class Permute(Op):
    """The dimensions in another order."""

    kind: ClassVar[str] = "permute"

    order: Shape

    def shape(self, source: Shape) -> Shape:
        if sorted(self.order) != list(range(len(source))):
            raise ValueError(f"dimensions {self.order} of shape {source}")
        return tuple(source[axis] for axis in self.order)


@dataclasses.dataclass(frozen=True, eq=False)
class Select(Op):
    """What `indices` name along one dimension, in their order; ZERO for zeros."""

    kind: ClassVar[str] = "select"

    axis: int
    indices: Indices

    def shape(self, source: Shape) -> Shape:
        before, behind = _around(source, self.axis)
        if not len(self.indices) or self.indices.min() < ZERO or self.indices.max() >= source[self.axis]:
            raise ValueError(f"indices outside of dimension {self.axis} of shape {source}")
        return *before, len(self.indices), *behind


@dataclasses.dataclass(frozen=True, eq=False)
class Resample(Op):
    """A public matrix of integers along one dimension: uneven averages, interpolation.

    rows, columns, factors: the numbers that are not 0, in order of rows and then columns. The divisor is in the unit of
    the value, or a truncation follows.
    """

    kind: ClassVar[str] = "resample"

    axis: int
    outputs: int
    rows: Indices
    columns: Indices
    factors: Indices

    def shape(self, source: Shape) -> Shape:
        before, behind = _around(source, self.axis)
        inputs, count = source[self.axis], len(self.rows)
        if not 1 <= self.outputs <= LARGEST_VALUE or not len(self.columns) == len(self.factors) == count >= 1:
            raise ValueError(f"a matrix with {self.outputs} outputs and {count} numbers")
        rows, columns = self.rows.astype(np.int64), self.columns.astype(np.int64)
        places = rows * inputs + columns
        inside = min(rows.min(), columns.min()) >= 0 and rows.max() < self.outputs and columns.max() < inputs
        if not inside or (np.diff(places) < 1).any() or not self.factors.all():
            raise ValueError(f"a matrix with {self.outputs} outputs that is not in order on shape {source}")
        taps = int(np.unique(rows, return_counts=True)[1].max()) * self.outputs
        if taps > MOST_TAPS or taps * math.prod((*before, *behind)) > MOST_PRODUCTS:
            raise ValueError(f"a matrix of {self.outputs} outputs and {count} numbers on shape {source}")
        return *before, self.outputs, *behind

    @functools.cached_property
    def taps(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(columns, factors), each (taps, outputs): an output is the sum over its taps, of which some have factor 0."""
        first = np.searchsorted(self.rows, np.arange(self.outputs))
        tap = np.arange(len(self.rows)) - first[self.rows]
        columns, factors = np.zeros((2, int(tap.max()) + 1, self.outputs), np.int64)
        columns[tap, self.rows], factors[tap, self.rows] = self.columns, self.factors
        return columns, factors


@dataclasses.dataclass(frozen=True, eq=False)
class Pool(Op):
    """Sums over windows; the divisor of an average is in the next layer's weights."""

    kind: ClassVar[str] = "pool"

    kernel: Pair
    stride: Pair
    padding: Pair

    def shape(self, source: Shape) -> Shape:
        size = _window(source, self.kernel, self.stride, self.padding)
        padded = (side + 2 * p for side, p in zip(source[1:], self.padding, strict=True))
        if math.prod((source[0], *padded)) > LARGEST_VALUE:
            raise ValueError(f"a pool with padding {self.padding} on shape {source}")
        if math.prod((source[0], *size, *self.kernel)) > MOST_PRODUCTS:
            raise ValueError(f"a pool of windows {self.kernel}, stride {self.stride}, on shape {source}")
        return source[0], *size


@dataclasses.dataclass(frozen=True, eq=False)
class Scale(Op):
    """Times a public integer."""

    kind: ClassVar[str] = "scale"

    factor: int

    def shape(self, source: Shape) -> Shape:
        if not 0 < abs(self.factor) < 1 << 31:
            raise ValueError(f"factor {self.factor}")
        return source


@dataclasses.dataclass(frozen=True, eq=False)
class Truncate(Op):
    """Division by 2^bits, each party on its own share."""

    kind: ClassVar[str] = "truncate"

    bits: int

    def check(self, ring: Ring) -> None:
        if not 1 <= self.bits < ring.bits:
            raise ValueError(f"truncation by {self.bits} bits in a ring of {ring.bits}")


@dataclasses.dataclass(frozen=True, eq=False)
class Activation(Op):
    """relu at `relus`, c0 + c1·x + c2·x² at `squares` (truncated by `truncation`), elsewhere nothing; one round trip.

    bits: m, |x| < 2^(m − 1) at the ReLUs by calibration.
    """

    kind: ClassVar[str] = "activation"
    is_secret: ClassVar[bool] = False

    relus: Positions
    bits: int
    squares: Positions
    truncation: int

    def shape(self, source: Shape) -> Shape:
        for name, positions in (("relus", self.relus), ("squares", self.squares)):
            if len(positions) and not (positions[0] >= 0 and positions[-1] < math.prod(source)):
                raise ValueError(f"{name} outside of shape {source}")
            if len(positions) > 1 and not bool((np.diff(positions) > 0).all()):
                raise ValueError(f"{name} not in ascending order")
        if len(self.relus) and len(self.squares) and _overlap(self.relus, self.squares):
            raise ValueError("a position is a ReLU and a square")
        return source

    def check(self, ring: Ring) -> None:
        if not 2 <= self.bits <= ring.bits or not 0 <= self.truncation < ring.bits:
            raise ValueError(f"m = {self.bits}, truncation by {self.truncation} bits in a ring of {ring.bits}")


_SECRET = (Conv, Linear, Multiply)
_LOCAL = (Add, Concat, Reshape, Permute, Select, Resample, Pool, Scale)
OPS: dict[str, type[Op]] = {op.kind: op for op in (*_SECRET, *_LOCAL, Shift, Truncate, Activation)}


def sources(op: Op) -> tuple[int, ...]:
    """Numbers of the values that an op reads."""
    return (op.source, op.other) if isinstance(op, Join) else (op.source,)


def shape_of(op: Op, shapes: Sequence[Shape]) -> Shape:
    """Of the value that an op makes of those so far; raises ValueError where it does not fit them."""
    read = sources(op)
    if not all(0 <= value < len(shapes) for value in read):
        raise ValueError(f"op {op.kind} reads value {max(read)} before it is there")
    shape = op.joined(*(shapes[value] for value in read)) if isinstance(op, Join) else op.shape(shapes[op.source])
    if math.prod(shape) > LARGEST_VALUE:
        raise ValueError(f"op {op.kind} makes {math.prod(shape)} elements, more than {LARGEST_VALUE}")
    return shape


def _overlap(first: Positions, second: Positions) -> bool:
    """Whether two sorted lists have a position in common."""
    places = np.minimum(np.searchsorted(first, second), len(first) - 1)
    return bool((first[places] == second).any())


def _around(source: Shape, axis: int) -> tuple[Shape, Shape]:
    """The sizes before a dimension, and behind it."""
    if not 0 <= axis < len(source):
        raise ValueError(f"dimension {axis} of shape {source}")
    return source[:axis], source[axis + 1 :]


def _window(source: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    if len(source) != 3 or min(*kernel, *stride) < 1 or min(padding) < 0 or max(*kernel, *stride, *padding) > 4096:
        raise ValueError(f"window {kernel}, stride {stride}, padding {padding} on shape {source}")
    height, width = (
        (side + 2 * p - k) // s + 1 for side, k, s, p in zip(source[1:], kernel, stride, padding, strict=True)
    )
    if min(height, width) < 1:
        raise ValueError(f"window {kernel} is larger than shape {source}")
    return height, width


def local(op: Op, *values: Elements) -> Elements:
    """An op that each party runs on its own shares; values: (batch, *shape), modulo 2^64."""
    x = values[0]
    match op:
        case Add():
            return x + values[1]
        case Concat():
            return np.concatenate(values, axis=op.axis + 1)
        case Reshape():
            return x.reshape(len(x), *op.to)
        case Permute():
            return np.ascontiguousarray(x.transpose(0, *(axis + 1 for axis in op.order)))
        case Select():
            found = x.take(np.maximum(op.indices, 0), op.axis + 1)
            np.moveaxis(found, op.axis + 1, 0)[op.indices == ZERO] = 0
            return found
        case Resample():
            return _resampled(op, x)
        case Scale():
            return x * np.int64(op.factor).astype(x.dtype)
        case Pool():
            (top, left) = op.padding
            padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left))) if top or left else x
            windows = sliding_window_view(padded, op.kernel, axis=(2, 3))  # pyright: ignore[reportCallIssue, reportArgumentType]
            return windows[:, :, :: op.stride[0], :: op.stride[1]].sum((-2, -1))
        case _:
            raise UserError(f"op {op.kind} is not local")


def _resampled(op: Resample, x: Elements) -> Elements:
    axis, wide = op.axis + 1, (-1, *[1] * (x.ndim - op.axis - 2))
    total = np.zeros((*x.shape[:axis], op.outputs, *x.shape[axis + 1 :]), x.dtype)
    for columns, factors in zip(*op.taps, strict=True):
        total += x.take(columns, axis) * factors.astype(x.dtype).reshape(wide)
    return total
