"""A program: the flat list of integer-ring ops that two parties execute together. It is public; the weights are not.

Op i makes value i + 1; value 0 is the input. Shapes are those of one image. A program is sent, hashed and saved as
canonical JSON, lists of numbers in base64, and whatever is read is checked before it is used.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, get_type_hints

import numpy as np

from parelu.private.crypto.ring import WIDE, Ring
from parelu.private.lowering.ops import (
    MOST_DIMENSIONS,
    OPS,
    Activation,
    Indices,
    Op,
    Pair,
    Positions,
    Shape,
    Truncate,
    shape_of,
    sources,
)

FORMAT = "parelu-program-3"


LARGEST_TOTAL = 1 << 28  # elements of all values of one inference


LARGEST_PROGRAM = 32 << 20  # bytes of the JSON


MOST_OPS = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What both parties know.

    Attributes:
        input_shape: (C, H, W) of an image.
        fraction: the input is encoded as round(x · 2^fraction).
        low, high: the least and largest encoded input, by the preprocessing of a byte image.
        output_unit: one integer of the last value is worth so much of a logit.
        output_bits: the last value stays below 2^(output_bits − 2) by calibration; the ring's bits where it may be any.
        ops: the last one makes the logits, of shape (classes,).
        layers: op → the module path in the network, for reports.
        preprocessing: JSON values: mean and std, one number a channel; image, (C, H, W) of the data set's images, which
            a client resizes to input_shape; middle, where they are the centre of a file's, that share of it.
        ring: that both parties' shares add up in.
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
    ring: Ring = WIDE

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

    @functools.cached_property
    def done_after(self) -> tuple[tuple[int, ...], ...]:
        """For each op, the values that nothing after it reads: whoever runs the program can let go of them.

        A ReLU may read what a truncation in front of it reads.
        """
        last = [0] * len(self.shapes)
        for number, op in enumerate(self.ops):
            for value in sources(op):
                last[value] = number
            before = self.ops[op.source - 1] if op.source else op
            if isinstance(op, Activation) and isinstance(before, Truncate):
                last[before.source] = number
        last[-1] = len(self.ops)
        found: list[list[int]] = [[] for _ in self.ops]
        for value, number in enumerate(last[:-1]):
            found[number].append(value)
        return tuple(map(tuple, found))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form: what an operator publishes and a client pins."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        header = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("ops", "shapes")}
        ops = [_op_to_json(op, self.shapes[op.source]) for op in self.ops]
        value = {
            "format": FORMAT,
            **header,
            "preprocessing": dict(self.preprocessing),
            "ring": self.ring.bits,
            "ops": ops,
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Program:
        """The inverse; raises ValueError with the reason for anything that is not a program."""
        if len(data) > LARGEST_PROGRAM:
            raise ValueError(f"a program of {len(data)} bytes, more than {LARGEST_PROGRAM}")
        try:
            value = json.loads(data)
            found = value.pop("format", None) if isinstance(value, dict) else None
            if found != FORMAT:
                raise ValueError(f"its format is {str(found)[:40]!r}, that of this version {FORMAT!r}")
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
        shapes.append(shape_of(op, shapes))
        op.check(program.ring)
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
    middle = values.get("middle", 1.0)
    if not (type(middle) is float and 0.5 <= middle <= 1):  # an image is enlarged by it
        raise ValueError("preprocessing middle is not a share from 0.5")
    if set(values) - {"middle"} != {"mean", "std", "image"} or not all(
        s > 0 and math.isfinite(s) for s in values["std"]
    ):
        raise ValueError("malformed preprocessing")
    if values["image"][0] != channels or not all(1 <= side <= 4096 for side in values["image"]):
        raise ValueError(f"images of shape {values['image']}")
    if not 3 <= program.output_bits <= program.ring.bits:
        raise ValueError(f"an output of {program.output_bits} bits")
    return tuple(shapes)


def _op_to_json(op: Op, source: Shape) -> dict[str, Any]:
    value: dict[str, Any] = {"kind": op.kind}
    for field in dataclasses.fields(op):
        content = getattr(op, field.name)
        if isinstance(content, np.ndarray) and content.dtype == np.int32:
            content = base64.b64encode(content.astype("<i4").tobytes()).decode()
        elif isinstance(content, np.ndarray):
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
    count = math.prod(shapes[source])
    decode = {int: _integer, Pair: _pair, Shape: _sizes, Indices: _indices, Positions: lambda t: _positions(t, count)}
    return cls(**{name: decode[hints[name]](value[name]) for name in names})


def _program_from_json(value: dict[str, Any]) -> Program:
    layers, ops, shapes = value["layers"], [], [tuple(map(_integer, value["input_shape"]))]
    if not all(isinstance(name, str) and len(name) < 300 for name in layers) or len(value["ops"]) > MOST_OPS:
        raise ValueError("malformed layer names")
    for entry in value["ops"]:
        op = _op_from_json(entry, shapes)
        ops.append(op)
        shapes.append(shape_of(op, shapes))
    if not isinstance(value["output_unit"], float) or not isinstance(value["preprocessing"], dict):
        raise ValueError("malformed output unit or preprocessing")
    rest = {name: _integer(value[name]) for name in ("fraction", "low", "high", "output_bits")}
    if len(value) != 10 or len(shapes[0]) != 3:
        raise ValueError(f"fields {sorted(value)[:10]}")
    return Program(
        input_shape=shapes[0],
        output_unit=value["output_unit"],
        ops=tuple(ops),
        layers=tuple(layers),
        preprocessing=value["preprocessing"],
        ring=Ring(_integer(value["ring"])),
        **rest,
    )


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) >= 1 << 62:
        raise ValueError(f"{str(value)[:40]!r} is not an integer of this format")
    return value


def _pair(value: Any) -> Pair:
    first, second = value
    return _integer(first), _integer(second)


def _sizes(value: Any) -> Shape:
    if not isinstance(value, list) or len(value) > MOST_DIMENSIONS:
        raise ValueError(f"{str(value)[:40]!r} are not the sizes of a value")
    return tuple(map(_integer, value))


def _indices(text: Any) -> Indices:
    data = base64.b64decode(text, validate=True)
    if len(data) % 4:
        raise ValueError("indices that are not whole")
    return np.frombuffer(data, "<i4").astype(np.int32)


def _positions(text: Any, count: int) -> Positions:
    packed = base64.b64decode(text, validate=True)
    if len(packed) != -(-count // 8):
        raise ValueError("positions that do not fit their value")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    if bits[count:].any():
        raise ValueError("positions outside of their value")
    return np.flatnonzero(bits)
