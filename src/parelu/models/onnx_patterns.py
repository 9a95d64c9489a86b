"""What exporters write in pieces, put together again: what follows a layer number by number, SiLU, hardswish, GELU."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

GATED: dict[type[nn.Module], type[nn.Module]] = {nn.Sigmoid: nn.SiLU, nn.Hardsigmoid: nn.Hardswish}


def join(module: fx.GraphModule) -> None:
    """Rewrite the graph in place; what it computes stays, to rounding."""
    for node in list(module.graph.nodes):
        if node.target in (torch.add, torch.sub, torch.mul, torch.div) and _fold(module, node):
            continue
        if node.target is torch.mul and not _gate(module, node):
            _gelu(module, node)
        elif node.target is torch.div:
            _hardswish(module, node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _fold(module: fx.GraphModule, node: fx.Node) -> bool:
    """A number an output, behind a convolution or a matrix that nothing else reads, goes into its weight and bias."""
    source, operand = _two(node)
    if node.target in (torch.add, torch.mul) and _module(module, source) is None:
        source, operand = operand, source
    layer = _module(module, source)
    if not isinstance(layer, nn.Conv2d | nn.Linear) or not isinstance(source, fx.Node) or len(source.users) > 1:
        return False
    numbers = _an_output(module, operand, layer)
    if numbers is None:
        return False
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
    weight = layer.weight.detach()
    if node.target in (torch.mul, torch.div):
        factor = numbers if node.target is torch.mul else 1 / numbers
        layer.weight = nn.Parameter(weight * factor.reshape(-1, *[1] * (weight.dim() - 1)))
        bias = bias * factor
    else:
        bias = bias + numbers if node.target is torch.add else bias - numbers
    if layer.bias is not None or node.target in (torch.add, torch.sub):
        layer.register_parameter("bias", nn.Parameter(bias))
    node.replace_all_uses_with(source)
    module.graph.erase_node(node)
    return True


def _an_output(module: fx.GraphModule, operand: Any, layer: nn.Conv2d | nn.Linear) -> Tensor | None:
    """(outputs,): what broadcasts to a number an output of the layer; None for anything else."""
    count = len(layer.weight)
    if isinstance(operand, int | float):
        return torch.full((count,), float(operand))
    tensor = _constant(module, operand)
    if tensor is None:
        return None
    shape = (count, 1, 1) if isinstance(layer, nn.Conv2d) else (count,)
    if tensor.numel() == count and tuple(tensor.shape) in (shape, (1, *shape)):
        return tensor.detach().reshape(count)
    return None


def _gate(module: fx.GraphModule, node: fx.Node) -> bool:
    """x · sigmoid(x)."""
    for x, gate in itertools.permutations(_two(node)):
        layer = _module(module, gate)
        kind = next((joined for plain, joined in GATED.items() if type(layer) is plain), None)
        if kind is not None and isinstance(gate, fx.Node) and gate.args[0] is x and len(gate.users) == 1:
            _replace(module, node, str(gate.target), kind(), x)
            return True
    return False


def _hardswish(module: fx.GraphModule, node: fx.Node) -> None:
    """x · relu6(x + 3) / 6."""
    product, by = _two(node)
    if by != 6 or not isinstance(product, fx.Node) or product.target is not torch.mul or len(product.users) > 1:
        return
    for x, clipped in itertools.permutations(_two(product)):
        is_clipped = isinstance(_module(module, clipped), nn.ReLU6) and isinstance(clipped, fx.Node)
        if is_clipped and len(clipped.users) == 1 and _other(clipped.args[0], torch.add, 3.0) is x:
            _replace(module, node, str(clipped.target), nn.Hardswish(), x)
            return


def _gelu(module: fx.GraphModule, node: fx.Node) -> None:
    """x · (erf(x / √2) + 1) · ½, in any order of its three factors."""
    factors = _factors(node)
    halves = [f for f in factors if isinstance(f, int | float)]
    nodes = [f for f in factors if isinstance(f, fx.Node)]
    if len(halves) != 1 or abs(halves[0] - 0.5) > 1e-6 or len(nodes) != 2:
        return
    for x, term in itertools.permutations(nodes):
        erf = _other(term, torch.add, 1.0)
        scaled = erf.args[0] if isinstance(erf, fx.Node) and erf.target is torch.erf else None
        by = _other(scaled, torch.div, math.sqrt(2)) or _other(scaled, torch.mul, math.sqrt(0.5))
        if by is x:
            _replace(module, node, _unused(module, "gelu"), nn.GELU(), x)
            return


def _factors(node: fx.Node) -> list[Any]:
    """Of a product of products, as far as no other node reads what is between."""
    found: list[Any] = []
    for argument in _two(node):
        inner = isinstance(argument, fx.Node) and argument.target is torch.mul and len(argument.users) == 1
        found += _factors(argument) if inner else [argument]
    return found


def _other(node: Any, function: Any, number: float) -> Any:
    """The other argument of a function of a tensor and this number."""
    if not isinstance(node, fx.Node) or node.target is not function:
        return None
    a, b = _two(node)
    if isinstance(a, int | float) and function is not torch.div:
        a, b = b, a
    return a if isinstance(b, int | float) and abs(b - number) < 1e-4 else None


def _two(node: fx.Node) -> tuple[Any, Any]:
    """The arguments of a function of two: nodes and numbers."""
    first, second = node.args
    return first, second


def _replace(module: fx.GraphModule, node: fx.Node, path: str, layer: nn.Module, x: Any) -> None:
    """A module's call in place of a node, at the path of the module that it replaces, or at a new one."""
    parent, _, name = path.rpartition(".")
    module.get_submodule(parent)._modules[name] = layer
    with module.graph.inserting_before(node):
        new = module.graph.call_module(path, (x,))
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _unused(module: fx.GraphModule, name: str) -> str:
    number, found = 1, name
    while hasattr(module, found):
        number += 1
        found = f"{name}_{number}"
    return found


def _module(module: fx.GraphModule, node: Any) -> nn.Module | None:
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return module.get_submodule(str(node.target)) if is_call else None


def _constant(module: fx.GraphModule, node: Any) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    path, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(path), name)
