"""Merged networks: what fusion left of another architecture, written out layer by layer."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Mapping
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.network import ops, trace
from parelu.network.sites import Network
from parelu.network.spec import Spec

MOST_LAYERS, MOST_CHANNELS, LARGEST_WINDOW = 10_000, 1 << 20, 256
_PATH = re.compile(r"\w+(\.\w+)*")

_WINDOW = ((1, LARGEST_WINDOW),) * 4 + ((0, LARGEST_WINDOW),) * 2  # kernel, stride, padding
_COUNT = (1, MOST_CHANNELS)
# Kind → whether it has a module, how many values it reads, and from where to where each of its numbers may be.
_ANY = -1
_KINDS: dict[str, tuple[bool, int, tuple[tuple[int, int], ...]]] = {
    "conv": (True, 1, (_COUNT, _COUNT, *_WINDOW, _COUNT)),
    "linear": (True, 1, (_COUNT, _COUNT)),
    "norm": (True, 1, (_COUNT,)),
    "relu": (True, 1, ()),
    "add": (False, 2, ()),
    "pool": (False, 1, _WINDOW),
    "flatten": (False, 1, ()),
    "concat": (False, _ANY, ()),
    "slice": (False, 1, ((0, MOST_CHANNELS), _COUNT)),
}


@dataclasses.dataclass(frozen=True)
class Merged(Spec):
    """A network of layers in order of execution; `parelu fuse CANDIDATE --finetune EPOCHS` makes it.

    Attributes:
        layers: a line a layer. Its kind; where it has a module, the path; the values that it reads, 0 for the input and
            n for what line n makes; its numbers, those of torch's layer in torch's order, rows before columns:

                conv PATH VALUE inputs outputs kernel kernel stride stride padding padding groups
                linear PATH VALUE inputs outputs
                norm PATH VALUE channels
                relu PATH VALUE stage
                add VALUE VALUE
                pool VALUE kernel kernel stride stride padding padding
                flatten VALUE
                concat VALUE … VALUE
                slice VALUE first last      channels, without the last
    """

    family: ClassVar[str] = "merged"
    examples: ClassVar[tuple[str, ...]] = ()

    layers: str

    def __post_init__(self) -> None:
        super().__post_init__()
        lines = self.layers.splitlines()
        if not 1 <= len(lines) <= MOST_LAYERS:
            raise UserError(f"a merged network of {len(lines)} layers; it has from 1 to {MOST_LAYERS:,}")
        paths = [layer.path for layer in map(_parsed, lines, range(len(lines))) if layer.path]
        inside = {".".join(parts[:n]) for parts in (path.split(".") for path in paths) for n in range(1, len(parts))}
        if len(set(paths)) < len(paths) or inside & set(paths):
            raise UserError("two layers of a merged network share a path; each has its own")

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> None:
        return

    def scale_channels(self, factor: float) -> Merged:
        raise UserError(f"the channels of a merged network cannot be scaled by {factor:g}: scale it, then merge it")

    def module(self) -> nn.Module:
        whole, modules, stages = fx.Graph(), {}, {}
        values = [whole.placeholder("x")]
        for number, line in enumerate(self.layers.splitlines()):
            layer = _parsed(line, number)
            read = tuple(values[value] for value in layer.reads)
            if layer.path:
                modules[layer.path] = layer.module()
                values.append(whole.call_module(layer.path, read))
            else:
                values.append(layer.call(whole, read))
            if layer.kind == "relu":
                stages[layer.stage] = (*stages.get(layer.stage, ()), layer.path)
        whole.output(values[-1])
        built = fx.GraphModule(modules, whole, "Merged")
        built.stages = stages  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        return built


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A line of `Merged.layers`."""

    kind: str
    path: str
    reads: tuple[int, ...]
    numbers: tuple[int, ...]
    stage: str = ""

    def module(self) -> nn.Module:
        if self.kind == "conv":
            inputs, outputs, *window, groups = self.numbers
            kernel, stride, padding = (ops.two(window[i : i + 2]) for i in (0, 2, 4))
            return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
        if self.kind == "relu":
            return nn.ReLU()
        if self.kind == "linear":
            return nn.Linear(self.numbers[0], self.numbers[1])
        return nn.BatchNorm2d(self.numbers[0])

    def call(self, whole: fx.Graph, read: tuple[fx.Node, ...]) -> fx.Node:
        if self.kind == "add":
            return whole.call_function(torch.add, read)
        if self.kind == "flatten":
            return whole.call_function(torch.flatten, (*read, 1))
        if self.kind == "concat":
            return whole.call_function(torch.cat, (list(read), 1))
        if self.kind == "slice":
            return whole.call_function(operator.getitem, (*read, (slice(None), slice(*self.numbers))))
        window = tuple(ops.two(self.numbers[i : i + 2]) for i in (0, 2, 4))
        return whole.call_function(nn.functional.avg_pool2d, (*read, *window))

    def __str__(self) -> str:
        words = (self.kind, self.path, *self.reads, *self.numbers, self.stage)
        return " ".join(str(word) for word in words if word != "")


def _parsed(line: str, number: int) -> _Layer:
    """The layer that makes value `number` + 1."""
    kind, *words = line.split(" ")
    try:
        has_path, values, limits = _KINDS[kind]
        values = max(1, len(words)) if values == _ANY else values
        path = words.pop(0) if has_path else ""
        stage = words.pop() if kind == "relu" else ""
        reads, numbers = (tuple(map(int, part)) for part in (words[:values], words[values:]))
        layer = _Layer(kind, path, reads, numbers, stage)
        named = all(_PATH.fullmatch(name) for name in (path, stage) if name)
        sized = all(least <= n <= most for n, (least, most) in zip(numbers, limits, strict=True))
        if not (named and sized and len(reads) == values and all(0 <= value <= number for value in reads)):
            raise ValueError
        if kind == "conv" and (numbers[0] % numbers[-1] or numbers[1] % numbers[-1]):
            raise ValueError
    except (KeyError, IndexError, ValueError):
        layer = None
    if layer is None or str(layer) != line:
        raise UserError(f"line {number + 1} of a merged network, {line[:80]!r}, is no layer")
    return layer


def merged(network: Network, classes: int) -> Merged:
    """The spec of a network as it stands, with the paths that it has.

    Raises:
        UserError: it has an op that a merged network does not.
    """
    lines: list[str] = []
    values: dict[fx.Node, int] = {}
    for node, op in ops.read_all(network).items():
        match op:
            case ops.Input():
                values[node] = 0
            case ops.Output() | ops.Constant() | ops.Number():
                pass
            case _:
                lines += map(str, _described(node, op, values, len(lines)))
                values[node] = len(lines)
    return Merged(network.input_shape, classes, "\n".join(lines))  # pyright: ignore[reportArgumentType]


def weights_of(network: Network) -> dict[str, Tensor]:
    """The state dict that the network of `merged(network)` takes: each convolution has a bias there."""
    convolutions = trace.calls(network, (nn.Conv2d,))
    missing = {f"{node.target}.bias": layer.out_channels for node, layer in convolutions if layer.bias is None}
    return {**{name: torch.zeros(outputs) for name, outputs in missing.items()}, **network.state_dict()}


def _described(node: fx.Node, op: ops.Op, values: Mapping[fx.Node, int], before: int) -> list[_Layer]:
    """The lines of a node; values: number of what a node makes; before: how many lines there are."""
    path, reads = str(node.target), tuple(values[term] for term in node.all_input_nodes if term in values)
    match op:
        case ops.Activation(site):
            return [_Layer("relu", path, reads, (), site.stage)]
        case ops.Convolution(layer) if op.is_plain and op.has_even_bias:
            sizes = (layer.in_channels, layer.out_channels, *chain(*op.window), layer.groups)
            return [_Layer("conv", path, reads, sizes)]
        case ops.Linear(layer):
            return [_Layer("linear", path, reads, (layer.in_features, layer.out_features))]
        case ops.BatchNorm(nn.BatchNorm2d() as layer) if layer.running_mean is not None:
            return [_Layer("norm", path, reads, (layer.num_features,))]
        case ops.Addition(left, right) if left in values and right in values:
            return [_Layer("add", "", (values[left], values[right]), ())]
        case ops.Pool(kernel, stride, padding):
            pool = _Layer("pool", "", reads, (*kernel, *stride, *padding))
            is_vector = len(node.meta["shape"]) == 1
            return [pool, _Layer("flatten", "", (before + 1,), ())] if is_vector else [pool]
        case ops.Concat(parts, 0) if all(part in values for part in parts):
            return [_Layer("concat", "", tuple(values[part] for part in parts), ())]
        case ops.Select() if op.channels:
            return [_Layer("slice", "", reads, op.channels)]
        case ops.Reshape(after) if len(after) == 1:
            return [_Layer("flatten", "", reads, ())]
        case _:
            where = f"{ops.path(node)}: {ops.name(node)}"
            raise UserError(f"{where} has no place in a merged network; bench the network as it is")
