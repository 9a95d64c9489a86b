"""What the ops of a traced network are: one vocabulary for all that counts, merges and lowers.

`read` makes a typed op of an fx node, by the tables `MODULES` and `CALLS`; whoever does something with ops matches on
its type. What is in neither table is `Unsupported`, with the module path and the remedy: never free, never the
identity. To add an op: its class, a line in a table, and a case where it is counted, merged or lowered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.network import functions
from parelu.network.nodes import called_module, owner
from parelu.network.sites import Site

Pair = tuple[int, int]  # (rows, columns)


@dataclass(frozen=True)
class Op:
    """What an fx node does."""


class Input(Op):
    """The image."""


class Output(Op):
    """What the network returns."""


class Constant(Op):
    """A parameter or buffer, that an unsupported op or a Scaling reads."""


class Number(Op):
    """What makes no tensor: sizes and their arithmetic."""


@dataclass(frozen=True)
class Activation(Op):
    """A site."""

    site: Site


@dataclass(frozen=True)
class Convolution(Op):
    """layer: of maps, with padding of zeros by numbers, any dilation and groups."""

    layer: nn.Conv2d

    @property
    def is_plain(self) -> bool:
        """Whether it is not dilated."""
        return two(self.layer.dilation) == (1, 1)

    @property
    def has_even_bias(self) -> bool:
        """Whether its bias is none or one number a channel, and not a map."""
        return self.layer.bias is None or self.layer.bias.dim() == 1

    @property
    def window(self) -> tuple[Pair, Pair, Pair]:
        """Kernel, stride and padding."""
        kernel, stride, padding = map(two, (self.layer.kernel_size, self.layer.stride, self.layer.padding))
        return kernel, stride, padding


@dataclass(frozen=True)
class Linear(Op):
    """A matrix on the last dimension, of a tensor of any rank."""

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


@dataclass(frozen=True)
class MaxPool(Op):
    """The largest of each window; padding is never the largest.

    ceil: whether the last window may hang over the padding's end, as torch's ceil_mode has it.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    ceil: bool = False


@dataclass(frozen=True)
class Affine(Op):
    """x·weight + bias, which broadcast over the map."""

    layer: functions.Affine


@dataclass(frozen=True)
class Scaling(Op):
    """Times a number, which may be a buffer's at the time of reading."""

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
    """The sum of two tensors of one shape, or of one twice."""

    left: fx.Node
    right: fx.Node


@dataclass(frozen=True)
class Concat(Op):
    """axis: from 0, without the batch."""

    parts: tuple[fx.Node, ...]
    axis: int


@dataclass(frozen=True)
class Product(Op):
    """Two tensors that depend on the image, or one twice, multiplied; they may broadcast along dimensions of size 1."""

    left: fx.Node
    right: fx.Node


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

    @property
    def replacements(self) -> list[tuple[str, str]]:
        """Kind of op and what may stand in its place (`replacements.REPLACEMENTS`), as the remedy names them."""
        return re.findall(r"--replace (\w+)=(\w+)", self.remedy)

    def __str__(self) -> str:
        return f"{self.path}: {self.op} is not supported; {self.remedy}"


def read(node: fx.Node) -> Op:
    """What a node does; its graph has shapes (`nodes.propagate_shapes`)."""
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
            if reader and "shape" in node.meta:
                return reader(node)
            return Number() if is_number(node) else _unknown(node)


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


def attribute(network: nn.Module | None, path: str) -> Any:
    """The parameter, buffer or tensor at a path."""
    assert network is not None
    parent, _, last = path.rpartition(".")
    return getattr(network.get_submodule(parent), last)


def is_number(node: fx.Node) -> bool:
    """Whether a node makes sizes, and no tensor."""
    value = node.meta.get("number")
    parts = value if isinstance(value, tuple | list) else (value,)
    return value is not None and not any(isinstance(part, Tensor) for part in parts)


def path(node: fx.Node) -> str:
    """Of the module that a node calls, or whose forward makes the call."""
    return str(node.target) if node.op == "call_module" else owner(node) or "network"


def name(node: fx.Node) -> str:
    """Of the module's class, the function or the method that a node calls."""
    module = called_module(node)
    return type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))


def two(value: Any) -> Pair:
    """(rows, columns) of what torch takes as one number or two."""
    first, second = (value, value) if isinstance(value, int) else value * 2 if len(value) == 1 else value
    return int(first), int(second)


def _terms(node: fx.Node) -> list[Any] | None:
    """The two tensors that a call reads; None where one is anything else."""
    terms = [*node.args, *node.kwargs.values()]
    is_pair = len(terms) == 2 and all(
        isinstance(t, fx.Node) and t.op != "get_attr" and "shape" in t.meta for t in terms
    )
    return terms if is_pair else None


def _addition(node: fx.Node) -> Op:
    terms = _terms(node)
    if terms is None or any(term.meta["shape"] != node.meta["shape"] for term in terms):
        return _unknown(node)
    return Addition(*terms)


def _product(node: fx.Node) -> Op:
    terms = _terms(node)
    if terms is not None and len({len(term.meta["shape"]) for term in terms}) == 1:
        return Product(*terms)
    _, factor = node.args
    if isinstance(factor, fx.Node) and factor.op == "get_attr":
        buffer = attribute(node.graph.owning_module, str(factor.target))
        return Scaling(math.nan if buffer.is_meta else float(buffer)) if buffer.numel() == 1 else _unknown(node)
    return Scaling(float(factor)) if isinstance(factor, int | float) else _unknown(node)


def _concat(node: fx.Node) -> Op:
    parts, dim = node.args
    if not isinstance(parts, list | tuple) or not isinstance(dim, int):
        return _unknown(node)
    return Concat(tuple(parts), dim % (len(node.meta["shape"]) + 1) - 1)  # pyright: ignore[reportArgumentType]


def _permute(node: fx.Node) -> Op:
    order: Any = node.args[1]
    return Permute(tuple(d - 1 for d in order[1:]))


def _select(node: fx.Node) -> Op:
    _, axis, indices = node.args
    rank = len(node.meta["shape"])
    return Select(tuple(tuple(indices) if d == axis else None for d in range(rank)))  # pyright: ignore


def _window(node: fx.Node, module: nn.Module | None) -> tuple[Pair, Pair, Pair]:
    """Kernel, stride and padding of a pool."""
    kernel, stride, padding = (
        (*node.args[1:], None, 0)[:3] if module is None else (module.kernel_size, module.stride, module.padding)
    )
    return two(kernel), two(stride if stride is not None else kernel), two(padding)


def _average_pool(node: fx.Node, module: nn.Module | None = None) -> Op:
    return Pool(*_window(node, module))


def _max_pool(node: fx.Node, module: nn.Module | None = None) -> Op:
    ceil = node.args[5] if module is None and len(node.args) > 5 else getattr(module, "ceil_mode", False)
    return MaxPool(*_window(node, module), bool(ceil))


def _whole_pool(node: fx.Node, module: nn.Module | None = None) -> Op:
    """A mean over the whole map, or over windows of one size."""
    before, after = node.all_input_nodes[0].meta["shape"], node.meta["shape"]
    rows, columns = after[1:] or (1, 1)
    kernel = before[1] // rows, before[2] // columns
    return Pool(kernel, kernel, (0, 0))


# Module class → how a call of it, or of a class derived from it, is read.
MODULES: dict[type[nn.Module], Callable[[fx.Node, Any], Op]] = {
    Site: lambda node, site: Activation(site),
    nn.Conv2d: lambda node, layer: Convolution(layer),
    nn.Linear: lambda node, layer: Linear(layer),
    nn.BatchNorm1d: lambda node, layer: BatchNorm(layer),
    nn.BatchNorm2d: lambda node, layer: BatchNorm(layer),
    functions.Affine: lambda node, layer: Affine(layer),
    functions.Resample: lambda node, layer: Resample(layer),
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _whole_pool,
    nn.MaxPool2d: _max_pool,
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), lambda node, module: Identity()),
}

# Function → how a call of it is read.
CALLS: dict[Any, Callable[[fx.Node], Op]] = {
    torch.add: _addition,
    torch.mul: _product,
    torch.cat: _concat,
    **dict.fromkeys((torch.flatten, torch.reshape), lambda node: Reshape(node.meta["shape"])),
    torch.permute: _permute,
    functions.select: _select,
    torch.mean: _whole_pool,
    F.avg_pool2d: _average_pool,
    F.max_pool2d: _max_pool,
}

# Smooth activations → the kind that `--replace KIND=relu` knows them by.
SMOOTH: Mapping[str, str] = {
    **{name: name for name in ("silu", "gelu", "mish", "softplus", "elu", "tanh")},
    **dict.fromkeys(("celu", "selu"), "elu"),
}
# Names of a module's class, a function or a method, in lower case without "_" → what to do about it.
_REMEDIES: Mapping[str, str] = {
    **{name: f"--replace {kind}=relu, and finetune" for name, kind in SMOOTH.items()},
    "sigmoid": "--replace silu=relu, and finetune",  # x·sigmoid(βx), where it stays
    **{name: f"--replace {name}=relus" for name in ("logsigmoid", "erf")},
    "hardswish": "--replace hardswish=relu, and finetune",
    **dict.fromkeys(("layernorm", "rmsnorm"), "--replace layernorm=batchnorm, and finetune"),
    **dict.fromkeys(("groupnorm", "instancenorm", "instancenorm2d"), "--replace groupnorm=batchnorm, and finetune"),
    **dict.fromkeys(
        ("softmax", "logsoftmax", "matmul", "bmm", "baddbmm", "scaleddotproductattention"),
        "attention among positions or channels has no exact form; --replace attention=mean where it pools positions",
    ),
    "einsum": "sum over one dimension of a map and of a constant matrix; attention has no exact form",
    **dict.fromkeys(("truediv", "div", "divide", "reciprocal", "norm", "normalize"), "divide by numbers only"),
    **dict.fromkeys(("batchnorm", "batchnorm2d", "batchnorm1d"), "set track_running_stats=True"),
    "dropout": "use the module nn.Dropout: F.dropout keeps the mode it was traced in",
}


def _unknown(node: fx.Node) -> Unsupported:
    kind = name(node).lower().replace("_", "")
    remedy = _REMEDIES.get(kind, "write it with convolutions, additions, products, pools and ReLUs")
    return Unsupported.at(node, remedy)
