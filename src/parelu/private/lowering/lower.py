"""From a network to a program and the server's integers: layers fused, fixed point, ranges by calibration."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from parelu.errors import UserError
from parelu.fusion.fuse import Cost, fuse
from parelu.fusion.packing import seconds
from parelu.network import ops, storage, trace
from parelu.network.sites import IDENTITY, Network, Site
from parelu.private.crypto.ring import WIDE, Ring
from parelu.private.lowering.calibrate import Calibration, Seen, calibrate, spread, squares
from parelu.private.lowering.ops import (
    Activation,
    Add,
    Concat,
    Conv,
    Flatten,
    Linear,
    Multiply,
    Op,
    Pool,
    Scale,
    Slice,
    Truncate,
)
from parelu.private.lowering.program import Program
from parelu.private.lowering.refusals import refusals

FRACTION = 10  # bits after the point of an activation
WEIGHT_BITS = 12  # the largest weight of a layer takes so many, and the largest c2 of a site
LEAST_SQUARE_BITS = 6  # c2 takes fewer, down to this, where many squares would make a wrap too likely
SPARE_BITS = 1  # the calibrated range may be exceeded so often by a factor of two
SALT_BYTES = 32
LARGEST_WRAP = 1e-4  # bound on the probability that a truncation wraps, an inference

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
        tensors = {
            f"{op}/{name}": torch.from_numpy(np.ascontiguousarray(values))
            for op, integers in self.weights.items()
            for name, values in integers.items()
        }
        header = {
            "program": self.program.to_bytes().decode(),
            "ranges": [dataclasses.asdict(r) for r in self.ranges],
            "candidate": candidate,
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
        try:
            lowered = _Lowering(fused, seen, ring, square_bits, is_late).result(described)
        except ValueError as error:
            raise UserError(f"the network is too large to be run privately: {error}; use smaller images") from error
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


@dataclasses.dataclass(frozen=True)
class _Value:
    """waiting: bits of a truncation that is still to come."""

    number: int
    unit: float
    waiting: int = 0

    @property
    def truncated_unit(self) -> float:
        return self.unit * 2.0**self.waiting

    def has_unit_of(self, other: _Value) -> bool:
        """Once both are truncated."""
        return math.isclose(self.truncated_unit, other.truncated_unit, rel_tol=1e-12)


class _Lowering:
    """Walks the fused graph and writes ops; `values` has the number and unit of each node's tensor.

    is_late: whether a truncation waits until behind an addition that alone reads its value. A sum is then rounded
    once, and what a residual block's ReLU reads comes from a truncation, which a ReLU protocol can do exactly.
    """

    def __init__(self, network: Network, seen: Calibration, ring: Ring, square_bits: int, is_late: bool) -> None:
        self.network, self.seen, self.ring = network, seen, ring
        self.square_bits, self.is_late = square_bits, is_late
        self.ops: list[Op] = []
        self.layers: list[str] = []
        self.weights: dict[int, Integers] = {}
        self.ranges: list[Range] = []
        self.values: dict[fx.Node, _Value] = {}
        self.output = next(iter(network.graph.find_nodes(op="output"))).all_input_nodes[0]

    def result(self, preprocessing: Mapping[str, list[float]]) -> Lowered:
        for node, op in ops.read_all(self.network).items():
            match op:
                case ops.Input():
                    self.values[node] = _Value(0, 2.0**-FRACTION)
                case ops.Output() | ops.Constant() | ops.Number():
                    pass
                case _:
                    self.values[node] = self._lowered(node, op)
        logits = self.values[self.output]
        output_bits = 2 + SPARE_BITS + _bits(self.seen.values[self.output].largest / logits.unit)
        normalising = zip(preprocessing["mean"], preprocessing["std"], strict=True)
        edges = [(side - m) / s * 2.0**FRACTION for m, s in normalising for side in (0.0, 1.0)]
        program = Program(
            input_shape=self.network.input_shape,  # pyright: ignore[reportArgumentType]
            fraction=FRACTION,
            low=math.floor(min(edges)),
            high=math.ceil(max(edges)),
            output_unit=logits.unit,
            output_bits=min(output_bits, self.ring.bits),
            ops=tuple(self.ops),
            layers=tuple(self.layers),
            preprocessing=preprocessing,
            ring=self.ring,
        )
        return Lowered(program, self.weights, tuple(self.ranges))

    def _lowered(self, node: fx.Node, op: ops.Op) -> _Value:
        """Emit what an op becomes; the value that it makes."""
        source = next(self.values[n] for n in node.all_input_nodes if n in self.values)
        match op:
            case ops.Identity():
                return source
            case ops.Activation(site):
                return self._site(node, site, source)
            case ops.Convolution(layer):
                conv = Conv(source.number, layer.out_channels, *op.window, layer.groups)
                return self._linear(node, conv, source.unit, layer.weight, layer.bias)
            case ops.Linear(layer):
                matrix = Linear(source.number, layer.out_features)
                return self._linear(node, matrix, source.unit, layer.weight, layer.bias)
            case ops.BatchNorm(norm):
                return self._batch_norm(node, norm, source)
            case ops.Addition(left, right):
                return self._sum(node, self.values[left], self.values[right])
            case ops.Concat(parts):
                return self._concat(node, [self.values[part] for part in parts])
            case ops.Select():
                return _Value(self._emit(node, Slice(source.number, *op.channels)), source.unit)
            case ops.Pool(kernel, stride, padding):
                number = self._emit(node, Pool(source.number, kernel, stride, padding))
                if len(node.meta["shape"]) == 1:
                    number = self._emit(node, Flatten(number))
                return _Value(number, source.unit / math.prod(kernel))
            case ops.Reshape():
                return _Value(self._emit(node, Flatten(source.number)), source.unit)
            case _:
                raise AssertionError(f"{op} has no lowering and was not refused")

    def _emit(self, node: fx.Node, op: Op) -> int:
        self.ops.append(op)
        self.layers.append(str(node.target) if node.op == "call_module" else trace.owner(node) or node.name)
        return len(self.ops)

    def _linear(self, node: fx.Node, op: Op, unit: float, weight: Tensor, bias: Tensor | None) -> _Value:
        """Emit a linear op with weights of WEIGHT_BITS bits; a truncation follows unless it makes the logits."""
        real = weight.detach().double().numpy() * unit * 2.0**FRACTION
        largest = float(np.abs(real).max(initial=0.0))
        bits = min(max(WEIGHT_BITS - (math.frexp(largest)[1] if largest else WEIGHT_BITS - 1), 1), 30)
        summand = np.zeros(len(real)) if bias is None else bias.detach().double().numpy()
        scale = 2.0 ** (FRACTION + bits)
        number = self._emit(node, op)
        self.weights[number - 1] = {"weight": _rounded(real * 2.0**bits), "bias": _rounded(summand * scale)}
        if node is self.output:
            return _Value(number, 1 / scale)
        value = _Value(number, 1 / scale, bits)
        return value if self.is_late and _is_only_added(node) else self._truncate(node, value)

    def _truncate(self, node: fx.Node, value: _Value) -> _Value:
        """What waits is done now."""
        if not value.waiting:
            return value
        elements = math.prod(node.meta["shape"])
        self._range(node, "truncate", self.seen.values[node], value.unit, elements, value.waiting)
        return _Value(self._emit(node, Truncate(value.number, value.waiting)), value.truncated_unit)

    def _batch_norm(self, node: fx.Node, module: Any, source: _Value) -> _Value:
        """One that could not be folded: a depthwise 1×1 convolution, or a diagonal."""
        factor = 1 / (module.running_var + module.eps).sqrt()
        factor = factor * module.weight if module.weight is not None else factor
        summand = -module.running_mean * factor
        summand = summand + module.bias if module.bias is not None else summand
        shape = node.meta["shape"]
        if len(shape) == 1:
            return self._linear(node, Multiply(source.number), source.unit, factor, summand)
        op = Conv(source.number, shape[0], (1, 1), (1, 1), (0, 0), shape[0])
        return self._linear(node, op, source.unit, factor.view(-1, 1, 1, 1), summand)

    def _same_unit(self, node: fx.Node, *values: _Value) -> list[_Value]:
        """Bring values to one unit, once all are truncated: a public factor (after an average pool)."""
        if values[0].has_unit_of(values[1]):
            return list(values)
        target = _Value(0, 2.0**-FRACTION)

        def rescaled(value: _Value) -> _Value:
            if value.has_unit_of(target):
                return value
            number = self._emit(node, Scale(value.number, round(value.unit / target.unit * 2.0**WEIGHT_BITS)))
            return _Value(number, target.unit / 2.0**WEIGHT_BITS, WEIGHT_BITS)

        return [rescaled(value) for value in values]

    def _sum(self, node: fx.Node, left: _Value, right: _Value) -> _Value:
        """Emit an addition, and the truncation that its terms wait for, if any."""
        terms = self._same_unit(node, left, right)
        if not self.is_late:
            terms = [self._truncate(node, term) for term in terms]
        waiting = max(term.waiting for term in terms)
        first, second = (self._raised(node, term, waiting - term.waiting) for term in terms)
        total = _Value(self._emit(node, Add(first, second)), terms[0].truncated_unit / 2.0**waiting, waiting)
        return total if _is_only_added(node) else self._truncate(node, total)

    def _raised(self, node: fx.Node, value: _Value, bits: int) -> int:
        """The number of the value times 2^bits."""
        return self._emit(node, Scale(value.number, 1 << bits)) if bits else value.number

    def _concat(self, node: fx.Node, parts: Sequence[_Value]) -> _Value:
        joined = parts[0]
        for part in parts[1:]:
            left, right = (self._truncate(node, value) for value in self._same_unit(node, joined, part))
            joined = _Value(self._emit(node, Concat(left.number, right.number)), left.unit)
        return joined

    def _site(self, node: fx.Node, site: Site, source: _Value) -> _Value:
        """Polynomials of degree 1 as a linear op, then ReLUs and squares together."""
        source = self._lines(node, site, source)
        relus, positions = (_positions(where) for where in (site.mask, squares(site)))
        if not (len(relus) or len(positions)):
            return source
        source = self._truncate(node, source)
        seen = self.seen.relus[node]
        bits = 1 + SPARE_BITS + _bits(seen.largest / source.unit)
        if bits > self.ring.bits:
            raise UserError(f"{site.name}: activations reach {seen.largest:.3g}: more than the ring holds")
        if len(relus):
            self._range(node, "relu", seen, source.unit, len(relus), bits)
        truncation = self._squares(node, site, source.unit) if len(positions) else 0
        op = Activation(source.number, relus, bits, positions, truncation)
        return _Value(self._emit(node, op), source.unit)

    def _lines(self, node: fx.Node, site: Site, source: _Value) -> _Value:
        """Emit c0 + c1·x where a site has that and it is not the identity."""
        identity = torch.tensor(IDENTITY)[:, None]
        of_channels = (site.coefficients != identity).any(0) & (site.coefficients[2] == 0)
        lines = spread(of_channels, site.shape) & ~site.mask
        if not lines.any():
            return source
        c0, c1, _ = (spread(c, site.shape) for c in site.coefficients)
        factor, summand = torch.where(lines, c1, torch.ones(())), torch.where(lines, c0, torch.zeros(()))
        return self._linear(node, Multiply(source.number), source.unit, factor, summand)

    def _squares(self, node: fx.Node, site: Site, unit: float) -> int:
        """Write the numbers of the squares for the next op; the bits that it truncates them by."""
        where = squares(site)
        c0, c1, c2 = (spread(c, site.shape)[where].double().numpy() for c in site.coefficients)
        truncation = FRACTION + self.square_bits - min(2, math.frexp(float(np.abs(c2).max()))[1])
        scale = 2.0**truncation
        self.weights[len(self.ops)] = {
            "c0": _rounded(c0 / unit * scale),
            "c1": _rounded(c1 * scale),
            "c2": _rounded(c2 * unit * scale),
        }
        self._range(node, "square", self.seen.squares[node], unit / scale, len(c2), truncation)
        return truncation

    def _range(self, node: fx.Node, kind: str, seen: Seen, unit: float, elements: int, bits: int) -> None:
        self.ranges.append(Range(str(node.target), kind, seen.largest, seen.mean, unit, elements, bits))


def _is_only_added(node: fx.Node) -> bool:
    """Whether nothing but one addition reads the value."""
    return [type(ops.read(user)) for user in node.users] == [ops.Addition]


def _positions(where: Tensor) -> NDArray[np.int64]:
    return np.flatnonzero(where.flatten().numpy())


def _rounded(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values).astype(np.int64)


def _bits(largest: float) -> int:
    """Bits of the magnitude of integers up to `largest`."""
    return max(math.ceil(largest), 1).bit_length()
