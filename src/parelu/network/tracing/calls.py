"""How a call of torch is written as a node: one way for each thing, and never in place.

A call of a method by an operator's name is the operator, a change in place is its plain twin, and what only reshapes is
`reshape` to the shape that came out. What is called beneath torch's functions (compiled scripts, functions of autograd)
arrives as an operator of aten and is written as the function that it stands for.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import is_tensor_method_or_property


class Call(NamedTuple):
    """kind: "call_function" or "call_method"; the arguments are nodes and constants."""

    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A call of torch's function or of a tensor's method."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return _of_aten(func, args, kwargs)
    name = func.__name__
    kwargs = {key: value for key, value in kwargs.items() if key != "out"}
    if name == "__setitem__":
        return Call("call_function", assigned, args, kwargs)
    if func in _REFLECTED and not kwargs:
        return Call("call_function", _REFLECTED[func], args[::-1], kwargs)
    is_in_place = name.endswith("_") and not name.endswith("__")
    if is_tensor_method_or_property(func):
        name = name.removesuffix("_") if is_in_place and hasattr(Tensor, name[:-1]) else name
        written = _OPERATORS.get(getattr(Tensor, name, None))
        if written and len(args) <= 2 and not kwargs:
            return Call("call_function", written, args, kwargs)
        return Call("call_method", name, args, kwargs)
    if is_in_place:
        func = getattr(F, name[:-1], None) or getattr(torch, name[:-1], func)
    if any(a is True for a in (*args[1:], *kwargs.values())):
        args, kwargs = _out_of_place(func, args, kwargs)
    return Call("call_function", func, args, kwargs)


def shaped(call: Call, name: str, before: torch.Size, after: Any) -> Call:
    """The call, or where it reshapes or expands a batch of shape `before`: that, to the shape that came out."""
    name = name.removesuffix("_")
    method = "reshape" if name in _RESHAPING else "expand" if name in _EXPANDING else ""
    if not method or not isinstance(after, Tensor) or before[:1] != after.shape[:1] or not before:
        return call
    return Call("call_method", method, (call.args[0], (-1, *map(int, after.shape[1:]))), {})


def changed_by(operator: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """What an operator of aten changes in place."""
    given = {a.name: value for a, value in zip(operator._schema.arguments, args, strict=False)} | kwargs
    written = [a.name for a in operator._schema.arguments if a.alias_info and a.alias_info.is_write]
    return [given[name] for name in written if isinstance(given.get(name), Tensor)]


def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """x with another value at an index."""
    result = x.clone()
    result[index] = value
    return result


def dropout_module(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[nn.Module, Tensor] | None:
    """The module that a call of a dropout function stands for, which follows the mode, and its input.

    None of another function, and of one that drops at inference.
    """
    if func not in _DROPOUTS:
        return None
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    if bound.arguments["training"]:
        return None
    return _DROPOUTS[func](bound.arguments["p"]).eval(), bound.arguments["input"]


def _out_of_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with `inplace` false, where the function has it."""
    with contextlib.suppress(TypeError, ValueError):
        bound = inspect.signature(func).bind(*args, **kwargs)
        if bound.arguments.get("inplace") is True:
            bound.arguments["inplace"] = False
            return bound.args, bound.kwargs
    return args, kwargs


def _of_aten(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    packet = getattr(func, "overloadpacket", func)
    name = packet.__name__
    if not str(packet).startswith("aten."):
        return Call("call_function", func, args, kwargs)
    if name in _ATEN:
        return Call("call_function", *_ATEN[name](args, kwargs))
    plain = name.strip("_")
    written = _OPERATORS.get(getattr(Tensor, plain, None))
    if written and len(args) <= 2 and not kwargs:
        return Call("call_function", written, args, kwargs)
    function = getattr(F, plain, None) or getattr(torch, plain, None)
    if function is None and hasattr(Tensor, plain):
        return Call("call_method", plain, args, kwargs)
    return Call("call_function", function or func, args, kwargs)


def _convolution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    x, weight, bias, stride, padding, dilation, is_transposed, output_padding, groups = args[:9]  # then flags
    dims = len(stride)
    if is_transposed:
        function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        return function, (x, weight, bias, stride, padding, output_padding, groups, dilation), {}
    function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    return function, (x, weight, bias, stride, padding, dilation, groups), {}


def _batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    x, weight, bias, mean, variance, *options = (
        args  # at inference: (…, training, momentum, eps), some without training
    )
    return F.batch_norm, (x, mean, variance, weight, bias, False, 0.0, options[-1]), {}


def _whole_batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    x, weight, bias, mean, variance, is_training, momentum, eps, *_ = args
    return F.batch_norm, (x, mean, variance, weight, bias, is_training, momentum, eps), {}


def _slice(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    x, dim, *limits = (*args, 0)[: max(2, len(args))]
    return operator.getitem, (x, (*(slice(None),) * dim, slice(*limits, *(None,) * (2 - len(limits))))), {}


_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
# Operators of aten whose other results are for training.
FIRST_ALONE = (*_BATCH_NORMS, "max_pool2d_with_indices")
# aten's operator that has no function of its name, or another order of arguments → function, arguments.
_ATEN: dict[str, Callable[[Any, Any], tuple[Any, tuple[Any, ...], dict[str, Any]]]] = {
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    "slice": _slice,
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
    "batch_norm": _whole_batch_norm,
    "max_pool2d_with_indices": lambda args, kwargs: (F.max_pool2d, args, kwargs),
}
_OPERATORS: dict[Any, Any] = {
    Tensor.add: operator.add,
    Tensor.sub: operator.sub,
    Tensor.mul: operator.mul,
    Tensor.div: operator.truediv,
    Tensor.true_divide: operator.truediv,
    Tensor.matmul: operator.matmul,
    Tensor.neg: operator.neg,
    Tensor.pow: operator.pow,
    Tensor.__getitem__: operator.getitem,
}
_REFLECTED: dict[Any, Any] = {
    Tensor.__rsub__: operator.sub,
    Tensor.__rdiv__: operator.truediv,
    Tensor.__rpow__: operator.pow,
    Tensor.__rmatmul__: operator.matmul,
}
_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
}
_RESHAPING = (
    "view",
    "reshape",
    "flatten",
    "squeeze",
    "unsqueeze",
    "unflatten",
    "view_as",
    "reshape_as",
    "_unsafe_view",
)
_EXPANDING = ("expand", "expand_as")
