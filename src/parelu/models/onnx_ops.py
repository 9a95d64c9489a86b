"""What each op of ONNX is in torch. `RULES`: its name → how it is written; what is not here is refused by name.

Source: the operator list of ONNX, versions 7 to 23 (onnx.ai/onnx/operators), options and defaults from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu.models.onnx_graph import Call, Known, Value, Writer, pair

Rule = Callable[[Writer, Call], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def image(call: Call) -> Value:
    """The input that depends on the image, which must be a map (batch, C, H, W)."""
    x = call.value()
    if isinstance(x, Tensor) or x.like.dim() != 4:
        raise call.refuse(
            f"{call.op} of a tensor of {x.dim() if isinstance(x, Tensor) else x.like.dim()} dimensions; "
            "only maps (batch, C, H, W) can be read"
        )
    return x


# Layers


def windows(call: Call, x: Value, kernel: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int], list[int]]:
    """Strides, dilations, and the paddings as F.pad takes them: left, right, top, bottom."""
    stride, dilation = pair(call.get("strides"), 1), pair(call.get("dilations"), 1)
    automatic = call.get("auto_pad", default=b"NOTSET").decode()
    if automatic in ("NOTSET", ""):
        top, left, bottom, right = call.get("pads", default=[0, 0, 0, 0])
        return stride, dilation, [left, right, top, bottom]
    if automatic == "VALID":
        return stride, dilation, [0, 0, 0, 0]
    pads: list[int] = []
    for size, k, s, d in reversed(list(zip(x.shape[2:], kernel, stride, dilation, strict=True))):
        needed = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        less, more = needed // 2, needed - needed // 2
        pads += [less, more] if automatic == "SAME_UPPER" else [more, less]
    return stride, dilation, pads


def even(pads: Sequence[int]) -> tuple[int, int] | None:
    """(rows, columns) where both sides have the same padding."""
    left, right, top, bottom = pads
    return (top, left) if left == right and top == bottom else None


def padded(g: Writer, x: Known, pads: Sequence[int], value: float = 0.0) -> Value:
    return g.call(F.pad, x, list(pads), value=value) if any(pads) else x  # pyright: ignore[reportReturnType]


@rule("Conv")
def convolution(g: Writer, call: Call) -> Known:
    x, weight, bias = image(call), call.weight(1), call.weight(2)
    if weight is None or weight.dim() != 4:
        raise call.refuse("its weight is no fixed tensor (outputs, inputs, rows, columns)")
    outputs, per_group, *kernel = weight.shape
    stride, dilation, pads = windows(call, x, kernel)
    groups, padding = call.get("group", default=1), even(pads)
    if padding is None:
        x, padding = padded(g, x, pads), (0, 0)
    layer = nn.utils.skip_init(
        nn.Conv2d, per_group * groups, outputs, kernel, stride, padding, dilation, groups, bias is not None
    )
    return g.layer(call.path, _filled(layer, weight=weight, bias=bias), x)


@rule("ConvTranspose")
def transposed_convolution(g: Writer, call: Call) -> Known:
    x, weight, bias = image(call), call.weight(1), call.weight(2)
    if (
        weight is None
        or weight.dim() != 4
        or call.get("output_shape")
        or call.get("auto_pad", default=b"NOTSET") != b"NOTSET"
    ):
        raise call.refuse("only a transposed convolution of maps with its paddings stated can be read")
    stride, dilation, pads = windows(call, x, weight.shape[2:])
    groups, extra, padding = call.get("group", default=1), pair(call.get("output_padding"), 0), even(pads)
    if padding is None:
        raise call.refuse("a transposed convolution with different paddings on its sides cannot be read")
    inputs, per_group, *kernel = weight.shape
    layer = nn.utils.skip_init(
        nn.ConvTranspose2d,
        inputs,
        per_group * groups,
        kernel,
        stride,
        padding,
        extra,
        groups,
        bias is not None,
        dilation,
    )
    return g.layer(call.path, _filled(layer, weight=weight, bias=bias), x)


@rule("BatchNormalization")
def batch_norm(g: Writer, call: Call) -> Known:
    x = call.value()
    scale, bias, mean, variance = (call.weight(i) for i in range(1, 5))
    trains = bool(call.get("training_mode", default=0))
    if isinstance(x, Tensor) and trains:  # of a weight, to standardise it
        return F.batch_norm(x, None, None, scale, bias, True, eps=call.get("epsilon", default=1e-5))
    if isinstance(x, Tensor) or scale is None or bias is None or mean is None or variance is None:
        raise call.refuse("a batch-norm without fixed statistics cannot be read")
    if trains or call.get("spatial", default=1) != 1:
        raise call.refuse("it was exported in training mode; call model.eval() before the export")
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    if x.like.dim() not in kinds:
        raise call.refuse(f"a batch-norm of {x.like.dim()} dimensions cannot be read")
    layer = kinds[x.like.dim()](len(scale), call.get("epsilon", default=1e-5))
    return g.layer(call.path, _filled(layer, weight=scale, bias=bias, running_mean=mean, running_var=variance), x)


@rule("Gemm")
def gemm(g: Writer, call: Call) -> Known:
    x, weight, bias = call.value(), call.weight(1), call.weight(2)
    if weight is None or isinstance(x, Tensor) or call.get("transA", default=0):
        raise call.refuse("only a product of the activations with a fixed matrix can be read")
    matrix = weight if call.get("transB", default=0) else weight.T
    matrix = matrix * call.get("alpha", default=1.0)
    if bias is not None:
        bias = (bias * call.get("beta", default=1.0)).reshape(-1).expand(len(matrix))
    return linear(g, call.path, x, matrix, bias)


def linear(g: Writer, path: str, x: Value, matrix: Tensor, bias: Tensor | None = None) -> Value:
    """matrix: (outputs, inputs)."""
    layer = nn.utils.skip_init(nn.Linear, matrix.shape[1], matrix.shape[0], bias is not None)
    return g.layer(path, _filled(layer, weight=matrix, bias=bias), x)


@rule("MatMul")
def matmul(g: Writer, call: Call) -> Known:
    x, weight = call.value(0), call.value(1)
    if isinstance(x, Value) and isinstance(weight, Tensor) and weight.dim() == 2:
        return linear(g, call.path, x, weight.T)
    return g.call(torch.matmul, x, weight)


def _filled(layer: nn.Module, **tensors: Tensor | None) -> Any:
    """The layer with these parameters and buffers; their shapes are checked where it is called."""
    state = {name: tensor.float().contiguous() for name, tensor in tensors.items() if tensor is not None}
    layer.load_state_dict(state, strict=False)
    return layer


# Activations

LAYERS: dict[str, Callable[[Call], nn.Module]] = {
    "Relu": lambda call: nn.ReLU(),
    "LeakyRelu": lambda call: nn.LeakyReLU(call.get("alpha", default=0.01)),
    "Elu": lambda call: nn.ELU(call.get("alpha", default=1.0)),
    "Selu": lambda call: nn.SELU(),
    "HardSwish": lambda call: nn.Hardswish(),
    "Mish": lambda call: nn.Mish(),
    "Sigmoid": lambda call: nn.Sigmoid(),
    "Tanh": lambda call: nn.Tanh(),
    "Softplus": lambda call: nn.Softplus(),
    "Gelu": lambda call: nn.GELU(call.get("approximate", default=b"none").decode()),
}


@rule(*LAYERS)
def activation(g: Writer, call: Call) -> Known:
    x, layer = call.value(), LAYERS[call.op](call)
    return layer(x) if isinstance(x, Tensor) else g.each_layer(call.path, layer, x)


@rule("HardSigmoid")
def hard_sigmoid(g: Writer, call: Call) -> Known:
    slope, shift = call.get("alpha", default=0.2), call.get("beta", default=0.5)
    if math.isclose(slope, 1 / 6, rel_tol=1e-4) and shift == 0.5:
        x = call.value()
        return F.hardsigmoid(x) if isinstance(x, Tensor) else g.each_layer(call.path, nn.Hardsigmoid(), x)
    scaled = g.each(torch.add, g.each(torch.mul, call.value(), slope), shift)
    return g.each(torch.clamp, scaled, min=0.0, max=1.0)


@rule("PRelu")
def prelu(g: Writer, call: Call) -> Known:
    """The slope broadcasts: one number, or (C, 1, 1)."""
    x, slope = call.value(), call.weight(1)
    if isinstance(x, Tensor) or slope is None or max(slope.shape, default=1) != slope.numel():
        raise call.refuse("a PReLU needs one fixed slope, or one a channel")
    axis = 1 if slope.numel() == 1 else x.like.dim() - slope.dim() + list(slope.shape).index(slope.numel())
    if x.order[axis] != 1 and slope.numel() > 1:
        raise call.refuse("a PReLU with a slope a position cannot be read")
    layer = nn.PReLU(slope.numel())
    return g.each_layer(call.path, _filled(layer, weight=slope.flatten()), x)


@rule("Clip")
def clip(g: Writer, call: Call) -> Known:
    low, high = (one(call.get(name, i)) for name, i in (("min", 1), ("max", 2)))
    low, high = (None if v is not None and abs(v) > 1e37 else v for v in (low, high))
    x = call.value()
    if isinstance(x, Value) and low == 0 and high in (None, 6):
        return g.each_layer(call.path, nn.ReLU() if high is None else nn.ReLU6(), x)
    return x if low is None and high is None else g.each(torch.clamp, x, min=low, max=high)


def one(value: Any) -> float | None:
    return value[0] if isinstance(value, list) else value


# Pools


@rule("MaxPool", "AveragePool")
def pool(g: Writer, call: Call) -> Known:
    x, kernel = image(call), pair(call.get("kernel_shape"), 1)
    stride, dilation, pads = windows(call, x, kernel)
    ceil_mode, padding = bool(call.get("ceil_mode", default=0)), even(pads)
    if call.op == "MaxPool":
        if padding is None or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
            x, padding = padded(g, x, pads, 0.0 if g.is_relu(x) else -math.inf), (0, 0)
        return g.layer(call.path, nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode), x)
    if dilation != (1, 1):
        raise call.refuse("a dilated average pool cannot be read")
    counted = bool(call.get("count_include_pad", default=0)) or not any(pads)
    if padding is not None and all(2 * p <= k for p, k in zip(padding, kernel, strict=True)):
        return g.layer(call.path, nn.AvgPool2d(kernel, stride, padding, ceil_mode, counted), x)
    layer = nn.AvgPool2d(kernel, stride, 0, ceil_mode)
    averages = g.layer(call.path, layer, padded(g, x, pads))
    if counted:
        return averages
    share = layer(F.pad(torch.ones(1, 1, *x.shape[2:]), pads))  # of each window, what is no padding
    return g.call(torch.mul, averages, 1 / share)


@rule("GlobalAveragePool")
def global_average_pool(g: Writer, call: Call) -> Known:
    return g.layer(call.path, nn.AdaptiveAvgPool2d(1), image(call))


@rule("GlobalMaxPool")
def global_max_pool(g: Writer, call: Call) -> Known:
    x = image(call)
    return g.layer(call.path, nn.MaxPool2d(x.shape[2:]), x)


def _axes(call: Call, x: Known) -> list[int]:
    rank = x.dim() if isinstance(x, Tensor) else x.like.dim()
    axes = call.get("axes", 1)
    given = list(range(rank)) if axes is None else axes if isinstance(axes, list) else [axes]
    return [int(axis) % rank for axis in given]


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
}


@rule(*REDUCTIONS)
def reduction(g: Writer, call: Call) -> Known:
    x, keep, function = call.value(), bool(call.get("keepdims", default=1)), REDUCTIONS[call.op]
    if call.get("axes", 1) is None and call.get("noop_with_empty_axes", default=0):
        return x
    axes = _axes(call, x)
    if isinstance(x, Tensor):
        return function(x, axes, keepdim=keep)
    dims, like = tuple(x.order[axis] for axis in axes), function(x.like, axes, keepdim=keep)
    order = x.order if keep else [x.order[d] for d in range(len(x.order)) if d not in axes]
    return g.on_node(x, function, dims, keep, like=like, order=[sorted(order).index(d) for d in order])


@rule("ReduceProd")
def product(g: Writer, call: Call) -> Known:
    x = call.value()
    if isinstance(x, Value) or (call.get("axes", 1) is not None and x.dim() != 1):
        raise call.refuse("the product of activations cannot be read")
    return x.prod().reshape([1] * x.dim() if call.get("keepdims", default=1) else [])


# Arithmetic


def _divided(a: Any, b: Any) -> Tensor:
    """ONNX's division: of integers it is without a rest."""
    both = all(not isinstance(v, Tensor) or not v.is_floating_point() for v in (a, b))
    return torch.div(a, b, rounding_mode="trunc" if both else None)


TWO: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "Less": torch.lt,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Mod": torch.remainder,
}
ONE: dict[str, Callable[..., Tensor]] = {
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Erf": torch.erf,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Not": torch.logical_not,
    "Sign": torch.sign,
}


@rule(*ONE)
def of_one(g: Writer, call: Call) -> Known:
    return g.each(ONE[call.op], call.value())


@rule(*TWO)
def of_two(g: Writer, call: Call) -> Known:
    """With its numbers as numbers; a bias behind a layer that has none becomes the layer's."""
    if call.op in ("Max", "Min") and len(call.inputs) == 1:
        return call.value()
    a, b = (number(call.value(i)) for i in range(2))
    if not isinstance(a, Value) and not isinstance(b, Value):
        a, b = call.value(0), call.value(1)
        return _divided(a, b) if call.op == "Div" else TWO[call.op](a, b)
    if call.op in ("Max", "Min") and not (isinstance(a, Value) and isinstance(b, Value)):
        x, bound = (a, b) if isinstance(a, Value) else (b, a)
        if not isinstance(bound, Tensor):
            if call.op == "Max" and bound == 0:
                return g.each_layer(call.path, nn.ReLU(), x)
            return g.each(torch.clamp, x, **{"min" if call.op == "Max" else "max": bound})
    found = g.each(TWO[call.op], a, b)
    for i in range(2, len(call.inputs)):  # Max and Min take several
        found = g.each(TWO[call.op], found, call.value(i))
    return found


def number(x: Known) -> Any:
    """A known tensor of one number as that number."""
    return x.item() if isinstance(x, Tensor) and x.numel() == 1 and x.dim() <= 1 else x


@rule("Sum")
def total(g: Writer, call: Call) -> Known:
    found = call.value(0)
    for i in range(1, len(call.inputs)):
        found = g.each(torch.add, found, call.value(i))
    return found


@rule("Softmax", "LogSoftmax")
def softmax(g: Writer, call: Call) -> Known:
    x = call.value()
    rank = x.dim() if isinstance(x, Tensor) else x.like.dim()
    axis = call.get("axis", default=-1 if call.opset >= 13 else 1) % rank
    if call.opset < 13 and axis != rank - 1:
        raise call.refuse("a softmax over several dimensions cannot be read")
    return g.call(torch.softmax if call.op == "Softmax" else torch.log_softmax, x, axis)


@rule("LayerNormalization")
def layer_norm(g: Writer, call: Call) -> Known:
    x, weight, bias = call.value(), call.weight(1), call.weight(2)
    shape = tuple(x.shape[call.get("axis", default=-1) :])
    return g.call(F.layer_norm, x, shape, weight, bias, call.get("epsilon", default=1e-5))


@rule("InstanceNormalization")
def instance_norm(g: Writer, call: Call) -> Known:
    weight, bias = call.weight(1), call.weight(2)
    return g.call(F.instance_norm, call.value(), weight=weight, bias=bias, eps=call.get("epsilon", default=1e-5))
