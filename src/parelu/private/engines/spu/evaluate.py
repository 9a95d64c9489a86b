"""A program on fixed-point numbers, with numpy's functions or those of jax.numpy, which SPU traces.

It reads a program as its canonical JSON and needs numpy alone.

An integer n of value v stands for the number n / 2^e, e the value's exponent. The input's is the program's `fraction`,
10, and so is that of whatever was truncated: numbers there are the network's activations. A secret op's integer weights
are divided by 2^k, k the bits of the truncation that follows, so that its output has k more in its exponent and the
truncation nothing to do but take them off: it costs nothing here, and its rounding is left out. At most PRECISION bits
are divided off, or a weight of small bits would lose them; what is left over makes numbers larger by as much, and the
next secret op takes it off. An engine with numbers of 64 bits and PRECISION behind the point makes products of twice
PRECISION, so a number must stay below 2^(62 − 2·PRECISION) = `LARGEST`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

PRECISION = 18  # bits behind the point, SPU's default for rings of 64 bits
LARGEST = 2.0 ** (62 - 2 * PRECISION)

Program = Mapping[str, Any]
Convolve = Callable[[Any, Any, tuple[int, int], tuple[int, int], int], Any]


def exponents(program: Program) -> list[int]:
    """e of each value, the input's first."""
    fraction, ops = program["fraction"], program["ops"]
    truncated = truncations(program)
    logits = round(-math.log2(program["output_unit"])) - fraction  # the last linear op has no truncation
    found = [fraction]
    for number, op in enumerate(ops, start=1):
        e = found[op["source"]]
        if op["kind"] in ("conv", "linear", "multiply", "scale"):
            e += min(max(fraction + truncated.get(number, logits) - e, 0), PRECISION)
        elif op["kind"] == "truncate":
            e -= op["bits"]
        elif op["kind"] == "resample":
            e += min(truncated.get(number, 0), PRECISION)
        elif op["kind"] in ("add", "concat"):
            e = min(e, found[op["other"]])
        found.append(e)
    return found


def truncations(program: Program) -> dict[int, int]:
    """Value → bits of the truncation behind it, also behind additions and public powers of two."""
    found: dict[int, int] = {}
    for number, op in reversed(list(enumerate(program["ops"], start=1))):
        bits = found.get(number)
        if op["kind"] == "truncate":
            found[op["source"]] = op["bits"]
        elif op["kind"] == "add" and bits is not None:
            found |= {op["source"]: bits, op["other"]: bits}
        elif op["kind"] == "scale" and bits is not None:
            found[op["source"]] = bits - round(math.log2(abs(op["factor"])))
    return found


def numbers(program: Program, integers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The server's integers, named "number of the op/name", as what `evaluate` takes: float64 under the same names."""
    e, ops = exponents(program), program["ops"]

    def exponent(op: int, name: str) -> int:
        source, result, truncation = e[ops[op]["source"]], e[op + 1], ops[op].get("truncation", 0)
        return {
            "weight": result - source,
            "bias": result,
            "c0": truncation + source,
            "c1": truncation,
            "c2": truncation - source,
        }[name]

    parts = ((path, *path.split("/")) for path in integers)
    return {path: integers[path] / 2.0 ** exponent(int(op), name) for path, op, name in parts}


def evaluate(program: Program, secrets: Mapping[str, Any], images: Any, xp: Any, convolve: Convolve) -> Any:
    """Numbers of the last value, (batch, classes).

    secrets: as from `numbers`; images: (batch, C, H, W), integers / 2^fraction; xp: numpy or jax.numpy.
    convolve: of x (batch, C, H, W), weight (O, C / groups, kh, kw), stride, padding and groups, which are 1 or C.
    """
    e, values = exponents(program), [images]
    for number, op in enumerate(program["ops"]):
        x = values[op["source"]]
        own = {
            name: secrets[f"{number}/{name}"]
            for name in ("weight", "bias", "c0", "c1", "c2")
            if f"{number}/{name}" in secrets
        }
        match op["kind"]:
            case "conv":
                y = _convolution(op, x, own["weight"], xp, convolve) + own["bias"][:, None, None]
            case "linear":
                y = xp.matmul(x, own["weight"].T) + own["bias"]
            case "multiply":
                y = x * own["weight"] + own["bias"]
            case "shift":
                y = x + own["bias"]
            case "add" | "concat":
                sources = (op["source"], op["other"])
                left, right = (_times(values[s], 2.0 ** (e[s] - e[number + 1])) for s in sources)
                y = left + right if op["kind"] == "add" else xp.concatenate([left, right], axis=op["axis"] + 1)
            case "permute":
                y = xp.transpose(x, (0, *(axis + 1 for axis in op["order"])))
            case "select":
                y = _select(op, x, xp)
            case "resample":
                y = _resample(op, x, 2.0 ** (e[number + 1] - e[op["source"]]), xp)
            case "pool":
                y = _pool(op, x, xp)
            case "scale":
                y = _times(x, op["factor"] / 2.0 ** (e[number + 1] - e[op["source"]]))
            case "reshape":
                y = x.reshape(len(x), *op["to"])
            case "truncate":
                y = x
            case "activation":
                y = _activation(op, x, own, xp)
            case kind:
                raise ValueError(f"unknown op {kind}")
        values.append(y)
    return values[-1]


def _times(x: Any, factor: float) -> Any:
    return x if factor == 1 else x * np.float32(factor)


def _convolution(op: Mapping[str, Any], x: Any, weight: Any, xp: Any, convolve: Convolve) -> Any:
    """Groups that are neither one nor the channels are convolutions of their own: SPU has no other."""
    stride, padding, groups = tuple(op["stride"]), tuple(op["padding"]), op["groups"]
    if groups in (1, x.shape[1]):
        return convolve(x, weight, stride, padding, groups)
    ins, outs = x.shape[1] // groups, len(weight) // groups
    parts = [
        convolve(x[:, g * ins : (g + 1) * ins], weight[g * outs : (g + 1) * outs], stride, padding, 1)
        for g in range(groups)
    ]
    return xp.concatenate(parts, axis=1)


def _pool(op: Mapping[str, Any], x: Any, xp: Any) -> Any:
    """Sums over windows, first over their rows, then over their columns."""
    padding, shape = op["padding"], x.shape
    if any(padding):
        x = xp.pad(x, ((0, 0), (0, 0), *((side, side) for side in padding)))
    for axis, size, kernel, step, pad in zip((2, 3), shape[2:], op["kernel"], op["stride"], padding, strict=True):
        count = (size + 2 * pad - kernel) // step + 1
        if count == 1:
            x = _slice(x, axis, 0, kernel, 1).sum(axis, keepdims=True)
        else:
            x = sum(_slice(x, axis, first, first + (count - 1) * step + 1, step) for first in range(kernel))
    return x


def _select(op: Mapping[str, Any], x: Any, xp: Any) -> Any:
    where, axis = indices(op["indices"]), op["axis"] + 1
    found = xp.take(x, np.maximum(where, 0), axis=axis, mode="clip")
    if (where >= 0).all():
        return found
    return found * (where >= 0).astype(np.float32).reshape(-1, *[1] * (x.ndim - axis - 1))


def _resample(op: Mapping[str, Any], x: Any, divisor: float, xp: Any) -> Any:
    axis, matrix = op["axis"] + 1, np.zeros((op["outputs"], x.shape[op["axis"] + 1]), np.float32)
    matrix[indices(op["rows"]), indices(op["columns"])] = indices(op["factors"]) / divisor
    return xp.moveaxis(xp.matmul(xp.moveaxis(x, axis, -1), matrix.T), -1, axis)


def _slice(x: Any, axis: int, first: int, end: int, step: int) -> Any:
    return x[(slice(None),) * axis + (slice(first, end, step),)]


def _activation(op: Mapping[str, Any], x: Any, own: Mapping[str, Any], xp: Any) -> Any:
    """Only the positions of ReLUs and squares are gathered and worked on; one more gather puts all into place.

    A scatter would be a loop over elements in SPU, and a gather that checks its indices takes seconds to compile.
    """
    flat = x.reshape(len(x), -1)
    size = flat.shape[1]
    relus, squares = positions(op["relus"], size), positions(op["squares"], size)
    if len(relus) == size:
        return xp.maximum(x, 0)
    parts, source = [flat], np.arange(size)
    for chosen, apply in (
        (relus, lambda z: xp.maximum(z, 0)),
        (squares, lambda z: own["c0"] + z * (own["c1"] + z * own["c2"])),
    ):
        if len(chosen):
            source[chosen] = sum(part.shape[1] for part in parts) + np.arange(len(chosen))
            parts.append(apply(xp.take(flat, chosen, axis=1, mode="clip")))
    return xp.take(xp.concatenate(parts, axis=1), source, axis=1, mode="clip").reshape(x.shape)


def indices(text: str) -> np.ndarray:
    """A list of integers as a program writes it: 32 bits each, in base64."""
    return np.frombuffer(base64.b64decode(text), "<i4")


def positions(text: str, size: int) -> np.ndarray:
    """Sorted positions in a flat value, as a program writes them: the bits of base64."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), bitorder="little")
    return np.flatnonzero(bits[:size])
