"""What the ops of a traced network are: one vocabulary for all that counts, merges and lowers.

`read` makes a typed op of an fx node, by the tables `MODULES` and `CALLS`; whoever does something with ops matches on
its type. What is in neither table is `Unsupported`, with the module path and the remedy: never free, never the
identity. To add an op: its class, a line in a table, and a case where it is counted, merged or lowered.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.network import functions
from parelu.network.sites import Site
from parelu.network.trace import called_module, owner

Pair = tuple[int, int]  # (rows, columns)

RELU_MODULES: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Op:
    """What an fx node does."""


class Input(Op):
    """The image."""


class Output(Op):
    """What the network returns."""


class Constant(Op):
    """A parameter or buffer that a module's own forward reads."""


class Number(Op):
    """What makes no tensor: sizes and their arithmetic."""


@dataclass(frozen=True)
class Relu(Op):
    """An activation call that is no site yet. is_capped: at 6; in_place: it overwrites its input."""

    is_capped: bool
    in_place: bool


@dataclass(frozen=True)
class Activation(Op):
    """A site."""

    site: Site


@dataclass(frozen=True)
class Convolution(Op):
    """layer: with any padding, dilation and groups."""

    layer: nn.Conv1d | nn.Conv2d

    @property
    def is_plain(self) -> bool:
        """Whether it is of maps, pads with zeros, by numbers, and is not dilated."""
        layer = self.layer
        if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
            return False
        return layer.padding_mode == "zeros" and two(layer.dilation) == (1, 1)

    @property
    def has_even_bias(self) -> bool:
        """Whether its bias is none or one number a channel, and not a map."""
        return self.layer.bias is None or self.layer.bias.dim() == 1

    @property
    def window(self) -> tuple[Pair, Pair, Pair]:
        """Kernel, stride and padding; of a plain one."""
        kernel, stride, padding = map(two, (self.layer.kernel_size, self.layer.stride, self.layer.padding))
        return kernel, stride, padding


@dataclass(frozen=True)
class Linear(Op):
    """A matrix on the last dimension."""

    layer: nn.Linear


@dataclass(frozen=True)
class BatchNorm(Op):
    layer: nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class Pool(Op):
    """The average over windows of one size, padding counted."""

    kernel: Pair
    stride: Pair
    padding: Pair


class UnevenPool(Op):
    """An average over anything else: windows of several sizes, other dimensions, another divisor."""


@dataclass(frozen=True)
class MaxPool(Op):
    """The largest of each window; padding is never the largest."""

    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True)
class Affine(Op):
    """x·weight + bias, which broadcast over the map."""

    layer: functions.Affine


@dataclass(frozen=True)
class Scaling(Op):
    """Times a number."""

    factor: float


@dataclass(frozen=True)
class Resample(Op):
    """A fixed matrix along one dimension."""

    layer: functions.Resample


@dataclass(frozen=True)
class Reshape(Op):
    """The same numbers in the same order. shape: without the batch."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Permute(Op):
    """The dimensions in another order. order: from 0, without the batch."""

    order: tuple[int, ...]


@dataclass(frozen=True)
class Select(Op):
    """What indices name along each dimension, without the batch; -1 is a zero, None is all in order."""

    indices: tuple[tuple[int, ...] | None, ...]

    @property
    def channels(self) -> Pair | tuple[()]:
        """First and last, without the last, where it takes neighbours whole; else nothing."""
        first, *others = self.indices
        if first is None or any(other is not None for other in others) or min(first) < 0:
            return ()
        return (first[0], first[-1] + 1) if first == tuple(range(first[0], first[-1] + 1)) else ()


class Identity(Op):
    """It returns its input, at inference."""


@dataclass(frozen=True)
class Addition(Op):
    """The sum of two terms: nodes of the graph, or numbers; they may broadcast."""

    left: Any
    right: Any


@dataclass(frozen=True)
class Concat(Op):
    """axis: from 0, without the batch."""

    parts: tuple[fx.Node, ...]
    axis: int


class Excitation(Op):
    """The sigmoid of squeeze-and-excitation: one a channel, that only multiplies other maps."""


class Product(Op):
    """A map times its excitation."""


class Free(Op):
    """What counts nothing and has no other meaning here: a difference, a constant factor, a map in another order."""


@dataclass(frozen=True)
class Unsupported(Op):
    """An op without a place in a private network: where it is, what it is, what to do."""

    path: str
    op: str
    remedy: str

    @classmethod
    def at(cls, node: fx.Node, remedy: str, op: str = "") -> Unsupported:
        """op: what it is, where that is more than its name."""
        return cls(path(node), op or name(node), remedy)

    def __str__(self) -> str:
        return f"{self.path}: {self.op} is not supported; {self.remedy}"


def read(node: fx.Node) -> Op:
    """What a node does; its graph has shapes (`trace.propagate_shapes`)."""
    match node.op:
        case "placeholder":
            return Input()
        case "output":
            return Output()
        case "get_attr":
            return Constant()
        case "call_module":
            module = called_module(node)
            reader = next((MODULES[kind] for kind in type(module).__mro__ if kind in MODULES), None)
            return reader(node, module) if reader else _unknown(node)
        case _:
            reader = CALLS.get(node.target)
            if reader is None:
                return _unknown(node)
            return reader(node) if "shape" in node.meta else Number()


def read_all(network: fx.GraphModule) -> dict[fx.Node, Op]:
    """Node → its op, in order of execution; raises `UserError`, one line for each op that has no place."""
    found = unsupported(network)
    if found:
        raise UserError("\n".join(map(str, found)))
    return {node: read(node) for node in network.graph.nodes}


def unsupported(network: fx.GraphModule) -> tuple[Unsupported, ...]:
    """The ops of a network that have no place in a private one, each once."""
    found = map(read, network.graph.nodes)
    return tuple(dict.fromkeys(op for op in found if isinstance(op, Unsupported)))


def path(node: fx.Node) -> str:
    """Of the module that a node calls, or whose forward makes the call."""
    return str(node.target) if node.op == "call_module" else owner(node) or "network"


def name(node: fx.Node) -> str:
    """Of the module's class, the function or the method that a node calls."""
    module = called_module(node)
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))


def two(value: Any) -> Pair:
    """(rows, columns) of what torch takes as one number or two."""
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def _argument(node: fx.Node, position: int, keyword: str, default: Any) -> Any:
    """An argument of a call, by its place or its name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(keyword, default)


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return *node.args, *node.kwargs.values()


def _relu(node: fx.Node) -> Op:
    in_place = node.target in (F.relu_, torch.relu_, "relu_") or bool(_argument(node, 1, "inplace", False))
    return Relu(node.target is F.relu6, in_place)


def _addition(node: fx.Node) -> Op:
    """One with a factor (alpha) is no sum of its terms."""
    terms = _arguments(node)
    return Addition(*terms) if len(terms) == 2 else Free()


def _product(node: fx.Node) -> Op:
    arguments = [a for a in _arguments(node) if isinstance(a, fx.Node)]
    factors = [a for a in arguments if a.op != "get_attr" and "shape" in a.meta]
    if len(factors) < 2:
        return _scaling(node)
    if any(map(_is_excitation, factors)):
        return Product()
    return Unsupported.at(node, "remove the gate (squeeze-and-excitation, attention)", "a product of two activations")


def _scaling(node: fx.Node) -> Op:
    numbers = [a for a in _arguments(node) if isinstance(a, int | float)]
    is_quotient = node.target in (operator.truediv, torch.div, "div")
    if len(numbers) != 1 or len(_arguments(node)) != 2 or (is_quotient and numbers[0] is not node.args[1]):
        return Free()
    return Scaling(1 / numbers[0] if is_quotient else float(numbers[0]))


def _sigmoid(node: fx.Node, module: nn.Module | None = None) -> Op:
    return Excitation() if _is_excitation(node) else _unknown(node)


def _is_excitation(node: fx.Node) -> bool:
    """x·sigmoid(x) has none but is an activation, and so is a sigmoid of a map."""
    is_sigmoid = isinstance(called_module(node), nn.Sigmoid) or _is_call(node, SIGMOIDS)
    if not is_sigmoid or not node.users or set(node.meta.get("shape", ())[1:]) != {1}:
        return False
    source = node.all_input_nodes[0]
    return all(_is_call(user, PRODUCTS) and source not in user.all_input_nodes for user in node.users)


def _is_call(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def _concat(node: fx.Node) -> Op:
    parts, dim = _argument(node, 0, "tensors", ()), _argument(node, 1, "dim", 0)
    if not isinstance(parts, list | tuple) or not isinstance(dim, int):
        return Free()
    return Concat(tuple(parts), dim % (len(node.meta["shape"]) + 1) - 1)


def _moved(node: fx.Node, module: nn.Module | None = None) -> Op:
    """What only moves numbers, or adds zeros: found by moving the numbers' own places."""
    source = node.all_input_nodes[0]
    before, after = source.meta.get("shape", ()), node.meta["shape"]
    key = "moved"
    if key not in node.meta:
        places = torch.arange(1, math.prod(before) + 1, dtype=torch.float64).view(1, *before)
        try:
            moved, doubled = (_run(node, module, {source: x}) for x in (places, 2 * places))
            is_move = moved.shape == (1, *after) and torch.equal(doubled, 2 * moved)
            node.meta[key] = read_places(moved[0].long() - 1, before) if is_move else None
        except (KeyError, RuntimeError, TypeError, IndexError):
            node.meta[key] = None
    return node.meta[key] or Free()


def _run(node: fx.Node, module: nn.Module | None, tensors: Mapping[fx.Node, Tensor]) -> Any:
    """What a call makes of tensors, and of the numbers that the graph has for a batch of one."""
    numbers = {n: n.meta["number"] for n in node.all_input_nodes if "number" in n.meta}
    args, kwargs = (fx.map_arg(part, {**numbers, **tensors}.__getitem__) for part in (node.args, node.kwargs))
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    call: Any = module or node.target
    return call(*args, **kwargs)


def read_places(places: Tensor, before: tuple[int, ...]) -> Op | None:
    """The op that puts what stood at `places` of a tensor of shape `before` where they stand; -1 is a zero."""
    after, count = tuple(places.shape), math.prod(before)
    if torch.equal(places.flatten(), torch.arange(count)):
        return Reshape(after) if after != before else Identity()
    if len(after) != len(before):
        return None
    all_places = torch.arange(count).view(before)
    if math.prod(after) == count:
        for order in itertools.permutations(range(len(before))):
            if tuple(before[d] for d in order) == after and torch.equal(all_places.permute(order), places):
                return Permute(order)
    return _selected(places, all_places)


def _selected(places: Tensor, all_places: Tensor) -> Op | None:
    """A selection along each dimension, if that is what it is."""
    indices: list[tuple[int, ...] | None] = []
    for axis, size in enumerate(all_places.shape):
        stride = math.prod(all_places.shape[axis + 1 :])
        others = tuple(d for d in range(places.dim()) if d != axis)
        along = (places.amax(others) if others else places).clamp(min=-1)
        along = torch.where(along < 0, along, along // stride % size)
        indices.append(None if torch.equal(along, torch.arange(size)) else tuple(along.tolist()))
    found = all_places.unsqueeze(0)
    for axis, wanted in enumerate(indices):
        if wanted is not None:
            found = functions.select(found + 1, axis, wanted) - 1
    return Select(tuple(indices)) if torch.equal(found[0], places) else None


def _average_pool(node: fx.Node, module: nn.AvgPool2d | None = None) -> Op:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    defaults = (None, None, 0, False, True, None)
    if module is not None:
        options = [getattr(module, option) for option in names]
    else:
        options = [_argument(node, i + 1, n, d) for i, (n, d) in enumerate(zip(names, defaults, strict=True))]
    kernel, stride, padding, ceil_mode, count_include_pad, divisor_override = options
    is_uncounted = two(padding) != (0, 0) and not count_include_pad
    if _map_before(node) is None or ceil_mode or divisor_override or is_uncounted:
        return UnevenPool()
    return Pool(two(kernel), two(stride if stride is not None else kernel), two(padding))


def _max_pool(node: fx.Node, module: nn.MaxPool2d | None = None) -> Op:
    names, defaults = ("kernel_size", "stride", "padding", "dilation", "ceil_mode"), (None, None, 0, 1, False)
    if module is not None:
        options = [getattr(module, option) for option in names]
    else:
        options = [_argument(node, i + 1, n, d) for i, (n, d) in enumerate(zip(names, defaults, strict=True))]
    kernel, stride, padding, dilation, ceil_mode = options
    if _map_before(node) is None or ceil_mode or two(dilation) != (1, 1):
        return _unknown(node)
    return MaxPool(two(kernel), two(stride if stride is not None else kernel), two(padding))


def _adaptive_pool(node: fx.Node, module: nn.Module | None = None) -> Op:
    before = _map_before(node)
    if before is None:
        return UnevenPool()
    (height, width), (rows, columns) = before, node.meta["shape"][1:]
    if height % rows or width % columns:
        return UnevenPool()
    kernel = height // rows, width // columns
    return Pool(kernel, kernel, (0, 0))


def _mean(node: fx.Node) -> Op:
    before, dims = _map_before(node), _argument(node, 1, "dim", None)
    if before is None or dims is None or isinstance(dims, int) or sorted(d % 4 for d in dims) != [2, 3]:
        return UnevenPool()
    return Pool(before, before, (0, 0))


def _map_before(node: fx.Node) -> Pair | None:
    """Rows and columns of the map that a node reads; None where it reads another tensor."""
    shape = node.all_input_nodes[0].meta.get("shape", ())
    return two(shape[1:]) if len(shape) == 3 else None


def _free(node: fx.Node) -> Op:
    return Free()


ADDITIONS = (operator.add, torch.add, "add", "add_")
PRODUCTS = (operator.mul, operator.truediv, torch.mul, torch.div, "mul", "mul_", "div")
SIGMOIDS = (torch.sigmoid, "sigmoid")
_DIFFERENCES = (operator.sub, torch.sub, "sub")
_SIZES = (getattr, operator.floordiv, "size")

# Module class → how a call of it, or of a class derived from it, is read.
MODULES: dict[type[nn.Module], Callable[[fx.Node, Any], Op]] = {
    Site: lambda node, site: Activation(site),
    nn.ReLU: lambda node, module: Relu(False, module.inplace),
    nn.ReLU6: lambda node, module: Relu(True, module.inplace),
    nn.Conv1d: lambda node, layer: Convolution(layer),
    nn.Conv2d: lambda node, layer: Convolution(layer),
    nn.Linear: lambda node, layer: Linear(layer),
    nn.BatchNorm1d: lambda node, layer: BatchNorm(layer),
    nn.BatchNorm2d: lambda node, layer: BatchNorm(layer),
    nn.AvgPool2d: _average_pool,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.Flatten: _moved,
    nn.Identity: lambda node, module: Identity(),
    nn.Dropout: lambda node, module: Identity(),
    nn.Dropout2d: lambda node, module: Identity(),
    **dict.fromkeys((nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d), _moved),
    **dict.fromkeys((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Unflatten), _moved),
    functions.Affine: lambda node, layer: Affine(layer),
    functions.Resample: lambda node, layer: Resample(layer),
    nn.Sigmoid: _sigmoid,
}

# Function, or name of a tensor's method → how a call of it is read.
CALLS: dict[Any, Callable[[fx.Node], Op]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, "relu", "relu_"), _relu),
    **dict.fromkeys(ADDITIONS, _addition),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(SIGMOIDS, _sigmoid),
    **dict.fromkeys((torch.flatten, torch.reshape, "flatten", "view", "reshape"), _moved),
    **dict.fromkeys((torch.permute, torch.transpose, "permute", "transpose", "contiguous"), _moved),
    **dict.fromkeys((torch.squeeze, torch.unsqueeze, "squeeze", "unsqueeze"), _moved),
    **dict.fromkeys((F.pad, functions.select, operator.getitem), _moved),
    F.max_pool2d: _max_pool,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    F.avg_pool2d: _average_pool,
    F.adaptive_avg_pool2d: _adaptive_pool,
    torch.cat: _concat,
    **dict.fromkeys((*_DIFFERENCES, *_SIZES), _free),
}

_USE_RELU = "use nn.ReLU and train again"
_USE_AVERAGE_POOL = "use nn.AvgPool2d with the same kernel, stride and padding"
_LEAVE_OUT = "leave it out of the network: the loss and the client can apply it to the logits"
_USE_BATCH_NORM = "use nn.BatchNorm2d, which is linear at inference"
# Lower-case name of a module's class, a function or a method → what to do instead.
_REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(("silu", "gelu", "hardswish", "leaky_relu", "leakyrelu", "prelu", "elu", "selu"), _USE_RELU),
    **dict.fromkeys(("mish", "softplus", "tanh", "hardtanh", "hardsigmoid", "clamp", "clip", "relu6_"), _USE_RELU),
    **dict.fromkeys(("max_pool2d", "maxpool2d", "adaptive_max_pool2d", "adaptivemaxpool2d"), _USE_AVERAGE_POOL),
    **dict.fromkeys(("sigmoid", "softmax", "log_softmax", "logsoftmax"), _LEAVE_OUT),
    **dict.fromkeys(("layernorm", "layer_norm", "groupnorm", "group_norm", "instancenorm2d"), _USE_BATCH_NORM),
    "dropout": "use the module nn.Dropout: F.dropout keeps the mode it was traced in",
}


def _unknown(node: fx.Node) -> Unsupported:
    remedy = _REMEDIES.get(name(node).lower(), "write it with convolutions, additions, average pools and ReLUs")
    return Unsupported.at(node, remedy)
