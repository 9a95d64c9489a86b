"""From a network to a program and the server's integers: layers fused, fixed point, ranges by calibration."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parelu.errors import UserError
from parelu.fusion.fuse import Cost, fuse
from parelu.fusion.packing import seconds
from parelu.network import ops, storage
from parelu.network.sites import Network
from parelu.private.crypto.ring import WIDE, Ring
from parelu.private.lowering.calibrate import calibrate
from parelu.private.lowering.program import FORMAT, Program
from parelu.private.lowering.refusals import refusals
from parelu.private.lowering.translate import WEIGHT_BITS, Integers, Range, Translation

LEAST_SQUARE_BITS = 6  # c2 takes fewer than WEIGHT_BITS, down to this, where many squares would make a wrap too likely
SALT_BYTES = 32
LARGEST_WRAP = 1e-4  # bound on the probability that a truncation wraps, an inference


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


def lower(
    network: Network,
    images: Tensor,
    preprocessing: Mapping[str, Any],
    *,
    cost: Cost = seconds,
    ring: Ring = WIDE,
) -> Lowered:
    """Fuse and lower a network that follows its plan and has its weights.

    images: uint8 (N, *network.input_shape), training images that the ranges are calibrated on; a few hundred do.
    preprocessing: of a candidate: mean, std, and image, (C, H, W) of the data set's images, else the network's input.
    cost: what fusion weighs; `fuse.nothing` for the layers as they are.
    ring: of the offline mode that is to run it (`Mode.ring_bits`).

    Raises:
        UserError: an op has no secure lowering (one line each), or the wrap bound is above 1e-4.
    """
    fused = network if ops.unsupported(network) else fuse(network, cost=cost)
    found = refusals(fused)
    if found:
        raise UserError("\n".join(map(str, found)))
    mean, std = (tuple(map(float, preprocessing[name])) for name in ("mean", "std"))
    native = preprocessing.get("image", network.input_shape)
    seen = calibrate(fused, images, mean, std)
    described = {"mean": list(mean), "std": list(std), "image": list(native)}
    tried: list[float] = []
    for square_bits, is_late in itertools.product(range(WEIGHT_BITS, LEAST_SQUARE_BITS - 1, -1), (True, False)):
        translation = Translation(fused, seen, ring, square_bits, is_late)
        try:
            program = translation.program(described)
        except ValueError as error:
            raise UserError(f"the network is too large to be run privately: {error}; use smaller images") from error
        lowered = Lowered(program, translation.weights, tuple(translation.ranges))
        if lowered.wrap_bound <= LARGEST_WRAP:
            return lowered
        tried.append(lowered.wrap_bound)
    raise UserError(
        f"a truncation may wrap with probability {min(tried):.1e} an inference, more than "
        f"{LARGEST_WRAP:g}; " + _remedy(ring)
    )


def _remedy(ring: Ring) -> str:
    """Where a truncation may wrap."""
    smaller = "keep activations and the number of squares smaller"
    return f"{smaller}, or give an offline mode with a ring of 64 bits" if ring != WIDE else smaller
