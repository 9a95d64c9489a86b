"""Activations: ReLUs in all their forms as sites, and others that are exactly ReLUs and linear maps.

Each ReLU that a rule writes is a site of its own, whose mask and polynomial a plan may set. Where a site is the
identity, so is what was made of the ReLU there: a LeakyReLU without its ReLU is x, a ReLU6 without its two is x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from parelu.network import functions
from parelu.network.canonical import smooth
from parelu.network.canonical.builder import Builder, Rule
from parelu.network.canonical.smooth import line
from parelu.network.sites import CAP

_INPUT = ("input", None)


def relu(node: fx.Node, builder: Builder) -> fx.Node | None:
    return builder.site(node.all_input_nodes[0])


def leaky_relu(node: fx.Node, builder: Builder) -> fx.Node | None:
    """s·x + (1 − s)·relu(x)."""
    source, slope = _read(node, builder, ("negative_slope", 0.01))
    return _leaky(builder, source, slope) if _is_number(slope) else None


def randomised_relu(node: fx.Node, builder: Builder) -> fx.Node | None:
    """At inference a LeakyReLU with the middle of its slopes."""
    source, low, high = _read(node, builder, ("lower", 1 / 8), ("upper", 1 / 3))
    return _leaky(builder, source, (low + high) / 2)


def prelu(node: fx.Node, builder: Builder) -> fx.Node | None:
    """relu(x) + w·(x − relu(x)); w stays a trained parameter under its name, one a channel or one for all."""
    source = node.all_input_nodes[0]
    module = builder.module(node)
    argument = None if module is not None else builder.arguments(node, _INPUT, ("weight", None))[1]
    weight = module.weight if isinstance(module, nn.PReLU) else builder.constant(argument)
    if weight is None:
        return None
    path = builder.path if module is not None else str(getattr(argument, "target", builder.below("slope")))
    rectified = builder.site(source, f"{path}_relu" if module is not None else "")
    negative = builder.call(torch.sub, source, rectified)
    scaled = builder.layer(path, _slopes(builder, path, weight, len(source.meta["shape"])), negative)
    return builder.call(torch.add, rectified, scaled)


def _slopes(builder: Builder, path: str, weight: torch.Tensor, rank: int) -> nn.Module:
    """x·weight, a channel each; the one that stands at the path already, where the module was called before."""
    shape = (weight.numel(), *[1] * (rank - 1))
    known = dict(builder.network.named_modules()).get(path)
    if isinstance(known, functions.Affine) and tuple(known.weight.shape) == shape:
        return known
    layer = functions.Affine(shape, trained=("weight",)).to(weight.device, weight.dtype)
    layer.weight = nn.Parameter(weight.detach().view(shape), weight.requires_grad)
    return layer


def threshold(node: fx.Node, builder: Builder) -> fx.Node | None:
    """t + relu(x − t) where what lies below the threshold becomes the threshold; any other value is a jump."""
    source, least, value = _read(node, builder, ("threshold", None), ("value", None))
    return clamped(builder, source, least, None) if least == value else None


def hardtanh(node: fx.Node, builder: Builder) -> fx.Node | None:
    module = builder.module(node)
    if isinstance(module, nn.Hardtanh):  # also ReLU6, which is derived from it
        return clamped(builder, node.all_input_nodes[0], module.min_val, module.max_val)
    source, least, largest = _read(node, builder, ("min_val", -1.0), ("max_val", 1.0))
    return clamped(builder, source, least, largest)


def relu6(node: fx.Node, builder: Builder) -> fx.Node | None:
    return clamped(builder, node.all_input_nodes[0], 0, 6)


def clamp(node: fx.Node, builder: Builder) -> fx.Node | None:
    source, least, largest = builder.arguments(node, _INPUT, ("min", None), ("max", None))
    return clamped(builder, source, least, largest)


def clamp_min(node: fx.Node, builder: Builder) -> fx.Node | None:
    source, least = builder.arguments(node, _INPUT, ("min", None))
    return clamped(builder, source, least, None)


def clamp_max(node: fx.Node, builder: Builder) -> fx.Node | None:
    source, largest = builder.arguments(node, _INPUT, ("max", None))
    return clamped(builder, source, None, largest)


def hardsigmoid(node: fx.Node, builder: Builder) -> fx.Node | None:
    """relu6(x + 3) / 6."""
    return _hardsigmoid(builder, node.all_input_nodes[0])


def hardswish(node: fx.Node, builder: Builder) -> fx.Node | None:
    """x · relu6(x + 3) / 6: a product of two maps."""
    source = node.all_input_nodes[0]
    gate = _hardsigmoid(builder, source)
    return None if gate is None else builder.call(torch.mul, source, gate)


def absolute(node: fx.Node, builder: Builder) -> fx.Node | None:
    """2·relu(x) − x."""
    source = node.all_input_nodes[0]
    return builder.call(torch.sub, line(builder, builder.site(source), 2.0), source)


def maximum(node: fx.Node, builder: Builder) -> fx.Node | None:
    """b + relu(a − b) of two tensors; not the largest of one."""
    left, right = _pair(node, builder)
    if left is None:
        return None
    rectified = builder.site(_difference(builder, left, right))
    return builder.call(torch.add, rectified, right) if right is not None else rectified


def minimum(node: fx.Node, builder: Builder) -> fx.Node | None:
    """a − relu(a − b) of two tensors; not the least of one."""
    left, right = _pair(node, builder)
    if left is None:
        return None
    return builder.call(torch.sub, left, builder.site(_difference(builder, left, right)))


def clamped(builder: Builder, source: fx.Node, least: Any, largest: Any) -> fx.Node | None:
    """Write least + relu(x − least), and largest − relu(largest − x) of it; None for bounds that are no numbers."""
    least, largest = (_number(builder, bound) for bound in (least, largest))
    bounds = [bound for bound in (least, largest) if bound is not None]
    if not all(map(_is_number, bounds)) or (len(bounds) == 2 and not least < largest):
        return None
    name = ""
    if least is not None and least > -math.inf:
        site = builder.site(line(builder, source, 1.0, -least))
        source, name = line(builder, site, 1.0, least), f"{site.target}{CAP}"
    if largest is not None and largest < math.inf:
        site = builder.site(line(builder, source, -1.0, largest), name)
        source = line(builder, site, -1.0, largest)
    return source


def _leaky(builder: Builder, source: fx.Node, slope: float) -> fx.Node:
    rectified = builder.site(source)
    if slope == 0:
        return rectified
    return builder.call(torch.add, line(builder, source, slope), line(builder, rectified, 1 - slope))


def _hardsigmoid(builder: Builder, source: fx.Node) -> fx.Node | None:
    capped = clamped(builder, line(builder, source, 1.0, 3.0), 0, 6)
    return None if capped is None else line(builder, capped, 1 / 6)


def _pair(node: fx.Node, builder: Builder) -> tuple[fx.Node | None, fx.Node | None]:
    """The two tensors that a node compares: one that depends on the image, and another; None for zeros.

    Twice None where it does not compare two tensors.
    """
    pair = builder.arguments(node, _INPUT, ("other", None))
    images = [t for t in pair if isinstance(t, fx.Node) and t.op != "get_attr" and "shape" in t.meta]
    constants = [t for t in pair if builder.constant(t) is not None]
    if not images or len(images) + len(constants) < 2 or "shape" not in node.meta:
        return None, None
    left, right = (*images, *constants)
    constant = builder.constant(right)
    is_zero = constant is not None and not constant.is_meta and not bool(constant.count_nonzero())
    return left, None if is_zero else right


def _difference(builder: Builder, left: fx.Node, right: fx.Node | None) -> fx.Node:
    return left if right is None else builder.call(torch.sub, left, right)


def _read(node: fx.Node, builder: Builder, *options: tuple[str, Any]) -> list[Any]:
    """The input and the options of an activation, of a call or of the module that is called."""
    module = builder.module(node)
    if module is None:
        return builder.arguments(node, _INPUT, *options)
    return [node.all_input_nodes[0], *(getattr(module, name, default) for name, default in options)]


def _number(builder: Builder, bound: Any) -> Any:
    """A bound that is a tensor of one number as that number."""
    constant = builder.constant(bound)
    return bound if constant is None or constant.is_meta or constant.numel() != 1 else float(constant)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(rule: Rule, *names: str, module: type[nn.Module] | None = None) -> dict[Any, Rule]:
    """For the functions of these names in torch and in torch.nn.functional, for the methods, and those in place."""
    found: dict[Any, Rule] = {} if module is None else {module: rule}
    for name in (variant for base in names for variant in (base, f"{base}_")):
        found |= {getattr(owner, name): rule for owner in (torch, F) if hasattr(owner, name)}
        found |= {name: rule} if hasattr(torch.Tensor, name) else {}
    return found


# What is called → how it is written with ReLUs and linear maps.
ACTIVATIONS: Mapping[Any, Rule] = {
    **_named(relu, "relu", module=nn.ReLU),
    **_named(relu6, "relu6", module=nn.ReLU6),
    **_named(leaky_relu, "leaky_relu", module=nn.LeakyReLU),
    **_named(randomised_relu, "rrelu", module=nn.RReLU),
    **_named(prelu, "prelu", module=nn.PReLU),
    **_named(threshold, "threshold", module=nn.Threshold),
    **_named(hardtanh, "hardtanh", module=nn.Hardtanh),
    **_named(hardsigmoid, "hardsigmoid", module=nn.Hardsigmoid),
    **_named(hardswish, "hardswish", module=nn.Hardswish),
    **_named(clamp, "clamp", "clip"),
    **_named(clamp_min, "clamp_min"),
    **_named(clamp_max, "clamp_max"),
    **_named(absolute, "abs", "absolute"),
    **_named(maximum, "maximum", "max", "fmax"),
    **_named(minimum, "minimum", "min", "fmin"),
    **_named(smooth.sigmoid, "sigmoid", module=nn.Sigmoid),
    **_named(smooth.softmax, "softmax", module=nn.Softmax),
}
