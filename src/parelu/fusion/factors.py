"""Factors a channel: batch-norms and affine maps folded into the layers before them, or carried to those behind.

For a factor s > 0, relu(s·x + b) = s·relu(x + b/s): a batch-norm that no layer before can take in, as behind a
concatenation or an addition, becomes a sum with numbers that the server adds to its own share, and the layers that read
the activation take the factor.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from parelu.network import functions, ops
from parelu.network.sites import Network, Site

LARGEST_SHIFT = 2.0**10  # of b/s: a factor that is almost 0 stays where it is


def fold_factors(network: Network) -> None:
    """Take away the batch-norms and affine maps that follow a convolution or linear layer.

    One whose layer is read by somebody else as well, or called twice, stays; so does one that follows another op, has
    no running statistics, or has other numbers than one a channel.
    """
    for node in list(network.graph.nodes):
        op = ops.read(node)
        if not isinstance(op, ops.BatchNorm | ops.Affine):
            continue
        before = node.all_input_nodes[0]
        if len(before.users) != 1 or calls(network, str(before.target)) != 1:
            continue
        folded = _folded(ops.read(before), op, node.meta["shape"])
        if folded:
            network.set_submodule(str(before.target), folded)
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)


def _folded(op: ops.Op, after: ops.BatchNorm | ops.Affine, of: tuple[int, ...]) -> nn.Module | None:
    """The layer that a layer and then an op on its output of a shape are; None where no layer is that."""
    match op:
        case ops.Convolution(layer) if op.has_even_bias:
            axis = 0
        case ops.Linear(layer):
            axis = len(of) - 1
        case _:
            return None
    numbers = factors(after, of, axis)
    if numbers is None:
        return None
    factor, summand = numbers
    folded = copy.deepcopy(layer)
    bias = torch.zeros_like(summand) if layer.bias is None else layer.bias.detach()
    folded.weight = nn.Parameter(layer.weight.detach() * factor.view(-1, *[1] * (layer.weight.dim() - 1)))
    folded.bias = nn.Parameter(bias * factor + summand)
    return folded


def factors(op: ops.BatchNorm | ops.Affine, of: tuple[int, ...], axis: int) -> tuple[Tensor, Tensor] | None:
    """Factor and summand, a number for each place along one dimension of a map; None of another map."""
    match op:
        case ops.BatchNorm(norm):
            if norm.running_mean is None or norm.running_var is None or axis:
                return None
            factor = 1 / (norm.running_var + norm.eps).sqrt()
            factor = factor * norm.weight if norm.weight is not None else factor
            summand = (norm.bias if norm.bias is not None else 0) - norm.running_mean * factor
            return factor.detach(), summand.detach()
        case ops.Affine(layer):
            numbers = [
                number.detach().view(*[1] * (len(of) - number.dim()), *number.shape)
                for number in (layer.weight, layer.bias)
            ]
            if any(size != 1 for number in numbers for d, size in enumerate(number.shape) if d != axis):
                return None
            factor, summand = (number.flatten().expand(of[axis]) for number in numbers)
            return factor, summand


def uniform(op: ops.Op) -> float | None:
    """The one factor of an affine map that costs nothing: 1, or one that no training gave it; None of any other."""
    if not isinstance(op, ops.Affine):
        return None
    weight, is_trained = op.layer.weight.detach(), "weight" in op.layer.trained
    if weight.is_meta:
        return None if is_trained else 1.0
    first = float(weight.flatten()[0])
    return first if (first == 1 or not is_trained) and bool((weight == first).all()) else None


def pass_factors(network: Network) -> None:
    """Carry factors through the activation that alone reads a batch-norm or an affine map, where its readers take them.

    On meta tensors too, as if the factors were positive.
    """
    for node in list(network.graph.nodes):
        op = ops.read(node)
        if (
            not isinstance(op, ops.BatchNorm | ops.Affine)
            or uniform(op) is not None
            or calls(network, str(node.target)) != 1
        ):
            continue
        numbers, of = factors(op, node.meta["shape"], 0), node.meta["shape"]
        user, *others = node.users
        activation = ops.read(user)
        is_called_once = calls(network, str(node.target)) == 1
        if numbers is None or others or not is_called_once or not isinstance(activation, ops.Activation):
            continue
        factor, summand = numbers
        readers = _readers(network, user)
        if not readers or not _is_carried(factor, summand):
            continue
        for reader in readers:
            _take(reader, factor)
        _divide(activation.site, factor)
        shift = functions.Affine((of[0], *[1] * (len(of) - 1)), trained=("bias",))
        shift.bias = nn.Parameter((summand / factor).view(shift.bias.shape))
        shift.weight = torch.ones_like(shift.bias)
        if any(network.get_submodule(str(node.target)).children()):  # as the activation, which stays
            node.target = f"{node.target}_shift"
        network.add_submodule(node.target, shift)


def _is_carried(factor: Tensor, summand: Tensor) -> bool:
    return factor.is_meta or bool((factor > 0).all() and (summand.abs() <= LARGEST_SHIFT * factor).all())


def _readers(network: Network, node: fx.Node) -> list[nn.Conv2d | nn.Linear] | None:
    """The layers that read a map, through pools and flattening; None where anything else does."""
    found: list[nn.Conv2d | nn.Linear] = []
    for user in node.users:
        match ops.read(user):
            case ops.Convolution(layer) if calls(network, str(user.target)) == 1:
                found.append(layer)
            case ops.Linear(layer) if calls(network, str(user.target)) == 1 and len(user.meta["shape"]) == 1:
                found.append(layer)
            case ops.Pool() | ops.Reshape((_,)):
                further = _readers(network, user)
                if further is None:
                    return None
                found += further
            case _:
                return None
    return found


def _take(layer: nn.Conv2d | nn.Linear, factor: Tensor) -> None:
    """Multiply what a layer reads of each channel; in a vector a channel may have become several positions."""
    if isinstance(layer, nn.Linear):
        wide = factor.repeat_interleave(layer.in_features // len(factor))
    else:
        outputs = layer.out_channels // layer.groups
        wide = factor.view(layer.groups, -1).repeat_interleave(outputs, 0)[:, :, None, None]
    layer.weight = nn.Parameter(layer.weight.detach() * wide)


def _divide(site: Site, factor: Tensor) -> None:
    """The polynomial of x that is that of s·x, divided by s."""
    if site.is_identity_elsewhere or factor.is_meta:
        return
    c0, c1, c2 = site.coefficients
    factor = factor.to(c0.dtype)
    site.assign(site.mask, torch.stack([c0 / factor, c1, c2 * factor]))
    site.to(c0.dtype)


def calls(network: Network, path: str) -> int:
    """How often a module is called."""
    return sum(node.op == "call_module" and node.target == path for node in network.graph.nodes)
