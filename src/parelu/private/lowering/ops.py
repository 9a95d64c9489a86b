"""The ops of a program: what each reads, what shape it makes, and what a party computes of it alone."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from parelu.errors import UserError
from parelu.private.crypto.ring import Elements, Ring

LARGEST_VALUE = 1 << 26  # elements of one value


Shape = tuple[int, ...]


Pair = tuple[int, int]


Positions = NDArray[np.int64]  # sorted positions in the flattened value


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
    """The channels of one value after those of another."""

    kind: ClassVar[str] = "concat"

    def joined(self, source: Shape, other: Shape) -> Shape:
        if source[1:] != other[1:]:
            raise ValueError(f"channels of shapes {source} and {other} joined")
        return source[0] + other[0], *source[1:]


@dataclasses.dataclass(frozen=True, eq=False)
class Slice(Op):
    """The channels from `start` to before `stop`."""

    kind: ClassVar[str] = "slice"

    start: int
    stop: int

    def shape(self, source: Shape) -> Shape:
        if not 0 <= self.start < self.stop <= source[0]:
            raise ValueError(f"channels {self.start} to {self.stop} of shape {source}")
        return self.stop - self.start, *source[1:]


@dataclasses.dataclass(frozen=True, eq=False)
class Pool(Op):
    """Sums over windows; the divisor of an average is in the next layer's weights."""

    kind: ClassVar[str] = "pool"

    kernel: Pair
    stride: Pair
    padding: Pair

    def shape(self, source: Shape) -> Shape:
        return source[0], *_window(source, self.kernel, self.stride, self.padding)


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
class Flatten(Op):
    kind: ClassVar[str] = "flatten"

    def shape(self, source: Shape) -> Shape:
        return (math.prod(source),)


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
        if np.intersect1d(self.relus, self.squares).size:
            raise ValueError("a position is a ReLU and a square")
        return source

    def check(self, ring: Ring) -> None:
        if not 2 <= self.bits <= ring.bits or not 0 <= self.truncation < ring.bits:
            raise ValueError(f"m = {self.bits}, truncation by {self.truncation} bits in a ring of {ring.bits}")


OPS: dict[str, type[Op]] = {
    op.kind: op for op in (Conv, Linear, Multiply, Add, Concat, Slice, Pool, Scale, Flatten, Truncate, Activation)
}


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
            return np.concatenate(values, axis=1)
        case Slice():
            return x[:, op.start : op.stop]
        case Flatten():
            return x.reshape(len(x), -1)
        case Scale():
            return x * np.int64(op.factor).astype(x.dtype)
        case Pool():
            (top, left) = op.padding
            padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left))) if top or left else x
            windows = sliding_window_view(padded, op.kernel, axis=(2, 3))  # pyright: ignore[reportCallIssue, reportArgumentType]
            return windows[:, :, :: op.stride[0], :: op.stride[1]].sum((-2, -1))
        case _:
            raise UserError(f"op {op.kind} is not local")
