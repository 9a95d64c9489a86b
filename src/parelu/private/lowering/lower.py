"""From a network to a program and the server's integers: layers fused, fixed point, ranges by calibration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.fusion.fuse import Cost, fuse
from parelu.fusion.packing import seconds
from parelu.network import ops, storage, trace
from parelu.network.ops import Problem
from parelu.network.preprocessing import normalise
from parelu.network.sites import IDENTITY, Network, Site
from parelu.private.crypto.ring import BITS
from parelu.private.lowering.program import (
    Activation,
    Add,
    Concat,
    Conv,
    Flatten,
    Linear,
    Multiply,
    Op,
    Pool,
    Program,
    Scale,
    Slice,
    Truncate,
)

FRACTION = 10  # bits behind the point of an activation
WEIGHT_BITS = 12  # the largest weight of a layer takes so many, and the largest c2 of a site
LEAST_SQUARE_BITS = 6  # c2 takes fewer, down to this, where many squares would make a wrap too likely
SPARE_BITS = 1  # the calibrated range may be exceeded so often by a factor of two
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
    """

    program: Program
    weights: Mapping[int, Integers]
    ranges: tuple[Range, ...]

    @property
    def wrap_bound(self) -> float:
        """Bound on the probability that any truncation of one inference wraps: Σ 4·mean|x| / 2^59."""
        truncations = (r for r in self.ranges if r.kind in ("truncate", "square"))
        return sum(4 * r.elements * r.mean / r.unit for r in truncations) / 2.0**BITS

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
        }
        storage.write(folder, "program", header, tensors)

    @classmethod
    def load(cls, folder: Path) -> Lowered:
        """Read what `save` wrote; raises `UserError` where it was damaged."""
        header, tensors = storage.read(folder, "program")
        weights: dict[int, dict[str, NDArray[np.int64]]] = {}
        for path, tensor in tensors.items():
            op, name = path.split("/")
            weights.setdefault(int(op), {})[name] = tensor.numpy()
        try:
            program = Program.from_bytes(header["program"].encode())
            ranges = tuple(Range(**entry) for entry in header["ranges"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{folder}/program.json is not a program of this version ({error})") from error
        return cls(program, weights, ranges)


def problems(network: Network) -> tuple[Problem, ...]:
    """Every op that has no secure lowering, with its module path and the remedy."""
    return _problems(network if network.problems else fuse(network))


def _problems(fused: Network) -> tuple[Problem, ...]:
    found = (ops.problem(node, (Site,)) or _problem(node) for node in fused.graph.nodes)
    return tuple(dict.fromkeys(p for p in found if p))


def lower(network: Network, images: Tensor, preprocessing: Mapping[str, Any], *, cost: Cost = seconds) -> Lowered:
    """Fuse and lower a network that follows its plan and has its weights.

    images: uint8 (N, *network.input_shape), training images that the ranges are calibrated on; a few hundred do.
    preprocessing: of a candidate: mean, std, and image, (C, H, W) of the data set's images, else the network's input.
    cost: what fusion weighs; `fuse.nothing` for the layers as they are.

    Raises:
        UserError: an op has no secure lowering (one line each), or the wrap bound is above 1e-4.
    """
    fused = network if network.problems else fuse(network, cost=cost)
    found = _problems(fused)
    if found:
        raise UserError("\n".join(map(str, found)))
    mean, std = (tuple(map(float, preprocessing[name])) for name in ("mean", "std"))
    native = preprocessing.get("image", network.input_shape)
    seen = _calibrate(fused, images, mean, std)
    described = {"mean": list(mean), "std": list(std), "image": list(native)}
    square_bits, lowered = WEIGHT_BITS, _Lowering(fused, seen, WEIGHT_BITS).result(described)
    while lowered.wrap_bound > LARGEST_WRAP and square_bits > LEAST_SQUARE_BITS:
        square_bits -= 1
        lowered = _Lowering(fused, seen, square_bits).result(described)
    if lowered.wrap_bound <= LARGEST_WRAP:
        return lowered
    raise UserError(
        f"a truncation may wrap with probability {lowered.wrap_bound:.1e} an inference, more than "
        f"{LARGEST_WRAP:g}; keep activations and the number of squares smaller"
    )


@dataclasses.dataclass
class _Seen:
    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    def add(self, x: Tensor) -> None:
        size = x.abs()
        self.largest = max(self.largest, float(size.max()) if size.numel() else 0.0)
        self.total += float(size.sum(dtype=torch.float64))
        self.count += size.numel()

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)


class _Recorder(fx.Interpreter):
    """Ranges of every tensor; of a site, those of its input at the ReLUs and of its output at the squares."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.seen: dict[tuple[fx.Node, str], _Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        site = trace.called_module(n)
        if isinstance(site, Site):
            source = self.env[n.all_input_nodes[0]]
            self._add(n, "relu", source[:, site.mask])
            self._add(n, "square", result[:, _squares(site)])
        if isinstance(result, Tensor):
            self._add(n, "", result)
        return result

    def _add(self, node: fx.Node, what: str, x: Tensor) -> None:
        self.seen.setdefault((node, what), _Seen()).add(x)


def _calibrate(network: Network, images: Tensor, mean: Any, std: Any) -> dict[tuple[fx.Node, str], _Seen]:
    recorder = _Recorder(network)
    with torch.no_grad():
        for batch in images.split(64):
            recorder.run(normalise(batch, mean, std))
    return recorder.seen


def _squares(site: Site) -> Tensor:
    wide = (site.coefficients[2] != 0).view(-1, *[1] * (len(site.shape) - 1)).expand(site.shape)
    return wide & ~site.mask


@dataclasses.dataclass(frozen=True)
class _Value:
    number: int
    unit: float


class _Lowering:
    """Walks the fused graph and writes ops; `values` has the number and unit of each node's tensor."""

    def __init__(self, network: Network, seen: Mapping[tuple[fx.Node, str], _Seen], square_bits: int) -> None:
        self.network, self.seen, self.square_bits = network, seen, square_bits
        self.ops: list[Op] = []
        self.layers: list[str] = []
        self.weights: dict[int, Integers] = {}
        self.ranges: list[Range] = []
        self.values: dict[fx.Node, _Value] = {}
        self.output = next(iter(network.graph.find_nodes(op="output"))).all_input_nodes[0]

    def result(self, preprocessing: Mapping[str, list[float]]) -> Lowered:
        for node in self.network.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = _Value(0, 2.0**-FRACTION)
            elif node.op in ("call_module", "call_function", "call_method") and "shape" in node.meta:
                self._node(node)
        logits = self.values[self.output]
        output_bits = 2 + SPARE_BITS + _bits(self.seen[self.output, ""].largest / logits.unit)
        normalising = zip(preprocessing["mean"], preprocessing["std"], strict=True)
        edges = [(side - m) / s * 2.0**FRACTION for m, s in normalising for side in (0.0, 1.0)]
        program = Program(
            input_shape=self.network.input_shape,  # pyright: ignore[reportArgumentType]
            fraction=FRACTION,
            low=math.floor(min(edges)),
            high=math.ceil(max(edges)),
            output_unit=logits.unit,
            output_bits=min(output_bits, BITS),
            ops=tuple(self.ops),
            layers=tuple(self.layers),
            preprocessing=preprocessing,
        )
        return Lowered(program, self.weights, tuple(self.ranges))

    def _node(self, node: fx.Node) -> None:
        module = trace.called_module(node)
        sources = [self.values[n] for n in node.all_input_nodes if n in self.values]
        source = sources[0]
        if isinstance(module, Site):
            self.values[node] = self._site(node, module, source)
        elif isinstance(module, nn.Conv2d):
            op = Conv(
                source.number,
                module.out_channels,
                ops.two(module.kernel_size),
                ops.two(module.stride),
                ops.two(module.padding),
                module.groups,
            )
            self.values[node] = self._linear(node, op, source.unit, module.weight, module.bias)
        elif isinstance(module, nn.Linear):
            op = Linear(source.number, module.out_features)
            self.values[node] = self._linear(node, op, source.unit, module.weight, module.bias)
        elif isinstance(module, ops.BATCH_NORMS):
            self.values[node] = self._batch_norm(node, module, source)
        elif ops.is_addition(node):
            left, right = sources if len(sources) == 2 else (source, source)
            left, right = self._same_unit(node, left, right)
            self.values[node] = _Value(self._emit(node, Add(left.number, right.number)), left.unit)
        elif node.target is torch.cat:
            self.values[node] = self._concat(node, [self.values[n] for n in ops.parts(node)])
        elif (channels := ops.channels(node)) is not None:
            self.values[node] = _Value(self._emit(node, Slice(source.number, *channels)), source.unit)
        elif (pool := ops.pooling(node)) is not None:
            kernel, stride, padding = pool
            number = self._emit(node, Pool(source.number, kernel, stride, padding))
            if len(node.meta["shape"]) == 1:
                number = self._emit(node, Flatten(number))
            self.values[node] = _Value(number, source.unit / math.prod(kernel))
        elif ops.is_flatten(node):
            self.values[node] = _Value(self._emit(node, Flatten(source.number)), source.unit)
        else:
            self.values[node] = source  # identity, dropout

    def _emit(self, node: fx.Node, op: Op) -> int:
        self.ops.append(op)
        self.layers.append(str(node.target) if node.op == "call_module" else trace.owner(node) or node.name)
        return len(self.ops)

    def _linear(self, node: fx.Node, op: Op, unit: float, weight: Tensor, bias: Tensor | None) -> _Value:
        """Emit a linear op with weights of WEIGHT_BITS bits; a truncation follows unless it makes the logits."""
        real = weight.detach().double().numpy() * unit * 2.0**FRACTION
        largest = float(np.abs(real).max(initial=0.0))
        bits = min(max(WEIGHT_BITS - (math.frexp(largest)[1] if largest else WEIGHT_BITS - 1), 1), 30)
        outputs = len(real) if bias is None else bias.numel()
        summand = np.zeros(outputs) if bias is None else bias.detach().double().numpy()
        scale = 2.0 ** (FRACTION + bits)
        number = self._emit(node, op)
        self.weights[number - 1] = {
            "weight": np.rint(real * 2.0**bits).astype(np.int64),
            "bias": np.rint(summand * scale).astype(np.int64),
        }
        if node is self.output:
            return _Value(number, 1 / scale)
        return self._truncate(node, number, 1 / scale, bits)

    def _truncate(self, node: fx.Node, number: int, unit: float, bits: int) -> _Value:
        seen = self.seen[node, ""]
        self._range(node, "truncate", seen, unit, math.prod(node.meta["shape"]), bits)
        return _Value(self._emit(node, Truncate(number, bits)), unit * 2.0**bits)

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

    def _same_unit(self, node: fx.Node, left: _Value, right: _Value) -> tuple[_Value, _Value]:
        """Bring two values to one unit: a public factor, then a truncation (behind an average pool)."""
        if math.isclose(left.unit, right.unit, rel_tol=1e-12):
            return left, right
        target = 2.0**-FRACTION

        def rescaled(value: _Value) -> _Value:
            if math.isclose(value.unit, target, rel_tol=1e-12):
                return value
            number = self._emit(node, Scale(value.number, round(value.unit / target * 2.0**WEIGHT_BITS)))
            return self._truncate(node, number, target / 2.0**WEIGHT_BITS, WEIGHT_BITS)

        return rescaled(left), rescaled(right)

    def _concat(self, node: fx.Node, parts: Sequence[_Value]) -> _Value:
        joined = parts[0]
        for part in parts[1:]:
            left, right = self._same_unit(node, joined, part)
            joined = _Value(self._emit(node, Concat(left.number, right.number)), left.unit)
        return joined

    def _site(self, node: fx.Node, site: Site, source: _Value) -> _Value:
        squares, mask = _squares(site), site.mask
        identity = torch.tensor(IDENTITY)[:, None]
        is_affine = (site.coefficients != identity).any(0) & (site.coefficients[2] == 0)
        wide = [c.view(-1, *[1] * (len(site.shape) - 1)).expand(site.shape) for c in (is_affine, *site.coefficients)]
        affine = wide[0] & ~mask
        if affine.any():
            factor = torch.where(affine, wide[2], torch.ones(()))
            summand = torch.where(affine, wide[1], torch.zeros(()))
            source = self._linear(node, Multiply(source.number), source.unit, factor, summand.flatten())
            self.weights[len(self.ops) - 2] = _shaped(self.weights[len(self.ops) - 2], site.shape)
        if not (mask.any() or squares.any()):
            return source
        at_relus, at_squares = self.seen[node, "relu"], self.seen[node, "square"]
        bits = 1 + SPARE_BITS + _bits(at_relus.largest / source.unit)
        if bits > BITS:
            raise UserError(f"{site.name}: activations reach {at_relus.largest:.3g}: more than the ring holds")
        if mask.any():
            self._range(node, "relu", at_relus, source.unit, int(mask.count_nonzero()), bits)
        relus = np.flatnonzero(mask.flatten().numpy())
        positions = np.flatnonzero(squares.flatten().numpy())
        truncation = 0
        if len(positions):
            c0, c1, c2 = (c[squares].double().numpy() for c in wide[1:])
            truncation = FRACTION + self.square_bits - min(2, math.frexp(float(np.abs(c2).max()))[1])
            scale = 2.0**truncation
            self.weights[len(self.ops)] = {
                name: np.rint(values).astype(np.int64)
                for name, values in (
                    ("c0", c0 / source.unit * scale),
                    ("c1", c1 * scale),
                    ("c2", c2 * source.unit * scale),
                )
            }
            self._range(node, "square", at_squares, source.unit / scale, len(positions), truncation)
        op = Activation(source.number, relus, bits, positions, truncation)
        return _Value(self._emit(node, op), source.unit)

    def _range(self, node: fx.Node, kind: str, seen: _Seen, unit: float, elements: int, bits: int) -> None:
        self.ranges.append(Range(str(node.target), kind, seen.largest, seen.mean, unit, elements, bits))


def _shaped(integers: Integers, shape: Sequence[int]) -> Integers:
    return {name: array.reshape(tuple(shape)) for name, array in integers.items()}


def _bits(largest: float) -> int:
    """Bits of the magnitude of integers up to `largest`."""
    return max(math.ceil(largest), 1).bit_length()


def _problem(node: fx.Node) -> Problem | None:
    """What keeps an op, that may stand in a private network, from being lowered."""
    if node.op in ("placeholder", "output", "get_attr") or "shape" not in node.meta:
        return None
    module = trace.called_module(node)
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    path = str(node.target) if module is not None else trace.owner(node) or "network"
    if isinstance(module, (nn.Conv2d, nn.ConstantPad2d)):
        if isinstance(module, nn.ConstantPad2d):
            return Problem(path, name, "use the padding of the convolution or pool behind it")
        if not ops.is_plain(module):
            return Problem(
                path,
                "a convolution with named or reflected padding or dilation",
                "use numbers for its zero padding, and dilation 1",
            )
        return None
    if ops.is_gate(node):
        return Problem(path, "the sigmoid of a gate", "leave squeeze-and-excitation out of the network")
    if node.target in ops.PRODUCTS and any(map(ops.is_gate, node.all_input_nodes)):
        return None  # its sigmoid is named
    plain = (Site, nn.Linear, nn.Identity, nn.Dropout, nn.Dropout2d)
    if node.target is torch.cat:
        shapes = [n.meta.get("shape", ()) for n in ops.parts(node)]
        first = len(shapes[0]) + 1
        if ops.argument(node, 1, "dim", 0) % first == 1:
            return None
        return Problem(path, name, "join channels, dimension 1")
    free = ops.is_flatten(node) or ops.pooling(node) is not None or ops.channels(node) is not None
    if isinstance(module, plain) or free:
        if isinstance(module, nn.Linear) and len(node.meta["shape"]) != 1:
            return Problem(path, "a linear layer on a feature map", "flatten the map first, or use a 1×1 convolution")
        return None
    if isinstance(module, ops.BATCH_NORMS):
        if module.running_mean is None:
            return Problem(path, "a batch-norm without running statistics", "set track_running_stats=True")
        return None
    if ops.is_addition(node):
        shapes = [n.meta.get("shape") for n in node.all_input_nodes if "shape" in n.meta]
        if all(shape == node.meta["shape"] for shape in shapes) and len(shapes) == sum(
            isinstance(a, fx.Node) for a in node.args[:2]
        ):
            return None if len(shapes) == 2 or (len(shapes) == 1 and node.args[0] is node.args[1]) else _constant(path)
        return Problem(path, "an addition that broadcasts", "give both terms one shape")
    if "pool" in name.lower() or name == "mean":
        return Problem(path, name, "average over windows of one size: no ceil_mode, divisor or uncounted padding")
    return Problem(path, name, "write it with convolutions, additions of two maps, average pools and ReLUs")


def _constant(path: str) -> Problem:
    return Problem(path, "an addition of a constant", "put it into the bias of the layer before")
