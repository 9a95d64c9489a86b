"""Calls that have no place in a private network, and yet in a file: a user's original network can be a teacher.

Each is a function of torch on what the network computes, with plain arguments: nothing else can be called.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

_NAMED = re.compile(r"([a-z_]\w*)=(.*)")
_VALUE = re.compile(r"%(\d{1,6})")
_WORD = re.compile(r"[a-z_]{1,20}")

_OF_TORCH = (
    *("sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "square", "abs", "neg", "reciprocal", "pow", "sign", "erf"),
    *("add", "sub", "mul", "div", "matmul", "maximum", "minimum", "clamp", "mean", "sum", "amax", "amin", "softmax"),
    *("log_softmax", "reshape", "permute", "sin", "cos", "floor", "round", "where", "var", "std"),
)
_OF_FUNCTIONAL = (
    *("silu", "gelu", "hardswish", "hardsigmoid", "softplus", "mish", "elu", "selu", "celu", "logsigmoid", "softsign"),
    *("leaky_relu", "relu6", "hardtanh", "prelu", "layer_norm", "group_norm", "instance_norm", "normalize", "rms_norm"),
    *(
        "tanhshrink",
        "softshrink",
        "hardshrink",
        "softmin",
        "glu",
        "scaled_dot_product_attention",
        "local_response_norm",
    ),
)
MOST_NEIGHBOURS = 1 << 10  # of a local response norm, which pads by them
# Name → the function. Their results are no larger than what they read, but for matmul's.
CALLS: Mapping[str, Any] = {
    **{name: getattr(torch, name) for name in _OF_TORCH},
    **{name: getattr(F, name) for name in _OF_FUNCTIONAL},
}
_NAMES = {function: name for name, function in CALLS.items()} | {F.softmax: "softmax", F.log_softmax: "log_softmax"}
_OPERATORS = {"truediv": "div", "add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div", "divide": "div"}

# Module class → the function that it calls, and names of the attributes that are its further arguments.
MODULES: Mapping[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.SiLU: ("silu", ()),
    nn.GELU: ("gelu", ("approximate",)),
    nn.Hardswish: ("hardswish", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.Tanh: ("tanh", ()),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.Softsign: ("softsign", ()),
    nn.Mish: ("mish", ()),
    nn.ELU: ("elu", ("alpha",)),
    nn.CELU: ("celu", ("alpha",)),
    nn.SELU: ("selu", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.ReLU6: ("relu6", ()),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.LogSigmoid: ("logsigmoid", ()),
    nn.Softmax: ("softmax", ("dim",)),
    nn.LogSoftmax: ("log_softmax", ("dim",)),
    nn.GLU: ("glu", ("dim",)),
    nn.LayerNorm: ("layer_norm", ("normalized_shape", "weight", "bias", "eps")),
    nn.GroupNorm: ("group_norm", ("num_groups", "weight", "bias", "eps")),
    nn.InstanceNorm2d: ("instance_norm", ("running_mean", "running_var", "weight", "bias", "eps")),
    nn.RMSNorm: ("rms_norm", ("normalized_shape", "weight", "eps")),
    nn.LocalResponseNorm: ("local_response_norm", ("size", "alpha", "beta", "k")),
}
_KEYWORDS = {"gelu": ("approximate",), "instance_norm": ("eps",)}


def name_of(node: fx.Node) -> str | None:
    """Of the function that a node calls, as a function or as a tensor's method; None where it has no place here."""
    if node.op not in ("call_function", "call_method"):
        return None
    if node.op == "call_function" and node.target in _NAMES:
        return _NAMES[node.target]
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    is_ours = node.op == "call_method" or getattr(node.target, "__module__", "") in ("_operator", "torch")
    name = _OPERATORS.get(name, name)
    return name if is_ours and name in CALLS else None


def written(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The words of a call; an argument is a value's number in a `Value`, a number, a name or a tuple of numbers.

    Raises:
        ValueError: an argument is something else.
    """
    keys = [""] * len(args) + [f"{key}=" for key in kwargs]
    return name, *(key + _text(value) for key, value in zip(keys, (*args, *kwargs.values()), strict=True))


class Value(int):
    """The number of a value, among arguments that may be numbers."""


def _text(value: Any) -> str:
    if isinstance(value, Value):
        return f"%{int(value)}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str) and _WORD.fullmatch(value):
        return repr(value)
    if isinstance(value, list | tuple) and all(isinstance(v, int) for v in value):
        return f"({','.join(map(repr, value))},)"
    raise ValueError(f"an argument is {str(value)[:40]!r}")


class Calls(nn.Module):
    """Where a call stands in the tree of modules: tracing finds the path there, and the function."""

    def forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return CALLS[name](*args, **kwargs)


def check(words: Sequence[str], number: int) -> None:
    """Raises `ValueError` unless the words are a call of a known function on values up to `number`."""
    name, *arguments = words
    if name not in CALLS or len(arguments) > 32:
        raise ValueError("an unknown call")
    for word in arguments:
        key, text = _split(word)
        value = _argument(text)
        if key == "out" or (key == "inplace" and value is not False):
            raise ValueError("it writes into what it reads")
        if name == "local_response_norm" and type(value) is int and value > MOST_NEIGHBOURS:
            raise ValueError("it reads too many channels")
        if isinstance(value, Value) and value > number:
            raise ValueError("it reads what is not there")


def node(graph: fx.Graph, path: str, words: Sequence[str], values: Sequence[fx.Node | None]) -> fx.Node:
    """Write the call into a graph, from the `Calls` at a path, or from the network itself where that is ""."""
    args, kwargs = list[Any](), dict[str, Any]()
    for word in words[1:]:
        key, text = _split(word)
        value = _argument(text)
        value = values[value] if isinstance(value, Value) else value
        if key:
            kwargs[key] = value
        else:
            args.append(value)
    if path:
        return graph.call_module(path, (words[0], *args), kwargs)
    return graph.call_function(CALLS[words[0]], tuple(args), kwargs)


def _split(word: str) -> tuple[str, str]:
    found = _NAMED.fullmatch(word)
    return (found[1], found[2]) if found else ("", word)


def _argument(text: str) -> Any:
    if found := _VALUE.fullmatch(text):
        return Value(found[1])
    try:
        value = ast.literal_eval(text) if len(text) < 200 else ...
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        value = ...
    if value is ... or isinstance(value, Value) or _text(value) != text:
        raise ValueError("an argument is none")
    return value


def module_arguments(path: str, module: nn.Module) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
    """Function, further arguments and keywords of a module's call; a parameter is its path in a `Parameter`."""
    found = next((MODULES[kind] for kind in type(module).__mro__ if kind in MODULES), None)
    if getattr(module, "track_running_stats", False):
        return None  # a buffer is no parameter
    if found is None or (type(module) not in MODULES and type(module).forward is not _base(module).forward):
        return None
    name, attributes = found
    values: list[Any] = []
    for attribute in attributes:
        value = getattr(module, attribute)
        values.append(Parameter(f"{path}.{attribute}") if isinstance(value, torch.Tensor) else value)
    keywords = _KEYWORDS.get(name, ())
    given = dict(zip(attributes, values, strict=True))
    return name, tuple(v for a, v in given.items() if a not in keywords), {a: given[a] for a in keywords}


class Parameter(str):
    """The path of a parameter, among arguments that may be words."""


def _base(module: nn.Module) -> type[nn.Module]:
    return next(kind for kind in type(module).__mro__ if kind in MODULES)
