"""What the ops of a traced network are: the vocabulary of all that counts, merges and lowers.

It is a whitelist. An op that is not in it is never taken for free: it is a `Problem` with the module path and the
remedy.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from parelu.network.trace import called_module, owner

RELU_MODULES: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6)


RELU_FUNCTIONS: tuple[Callable[..., Any], ...] = (F.relu, F.relu_, torch.relu, torch.relu_, F.relu6)


RELU_METHODS = ("relu", "relu_")


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


FREE_MODULES: tuple[type[nn.Module], ...] = (
    *BATCH_NORMS,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.ZeroPad2d,
    nn.ConstantPad2d,
)


ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


FREE_FUNCTIONS: tuple[Any, ...] = (
    *ADDITIONS,
    operator.sub,
    torch.sub,
    torch.flatten,
    torch.cat,
    torch.mean,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.pad,
    getattr,
    operator.getitem,
    operator.floordiv,
    "sub",
    "flatten",
    "view",
    "reshape",
    "size",
    "mean",
    "contiguous",
    "permute",
    "squeeze",
    "unsqueeze",
)


SIGMOIDS = (nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid")


PRODUCTS = (operator.mul, operator.imul, operator.truediv, torch.mul, torch.div, "mul", "mul_", "div")


_USE_RELU = "use nn.ReLU and train again"


_USE_AVERAGE_POOL = "use nn.AvgPool2d with the same kernel, stride and padding"


_REMEDIES: dict[str, str] = {
    **dict.fromkeys(
        (
            "silu",
            "gelu",
            "hardswish",
            "leaky_relu",
            "leakyrelu",
            "prelu",
            "elu",
            "selu",
            "mish",
            "softplus",
            "tanh",
            "hardtanh",
            "hardsigmoid",
            "clamp",
            "clip",
            "relu6_",
        ),
        _USE_RELU,
    ),
    **dict.fromkeys(("max_pool2d", "maxpool2d", "adaptive_max_pool2d", "adaptivemaxpool2d"), _USE_AVERAGE_POOL),
    **dict.fromkeys(
        ("sigmoid", "softmax", "log_softmax", "logsoftmax"),
        "leave it out of the network: the loss and the client can apply it to the logits",
    ),
    **dict.fromkeys(
        ("layernorm", "layer_norm", "groupnorm", "group_norm", "instancenorm2d"),
        "use nn.BatchNorm2d, which is linear at inference",
    ),
    "dropout": "use the module nn.Dropout: F.dropout keeps the mode it was traced in",
}


@dataclass(frozen=True)
class Problem:
    """An op without a place in a private network: where it is, what it is, what to do."""

    path: str
    op: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.op} is not supported; {self.remedy}"


def is_relu(node: fx.Node) -> bool:
    module = called_module(node)
    if module is not None:
        return isinstance(module, RELU_MODULES)
    names = {"call_function": RELU_FUNCTIONS, "call_method": RELU_METHODS}.get(node.op, ())
    return node.target in names


def is_addition(node: fx.Node) -> bool:
    """Whether it is the sum of its terms; one with a factor (alpha) is not."""
    return node.op in ("call_function", "call_method") and node.target in ADDITIONS and "alpha" not in node.kwargs


def two(value: Any) -> tuple[int, int]:
    """(rows, columns) of what torch takes as one number or two."""
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def is_flatten(node: fx.Node) -> bool:
    """Whether it makes a vector of a feature map, or keeps one."""
    is_call = node.target in (torch.flatten, "flatten", "view", "reshape")
    return (is_call or isinstance(called_module(node), nn.Flatten)) and len(node.meta["shape"]) == 1


def is_plain(convolution: nn.Conv2d) -> bool:
    """Whether it pads with zeros, by numbers, and is not dilated."""
    named = isinstance(convolution.padding, str)
    return not named and convolution.padding_mode == "zeros" and two(convolution.dilation) == (1, 1)


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, by its place or its name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def parts(node: fx.Node) -> list[fx.Node]:
    """What a torch.cat joins."""
    return list(argument(node, 0, "tensors", ()))


def channels(node: fx.Node) -> tuple[int, int] | None:
    """First channel and the one after the last of x[:, a:b], else None."""
    if node.target is not operator.getitem or "shape" not in node.meta:
        return None
    index: Any = node.args[1]
    batch, channels, *rest = index if isinstance(index, tuple) else (index, None)
    if batch != slice(None) or not isinstance(channels, slice) or any(other != slice(None) for other in rest):
        return None
    limits = (channels.start, channels.stop, channels.step)
    if not all(limit is None or isinstance(limit, int) for limit in limits):
        return None
    start, stop, step = channels.indices(node.all_input_nodes[0].meta["shape"][0])
    return (start, stop) if step == 1 and start < stop else None


def pooling(node: fx.Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """Kernel, stride and padding of an average pool that is a sum over windows of one size, else None."""
    module = called_module(node)
    if not node.all_input_nodes or len(node.all_input_nodes[0].meta.get("shape", ())) != 3:
        return None
    height, width = node.all_input_nodes[0].meta["shape"][1:]
    if isinstance(module, nn.AvgPool2d):
        options = (
            module.kernel_size,
            module.stride,
            module.padding,
            module.ceil_mode,
            module.count_include_pad,
            module.divisor_override,
        )
    elif node.target is F.avg_pool2d:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        defaults = (None, None, 0, False, True, None)
        options = tuple(argument(node, i + 1, n, d) for i, (n, d) in enumerate(zip(names, defaults, strict=True)))
    elif isinstance(module, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d:
        rows, columns = node.meta["shape"][1:]
        if height % rows or width % columns:
            return None
        kernel = height // rows, width // columns
        return kernel, kernel, (0, 0)
    elif node.target in (torch.mean, "mean"):
        dims = argument(node, 1, "dim", None)
        if dims is None or isinstance(dims, int) or sorted(d % 4 for d in dims) != [2, 3]:
            return None
        return (height, width), (height, width), (0, 0)
    else:
        return None
    kernel, stride, padding, ceil_mode, count_include_pad, divisor_override = options
    padding = two(padding)
    if ceil_mode or divisor_override or (padding != (0, 0) and not count_include_pad):
        return None
    return two(kernel), two(stride if stride is not None else kernel), padding


def is_gate(node: fx.Node) -> bool:
    """Whether an op is the gate of squeeze-and-excitation: one sigmoid a channel, that only multiplies other maps.

    x·sigmoid(x) is no gate but an activation, and so is a sigmoid of a map.
    """
    module = called_module(node)
    is_sigmoid = isinstance(module, nn.Sigmoid) if module is not None else node.target in SIGMOIDS
    if not is_sigmoid or not node.users or set(node.meta.get("shape", ())[1:]) != {1}:
        return False
    source = node.all_input_nodes[0]
    return all(user.target in PRODUCTS and source not in user.all_input_nodes for user in node.users)


def problem(node: fx.Node, sites: tuple[type[nn.Module], ...]) -> Problem | None:
    """None where the op has a place in a private network, else what is wrong with it."""
    if node.op in ("placeholder", "output", "get_attr") or is_relu(node) or is_gate(node):
        return None
    module = called_module(node)
    if module is not None:
        if isinstance(module, (*CONVOLUTIONS, nn.Linear, *FREE_MODULES, *sites)):
            return None
        return _unknown(str(node.target), type(module).__name__)
    if node.target in PRODUCTS:
        tensors = [n for n in node.all_input_nodes if n.op != "get_attr" and "shape" in n.meta]
        if len(tensors) < 2 or any(map(is_gate, tensors)):
            return None
        return Problem(
            owner(node) or "network",
            "a product of two activations",
            "remove the gate (squeeze-and-excitation, attention)",
        )
    if node.target in FREE_FUNCTIONS:
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return _unknown(owner(node) or "network", name)


def _unknown(path: str, name: str) -> Problem:
    remedy = _REMEDIES.get(name.lower(), "write it with convolutions, additions, average pools and ReLUs")
    return Problem(path, name, remedy)
