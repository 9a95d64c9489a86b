"""A program with the server's integers: what lowering makes, kept in two files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parelu.errors import UserError
from parelu.network import storage
from parelu.private.lowering.program import FORMAT, Program

SALT_BYTES = 32
WEIGHT_BITS = 12  # the largest weight of a layer takes so many, and the largest c2 of a site

Integers = Mapping[str, NDArray[np.int64]]  # weight, bias of a linear op; c0, c1, c2 of an activation's squares


@dataclasses.dataclass(frozen=True)
class Range:
    """What calibration saw of one value of the network.

    largest, mean: of |x|; unit: what one integer is worth; bits: what a ReLU or a truncation there works on.
    """

    layer: str
    kind: str
    largest: float
    mean: float
    unit: float
    elements: int
    bits: int


@dataclasses.dataclass(frozen=True, eq=False)
class Lowered:
    """A program with the server's secrets.

    Attributes:
        weights: number of the op → its integers.
        ranges: what calibration saw at the truncations and activations.
        salt: hides the weights in their commitment, and is the key of what hides them in hints. As secret as they are:
            not to be shown, not even to open the commitment.
    """

    program: Program
    weights: Mapping[int, Integers]
    ranges: tuple[Range, ...]
    salt: bytes = dataclasses.field(default_factory=lambda: os.urandom(SALT_BYTES))

    @functools.cached_property
    def commitment(self) -> str:
        """SHA-256 of the salt and all integers, which binds to the weights and tells nothing of them."""
        digest = hashlib.sha256(self.salt)
        for op, integers in sorted(self.weights.items()):
            for name, values in sorted(integers.items()):
                digest.update(f"{op}/{name} {values.shape} ".encode())
                digest.update(values.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def wrap_bound(self) -> float:
        """Bound on the probability that any truncation of one inference wraps: Σ 4·mean|x| / 2^bits of the ring."""
        truncations = (r for r in self.ranges if r.kind in ("truncate", "square"))
        return sum(4 * r.elements * r.mean / r.unit for r in truncations) / 2.0**self.program.ring.bits

    def save(self, folder: Path, candidate: str = "") -> None:
        """Write program.json and program.safetensors. candidate: SHA-256 of the weights that it was lowered from."""
        import torch

        tensors = {
            f"{op}/{name}": torch.from_numpy(np.ascontiguousarray(values))
            for op, integers in self.weights.items()
            for name, values in integers.items()
        }
        header = {
            "program": self.program.to_bytes().decode(),
            "ranges": [dataclasses.asdict(r) for r in self.ranges],
            "candidate": candidate,
            "program_format": FORMAT,
            "salt": self.salt.hex(),
        }
        storage.write(folder, "program", header, tensors)

    @classmethod
    def load(cls, folder: Path) -> Lowered:
        """Read what `save` wrote; raises `UserError` where it was damaged."""
        header, tensors = storage.read(folder, "program")
        weights: dict[int, dict[str, NDArray[np.int64]]] = {}
        try:
            for path, tensor in tensors.items():
                op, name = path.split("/")
                weights.setdefault(int(op), {})[name] = tensor.numpy()
            program = Program.from_bytes(header["program"].encode())
            ranges = tuple(Range(**entry) for entry in header["ranges"])
            salt = bytes.fromhex(header["salt"])
            if len(salt) != SALT_BYTES:
                raise ValueError(f"a salt of {len(salt)} bytes")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{folder}/program.json is not a program of this version ({error}); make it anew"
            ) from error
        return cls(program, weights, ranges, salt)
