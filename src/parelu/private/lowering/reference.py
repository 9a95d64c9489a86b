"""The ring program run by one party alone: the accuracy that private inference will have, and the oracle of its tests.

`run` works on batches of plain integers and reports every value that leaves its range. `replay` takes the
client's shares of one inference as well, and so truncates as the two parties do: its result is theirs, to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from parelu.network.preprocessing import normalise
from parelu.private.crypto.ring import LinearMap, Ring, decode, encode, truncate_client, truncate_server
from parelu.private.lowering.lower import Integers, Lowered
from parelu.private.lowering.program import Activation, Conv, Linear, Op, Program, Truncate, local, sources

BATCH = 50

Signed = NDArray[np.int64]


def linear_map(op: Op, integers: Integers) -> Callable[[Ring], Ring]:
    """W of a secret op as a function of (batch, …) ring elements, modulo 2^64; the bias is left out."""
    match op:
        case Conv():
            return LinearMap(integers["weight"], op.stride, op.padding, op.groups)
        case Linear():
            return LinearMap(integers["weight"])
        case _:
            factor = encode(integers["weight"])
            return lambda x: x * factor


def bias_of(op: Op, integers: Integers) -> Signed:
    """As it is added to (batch, …)."""
    bias = integers["bias"]
    return bias[:, None, None] if isinstance(op, Conv) and bias.ndim == 1 else bias


def encode_images(program: Program, images: Tensor) -> Signed:
    """uint8 (N, C, H, W) → the input's integers, normalised as the network was trained."""
    mean, std = (tuple(program.preprocessing[name]) for name in ("mean", "std"))
    return np.rint(normalise(images, mean, std).double().numpy() * 2.0**program.fraction).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Result:
    """logits: float (N, classes); overflows: positions of ReLUs whose |x| reached 2^(m − 1), of all `values`."""

    logits: NDArray[np.float64]
    overflows: int
    values: int

    @property
    def labels(self) -> Signed:
        return self.logits.argmax(1)


def run(lowered: Lowered, images: Tensor, progress: Callable[[int], None] = lambda done: None) -> Result:
    """The ring program on uint8 (N, C, H, W), truncating to the nearest.

    A ReLU whose input leaves its calibrated range is computed rightly here, and counted: in a secure run its sign could
    be wrong. An image whose values leave what is exact here, as squares can make them, would be lost in a secure run:
    its logits are zeros, and all its ReLUs are counted.
    """
    program = lowered.program
    maps = {i: linear_map(op, lowered.weights[i]) for i, op in enumerate(program.ops) if op.is_secret}
    logits, overflows = [], 0
    for batch in images.split(BATCH):
        for values, left in _evaluate(lowered, maps, batch):
            logits.append(values)
            overflows += left
        progress(len(batch))
    return Result(np.concatenate(logits), overflows, len(images) * program.relus)


def _evaluate(
    lowered: Lowered, maps: Mapping[int, Callable[[Ring], Ring]], images: Tensor
) -> list[tuple[NDArray[np.float64], int]]:
    """Logits and ReLUs out of range of parts of a batch, in order; parts, because one image can be lost."""
    try:
        return [_exactly(lowered, maps, images)]
    except OverflowError:
        if len(images) == 1:
            classes = lowered.program.shapes[-1]
            return [(np.zeros((1, *classes)), lowered.program.relus)]
        first, second = images.split(-(-len(images) // 2))
        return _evaluate(lowered, maps, first) + _evaluate(lowered, maps, second)


def _exactly(
    lowered: Lowered, maps: Mapping[int, Callable[[Ring], Ring]], images: Tensor
) -> tuple[NDArray[np.float64], int]:
    """Logits and ReLUs out of range; raises OverflowError where a product-sum is not exact."""
    program, overflows = lowered.program, 0
    values: list[Signed] = [encode_images(program, images)]
    for number, op in enumerate(program.ops):
        x = values[op.source]
        if op.is_secret:
            y = _plain_linear(op, maps[number], lowered.weights[number], x)
        elif isinstance(op, Truncate):
            y = _rounded(x, op.bits)
        elif isinstance(op, Activation):
            y = _activate(op, lowered.weights.get(number, {}), x)
            overflows += int((np.abs(x.reshape(len(x), -1)[:, op.relus]) >= 1 << (op.bits - 1)).sum())
        else:
            y = local(op, *(values[i].view(np.uint64) for i in sources(op))).view(np.int64)
        values.append(y)
    return (values[-1] * program.output_unit).astype(np.float64), overflows


def _plain_linear(op: Op, apply: Callable[[Ring], Ring], integers: Integers, x: Signed) -> Signed:
    y = apply.small(x) if isinstance(apply, LinearMap) else x * integers["weight"]
    return y + bias_of(op, integers)


def _activate(op: Activation, integers: Integers, x: Signed) -> Signed:
    y = x.reshape(len(x), -1).copy()
    y[:, op.relus] = np.maximum(y[:, op.relus], 0)
    if len(op.squares):
        z = y[:, op.squares]
        full = integers["c0"] + z * (integers["c1"] + z * integers["c2"])
        y[:, op.squares] = _rounded(full, op.truncation)
    return y.reshape(x.shape)


def replay(lowered: Lowered, image: Tensor, client: Mapping[int, Ring], relu: str) -> Ring:
    """The last value of one inference, (classes,), given the client's shares of it.

    client: number of a value → the client's share, flat: of the input and of each linear op's output, and of an
    activation's output at its ReLUs, then its squares; the squares' own share before truncation under −number.
    relu: "full" looks at all bits of the input, every other protocol at m.
    """
    program = lowered.program
    maps = {i: linear_map(op, lowered.weights[i]) for i, op in enumerate(program.ops) if op.is_secret}
    values = [encode(encode_images(program, image[None]))]
    shares = [client[0].reshape(values[0].shape)]
    for number, op in enumerate(program.ops):
        x, c = values[op.source], shares[op.source]
        if op.is_secret:
            y = maps[number](x) + encode(bias_of(op, lowered.weights[number]))
            share = client[number + 1].reshape(y.shape)
        elif isinstance(op, Truncate):
            share = truncate_client(c, op.bits)
            y = share + truncate_server(x - c, op.bits)
        elif isinstance(op, Activation):
            y, share = _replay_activation(op, lowered.weights.get(number, {}), x, c, client, number + 1, relu)
        else:
            pairs = [(values[i], shares[i]) for i in sources(op)]
            y, share = (local(op, *parts) for parts in zip(*pairs, strict=True))
        values.append(encode(decode(y)))
        shares.append(share)
    return values[-1][0]


def _replay_activation(
    op: Activation, integers: Integers, x: Ring, c: Ring, client: Mapping[int, Ring], number: int, relu: str
) -> tuple[Ring, Ring]:
    y, share = x.reshape(-1).copy(), c.reshape(-1).copy()
    z = y[op.relus]
    bits = 59 if relu == "full" else op.bits
    y[op.relus] = np.where((z >> np.uint64(bits - 1)) & np.uint64(1) == 0, z, np.uint64(0))
    if len(op.squares):
        z = y[op.squares]
        full = encode(integers["c0"]) + z * (encode(integers["c1"]) + z * encode(integers["c2"]))
        before = client[-number]
        y[op.squares] = truncate_client(before, op.truncation) + truncate_server(full - before, op.truncation)
    fresh = client[number]
    share[op.relus], share[op.squares] = fresh[: len(op.relus)], fresh[len(op.relus) :]
    return y.reshape(x.shape), share.reshape(c.shape)


def _rounded(x: Signed, bits: int) -> Signed:
    """x / 2^bits to the nearest: the mean of what two parties' truncations give."""
    return (x + (np.int64(1) << np.int64(bits - 1))) >> np.int64(bits)
