"""A program: the flat list of integer-ring ops that two parties execute together. It is public; the weights are not.

Op i makes value i + 1; value 0 is the input. Shapes are those of one image. A program is sent, hashed and saved as
canonical JSON, and whatever is read is checked before it is used.
"""

from __future__ import annotations

import abc
import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_type_hints

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from parelu.errors import UserError
from parelu.private.crypto.ring import BITS, Ring

FORMAT = "parelu-program-1"
LARGEST_VALUE = 1 << 26  # elements of one value
LARGEST_TOTAL = 1 << 28  # elements of all values: a party keeps them for one inference
LARGEST_PROGRAM = 32 << 20  # bytes of the JSON
MOST_OPS = 10_000

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

    def shape(self, source: Shape) -> Shape:
        if not 1 <= self.bits < BITS:
            raise ValueError(f"truncation by {self.bits} bits")
        return source


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
        if not 2 <= self.bits <= BITS or not 0 <= self.truncation < BITS:
            raise ValueError(f"m = {self.bits}, truncation by {self.truncation} bits")
        if np.intersect1d(self.relus, self.squares).size:
            raise ValueError("a position is a ReLU and a square")
        return source


OPS: dict[str, type[Op]] = {
    op.kind: op for op in (Conv, Linear, Multiply, Add, Concat, Slice, Pool, Scale, Flatten, Truncate, Activation)
}


def sources(op: Op) -> tuple[int, ...]:
    """Numbers of the values that an op reads."""
    return (op.source, op.other) if isinstance(op, Join) else (op.source,)


def _shape_of(op: Op, shapes: Sequence[Shape]) -> Shape:
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


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What both parties know.

    Attributes:
        input_shape: (C, H, W) of an image.
        fraction: the input is encoded as round(x · 2^fraction).
        low, high: the least and largest encoded input, by the preprocessing of a byte image.
        output_unit: one integer of the last value is worth so much of a logit.
        output_bits: the last value stays below 2^(output_bits − 2) by calibration.
        ops: the last one makes the logits, of shape (classes,).
        layers: op → the module path in the network, for reports.
        preprocessing: JSON values: mean and std, one number a channel; image, (C, H, W) of the data set's images, which
            a client resizes to input_shape.
    """

    input_shape: tuple[int, int, int]
    fraction: int
    low: int
    high: int
    output_unit: float
    output_bits: int
    ops: tuple[Op, ...]
    layers: tuple[str, ...]
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", _shapes(self))

    shapes: tuple[Shape, ...] = dataclasses.field(init=False)

    @property
    def classes(self) -> int:
        return self.shapes[-1][0]

    @property
    def relus(self) -> int:
        return sum(len(op.relus) for op in self.ops if isinstance(op, Activation))

    @property
    def squares(self) -> int:
        return sum(len(op.squares) for op in self.ops if isinstance(op, Activation))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form: what an operator publishes and a client pins."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        header = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("ops", "shapes")}
        ops = [_op_to_json(op, self.shapes[op.source]) for op in self.ops]
        value = {"format": FORMAT, **header, "preprocessing": dict(self.preprocessing), "ops": ops}
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Program:
        """The inverse; raises ValueError with the reason for anything that is not a program."""
        if len(data) > LARGEST_PROGRAM:
            raise ValueError(f"a program of {len(data)} bytes, more than {LARGEST_PROGRAM}")
        try:
            value = json.loads(data)
            if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
                raise ValueError(f"not a program of this version ({FORMAT})")
            program = _program_from_json(value)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise ValueError(f"malformed program ({type(error).__name__}: {str(error)[:80]})") from error
        if program.to_bytes() != data:
            raise ValueError("the program is not in canonical form")
        return program


def _shapes(program: Program) -> tuple[Shape, ...]:
    """Shape of each value; raises ValueError where an op does not fit."""
    shapes: list[Shape] = [program.input_shape]
    if len(program.input_shape) != 3 or min(program.input_shape) < 1:
        raise ValueError(f"input shape {program.input_shape}")
    if not program.ops or len(program.ops) != len(program.layers) or len(program.ops) > MOST_OPS:
        raise ValueError(f"{len(program.ops)} ops and {len(program.layers)} layer names")
    for op in program.ops:
        shapes.append(_shape_of(op, shapes))
    if sum(map(math.prod, shapes)) > LARGEST_TOTAL:
        raise ValueError(f"values of {sum(map(math.prod, shapes))} elements together, more than {LARGEST_TOTAL}")
    if len(shapes[-1]) != 1:
        raise ValueError(f"the output has shape {shapes[-1]}, not (classes,)")
    if not (1 <= program.fraction <= 24 and -(1 << 40) < program.low <= program.high < 1 << 40):
        raise ValueError(f"input of fraction {program.fraction} from {program.low} to {program.high}")
    if not (math.isfinite(program.output_unit) and program.output_unit > 0):
        raise ValueError(f"output unit {program.output_unit}")
    channels, values = program.input_shape[0], program.preprocessing
    for name, kind, count in (("mean", float, channels), ("std", float, channels), ("image", int, 3)):
        numbers = values.get(name)
        if not (isinstance(numbers, list) and len(numbers) == count and all(type(n) is kind for n in numbers)):
            raise ValueError(f"preprocessing {name} is not {count} numbers")
    if set(values) != {"mean", "std", "image"} or not all(s > 0 and math.isfinite(s) for s in values["std"]):
        raise ValueError("malformed preprocessing")
    if values["image"][0] != channels or not all(1 <= side <= 4096 for side in values["image"]):
        raise ValueError(f"images of shape {values['image']}")
    if not 3 <= program.output_bits <= BITS:
        raise ValueError(f"an output of {program.output_bits} bits")
    return tuple(shapes)


def _op_to_json(op: Op, source: Shape) -> dict[str, Any]:
    value: dict[str, Any] = {"kind": op.kind}
    for field in dataclasses.fields(op):
        content = getattr(op, field.name)
        if isinstance(content, np.ndarray):
            bits = np.zeros(math.prod(source), np.uint8)
            bits[content] = 1
            content = base64.b64encode(np.packbits(bits, bitorder="little").tobytes()).decode()
        value[field.name] = content
    return value


def _op_from_json(value: Any, shapes: list[Shape]) -> Op:
    cls = OPS[value.pop("kind")]
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    if sorted(value) != sorted(names):
        raise ValueError(f"op {cls.kind} with fields {sorted(value)[:8]}")
    source = _integer(value["source"])
    if not 0 <= source < len(shapes):
        raise ValueError(f"op {cls.kind} reads value {source} before it is there")
    decode = {int: _integer, Pair: _pair, Positions: lambda text: _positions(text, math.prod(shapes[source]))}
    return cls(**{name: decode[hints[name]](value[name]) for name in names})


def _program_from_json(value: dict[str, Any]) -> Program:
    layers, ops, shapes = value["layers"], [], [tuple(map(_integer, value["input_shape"]))]
    if not all(isinstance(name, str) and len(name) < 300 for name in layers) or len(value["ops"]) > MOST_OPS:
        raise ValueError("malformed layer names")
    for entry in value["ops"]:
        op = _op_from_json(entry, shapes)
        ops.append(op)
        shapes.append(_shape_of(op, shapes))
    if not isinstance(value["output_unit"], float) or not isinstance(value["preprocessing"], dict):
        raise ValueError("malformed output unit or preprocessing")
    rest = {name: _integer(value[name]) for name in ("fraction", "low", "high", "output_bits")}
    if len(value) != 9 or len(shapes[0]) != 3:
        raise ValueError(f"fields {sorted(value)[:9]}")
    return Program(
        input_shape=shapes[0],
        output_unit=value["output_unit"],
        ops=tuple(ops),
        layers=tuple(layers),
        preprocessing=value["preprocessing"],
        **rest,
    )


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) >= 1 << 62:
        raise ValueError(f"{str(value)[:40]!r} is not an integer of this format")
    return value


def _pair(value: Any) -> Pair:
    first, second = value
    return _integer(first), _integer(second)


def _positions(text: Any, count: int) -> Positions:
    packed = base64.b64decode(text, validate=True)
    if len(packed) != -(-count // 8):
        raise ValueError("positions that do not fit their value")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    if bits[count:].any():
        raise ValueError("positions outside of their value")
    return np.flatnonzero(bits)


def local(op: Op, *values: Ring) -> Ring:
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
