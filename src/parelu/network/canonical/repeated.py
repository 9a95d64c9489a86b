"""Constants that are as long as the batch, beside what comes of the image or written into, in canonical form."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from parelu.network.canonical import moves
from parelu.network.canonical.builder import Builder, Rule
from parelu.network.tracing import calls

_BROADCASTING = (operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div)


def _expanded(node: fx.Node, builder: Builder) -> fx.Node | None:
    """A constant for each image: one for all where it meets others number by number, else zeros and its addition."""
    value = _constant(node, builder)
    if value is None:
        return moves.moved(node, builder)
    for user in [user for user in node.users if user.target in _BROADCASTING]:
        user.replace_input_with(node, node.all_input_nodes[0])
    if not node.users:
        return None
    image = next(iter(node.graph.find_nodes(op="placeholder")))
    return moves.write(builder, image, lambda x: value.to(x).expand(1, *node.meta["shape"]))


def _joined(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Concatenation with constants: what the others give, selected with zeros between, and the constants' addition."""
    parts, dim = builder.arguments(node, ("tensors", None), ("dim", 0))
    constants = [_constant(part, builder) if isinstance(part, fx.Node) else None for part in parts]
    others = [part for part, value in zip(parts, constants, strict=True) if value is None]
    axis = dim % (len(node.meta["shape"]) + 1) - 1
    if axis < 0 or not others or len(others) == len(parts):
        return moves.MOVES[torch.cat](node, builder)
    source = others[0] if len(others) == 1 else builder.call(torch.cat, others, axis + 1)
    indices: list[int] = []
    taken = 0
    for part, value in zip(parts, constants, strict=True):
        size = part.meta["shape"][axis]
        indices += [-1] * size if value is not None else range(taken, taken + size)
        taken += 0 if value is not None else size
    result = moves.select(builder, source, axis, indices)
    added = torch.cat(
        [
            torch.zeros(1, *part.meta["shape"]) if value is None else value.expand(1, *part.meta["shape"])
            for part, value in zip(parts, constants, strict=True)
        ],
        axis + 1,
    )
    return moves.constant_added(builder, result, added[0]) if bool(added.any()) else result


def _assigned(node: fx.Node, builder: Builder) -> fx.Node | None:
    """x[index] = value: what is left of x, and the value where it comes to stand."""
    x, index, value = node.args
    if not isinstance(x, fx.Node) or any(term is not x and term is not value for term in node.all_input_nodes):
        return None
    into, what = _constant(x, builder), _constant(value, builder) if isinstance(value, fx.Node) else value
    shape = (1, *node.meta["shape"])
    if into is not None and isinstance(value, fx.Node) and what is None:
        return moves.write(builder, value, lambda t: calls.assigned(into.to(t).expand(shape), index, t))
    if into is None and what is not None:
        return moves.write(
            builder, x, lambda t: calls.assigned(t, index, what.to(t) if isinstance(what, Tensor) else what)
        )
    if into is not None or not isinstance(value, fx.Node):
        return None
    left = moves.write(builder, x, lambda t: calls.assigned(t, index, 0))
    right = moves.write(builder, value, lambda t: calls.assigned(t.new_zeros(shape), index, t))
    return builder.call(operator.add, left, right) if left and right else None


def _constant(node: fx.Node, builder: Builder) -> Tensor | None:
    """What a node has of a constant, by a name or repeated for each image; zeros where it is on the meta device."""
    is_repeated = node.op == "call_method" and node.target == "expand"
    value = builder.constant(node.all_input_nodes[0] if is_repeated else node)
    return value if value is None else torch.zeros(value.shape) if value.is_meta else value.detach().cpu()


REPEATED: Mapping[Any, Rule] = {
    "expand": _expanded,
    calls.assigned: _assigned,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _joined),
}
