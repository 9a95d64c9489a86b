"""The program of docs/wire-format.md: read, checked as far as this client runs it, and what is local computed."""

import base64
import json
import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from primitives import unpacked

SECRET = ("conv", "linear", "multiply")


class Program:
    """Attributes: ops, as JSON has them, with arrays in place of base64; shapes, of each value."""

    def __init__(self, body: bytes) -> None:
        value = json.loads(body)
        if json.dumps(value, sort_keys=True, separators=(",", ":")).encode() != body:
            raise ValueError("the program is not in its one form")
        if value["format"] != "parelu-program-3":
            raise ValueError(f"a program of format {value['format']}")
        self.ring, self.bits, self.unit = value["ring"], value["output_bits"], value["output_unit"]
        self.fraction, self.low, self.high = value["fraction"], value["low"], value["high"]
        self.preprocessing, self.ops = value["preprocessing"], value["ops"]
        self.shapes = [tuple(value["input_shape"])]
        for op in self.ops:
            for name in ("indices", "rows", "columns", "factors"):
                if name in op:
                    op[name] = np.frombuffer(base64.b64decode(op[name]), "<i4")
            for name in ("relus", "squares"):
                if name in op:
                    count = math.prod(self.shapes[op["source"]])
                    op[name] = np.flatnonzero(unpacked(base64.b64decode(op[name]), count))
            self.shapes.append(self._shape(op))
        self.classes = self.shapes[-1][0]

    def _shape(self, op: dict) -> tuple[int, ...]:
        """Of the value that an op makes: of local ones, by running it on zeros."""
        source = self.shapes[op["source"]]
        if op["kind"] == "conv":
            sides = zip(source[1:], op["kernel"], op["stride"], op["padding"], strict=True)
            return op["outputs"], *((size + 2 * p - k) // s + 1 for size, k, s, p in sides)
        if op["kind"] == "linear":
            return (op["outputs"],)
        if op["kind"] in ("multiply", "truncate", "activation"):
            return source
        zeros = [np.zeros(self.shapes[value], np.uint64) for value in (op["source"], op.get("other", 0))]
        return local(op, *zeros).shape

    def reduced(self, x: np.ndarray) -> np.ndarray:
        return x & np.uint64((1 << self.ring) - 1)

    def signed(self, x: np.ndarray) -> np.ndarray:
        shift = 64 - self.ring
        return (x << np.uint64(shift)).view(np.int64) >> np.int64(shift)

    def encode(self, image: np.ndarray) -> np.ndarray:
        """uint8 (C, H, W), of the network's own size → the input, flat."""
        if image.dtype != np.uint8 or image.shape != self.shapes[0]:
            raise ValueError(f"an image is {image.dtype} {image.shape}; the network takes uint8 {self.shapes[0]}")
        mean, std = (np.array(self.preprocessing[name])[:, None, None] for name in ("mean", "std"))
        x = np.rint((image / 255 - mean) / std * 2.0**self.fraction)
        return np.clip(x, self.low, self.high).astype(np.int64).view(np.uint64).reshape(-1)


def local(op: dict, x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What a party computes of its shares alone."""
    match op["kind"]:
        case "shift":
            return x
        case "add":
            return x + other
        case "concat":
            return np.concatenate([x, other], op["axis"])
        case "reshape":
            return x.reshape(op["to"])
        case "permute":
            return x.transpose(op["order"])
        case "scale":
            return x * np.int64(op["factor"]).astype(np.uint64)
        case "select":
            zero = np.zeros_like(x.take([0], op["axis"]))
            return np.concatenate([x, zero], op["axis"]).take(op["indices"], op["axis"])  # −1 takes the last
        case "resample":
            matrix = np.zeros((op["outputs"], x.shape[op["axis"]]), np.uint64)
            matrix[op["rows"], op["columns"]] = op["factors"].astype(np.uint64)
            return np.moveaxis(np.tensordot(matrix, x, (1, op["axis"])), 0, op["axis"])
        case "pool":
            padded = np.pad(x, [(0, 0), *((p, p) for p in op["padding"])])
            windows = sliding_window_view(padded, op["kernel"], (1, 2))
            return windows[:, :: op["stride"][0], :: op["stride"][1]].sum((-2, -1))
    raise ValueError(f"an op of kind {op['kind']!r}")
