"""Programs made op by op, with integers of a generator: for ops and sizes that no small network has together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from parelu.private.crypto.ring import WIDE, Ring
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import (
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
    Shift,
    Truncate,
    shape_of,
)
from parelu.private.lowering.program import Program

FRACTION, CUT, BITS = 6, 8, 16


class Hand:
    """Each method adds ops and returns the number of the value that they make.

    largest: of the weights in absolute value, unless a method is told otherwise.
    """

    def __init__(self, shape: tuple[int, ...], ring: Ring = WIDE, seed: int = 0, largest: int = 60) -> None:
        self.ring, self.largest, self.rng = ring, largest, np.random.default_rng(seed)
        self.ops: list[Op] = []
        self.weights: dict[int, dict[str, Any]] = {}
        self.shapes: list[tuple[int, ...]] = [shape]

    def conv(
        self,
        source: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 1,
        groups: int = 1,
        largest: int | None = None,
    ) -> int:
        pairs = [(side, side) for side in (kernel, stride, padding)]
        return self._secret(Conv(source, outputs, pairs[0], pairs[1], pairs[2], groups), (outputs,), largest)

    def linear(self, source: int, outputs: int, largest: int | None = None) -> int:
        flat = source if len(self.shapes[source]) == 1 else self.flatten(source)
        return self._secret(Linear(flat, outputs), (outputs,), largest)

    def flatten(self, source: int) -> int:
        return self.reshape(source, int(np.prod(self.shapes[source])))

    def reshape(self, source: int, *to: int) -> int:
        return self._add(Reshape(source, to))

    def permute(self, source: int, *order: int) -> int:
        return self._add(Permute(source, order))

    def select(self, source: int, axis: int, count: int) -> int:
        """Some of each dimension, repeated and out of order, and zeros."""
        return self._add(Select(source, axis, self.rng.integers(-1, self.shapes[source][axis], count, np.int32)))

    def resample(self, source: int, axis: int, outputs: int, largest: int = 9) -> int:
        matrix = self.rng.integers(-largest, largest + 1, (outputs, self.shapes[source][axis]), np.int32)
        matrix[0, 0] = 1  # one number at the least
        rows, columns = (places.astype(np.int32) for places in matrix.nonzero())
        return self._add(Resample(source, axis, outputs, rows, columns, matrix[rows, columns]))

    def scale(self, source: int, factor: int) -> int:
        return self._add(Scale(source, factor))

    def multiply(self, source: int) -> int:
        return self._secret(Multiply(source), self.shapes[source], None)

    def shift(self, source: int) -> int:
        self.weights[len(self.ops)] = {"bias": self.rng.integers(-999, 1000, self.shapes[source])}
        return self._add(Shift(source))

    def add(self, source: int, other: int) -> int:
        return self._add(Add(source, other))

    def concat(self, source: int, other: int, axis: int = 0) -> int:
        return self._add(Concat(source, other, axis))

    def pool(self, source: int, kernel: int = 2, stride: int = 2) -> int:
        return self._add(Pool(source, (kernel, kernel), (stride, stride), (0, 0)))

    def truncate(self, source: int) -> int:
        return self._add(Truncate(source, CUT))

    def activation(self, source: int, relus: float = 1.0, squares: float = 0.0) -> int:
        """relus, squares: shares of the positions."""
        drawn = self.rng.random(int(np.prod(self.shapes[source])))
        at_relus, at_squares = drawn < relus, (drawn >= relus) & (drawn < relus + squares)
        count = int(at_squares.sum())
        if count:
            self.weights[len(self.ops)] = {name: self.rng.integers(-9, 10, count) for name in ("c0", "c1", "c2")}
        op = Activation(source, np.flatnonzero(at_relus), BITS, np.flatnonzero(at_squares), CUT)
        return self._add(op)

    def lowered(self, output_bits: int = 40) -> Lowered:
        """output_bits: the ring's where answers may be of any size. Raises ValueError where the last value is no row of
        logits."""
        channels, *size = self.shapes[0]
        preprocessing = {"mean": [0.5] * channels, "std": [0.25] * channels, "image": [channels, *size]}
        program = Program(
            input_shape=(channels, size[0], size[1]),
            fraction=FRACTION,
            low=-2 << FRACTION,
            high=2 << FRACTION,
            output_unit=1.0,
            output_bits=output_bits,
            ops=tuple(self.ops),
            layers=tuple(f"layer{number}" for number in range(1, len(self.ops) + 1)),
            preprocessing=preprocessing,
            ring=self.ring,
        )
        return Lowered(program, self.weights, (), salt=self.rng.bytes(32))

    def _secret(self, op: Any, bias: Sequence[int], largest: int | None) -> int:
        most, shape = largest or self.largest, op.weight_shape(self.shapes[op.source])
        weight = self.rng.integers(-most, most + 1, shape)
        self.weights[len(self.ops)] = {"weight": weight, "bias": self.rng.integers(-99, 100, tuple(bias))}
        return self._add(op)

    def _add(self, op: Op) -> int:
        self.shapes.append(shape_of(op, self.shapes))
        self.ops.append(op)
        return len(self.ops)
