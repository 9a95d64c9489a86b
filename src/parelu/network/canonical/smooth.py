"""Smooth activations as piecewise linear functions, which run exactly: a ReLU for each knot, a site for all of them.

They are written so wherever they stand and nothing else is asked for (`replacements.PIECES`). A gate, as of
squeeze-and-excitation, has one number a channel, or a position, so that some ReLUs for each are little beside those of
the maps; a plan that drops them all leaves it open, 1 everywhere. A map has many numbers: a note says what is cheaper.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.network import functions, ops
from parelu.network.canonical.builder import Builder, Rule
from parelu.network.canonical.knots import Kept, Knots, Line, knots

LARGEST_ERROR = 1e-3  # the step of an activation in fixed point is 2^-10
PRODUCTS = (operator.mul, torch.mul, "mul", "mul_")
_ZERO, _ONE, _X = (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)
_SELU, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # torch.nn.SELU


@dataclasses.dataclass(frozen=True)
class Smooth:
    """A smooth function that comes close to a line on either side.

    Attributes:
        function: of a tensor, and of options by name; options: these, with torch's defaults.
        left, right: the lines, of the options' numbers in order.
        kept: the piece that stands where no ReLU does.
    """

    function: Callable[..., Tensor]
    left: Callable[..., Line]
    right: Callable[..., Line]
    options: tuple[tuple[str, Any], ...] = ()
    kept: Kept = "right"


def _rising(function: Callable[..., Tensor], *options: tuple[str, Any]) -> Smooth:
    """From 0 to x."""
    return Smooth(function, lambda *given: _ZERO, lambda *given: _X, options)


def _odd(function: Callable[..., Tensor]) -> Smooth:
    """From −1 to 1; without ReLUs the line through 0."""
    return Smooth(function, lambda: (0.0, -1.0), lambda: _ONE, (), "middle")


# Name in torch.nn.functional or torch → the function.
SMOOTH: Mapping[str, Smooth] = {
    "sigmoid": Smooth(torch.sigmoid, lambda: _ZERO, lambda: _ONE),
    "silu": _rising(F.silu),
    "gelu": _rising(F.gelu, ("approximate", "none")),
    "mish": _rising(F.mish),
    "softplus": _rising(F.softplus, ("beta", 1.0), ("threshold", 20.0)),
    "elu": Smooth(F.elu, lambda alpha: (0.0, -alpha), lambda alpha: _X, (("alpha", 1.0),)),
    "celu": Smooth(F.celu, lambda alpha: (0.0, -alpha), lambda alpha: _X, (("alpha", 1.0),)),
    "selu": Smooth(F.selu, lambda: (0.0, -_SELU * _SELU_ALPHA), lambda: (_SELU, 0.0)),
    "logsigmoid": Smooth(F.logsigmoid, lambda: _X, lambda: _ZERO, (), "left"),
    "tanh": _odd(torch.tanh),
    "erf": _odd(torch.erf),
}


@functools.cache
def knots_of(name: str, *options: Any) -> Knots:
    """The knots that stand for a function of `SMOOTH`, with its options in order, by default torch's.

    Raises:
        UserError: with these options it is not close to its lines, or no continuous function.
    """
    smooth = SMOOTH[name]
    given = options + tuple(default for _, default in smooth.options[len(options) :])
    function = _with(name, *given)
    numbers = [value for value in given if not isinstance(value, str)]
    left, right = smooth.left(*numbers), smooth.right(*numbers)
    return knots(lambda x: function(torch.from_numpy(x)).numpy(), left, right, LARGEST_ERROR, smooth.kept)


def _with(name: str, *options: Any) -> Callable[[Tensor], Tensor]:
    smooth = SMOOTH[name]
    named = {option: value for (option, _), value in zip(smooth.options, options, strict=True)}
    return lambda x: smooth.function(x, **named)


def piecewise(name: str) -> Rule:
    """The rule that writes a function of `SMOOTH`, of a module or a call, as a piecewise linear one where one is."""

    def rule(node: fx.Node, builder: Builder) -> fx.Node | None:
        module, options = builder.module(node), SMOOTH[name].options
        if module is not None:
            given = [getattr(module, option, default) for option, default in options]
        else:
            _, *given = builder.arguments(node, ("input", None), *options)
        try:
            knots_of(name, *given)
        except (UserError, TypeError):  # unusual numbers, or none: a parameter
            return None
        return approximated(builder, node.all_input_nodes[0], name, *given)

    return rule


def approximated(builder: Builder, source: fx.Node, name: str, *options: Any) -> fx.Node:
    """Write a function of `SMOOTH` of a tensor as a piecewise linear one, and say so.

    Each number stands there once for each knot, less its place, in a site of (channels, knots, positions).
    """
    found, function = knots_of(name, *options), _with(name, *options)
    cheaper = f"; --replace {ops.SMOOTH[name]}=relu, and finetune, costs 1 each" if name in ops.SMOOTH else ""
    builder.note(f"{name} is piecewise linear within {LARGEST_ERROR:g}, {len(found.places)} ReLUs each{cheaper}")
    first, *others = shape = source.meta["shape"]
    column = builder.call(torch.reshape, source, (-1, first, 1, math.prod(others)))
    parts = []
    for direction in (1, -1):
        number = found.directions.count(direction)
        if number:
            faced = column if direction == 1 else builder.call(torch.mul, column, -1.0)
            parts.append(builder.call(functions.select, faced, 1, (0,) * number))
    repeated = parts[0] if len(parts) == 1 else builder.call(torch.cat, tuple(parts), 2)
    distances = functions.Affine((1, len(found.places), 1), trained=())
    places = torch.tensor(found.directions) * torch.tensor(found.places, dtype=torch.float64)
    distances.bias = -places.float().view(1, -1, 1)
    rectified = builder.site(builder.layer(beside(builder, "knots"), distances, repeated))
    changes = functions.Resample(1, torch.tensor([found.changes], dtype=torch.float32))
    bent = builder.layer(beside(builder, "slopes"), changes, rectified)
    slope, offset = found.line
    builder.approximated[bent] = column, lambda x: function(x) - slope * x - offset
    total = builder.call(torch.reshape, bent, (-1, *shape))
    if slope:
        return builder.call(torch.add, total, line(builder, source, slope, offset))
    return line(builder, total, 1.0, offset)


def sigmoid(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Any but x·sigmoid(βx) of a map, which is SiLU."""
    factors = [factor for user in node.users if user.target in PRODUCTS for factor in user.all_input_nodes]
    is_swish = any(swish_factor(node, x) for x in factors)
    return None if is_swish and not is_gate(node) else approximated(builder, node.all_input_nodes[0], "sigmoid")


def swish_factor(gate: fx.Node, x: fx.Node) -> float | None:
    """The β of a sigmoid of βx; None where it is of anything else, or of no number above 0."""
    source = gate.all_input_nodes[0]
    if source is x:
        return 1.0
    if source.target not in PRODUCTS or source.all_input_nodes != [x]:
        return None
    beta = next((term for term in source.args if isinstance(term, int | float)), 0)
    return float(beta) if beta > 0 else None


def softmax(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Of two numbers for each channel or position: the sigmoid of their difference, and what it lacks to 1."""
    source, module = node.all_input_nodes[0], builder.module(node)
    dim = module.dim if isinstance(module, nn.Softmax) else builder.arguments(node, ("input", None), ("dim", None))[1]
    shape = source.meta["shape"]
    axis = dim % (len(shape) + 1) - 1 if isinstance(dim, int) else -1
    if axis < 0 or shape[axis] != 2:
        return None
    first, second = (builder.call(functions.select, source, axis, (place,)) for place in (0, 1))
    gate = approximated(builder, builder.call(torch.sub, first, second), "sigmoid")
    return builder.call(torch.cat, (gate, line(builder, gate, -1.0, 1.0)), axis + 1)


def line(builder: Builder, source: fx.Node, slope: float, offset: float = 0.0) -> fx.Node:
    """Write slope·x + offset."""
    if not offset:
        return source if slope == 1 else builder.call(torch.mul, source, float(slope))
    shape = (1,) * len(source.meta["shape"])
    layer = functions.Affine(shape, trained=())
    layer.weight, layer.bias = torch.full(shape, float(slope)), torch.full(shape, float(offset))
    return builder.layer(beside(builder, "affine"), layer, source)


def beside(builder: Builder, name: str) -> str:
    """The path of a layer that is written for a call: of a module, its own and the name, since a site takes its own."""
    return f"{builder.path}_{name}" if builder.node.op == "call_module" else builder.below(name)


def is_gate(node: fx.Node) -> bool:
    """Whether a tensor has one number a channel or a position."""
    shape = node.meta["shape"]
    return math.prod(shape) == max(shape, default=1) or shape[0] == 1
