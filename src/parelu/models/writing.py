"""Writing a network as a graph: a line an op, and the scale of its weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.models import calls
from parelu.models.graph import Graph
from parelu.models.lines import LABEL, Line, line
from parelu.network import functions, nodes, ops
from parelu.network.sites import Network

VERBATIM = 16  # numbers: a tensor of factors with no more is written whole, any other as its mean and deviation
UNKNOWN_STAGE = "S"


def graph_of(network: Network, classes: int, source: str = "", fresh: Mapping[str, Tensor] | None = None) -> Graph:
    """The spec of a network as it stands, with the paths that it has.

    Args:
        fresh: the state dict whose scale fresh weights have; the network's own if left out.

    Raises:
        UserError: it has an op that cannot be written.
    """
    lines = list(_written(network))
    layers = "\n".join(map(str, [*lines, *_ties(network, {one.path for one in lines})]))
    shape: Any = tuple(network.input_shape)
    bare = Graph(shape, classes, layers, source, notes="\n".join(network.notes))
    initial = _initial(bare, network.state_dict() if fresh is None else fresh)
    return dataclasses.replace(bare, initial=initial)


def weights_of(spec: Graph, network: Network) -> dict[str, Tensor]:
    """The state dict that the network of `graph_of(network)` takes."""
    with torch.device("meta"):
        names = spec.module().state_dict()
    own = network.state_dict()
    return {name: own[name].detach().clone() for name in names}


def _written(network: Network) -> Iterator[Line]:
    """The lines of a network; raises `UserError` for an op that has none."""
    values: dict[fx.Node, int] = {}
    count = 0
    for node in network.graph.nodes:
        op = ops.read(node)
        if isinstance(op, ops.Input):
            values[node] = 0
            continue
        if isinstance(op, ops.Output | ops.Constant | ops.Number):
            continue
        try:
            lines = _described(network, node, op, values, count)
        except (KeyError, ValueError) as error:
            raise UserError(f"{ops.path(node)}: {ops.name(node)} has no place in a graph ({error})") from error
        yield from lines
        count += len(lines)
        values[node] = count if lines else values[node.all_input_nodes[0]]


def _described(network: Network, node: fx.Node, op: ops.Op, values: Mapping[fx.Node, int], before: int) -> list[Line]:
    """The lines of a node, none where it returns what it reads; values: numbers of what nodes make; before: how many
    lines there are."""
    path, reads = str(node.target), [values[term] for term in node.all_input_nodes if term in values]
    match op:
        case ops.Activation(site):
            return [line("relu", reads, path=path, label=_label(site.stage), block=site.block)]
        case ops.Convolution(nn.Conv2d() as layer) if _is_writable(op):
            sizes = (layer.in_channels, layer.out_channels, *chain(*op.window), layer.groups)
            bias = int(layer.bias is not None)
            return [line("conv", reads, sizes, path=path, dilation=ops.two(layer.dilation), bias=bias)]
        case ops.Linear(layer):
            sizes = layer.in_features, layer.out_features
            return [line("linear", reads, sizes, path=path, bias=int(layer.bias is not None))]
        case ops.BatchNorm(layer) if layer.running_mean is not None and layer.momentum is not None:
            dims = 1 if isinstance(layer, nn.BatchNorm1d) else 2
            options = {"dims": dims, "eps": layer.eps, "momentum": layer.momentum, "affine": int(layer.affine)}
            return [line("norm", reads, (layer.num_features,), path=path, **options)]
        case ops.Affine(layer) if layer.weight.shape == layer.bias.shape:
            return [line("affine", reads, tuple(layer.weight.shape), path=path, trained=_trained(layer))]
        case ops.Resample(layer):
            return [line("resample", reads, _entries(layer.axis, layer.matrix), path=path)]
        case ops.Identity():
            module = nodes.called_module(node)
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                dims = 2 if isinstance(module, nn.Dropout2d) else 1
                return [line("dropout", reads, (float(module.p),), path=path, dims=dims)]
            return []
        case ops.Scaling(factor):
            return [line("scale", reads, (float(factor),))]
        case ops.Addition(left, right):
            return [line("add", (values[left], values[right]))]
        case ops.Pool(kernel, stride, padding):
            pool = line("pool", reads, (*kernel, *stride, *padding))
            is_vector = len(node.meta["shape"]) == 1
            return [pool, line("flatten", (before + 1,))] if is_vector else [pool]
        case ops.MaxPool(kernel, stride, padding, ceil):
            return [line("maxpool", reads, (*kernel, *stride, *padding), ceil=int(ceil))]
        case ops.Concat(parts, axis):
            return [line("concat", [values[part] for part in parts], axis=axis)]
        case ops.Select() if op.channels:
            return [line("slice", reads, op.channels)]
        case ops.Select(indices):
            axes = [(axis, wanted) for axis, wanted in enumerate(indices) if wanted is not None]
            sources = [*reads, *range(before + 1, before + len(axes))]
            return [line("select", (s,), (axis, *wanted)) for s, (axis, wanted) in zip(sources, axes, strict=True)]
        case ops.Reshape(after):
            return [line("flatten", reads) if len(after) == 1 else line("reshape", reads, after)]
        case ops.Permute(order):
            return [line("permute", reads, order)]
        case ops.Product():
            return [line("mul", [values[term] for term in node.args])]  # pyright: ignore[reportArgumentType]
        case _:
            return _called(network, node, values, before)


def _is_writable(op: ops.Convolution) -> bool:
    return op.has_even_bias and op.layer.padding_mode == "zeros" and not isinstance(op.layer.padding, str)


def _trained(layer: functions.Affine) -> tuple[int, int]:
    return int("weight" in layer.trained), int("bias" in layer.trained)


def _label(stage: str) -> str:
    return stage if LABEL.fullmatch(stage) else UNKNOWN_STAGE + "".join(c for c in stage if c.isalnum())


def _entries(axis: int, matrix: Tensor) -> tuple[int | float, ...]:
    """(axis, inputs, outputs, then row, column and number of each entry that is not 0)."""
    rows, columns = (matrix != 0).nonzero(as_tuple=True)
    numbers = matrix[rows, columns].cpu().numpy()
    entries = zip(rows.tolist(), columns.tolist(), (float(str(n)) for n in numbers), strict=True)
    return (axis, matrix.shape[1], matrix.shape[0], *chain(*entries))


def _called(network: Network, node: fx.Node, values: Mapping[fx.Node, int], before: int) -> list[Line]:
    """A call that runs, but not privately, after the parameters that it reads."""
    lines: list[Line] = []

    def argument(value: Any) -> Any:
        if isinstance(value, calls.Parameter):
            tensor = network.get_parameter(value)
            lines.append(line("parameter", (), tuple(tensor.shape), path=str(value)))
            return calls.Value(before + len(lines))
        if isinstance(value, fx.Node):
            return calls.Value(values[value]) if value in values else argument(_constant(value))
        return value

    module = nodes.called_module(node)
    found = calls.module_arguments(str(node.target), module) if module is not None else None
    if found:
        name, args, kwargs = found[0], (*node.args, *found[1]), found[2]
    else:
        name, args, kwargs = calls.name_of(node), node.args, dict(node.kwargs)
    if name is None:
        raise ValueError("it is no call that a graph has")
    args, kwargs = [argument(a) for a in args], {key: argument(a) for key, a in kwargs.items()}
    path = str(node.target) if module is not None else nodes.owner(node)
    return [*lines, Line("call", path, words=calls.written(name, args, kwargs))]


def _constant(node: fx.Node) -> Any:
    return calls.Parameter(str(node.target)) if node.op == "get_attr" else node.meta["number"]


def _ties(network: Network, paths: set[str]) -> Iterator[Line]:
    """A line for each further name of a parameter that has several."""
    first: dict[Tensor, str] = {}
    for name, tensor in network.named_parameters(remove_duplicate=False):
        if name.rpartition(".")[0] in paths and first.setdefault(tensor, name) != name:
            yield Line("tie", words=(name, first[tensor]))


def _initial(spec: Graph, fresh: Mapping[str, Tensor]) -> str:
    """`Graph.initial` for a state dict."""
    with torch.random.fork_rng():
        built = spec.module()
    lines = []
    for name, own in _drawn(built):
        tensor = fresh[name].detach().float().cpu()
        if tensor.is_meta or torch.equal(tensor, own) or not tensor.numel():
            continue
        layer = built.get_submodule(name.rpartition(".")[0])
        is_whole = tensor.numel() <= VERBATIM and not isinstance(layer, nn.Conv2d | nn.Linear)
        if is_whole or not isinstance(own, nn.Parameter):
            lines.append(f"{name} = {' '.join(str(number) for number in tensor.flatten().numpy())}")
        else:
            deviation, mean = torch.std_mean(tensor, correction=0)
            is_centred = abs(float(mean)) < 4 * float(deviation) / math.sqrt(tensor.numel())
            lines.append(f"{name} {0 if is_centred else float(mean):.4g} {float(deviation):.4g}")
    return "\n".join(lines)


def _drawn(built: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that fresh weights have: parameters, and factors that no training changes."""
    yield from built.named_parameters()
    for path, module in built.named_modules():
        if isinstance(module, functions.Affine):
            yield from ((f"{path}.{name}", tensor) for name, tensor in module.named_buffers())
