"""The ring program run by one party alone: the accuracy that private inference will have, and the oracle of its tests.

`run` works on batches of plain integers and reports every value that leaves its range. `replay` takes the
client's shares of one inference as well, and so truncates as the two parties do: its result is theirs, to the bit.

All arithmetic here is its own, on signed integers, and shares nothing with the engines: a mistake on either side shows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from parelu.private.lowering.lowered import Integers, Lowered
from parelu.private.lowering.ops import (
    Activation,
    Add,
    Concat,
    Conv,
    Linear,
    Op,
    Permute,
    Pool,
    Resample,
    Reshape,
    Scale,
    Select,
    Shift,
    Truncate,
    sources,
)
from parelu.private.lowering.program import Program

BATCH = 50  # images at once, fewer of large programs
ELEMENTS = 1 << 26  # of all values of a batch
EXACT = 1 << 53  # float64 holds all integers below

Signed = NDArray[np.int64]


def integers_of(program: Program, images: Tensor) -> Signed:
    """uint8 (N, C, H, W) → the input's integers, by a table of the 256 values that a byte of a channel can have.

    Normalised in float32, as the network is trained.
    """
    mean, std = (np.array(program.preprocessing[name], np.float32)[:, None] for name in ("mean", "std"))
    normal = np.arange(256, dtype=np.float32) * (1 / (255 * std)) - mean / std
    table = np.rint(normal.astype(np.float64) * (1 << program.fraction)).astype(np.int64)
    return table[np.arange(len(table))[:, None, None], images.numpy()]


@dataclasses.dataclass(frozen=True)
class Result:
    """logits: float (N, classes); overflows: positions of ReLUs whose |x| reached 2^(m − 1), of all `values`."""

    logits: NDArray[np.float64]
    overflows: int
    values: int

    @property
    def labels(self) -> Signed:
        return self.logits.argmax(1)


def run(
    lowered: Lowered, images: Tensor, progress: Callable[[int], None] = lambda done: None, *, relu: str = "sign"
) -> Result:
    """The ring program on uint8 (N, C, H, W), truncating to the nearest.

    A ReLU whose input leaves its calibrated range takes the sign that its m bits give, as in a secure run, and is
    counted. relu: as in `replay`. An image whose values leave what is exact here, as squares can make them, would be
    lost in a secure run: its logits are zeros, and all its ReLUs are counted.
    """
    program = lowered.program
    layers, logits, overflows = _layers(lowered), [], 0
    count = min(BATCH, max(1, ELEMENTS // sum(map(math.prod, program.shapes))))
    for batch in images.split(count):
        for values, left in _evaluate(lowered, layers, batch, relu):
            logits.append(values)
            overflows += left
        progress(len(batch))
    return Result(np.concatenate(logits), overflows, len(images) * program.relus)


def values(lowered: Lowered, images: Tensor) -> list[Signed]:
    """All values of the program on uint8 (N, C, H, W), by number; raises OverflowError where one is not exact."""
    return [value for value, _ in _steps(lowered, _layers(lowered), images, "sign")]


def _layers(lowered: Lowered) -> dict[int, ExactLinear]:
    return {i: ExactLinear(op, lowered.weights[i]) for i, op in enumerate(lowered.program.ops) if op.is_secret}


class ExactLinear:
    """W·x + b of a secret op in float64, for (batch, …) integers whose product-sums stay below 2^53."""

    def __init__(self, op: Op, integers: Integers) -> None:
        weight = integers["weight"]
        self.op, self.bias = op, _bias(op, integers)
        self.weight = torch.from_numpy(weight.astype(np.float64))
        rows = weight.reshape(len(weight), -1) if isinstance(op, (Conv, Linear)) else weight.reshape(-1, 1)
        self.largest = float(np.abs(rows).sum(1).max())  # Σ|w| of one output

    def __call__(self, x: Signed) -> Signed:
        """Raises OverflowError where a product-sum may reach 2^53."""
        if self.largest * float(np.abs(x).max(initial=0)) >= EXACT:
            raise OverflowError("a product-sum reaches 2^53")
        with torch.no_grad():
            return self._products(torch.from_numpy(x).double()).to(torch.int64).numpy() + self.bias

    def _products(self, x: Tensor) -> Tensor:
        match self.op:
            case Conv(stride=stride, padding=padding, groups=groups):
                return F.conv2d(x, self.weight, None, stride, padding, 1, groups)
            case Linear():
                return F.linear(x, self.weight)
            case _:
                return x * self.weight


def _evaluate(
    lowered: Lowered, layers: Mapping[int, ExactLinear], images: Tensor, relu: str
) -> list[tuple[NDArray[np.float64], int]]:
    """Logits and ReLUs out of range of parts of a batch, in order; parts, because one image can be lost."""
    try:
        return [_exactly(lowered, layers, images, relu)]
    except OverflowError:
        if len(images) == 1:
            classes = lowered.program.shapes[-1]
            return [(np.zeros((1, *classes)), lowered.program.relus)]
        first, second = images.split(-(-len(images) // 2))
        return [part for half in (first, second) for part in _evaluate(lowered, layers, half, relu)]


def _exactly(
    lowered: Lowered, layers: Mapping[int, ExactLinear], images: Tensor, relu: str
) -> tuple[NDArray[np.float64], int]:
    """Logits and ReLUs out of range; raises OverflowError where a product-sum or a polynomial is not exact."""
    last, overflows = np.zeros(0, np.int64), 0
    for value, left in _steps(lowered, layers, images, relu):
        last, overflows = value, overflows + left
    return (last * lowered.program.output_unit).astype(np.float64), overflows


def _steps(
    lowered: Lowered, layers: Mapping[int, ExactLinear], images: Tensor, relu: str
) -> Iterator[tuple[Signed, int]]:
    """Each value in order, and how many of its ReLUs were out of range; one that nothing reads any more is dropped."""
    program = lowered.program
    values: dict[int, Signed] = {0: integers_of(program, images)}
    yield values[0], 0
    for number, op in enumerate(program.ops):
        x, overflows = values[op.source], 0
        if op.is_secret:
            y = layers[number](x)
        elif isinstance(op, Shift):
            y = x + lowered.weights[number]["bias"]
        elif isinstance(op, Truncate):
            y = _rounded(x, op.bits)
        elif isinstance(op, Activation):
            y = _activate(op, lowered.weights.get(number, {}), x, relu, program.ring.bits)
            overflows = int((np.abs(x.reshape(len(x), -1)[:, op.relus]) >= 1 << (op.bits - 1)).sum())
        else:
            y = _rearranged(op, [values[i] for i in sources(op)])
        values[number + 1] = y
        yield y, overflows
        for value in program.done_after[number]:
            values.pop(value, None)


def _activate(op: Activation, integers: Integers, x: Signed, relu: str, ring: int) -> Signed:
    """ring: bits of it."""
    y = x.reshape(len(x), -1).copy()
    y[:, op.relus] = _relu(y[:, op.relus], _sign_bit(op, relu, ring))
    if len(op.squares):
        z = y[:, op.squares]
        sizes = {name: np.abs(c).astype(np.float64) for name, c in integers.items()}
        if _polynomial(sizes, np.abs(z).astype(np.float64)).max(initial=0) >= 2.0 ** (ring - 1):
            raise OverflowError("a polynomial leaves the ring")
        y[:, op.squares] = _rounded(_polynomial(integers, z), op.truncation)
    return y.reshape(x.shape)


def _sign_bit(op: Activation, relu: str, ring: int) -> int:
    """Number of the bit of a value that a ReLU protocol takes for its sign; ring: bits of it."""
    return (ring if relu == "full" else op.bits) - 1


def _relu(z: Signed, sign: int) -> Signed:
    """0 where bit `sign` is set, by two's complement: relu(z) as long as −2^sign ≤ z < 2^sign."""
    return np.where(z >> np.int64(sign) & 1, 0, z)


def _rounded(x: Signed, bits: int) -> Signed:
    """x / 2^bits to the nearest: the mean of what two parties' truncations give."""
    return (x + (np.int64(1) << np.int64(bits - 1))) >> np.int64(bits)


def replay(
    lowered: Lowered, image: Tensor, client: Mapping[int, NDArray[Any]], relu: str, truncation: str = "local"
) -> NDArray[np.uint64]:
    """The last value of one inference, (classes,) below the ring's modulus, given the client's shares of it.

    client: number of a value → the client's share, flat: of the input and of each linear op's output, and of an
    activation's output at its ReLUs, then its squares; the squares' own share before truncation under −number.
    relu: "full" looks at all bits of the input, every other protocol at m. truncation: "exact" has a ReLU divide what
    the truncation in front of it reads.
    """
    program, modulo = lowered.program, _Modulo(lowered.program.ring.bits)
    given = {number: share.astype(np.int64) for number, share in client.items()}
    values = [integers_of(program, image[None])]
    shares = [given[0].reshape(values[0].shape)]
    for number, op in enumerate(program.ops):
        x, c, integers = values[op.source], shares[op.source], lowered.weights.get(number, {})
        if op.is_secret:
            y = _modular_products(op, integers["weight"], x) + _bias(op, integers)
            share = given[number + 1].reshape(y.shape)
        elif isinstance(op, Shift):
            y, share = x + integers["bias"], c
        elif isinstance(op, Truncate):
            y, share = modulo.truncated(x, c, op.bits)
        elif isinstance(op, Activation):
            y, share = _replayed_activation(modulo, op, integers, x, c, given, number + 1, relu)
            before = program.ops[op.source - 1] if op.source else op
            if truncation == "exact" and isinstance(before, Truncate):
                whole, own = (both[before.source].reshape(-1)[op.relus] for both in (values, shares))
                y.reshape(-1)[op.relus] = modulo.divided(whole, own, before.bits, op.bits, relu)
        else:
            y, share = (_rearranged(op, [both[i] for i in sources(op)]) for both in (values, shares))
        values.append(modulo.wrapped(y))
        shares.append(share)
    return modulo.least(values[-1][0])


def _replayed_activation(
    modulo: _Modulo,
    op: Activation,
    integers: Integers,
    x: Signed,
    c: Signed,
    given: Mapping[int, Signed],
    number: int,
    relu: str,
) -> tuple[Signed, Signed]:
    y, share = x.reshape(-1).copy(), c.reshape(-1).copy()
    y[op.relus] = _relu(y[op.relus], _sign_bit(op, relu, modulo.bits))
    if len(op.squares):
        y[op.squares] = modulo.truncated(_polynomial(integers, y[op.squares]), given[-number], op.truncation)[0]
    share[op.relus], share[op.squares] = np.split(given[number], [len(op.relus)])
    return y.reshape(x.shape), share.reshape(c.shape)


@dataclasses.dataclass(frozen=True)
class _Modulo:
    """What the parties do modulo 2^bits, on int64, which wraps at a multiple of it."""

    bits: int

    def least(self, x: Signed) -> NDArray[np.uint64]:
        """The representative from 0 on."""
        return x.astype(np.uint64) % np.uint64(1 << self.bits) if self.bits < 64 else x.astype(np.uint64)

    def wrapped(self, x: Signed) -> Signed:
        """The representative in [−2^(bits − 1), 2^(bits − 1))."""
        spare = np.int64(64 - self.bits)
        return x << spare >> spare

    def truncated(self, x: Signed, client: Signed, cut: int) -> tuple[Signed, Signed]:
        """x as the parties divide it by 2^cut, and the client's share of that (SecureML, section 4.1).

        The client shifts its share, taken from 0 to 2^bits; the server shifts the negative of its own, and negates.
        """
        share, negative = (self.least(part) // np.uint64(1 << cut) for part in (client, client - x))
        return (share - negative).astype(np.int64), share.astype(np.int64)

    def divided(self, x: Signed, client: Signed, cut: int, bits: int, relu: str) -> Signed:
        """relu(x / 2^cut), rounded to the nearest, as the parties find it given the client's share of x."""
        x = x + (np.int64(1) << np.int64(cut - 1))
        if relu == "full":
            return np.maximum(self.wrapped(x), 0) >> cut
        # Their shares from 0 on add up to x + 2^bits, but for a wrap; the sum may not fit in 64 bits.
        step, mine, theirs = np.uint64(1 << cut), self.least(client), self.least(x - client)
        quotient = mine // step + theirs // step + (mine % step + theirs % step) // step
        quotient -= np.uint64(1 << self.bits - cut)
        negative = x >> (min(bits + cut, self.bits) - 1) & 1
        return np.where(negative, 0, quotient.astype(np.int64))


def _modular_products(op: Op, weight: Signed, x: Signed) -> Signed:
    """W·x of (batch, …) by int64, which wraps: right in every ring for any x."""
    match op:
        case Linear():
            return x @ weight.T
        case Conv():
            inputs, outputs = x.shape[1] // op.groups, len(weight) // op.groups
            groups = []
            for group in range(op.groups):
                part = x[:, group * inputs : (group + 1) * inputs]
                own = weight[group * outputs : (group + 1) * outputs]
                groups.append(sum(_channels(own[:, :, i, j], view) for i, j, view in _windows(op, part)))
            return np.concatenate(groups, axis=1)
        case _:
            return x * weight


def _channels(matrix: Signed, x: Signed) -> Signed:
    """The matrix (O, I) on the channels of (batch, I, H, W)."""
    return (matrix @ x.reshape(*x.shape[:2], -1)).reshape(len(x), len(matrix), *x.shape[2:])


def _windows(op: Conv | Pool, x: Signed) -> Iterator[tuple[int, int, Signed]]:
    """For each place (i, j) of the kernel, what it sees of (batch, C, H, W), a map of the output's size."""
    (top, left), (down, right) = op.padding, op.stride
    count, channels, height, width = x.shape
    padded = np.zeros((count, channels, height + 2 * top, width + 2 * left), np.int64)
    padded[:, :, top : top + height, left : left + width] = x
    ends = height + 2 * top - op.kernel[0] + 1, width + 2 * left - op.kernel[1] + 1
    for i, j in itertools.product(*map(range, op.kernel)):
        yield i, j, padded[:, :, i : i + ends[0] : down, j : j + ends[1] : right]


def _bias(op: Op, integers: Integers) -> Signed:
    """To be added to (batch, …): a number for each channel of a convolution, or for each position."""
    bias = integers["bias"]
    return bias.reshape(-1, 1, 1) if isinstance(op, Conv) and bias.ndim == 1 else bias


def _polynomial(integers: Mapping[str, NDArray[Any]], z: NDArray[Any]) -> NDArray[Any]:
    c0, c1, c2 = (integers[name] for name in ("c0", "c1", "c2"))
    return c2 * z * z + c1 * z + c0


def _rearranged(op: Op, values: Sequence[Signed]) -> Signed:
    """What an op without a secret makes of (batch, …) integers, or of shares modulo 2^64."""
    x = values[0]
    match op:
        case Add():
            return x + values[1]
        case Concat():
            first, second = (np.moveaxis(value, op.axis + 1, 0) for value in values)
            return np.moveaxis(np.vstack([first, second]), 0, op.axis + 1)
        case Select():
            along = np.moveaxis(x, op.axis + 1, 0)
            behind = np.vstack([along, np.zeros((1, *along.shape[1:]), np.int64)])  # where -1 points to
            return np.moveaxis(behind[op.indices], 0, op.axis + 1)
        case Permute():
            axes = range(1, x.ndim)
            return np.einsum(x, [0, *axes], [0, *(axes[axis] for axis in op.order)])
        case Resample():
            matrix = np.zeros((op.outputs, x.shape[op.axis + 1]), np.int64)
            matrix[op.rows, op.columns] = op.factors
            return np.moveaxis(np.tensordot(matrix, x, (1, op.axis + 1)), 0, op.axis + 1)
        case Pool():
            return np.sum([view for _, _, view in _windows(op, x)], 0)
        case Scale():
            return x * op.factor
        case Reshape():
            return x.reshape(-1, *op.to)
        case _:
            raise TypeError(f"the reference has no op {op.kind}")
