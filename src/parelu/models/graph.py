"""Graphs: networks that are written out op by op, with no code to run: a user's own, and what fusion left of one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import fx, nn

from parelu.errors import UserError
from parelu.models.lines import Line, parsed
from parelu.network import nodes
from parelu.network.sites import Site
from parelu.network.spec import Spec

MOST_LINES = 20_000
MOST_WEIGHTS, LARGEST_MAP = 1 << 30, 1 << 28  # numbers in all, and in one value of one image


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
                affine PATH VALUE size … [trained=weight,bias]   1 where training changes it
                resample PATH VALUE axis inputs outputs [row column number] …
                dropout PATH VALUE probability [dims=2]
                scale VALUE factor
                add VALUE VALUE; mul VALUE VALUE
                pool, maxpool VALUE kernel kernel stride stride padding padding [ceil=1]
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
        built.meta["notes"] = tuple(self.notes.splitlines())
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
    nodes.check_names(parts)
    _check_paths(parts)
    built = fx.GraphModule(parts, graph, "Graph")
    declared = {stage: tuple(blocks.values()) for stage, blocks in stages.items()}
    built.meta["stages"] = declared
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
        try:
            nodes.propagate_shapes(built, spec.input)
        except (IndexError, ArithmeticError, NotImplementedError, AssertionError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"{spec.shown} does not take an input of its own shape: {reason}") from error
    weights = sum(tensor.numel() for tensor in built.state_dict().values())
    if weights > MOST_WEIGHTS:
        raise UserError(f"a graph of {weights:,} weights; at most {MOST_WEIGHTS:,} are read")
    for node in built.graph.nodes:
        shape = node.meta.get("shape", ())
        if math.prod(shape) > LARGEST_MAP:
            raise UserError(f"a graph whose {node.name} has shape {shape}; at most {LARGEST_MAP:,} numbers are read")
    return {str(node.target): node.meta["shape"] for node, _ in nodes.calls(built, (nn.ReLU,))}


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
