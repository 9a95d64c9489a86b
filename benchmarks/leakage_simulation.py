"""Inferences as two parties truncate them, many at once, without the parties: what benchmarks/leakage.py asks.

All values of a client's shares that matter are the low bits that a truncation drops; they are uniform.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parelu.network.instrument import instrument
from parelu.private.lowering.lower import Lowered, lower
from parelu.private.lowering.ops import Activation, Op, Truncate, local, sources
from parelu.private.lowering.reference import ExactLinear, integers_of

Signed = NDArray[np.int64]
Small = NDArray[np.int32]
Low = Callable[[int, tuple[int, ...], int], Signed]  # (number of the truncation, shape, bits) → the share's low bits


class Inferences:
    """A program without squares, run on many inferences.

    truncation: "local", off by [u < x mod 2^f] everywhere, or "exact", to the nearest where a ReLU follows at once.
    """

    def __init__(self, lowered: Lowered, truncation: str) -> None:
        self.lowered, self.program = lowered, lowered.program
        if self.program.squares:
            raise SystemExit("the program has squares, which are not simulated")
        numbered = list(enumerate(self.program.ops, start=1))
        self.layers = {n: ExactLinear(op, lowered.weights[n - 1]) for n, op in numbered if op.is_secret}
        self.last = max(self.layers)
        self.last_weight = lowered.weights[self.last - 1]["weight"].astype(np.float64)
        rounded = {n: self._relus_behind(n) for n, op in numbered if isinstance(op, Truncate)}
        self.rounded = rounded if truncation == "exact" else {}

    def _relus_behind(self, number: int) -> NDArray[np.int64]:
        """Positions of a truncated value that nothing but a ReLU reads."""
        readers = [op for op in self.program.ops if number in sources(op)]
        match readers:
            case [Activation() as op]:
                return op.relus
            case _:
                return np.zeros(0, np.int64)

    def run(self, values: dict[int, Signed], numbers: Sequence[int], low: Low) -> None:
        """Add the values of these numbers, (batch, *shape), in order; those that they read must be there."""
        for number in numbers:
            op: Op = self.program.ops[number - 1]
            x = values[op.source]
            if op.is_secret:
                values[number] = self.layers[number](x)
            elif isinstance(op, Truncate):
                high, rest = self.parts(number, op, x)
                values[number] = high + (low(number, x.shape, op.bits) < rest)
            elif isinstance(op, Activation):
                least = np.full(x[0].size, np.iinfo(x.dtype).min, x.dtype)
                least[op.relus] = 0
                values[number] = np.maximum(x, least.reshape(x.shape[1:]))
            else:
                values[number] = local(op, *(values[n] for n in sources(op)))  # pyright: ignore[reportArgumentType]

    def parts(self, number: int, op: Truncate, x: Signed) -> tuple[Signed, Signed]:
        """What x / 2^f becomes where the share's low bits are not below the second: to that, 1 is added."""
        high, rest = x >> op.bits, x & ((1 << op.bits) - 1)
        rounded = self.rounded.get(number, ())
        if len(rounded):
            nearest = (x + (1 << op.bits >> 1)) >> op.bits
            high.reshape(len(x), -1)[:, rounded] = nearest.reshape(len(x), -1)[:, rounded]
            rest.reshape(len(x), -1)[:, rounded] = 0
        return high, rest

    def whole(self, image: Tensor, count: int, low: Low) -> dict[int, Signed]:
        """All values of `count` inferences of one uint8 image (C, H, W)."""
        encoded = integers_of(self.program, image[None])
        values = {0: np.repeat(encoded, count, axis=0)}
        self.run(values, range(1, len(self.program.ops) + 1), low)
        return values

    def logits(self, image: Tensor, count: int, rng: np.random.Generator) -> Signed:
        """Last values (count, classes) of inferences of one image."""
        return self.whole(image, count, uniform(rng))[len(self.program.ops)]

    def tail(self, image: Tensor, pool: int, rng: np.random.Generator) -> Tail:
        """What follows the last truncations, for inferences of one image; `pool` runs of what is before are kept."""
        return Tail(self, self.whole(image, pool, uniform(rng)))


def _none(number: int, shape: tuple[int, ...], bits: int) -> Signed:
    raise AssertionError("a tail's truncations are its own")


def uniform(rng: np.random.Generator) -> Low:
    """Fresh low bits."""
    return lambda number, shape, bits: rng.integers(0, 1 << bits, shape)


class Tail:
    """The end of inferences of one image: the last truncations, one activation, the last layer.

    Attributes:
        positions: numbers of truncated values; channels: the input of the last layer that each belongs to, a channel
            of a map or a position.
        inputs: of the last layer.
    """

    def __init__(self, inferences: Inferences, values: dict[int, Signed]) -> None:
        self.inferences, program = inferences, inferences.program
        self.source = program.ops[inferences.last - 1].source
        self.truncations = sorted(self._truncations(self.source, 0))
        tail = set(self.truncations)
        for number in range(self.truncations[0] + 1, inferences.last):
            if any(n in tail for n in sources(program.ops[number - 1])):
                tail.add(number)
        self.numbers = sorted(tail - set(self.truncations))
        read = {n for number in self.numbers for n in sources(program.ops[number - 1])} - tail
        self.kept = {n: values[n].astype(np.int32) for n in read}
        self.parts = {n: self._parts(n, values) for n in self.truncations}
        parts = self.parts.items()
        self.inputs, self.pool = program.shapes[self.source][0], len(values[0])
        sizes = [int(np.prod(program.shapes[n])) for n in self.truncations]
        self.positions = sum(sizes)
        self.channels = np.concatenate([np.arange(size) // (size // self.inputs) for size in sizes])
        exact = {n: (high.astype(np.int64) << 16) + (rest.astype(np.int64) << (16 - f)) for n, (high, rest, f) in parts}
        scaled = {n: value.astype(np.int64) << 16 for n, value in self.kept.items()}
        self.expected = self._inputs(scaled | exact) / (1 << 16)

    @property
    def moves(self) -> bool:
        """Whether anything is left to chance."""
        return any(bool(rest.any()) for _, rest, _ in self.parts.values())

    def _parts(self, number: int, values: dict[int, Signed]) -> tuple[Small, NDArray[np.uint16], int]:
        op = self.inferences.program.ops[number - 1]
        assert isinstance(op, Truncate)
        high, rest = self.inferences.parts(number, op, values[op.source])
        assert op.bits <= 16
        return high.astype(np.int32), rest.astype(np.uint16), op.bits

    def _truncations(self, number: int, activations: int) -> set[int]:
        """Those that a value comes from, without a layer or a second activation between."""
        op = self.inferences.program.ops[number - 1] if number else None
        if op is None or op.is_secret:
            return set()
        if isinstance(op, Truncate):
            return {number}
        activations += isinstance(op, Activation)
        return set().union(*(self._truncations(n, activations) for n in sources(op))) if activations < 2 else set()

    def _inputs(self, values: dict[int, Any]) -> Any:
        """Of the last layer, from truncated and kept values."""
        self.inferences.run(values, self.numbers, _none)
        return values[self.source]

    def fractions(self, low: Sequence[NDArray[np.uint16]]) -> NDArray[np.float32]:
        """Low bits as numbers from −½ to ½, (count, positions)."""
        bits = (bits for _, _, bits in self.parts.values())
        return np.hstack([part * np.float32(2.0**-n) for part, n in zip(low, bits, strict=True)]) - np.float32(0.5)

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[list[NDArray[np.uint16]], NDArray[np.float64], Signed]:
        """Of so many inferences: the low bits of the shares, for each truncation (count, elements); what the bits
        changed of the last layer's inputs, against their mean (count, inputs); the last values (count, classes)."""
        runs = rng.integers(0, self.pool, count)
        low, truncated = [], {}
        for number, (high, rest, bits) in self.parts.items():
            drawn = np.frombuffer(rng.bytes(2 * count * high[0].size), np.uint16).reshape(count, *high.shape[1:])
            drawn = drawn >> np.uint16(16 - bits)
            truncated[number] = high[runs] + (drawn < rest[runs])
            low.append(drawn.reshape(count, -1))
        inputs = self._inputs({n: value[runs] for n, value in self.kept.items()} | truncated)
        last = self.inferences.layers[self.inferences.last](inputs.astype(np.int64))
        return low, inputs - self.expected[runs], last


class _Toy(nn.Module):
    """Three convolutions, each with a ReLU, and a last layer, for 8 × 8 pixels."""

    def __init__(self, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        sizes = [3, width, width, width]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 1, 1) for i, o in itertools.pairwise(sizes))
        self.relus = nn.ModuleList(nn.ReLU() for _ in self.convs)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, relu in zip(self.convs, self.relus, strict=True):
            x = relu(conv(x))
        return self.fc(torch.flatten(self.pool(x), 1))


def toy(seed: int = 0) -> tuple[Lowered, Tensor]:
    """Fresh weights, and 256 images of noise."""
    torch.manual_seed(seed)
    network = instrument(_Toy(), (3, 8, 8)).eval()
    images = torch.randint(256, (256, 3, 8, 8), dtype=torch.uint8)
    preprocessing: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}
    return lower(network, images, preprocessing), images
