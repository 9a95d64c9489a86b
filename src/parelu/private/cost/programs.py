"""The programs that a calibration measures: few layers each, of one kind, so that what each costs can be told apart."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import numpy as np
import torch

from parelu.private.crypto.ring import Ring
from parelu.private.lowering.lowered import WEIGHT_BITS, Integers, Lowered
from parelu.private.lowering.ops import Activation, Conv, Linear, Multiply, Op, Pool, Reshape, Truncate, shape_of
from parelu.private.lowering.program import Program
from parelu.private.lowering.writer import FRACTION

CUT = 8  # bits of the truncations


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution with its truncation, and an activation behind it.

    outputs: 0 for no convolution; singles: whether each position is multiplied by a weight of its own; bits: m; relus,
    squares: positions of the activation, 0 of both for none.
    """

    outputs: int = 0
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    singles: bool = False
    relus: int = 0
    squares: int = 0
    bits: int = 16


def lowered(shape: tuple[int, int, int], layers: Sequence[Layer], ring: Ring, classes: int = 10) -> Lowered:
    """A program of these layers on images (C, H, W), a sum over each map and a matrix at its end, with integers drawn
    as wide as lowering makes them."""
    made = _Writing(shape)
    for layer in layers:
        made.layer(layer)
    made.pool()
    made.secret(Linear(made.last, classes), "classifier")
    program = Program(
        input_shape=shape,
        fraction=FRACTION,
        low=-(2 << FRACTION),
        high=2 << FRACTION,
        output_unit=2.0**-FRACTION,
        output_bits=ring.bits,  # random integers go through the whole ring: no answer is out of range
        ops=tuple(made.ops),
        layers=tuple(made.names),
        preprocessing={"mean": [0.5] * shape[0], "std": [0.25] * shape[0], "image": list(shape)},
        ring=ring,
    )
    return Lowered(program, made.weights, ())


def drawn(seed: int, most: int, bits: int = 17) -> tuple[tuple[int, int, int], tuple[Layer, ...]]:
    """A network's images and layers: deep or shallow, wide or narrow, of some density of ReLUs.

    most: ReLUs, but for one a layer; bits: of the widest.
    """
    rng = random.Random(seed)
    side, channels, made = rng.choice((16, 32)), rng.choice((8, 12, 24)), 3
    density, depth = rng.choice((1.0, 0.3, 0.1, 0.02)), rng.randint(6, 18)
    shape, layers = (made, side, side), list[Layer]()
    for position in range(depth):
        stride = 2 if position and side > 4 and rng.random() < 0.25 else 1
        channels, side = channels * stride, -(-side // stride)
        kernel = rng.choice((3, 3, 3, 1))
        groups = channels if made == channels and rng.random() < 0.15 else 1
        width = rng.randint(8, bits)
        size = channels * side * side
        count = max(1, int(size * density * rng.uniform(0.5, 1.0))) if rng.random() < 0.9 else 0
        count = min(count, most // depth)
        squares = (size - count) // 20 if rng.random() < 0.1 else 0
        layers.append(Layer(channels, kernel, stride, groups, relus=count, squares=squares, bits=width))
        made = channels
    return shape, tuple(layers)


class _Writing:
    """Ops one behind the other."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shapes = [shape]
        self.ops: list[Op] = []
        self.names: list[str] = []
        self.weights: dict[int, Integers] = {}
        self._generator = torch.Generator().manual_seed(0)

    @property
    def last(self) -> int:
        return len(self.ops)

    def add(self, op: Op, name: str) -> None:
        self.ops.append(op)
        self.names.append(name)
        self.shapes.append(shape_of(op, self.shapes))

    def secret(self, op: Conv | Linear | Multiply, name: str) -> None:
        shape = op.weight_shape(self.shapes[op.source])
        bias = shape if isinstance(op, Multiply) else (op.outputs,)
        self.weights[self.last] = {"weight": self._integers(*shape), "bias": self._integers(*bias)}
        self.add(op, name)

    def _integers(self, *shape: int) -> np.ndarray:
        largest = 1 << WEIGHT_BITS - 1
        return torch.randint(-largest, largest, shape, generator=self._generator).numpy()

    def layer(self, layer: Layer) -> None:
        number = str(len(self.names))
        if layer.outputs:
            sides = [(side, side) for side in (layer.kernel, layer.stride, layer.kernel // 2)]
            self.secret(Conv(self.last, layer.outputs, sides[0], sides[1], sides[2], layer.groups), f"conv{number}")
            self.add(Truncate(self.last, CUT), f"conv{number}")
        if layer.singles:
            self.secret(Multiply(self.last), f"multiply{number}")
            self.add(Truncate(self.last, CUT), f"multiply{number}")
        if layer.relus or layer.squares:
            self.activation(layer, f"activation{number}")

    def activation(self, layer: Layer, name: str) -> None:
        size = math.prod(self.shapes[-1])
        # Spread over the map, as masks are.
        order = torch.randperm(size, generator=self._generator).numpy()[: layer.relus + layer.squares]
        relus, squares = np.sort(order[: layer.relus]), np.sort(order[layer.relus :])
        if layer.squares:
            numbers = {name: self._integers(layer.squares) for name in ("c0", "c1", "c2")}
            self.weights[self.last] = numbers
        self.add(Activation(self.last, relus, layer.bits, squares, CUT), name)

    def pool(self) -> None:
        channels, height, width = self.shapes[-1]
        self.add(Pool(self.last, (height, width), (height, width), (0, 0)), "pool")
        self.add(Reshape(self.last, (channels,)), "flatten")
