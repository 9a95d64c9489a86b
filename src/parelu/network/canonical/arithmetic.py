"""Sums, differences, products and quotients: of two maps, of a map and a number, of a map and what the module has."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from parelu.network import functions
from parelu.network.canonical import moves
from parelu.network.canonical.builder import Builder, Rule
from parelu.network.sites import Site

_BIAS, _WEIGHT = "bias", "weight"
_KEY = "affine"  # in a node's meta: which of weight and bias an Affine has; the other does nothing


def added(node: fx.Node, builder: Builder) -> fx.Node | None:
    """left + alpha · right."""
    left, right, alpha = builder.arguments(node, ("input", None), ("other", None), ("alpha", 1))
    return _sum(node, builder, left, right, alpha)


def subtracted(node: fx.Node, builder: Builder) -> fx.Node | None:
    """left − alpha · right."""
    left, right, alpha = builder.arguments(node, ("input", None), ("other", None), ("alpha", 1))
    return _sum(node, builder, left, right, -alpha)


def _subtracted_from(node: fx.Node, builder: Builder) -> fx.Node | None:
    left, right, alpha = builder.arguments(node, ("input", None), ("other", None), ("alpha", 1))
    return _sum(node, builder, right, left, -alpha)


def _sum(node: fx.Node, builder: Builder, left: Any, right: Any, alpha: float) -> fx.Node | None:
    if not (_is_image(left) or _is_image(right)):
        return None
    if not _is_image(left):  # constant + alpha · image
        return add_constant(builder, scale(builder, right, alpha), left, node.meta["shape"])
    if not _is_image(right):
        return add_constant(builder, left, right if alpha == 1 else _times(builder, right, alpha), node.meta["shape"])
    right = scale(builder, right, alpha)
    return add(builder, left, right, node)


def add(builder: Builder, left: fx.Node, right: fx.Node, node: fx.Node | None = None) -> fx.Node | None:
    """The sum of two tensors, each brought to the shape of both. node: of the sum, where there is one."""
    if len(left.meta["shape"]) != len(right.meta["shape"]):
        return None  # the shorter one's batch would be the other's channels
    shape = torch.broadcast_shapes(left.meta["shape"], right.meta["shape"])
    terms = [broadcast(builder, term, shape) for term in (left, right)]
    if node is not None and node.target is torch.add and node.args == tuple(terms) and not node.kwargs:
        return None
    return builder.call(torch.add, *terms)


def multiplied(node: fx.Node, builder: Builder) -> fx.Node | None:
    left, right = builder.arguments(node, ("input", None), ("other", None))
    if _is_image(left) and _is_image(right):
        if len(left.meta["shape"]) != len(right.meta["shape"]):
            return None
        return None if node.target is torch.mul and not node.kwargs else builder.call(torch.mul, left, right)
    image, other = (left, right) if _is_image(left) else (right, left)
    if not _is_image(image) or _is_scaling(node, builder):
        return None
    if _is_buffer_of_one(builder.constant(other)):
        return builder.call(torch.mul, image, other)
    return multiply_constant(builder, image, other, node.meta["shape"])


def divided(node: fx.Node, builder: Builder) -> fx.Node | None:
    """By a number or a constant; with a rounding mode it stays."""
    left, right, rounding = builder.arguments(node, ("input", None), ("other", None), ("rounding_mode", None))
    if not _is_image(left) or _is_image(right) or rounding is not None or right == 0:
        return None
    constant = builder.constant(right)
    inverse = 1 / right if constant is None else 1 / constant.detach()
    if isinstance(constant, nn.Parameter):
        builder.note("a parameter divides: a factor that is trained took its place")
        inverse = nn.Parameter(1 / constant.detach(), constant.requires_grad)
    return multiply_constant(builder, left, inverse, node.meta["shape"])


def negated(node: fx.Node, builder: Builder) -> fx.Node | None:
    return scale(builder, node.all_input_nodes[0], -1.0)


def _power(node: fx.Node, builder: Builder) -> fx.Node | None:
    base, exponent = builder.arguments(node, ("input", None), ("exponent", 2))
    if exponent == 1:
        return base
    return builder.call(torch.mul, base, base) if exponent == 2 else None


def _squared(node: fx.Node, builder: Builder) -> fx.Node | None:
    base = node.all_input_nodes[0]
    return builder.call(torch.mul, base, base)


def _added_product(node: fx.Node, builder: Builder) -> fx.Node | None:
    """torch.addcmul: input + value · first · second."""
    term, first, second = builder.arguments(node, ("input", None), ("tensor1", None), ("tensor2", None))
    value = node.kwargs.get("value", 1)
    if not any(map(_is_image, (first, second))):
        return None
    return builder.call(torch.add, term, builder.call(torch.mul, builder.call(torch.mul, first, second), value))


def _interpolated(node: fx.Node, builder: Builder) -> fx.Node | None:
    """torch.lerp: start + weight · (end − start)."""
    start, end, weight = builder.arguments(node, ("input", None), ("end", None), ("weight", None))
    return builder.call(torch.add, start, builder.call(torch.mul, builder.call(torch.sub, end, start), weight))


def _filled(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Tensor.masked_fill by a mask that is a constant, with a number."""
    source, mask, value = builder.arguments(node, ("input", None), ("mask", None), ("value", None))
    return _chosen(node, builder, mask, value, source)


def _where(node: fx.Node, builder: Builder) -> fx.Node | None:
    """torch.where by a condition that is a constant."""
    first, second, other = builder.arguments(node, ("condition", None), ("input", None), ("other", None))
    if node.op == "call_method":  # of the tensor that is chosen
        first, second = node.args[1] if len(node.args) > 1 else node.kwargs.get("condition"), first
    return _chosen(node, builder, first, second, other)


def _chosen(node: fx.Node, builder: Builder, mask: Any, chosen: Any, other: Any) -> fx.Node | None:
    """mask · chosen + (1 − mask) · other, each a tensor, a constant or a number."""
    held = builder.constant(mask)
    if held is None or held.dtype != torch.bool:
        return None
    for kept, relu, rest in ((held, chosen, other), (~held, other, chosen)):
        if _is_own_site(relu, builder) and _is_image(rest) and not held.is_meta:
            return _masked_relu(builder, kept.cpu().broadcast_to((1, *node.meta["shape"])).flatten(), relu, rest)
    total: fx.Node | None = None
    constant = torch.zeros((), device=builder.device)
    for term, factor in ((chosen, held.float()), (other, (~held).float())):
        if _is_image(term):
            part = multiply_constant(builder, term, factor, node.meta["shape"])
            total = part if part is None or total is None else add(builder, total, part)
            if total is None:
                return None
            continue
        known = builder.constant(term)
        if isinstance(known, nn.Parameter) or (known is None and not isinstance(term, int | float)):
            return None
        numbers = torch.as_tensor(float(term), device=builder.device) if known is None else known
        if not numbers.is_meta and not bool(numbers.isfinite().all()):
            return None
        constant = constant + torch.where(factor.bool(), numbers, 0.0)
    if total is None:
        return None
    return add_constant(builder, total, constant.float(), node.meta["shape"])


def _is_own_site(argument: Any, builder: Builder) -> bool:
    """Whether it is a site, of no more numbers than a movement takes, that only this node reads."""
    is_one = isinstance(argument, fx.Node) and isinstance(builder.module(argument), Site)
    return is_one and list(argument.users) == [builder.node] and argument.meta["shape"] == builder.node.meta["shape"]


def _masked_relu(builder: Builder, mask: Tensor, relu: fx.Node, other: fx.Node) -> fx.Node | None:
    """relu where a mask of all positions is True, other elsewhere: the ReLUs of those positions alone.

    They are a site of a vector, so that what is not there is not counted.
    """
    shape, kept, rest = relu.meta["shape"], mask.nonzero().flatten(), (~mask).nonzero().flatten()
    if not len(kept) or not len(rest):
        return relu if len(kept) else other
    if len(mask) > moves.LARGEST_GATHER or other.meta["shape"] != shape:
        return None
    (x,) = relu.all_input_nodes
    x, other = (moves.reshape(builder, source, (len(mask),)) for source in (x, other))
    site = builder.site_instead(relu, moves.select(builder, x, 0, kept.tolist()))
    parts = builder.call(torch.cat, [site, moves.select(builder, other, 0, rest.tolist())], 1)
    places = torch.cat([kept, rest]).argsort()
    return moves.reshape(builder, moves.select(builder, parts, 0, places.tolist()), shape)


def broadcast(builder: Builder, source: fx.Node, shape: Sequence[int]) -> fx.Node:
    """A tensor repeated along its dimensions of size 1."""
    for axis, (have, want) in enumerate(zip(source.meta["shape"], shape, strict=True)):
        if have != want:
            source = moves.select(builder, source, axis, (0,) * want)
    return source


def scale(builder: Builder, source: fx.Node, factor: float) -> fx.Node:
    """A tensor times a number."""
    return source if factor == 1 else builder.call(torch.mul, source, float(factor))


def add_constant(builder: Builder, source: fx.Node, constant: Any, shape: tuple[int, ...]) -> fx.Node | None:
    """A tensor plus a number, a node of a constant, or a tensor. shape: of the sum."""
    return _affine(builder, source, constant, shape, _BIAS)


def multiply_constant(builder: Builder, source: fx.Node, constant: Any, shape: tuple[int, ...]) -> fx.Node | None:
    """A tensor times a number, a node of a constant, or a tensor. shape: of the product."""
    if isinstance(constant, int | float):
        return scale(builder, source, constant)
    return _affine(builder, source, constant, shape, _WEIGHT)


def _affine(builder: Builder, source: fx.Node, constant: Any, shape: tuple[int, ...], name: str) -> fx.Node | None:
    values = _values(builder, constant, len(shape))
    if values is None or (isinstance(constant, int | float) and constant == 0 and name == _BIAS):
        return source if values is not None else None
    joined = _joined(builder, source, values, name) if tuple(shape) == source.meta["shape"] else None
    if joined is not None:
        return joined
    is_trained = isinstance(values, nn.Parameter)
    layer = functions.Affine(tuple(values.shape), trained=(name,) if is_trained else ())
    layer.to(device=values.device, dtype=values.dtype)
    setattr(layer, name, values)
    path = str(constant.target) if is_trained and isinstance(constant, fx.Node) else builder.below("affine")
    made = builder.layer(path, layer, broadcast(builder, source, shape))
    made.meta[_KEY] = name
    return made


def _joined(builder: Builder, source: fx.Node, values: Tensor, name: str) -> fx.Node | None:
    """The affine map before, changed so that it does this too, where nobody else reads it."""
    before, known = builder.module(source), source.meta.get(_KEY)
    if known is None or not isinstance(before, functions.Affine) or list(source.users) != [builder.node]:
        return None
    if len(builder.callers(str(source.target))) > 1:
        return None
    if name == _BIAS and known == _WEIGHT and tuple(values.shape) == tuple(before.weight.shape):
        _assign(before, _BIAS, values)
    elif before.trained or isinstance(values, nn.Parameter):
        return None
    else:
        weight, bias = before.weight, before.bias
        weight, bias = (weight, bias + values) if name == _BIAS else (weight * values, bias * values)
        before.weight, before.bias = torch.broadcast_tensors(weight, bias)
    source.meta[_KEY] = "both" if known != name else known
    return source


def _assign(layer: nn.Module, name: str, values: Tensor) -> None:
    delattr(layer, name)
    if isinstance(values, nn.Parameter):
        layer.register_parameter(name, values)
    else:
        layer.register_buffer(name, values)


def _values(builder: Builder, constant: Any, rank: int) -> Tensor | None:
    """A constant with as many dimensions as a tensor without the batch has; a parameter stays one."""
    if isinstance(constant, int | float):
        return torch.full((1,) * rank, float(constant), device=builder.device)
    tensor = builder.constant(constant)
    if tensor is None or not tensor.is_floating_point():
        return None
    if tensor.dim() > rank + 1 or (tensor.dim() == rank + 1 and tensor.shape[0] != 1):
        return None
    shape = tensor.shape[1:] if tensor.dim() == rank + 1 else (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
    if tuple(shape) == tuple(tensor.shape):
        return tensor
    return builder.view(tensor, tuple(shape))


def _times(builder: Builder, constant: Any, factor: float) -> Any:
    """A constant times a number; a parameter becomes another one."""
    tensor = builder.constant(constant)
    if tensor is None:
        return constant * factor
    if isinstance(tensor, nn.Parameter):
        builder.note("a parameter is subtracted: its negative, which is trained, took its place")
        return nn.Parameter(tensor.detach() * factor, tensor.requires_grad)
    return tensor * factor


def _is_image(argument: Any) -> bool:
    """Whether it depends on the image."""
    return isinstance(argument, fx.Node) and argument.op != "get_attr" and "shape" in argument.meta


def _is_scaling(node: fx.Node, builder: Builder) -> bool:
    """Whether a product is one by a number already, or by a buffer of one number, which training may change."""
    if node.target is not torch.mul or node.kwargs:
        return False
    _, other = node.args
    return _is_buffer_of_one(builder.constant(other)) or (isinstance(other, float) and other != 1)


def _is_buffer_of_one(constant: Tensor | None) -> bool:
    """Whether a constant is one number that training may change, but does not learn."""
    return constant is not None and constant.dim() == 0 and not isinstance(constant, nn.Parameter)


def _named(rule: Rule, *names: str) -> dict[Any, Rule]:
    """For a function of torch and of operator of each name, and the methods, also those in place."""
    found: dict[Any, Rule] = {}
    for name in names:
        owners: tuple[Any, ...] = (torch, operator)
        called: list[Callable[..., Any]] = [getattr(owner, name) for owner in owners if hasattr(owner, name)]
        found |= dict.fromkeys((*called, name, f"{name}_", f"__{name}__"), rule)
    return found


ARITHMETIC: dict[Any, Rule] = {
    **_named(added, "add", "iadd"),
    **_named(subtracted, "sub", "subtract", "isub"),
    **_named(_subtracted_from, "rsub"),
    **_named(multiplied, "mul", "multiply", "imul"),
    **_named(divided, "div", "divide", "true_divide", "truediv", "itruediv"),
    **_named(negated, "neg", "negative"),
    **_named(_power, "pow"),
    **_named(_squared, "square"),
    **_named(_added_product, "addcmul"),
    **_named(_interpolated, "lerp"),
    **_named(_filled, "masked_fill"),
    **_named(_where, "where"),
}
