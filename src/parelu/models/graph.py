"""Graphs: networks that are written out op by op, with no code to run: a user's own, and what fusion left of one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.models import calls
from parelu.models.lines import LABEL, Line, line, parsed
from parelu.network import ops, trace
from parelu.network.sites import Network, Site
from parelu.network.spec import Spec

MOST_LINES = 20_000
MOST_WEIGHTS, LARGEST_MAP = 1 << 30, 1 << 28  # numbers in all, and in one value of one image
VERBATIM = 16  # numbers: a tensor of factors with no more is written whole, any other as its mean and deviation
UNKNOWN_STAGE = "S"


@dataclasses.dataclass(frozen=True)
class Graph(Spec):
    """A network in order of execution, of `parelu.network.ops`'s vocabulary.

    Fresh weights are normal numbers of the mean and the standard deviation that each tensor had when the network was
    read, and small tensors (factors a channel, normalisation) as they were.

    Attributes:
        layers: a line an op, with what it reads: 0 for the image, n for what line n makes. Numbers are those of torch's
            layer in torch's order, rows before columns; axes count from 0, without the batch:

                conv PATH VALUE inputs outputs kernel kernel stride stride padding padding groups
                    [dilation=rows,columns] [bias=0]
                linear PATH VALUE inputs outputs [bias=0]
                norm PATH VALUE channels [dims=1] [eps=…] [momentum=…] [affine=0]
                relu PATH VALUE stage [block=…]
                affine PATH VALUE size …
                resample PATH VALUE axis inputs outputs [row column number] …
                dropout PATH VALUE probability [dims=2]
                scale VALUE factor
                add VALUE VALUE; mul VALUE VALUE
                pool, maxpool VALUE kernel kernel stride stride padding padding
                concat VALUE … VALUE [axis=…]
                slice VALUE first last      channels, without the last
                select VALUE axis index …   -1 for zeros
                flatten VALUE; reshape VALUE size …; permute VALUE axis …
                parameter PATH size …       a tensor that a call reads
                call [@PATH] NAME argument … of `parelu.models.calls`, %n for a value: it runs, but not privately
                tie NAME NAME               the first tensor of the state dict is the second

        source: what it was read from, to show.
        initial: a line a tensor that does not start as zeros or ones: its name, then mean and standard deviation, or
            "=" and all of its numbers.
        notes: what reading it changed, a line each.
    """

    family: ClassVar[str] = "graph"
    examples: ClassVar[tuple[str, ...]] = ()

    layers: str
    source: str = ""
    initial: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        lines = _lines(self.layers)
        modules: dict[str, Line] = {}
        for one in lines:
            if one.path and not _is_same_module(modules.setdefault(one.path, one), one):
                raise UserError(f"two ops of a graph share the path {one.path}; each has its own")

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> Graph | None:
        return None

    def scale_channels(self, factor: float) -> Graph:
        raise UserError(f"{self.shown}: the channels of a network of your own cannot be scaled by {factor:g}")

    def scale_fmap(self, factor: float) -> Graph:
        raise UserError(f"{self.shown}: the input of a network of your own cannot be scaled by {factor:g}")

    @property
    def shown(self) -> str:
        return self.source or "this network"

    def module(self) -> nn.Module:
        lines = _lines(self.layers)
        built = _assembled(lines, _shapes(self))
        for tie in (one for one in lines if one.kind == "tie"):
            _tie(built, *tie.words)
        _draw(built, self.initial)
        return built


@functools.lru_cache(64)
def _lines(layers: str) -> tuple[Line, ...]:
    texts = layers.splitlines()
    if not 1 <= len(texts) <= MOST_LINES:
        raise UserError(f"a graph of {len(texts)} lines; it has from 1 to {MOST_LINES:,}")
    found = []
    for number, text in enumerate(texts):
        try:
            found.append(parsed(text, number))
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise UserError(f"line {number + 1} of a graph, {text[:80]!r}, is no op ({str(error)[:80]})") from error
    return tuple(found)


def _is_same_module(first: Line, second: Line) -> bool:
    """Whether two lines may call one module: the same line, or the same layer on other values."""
    if first is second:
        return True
    if first.kind == second.kind == "call":
        return True
    return first.kind not in ("relu", "parameter") and dataclasses.replace(first, reads=second.reads) == second


def _assembled(lines: tuple[Line, ...], shapes: Mapping[str, tuple[int, ...]] | None = None) -> fx.GraphModule:
    """The network of some lines, with sites where their shapes are known, else with ReLUs."""
    graph, parts = fx.Graph(), dict[str, Any]()
    stages: dict[str, dict[str, tuple[str, ...]]] = {}
    values: list[fx.Node | None] = [graph.placeholder("x")]
    for one in lines:
        if one.kind == "parameter":
            parts[one.path] = nn.Parameter(torch.zeros(tuple(map(int, one.numbers))))
        elif one.kind == "relu" and shapes:
            with torch.device("cpu"):  # also where only a skeleton is wanted: a mask has numbers
                parts[one.path] = Site(one.path, shapes[one.path])
        elif one.path and one.path not in parts:
            parts[one.path] = one.module()
        values.append(one.node(graph, values))
        if one.kind == "relu":
            (block,) = one.option("block")
            blocks = stages.setdefault(one.label, {})
            name = str(block) if block >= 0 else one.path.rpartition(".")[0]
            blocks[name] = (*blocks.get(name, ()), one.path)
    graph.output(next(value for value in reversed(values) if value is not None))
    _check_paths(parts)
    built = fx.GraphModule(parts, graph, "Graph")
    declared = {stage: tuple(blocks.values()) for stage, blocks in stages.items()}
    built.stages = declared  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return built


def _check_paths(parts: Mapping[str, Any]) -> None:
    """A module may stand inside of another, but not in the place of what that has itself."""
    for path in parts:
        names = path.split(".")
        for count in range(1, len(names)):
            outer = parts.get(".".join(names[:count]))
            if outer is not None and (not isinstance(outer, nn.Module) or hasattr(outer, names[count])):
                raise UserError(f"two ops of a graph share the path {path}; each has its own")


@functools.lru_cache(64)
def _shapes(spec: Graph) -> dict[str, tuple[int, ...]]:
    """Path of a site → its shape.

    Raises:
        UserError: no memory would hold the graph, or it does not take its input.
    """
    with torch.device("meta"):
        built = _assembled(_lines(spec.layers))
        trace.propagate_shapes(built, spec.input)
    weights = sum(tensor.numel() for tensor in built.state_dict().values())
    if weights > MOST_WEIGHTS:
        raise UserError(f"a graph of {weights:,} weights; at most {MOST_WEIGHTS:,} are read")
    for node in built.graph.nodes:
        shape = node.meta.get("shape", ())
        if math.prod(shape) > LARGEST_MAP:
            raise UserError(f"a graph whose {node.name} has shape {shape}; at most {LARGEST_MAP:,} numbers are read")
    return {str(node.target): node.meta["shape"] for node, _ in trace.calls(built, (nn.ReLU,))}


def _tie(built: nn.Module, name: str, other: str) -> None:
    try:
        tensor = _owner(built, other)[0]._parameters[other.rpartition(".")[2]]
        module, own = _owner(built, name)
        if tensor is None or module._parameters[own].shape != tensor.shape:  # pyright: ignore[reportOptionalMemberAccess]
            raise KeyError(name)
    except (AttributeError, KeyError) as error:
        raise UserError(f"a graph ties {name} to {other}, which are no parameters of one shape") from error
    module._parameters[own] = tensor


def _owner(built: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, own = name.rpartition(".")
    return built.get_submodule(path), own


def _draw(built: nn.Module, initial: str) -> None:
    """Fresh numbers for the tensors that `initial` names."""
    tensors = {**dict(built.named_parameters()), **dict(built.named_buffers())}
    with torch.no_grad():
        for text in initial.splitlines():
            name, *words = text.split(" ")
            try:
                tensor, numbers = tensors[name], [float(word) for word in words if word != "="]
                if not all(map(math.isfinite, numbers)):
                    raise ValueError("not finite")
                if words[0] == "=":
                    tensor.copy_(torch.tensor(numbers, device=tensor.device).view(tensor.shape))
                else:
                    mean, deviation = numbers
                    tensor.normal_(mean, deviation)
            except (KeyError, ValueError, IndexError, RuntimeError) as error:
                raise UserError(f"the fresh weights of a graph, {text[:80]!r}, are of no tensor of it") from error


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
            return [line("affine", reads, tuple(layer.weight.shape), path=path)]
        case ops.Resample(layer):
            return [line("resample", reads, _entries(layer.axis, layer.matrix), path=path)]
        case ops.Identity():
            module = trace.called_module(node)
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

    module = trace.called_module(node)
    found = calls.module_arguments(str(node.target), module) if module is not None else None
    if found:
        name, args, kwargs = found[0], (*node.args, *found[1]), found[2]
    else:
        name, args, kwargs = calls.name_of(node), node.args, dict(node.kwargs)
    if name is None:
        raise ValueError("it is no call that a graph has")
    args, kwargs = [argument(a) for a in args], {key: argument(a) for key, a in kwargs.items()}
    path = str(node.target) if module is not None else trace.owner(node)
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
    for name, own in dict(built.named_parameters()).items():
        tensor = fresh[name].detach().float().cpu()
        if tensor.is_meta or torch.equal(tensor, own) or not tensor.numel():
            continue
        is_drawn = isinstance(built.get_submodule(name.rpartition(".")[0]), nn.Conv2d | nn.Linear)
        if tensor.numel() <= VERBATIM and not is_drawn:
            lines.append(f"{name} = {' '.join(str(number) for number in tensor.flatten().numpy())}")
        else:
            deviation, mean = torch.std_mean(tensor, correction=0)
            is_centred = abs(float(mean)) < 4 * float(deviation) / math.sqrt(tensor.numel())
            lines.append(f"{name} {0 if is_centred else float(mean):.4g} {float(deviation):.4g}")
    return "\n".join(lines)
