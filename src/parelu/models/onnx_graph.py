"""Writing an fx graph, op by op, of what an ONNX graph computes; what is known is computed at once.

A value is a `Value`, which depends on the image, or a tensor, which does not: a shape and what follows, a weight.
Layouts with the channels last are kept as an order still to come, which moves through what works number by number, so
that a network written for channels last becomes one for channels first without a single move.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from parelu.errors import UserError

LARGEST = 1 << 26  # numbers in one tensor


@dataclasses.dataclass(frozen=True)
class Value:
    """What a node of the graph gives, with its dimensions in another order.

    Attributes:
        like: a tensor without data of the shape that ONNX sees, (batch, …).
        order: dimension d of ONNX's is dimension order[d] of the node's.
    """

    node: fx.Node
    like: Tensor
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.like.shape)

    @property
    def is_plain(self) -> bool:
        return self.order == tuple(range(len(self.order)))


Known = Value | Tensor


@dataclasses.dataclass(frozen=True)
class Call:
    """A node of an ONNX graph, its inputs computed.

    Attributes:
        inputs: None where an optional one is left out.
        path: of the module that it becomes, "features.0.conv".
        where: for errors.
    """

    op: str
    inputs: tuple[Known | None, ...]
    attributes: dict[str, Any]
    outputs: tuple[str, ...]
    path: str
    where: str
    opset: int

    def refuse(self, reason: str) -> UserError:
        return UserError(f"{self.where}: {reason}")

    def get(self, name: str, position: int = -1, default: Any = None) -> Any:
        """An option, of the node or among its inputs, where later versions of ONNX have it: a number or a list."""
        found = self.attributes.get(name)
        if found is None and 0 <= position < len(self.inputs):
            found = self.inputs[position]
        if isinstance(found, Value):
            raise self.refuse(f"its {name} depends on the image; export it with fixed sizes")
        if isinstance(found, Tensor):
            found = found.tolist() if found.numel() else None
        return default if found is None else found

    def value(self, position: int = 0) -> Known:
        found = self.inputs[position] if position < len(self.inputs) else None
        if found is None:
            raise self.refuse(f"it lacks its input {position}")
        return found

    def weight(self, position: int) -> Tensor | None:
        found = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(found, Value):
            raise self.refuse("its weight depends on the image; only fixed weights can be read")
        return found


class Writer:
    """An fx graph under construction."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.names: dict[int, str] = {}  # id of a known tensor → its name
        self._constants: dict[int, tuple[Tensor, fx.Node]] = {}
        self._permuted: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = {}

    def input(self, shape: Sequence[int], order: Sequence[int]) -> Value:
        """shape: (batch, …) as ONNX has it; the module's is that in the order undone."""
        node = self.graph.placeholder("x")
        return Value(node, torch.empty(*shape, device="meta"), tuple(order))

    def call(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Known:
        """What a function makes of its arguments, all in ONNX's order of dimensions."""
        if not _values((args, kwargs)):
            return _checked(function(*args, **kwargs))
        like = function(*_to_meta(args), **_to_meta(kwargs))
        nodes, options = self._nodes(args), self._nodes(kwargs)
        return self._new(self.graph.call_function(function, nodes, options), like)

    def layer(self, path: str, layer: nn.Module, x: Value) -> Value:
        """A module's call, in ONNX's order of dimensions."""
        state = {name: tensor.to("meta") for name, tensor in layer.state_dict().items()}
        like = torch.func.functional_call(layer.eval(), state, (x.like,))
        return self._new(self.graph.call_module(self.place(path, layer), (self._node(x),)), like)

    def each(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Known:
        """A function of numbers at the same position, in the order in which the values' nodes have them."""
        values = _values(args)
        orders = {v.order for v in values}
        if not values or len(orders) > 1 or values[0].is_plain:
            return self.call(function, *args, **kwargs)
        (order,) = orders
        like = function(*_to_meta(args), **_to_meta(kwargs))
        if like.dim() != len(order):
            return self.call(function, *args, **kwargs)
        nodes = _map(args, lambda a: a.node if isinstance(a, Value) else self._constant(self._undo(a, order)))
        return self._new(self.graph.call_function(function, nodes, kwargs), like, order)

    def each_layer(self, path: str, layer: nn.Module, x: Value) -> Value:
        """A module without a view of its own on the dimensions: an activation."""
        node = self.graph.call_module(self.place(path, layer), (x.node,))
        return Value(node, x.like, x.order)

    def permute(self, x: Known, order: Sequence[int]) -> Known:
        if isinstance(x, Tensor):
            return x.permute(*order)
        return Value(x.node, x.like.permute(*order), tuple(x.order[d] for d in order))

    def on_node(
        self, x: Value, function: Callable[..., Tensor], *args: Any, like: Tensor, order: Sequence[int]
    ) -> Value:
        """A function of the node's tensor, in its own order: `like` is what ONNX sees of the result."""
        return self._new(self.graph.call_function(function, (x.node, *args)), like, tuple(order))

    def is_relu(self, x: Value) -> bool:
        """Whether nothing in it is below zero, as an activation made it."""
        return x.node.op == "call_module" and isinstance(
            self.root.get_submodule(str(x.node.target)), nn.ReLU | nn.ReLU6
        )

    def place(self, path: str, layer: nn.Module) -> str:
        """Put a module where its path says, or beside it; returns its path."""
        parent, taken = self.root, []
        *above, last = [part for part in path.split(".") if part] or ["layer"]
        for part in above:
            part = _free(parent, part, reuse=True)
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
            taken.append(part)
        last = _free(parent, last)
        parent.add_module(last, layer)
        return ".".join([*taken, last])

    def finish(self, output: Value, name: str) -> fx.GraphModule:
        self.graph.output(self._node(output))
        module = fx.GraphModule(self.root, self.graph, name)
        module.graph.eliminate_dead_code()
        module.recompile()
        return module.eval()

    def _new(self, node: fx.Node, like: Tensor, order: tuple[int, ...] | None = None) -> Value:
        return Value(node, _checked(like), order or tuple(range(like.dim())))

    def _nodes(self, args: Any) -> Any:
        return _map(args, lambda a: self._node(a) if isinstance(a, Value) else self._constant(a))

    def _node(self, value: Value) -> fx.Node:
        """Of the value in ONNX's order."""
        if value.is_plain:
            return value.node
        key = value.node, value.order
        if key not in self._permuted:
            self._permuted[key] = self.graph.call_function(torch.permute, (value.node, value.order))
        return self._permuted[key]

    def _undo(self, tensor: Tensor, order: tuple[int, ...]) -> Tensor:
        """A known tensor that ONNX broadcasts, in the order of the node's dimensions."""
        full = tensor.reshape(*[1] * (len(order) - tensor.dim()), *tensor.shape)
        moved = full.permute(*(order.index(d) for d in range(len(order))))
        self.names[id(moved)] = self.names.get(id(tensor), "constant")
        return moved

    def _constant(self, tensor: Tensor) -> Any:
        """The graph's node for a known tensor; a number where it is one."""
        if tensor.dim() == 0:
            return tensor.item()
        if id(tensor) not in self._constants:
            name = valid_path(self.names.get(id(tensor), "constant"))
            holder = nn.Module()
            value = tensor.detach().clone().contiguous()
            if value.is_floating_point():
                holder.value = nn.Parameter(value)
            else:
                holder.register_buffer("value", value)
            node = self.graph.get_attr(f"{self.place(name, holder)}.value")
            self._constants[id(tensor)] = tensor, node
        return self._constants[id(tensor)][1]


def pair(value: Any, default: int) -> tuple[int, int]:
    found = [default] * 2 if value is None else list(value)
    return int(found[0]), int(found[1])


def valid_path(name: str) -> str:
    """A name of ONNX as a module path: "/layer1/layer1.0/conv1/Conv" of torch's exporter is layer1.0.conv1.Conv."""
    scopes: list[str] = []
    for scope in re.split(r"[/:;|]+", name):
        scope = ".".join(re.sub(r"\W+", "_", part) for part in scope.split(".") if part)
        if scopes and scope.startswith(scopes[-1] + "."):
            scopes[-1] = scope
        elif scope:
            scopes.append(scope)
    return ".".join(scopes) or "layer"


def _free(parent: nn.Module, name: str, reuse: bool = False) -> str:
    """The name, or with a number behind it where something else has it; reuse: a group of modules may be shared."""
    found, number = name, 1
    while hasattr(parent, found):
        module = parent._modules.get(found)
        if reuse and module is not None and type(module) is nn.Module:
            return found
        number += 1
        found = f"{name}_{number}"
    return found


def _checked(tensor: Tensor) -> Tensor:
    if isinstance(tensor, Tensor) and tensor.numel() > LARGEST:
        raise UserError(f"a tensor of shape {tuple(tensor.shape)} is larger than {LARGEST:,} numbers")
    return tensor


def _values(args: Any) -> list[Value]:
    found: list[Value] = []
    _map(args, lambda a: found.append(a) if isinstance(a, Value) else None)
    return found


def _to_meta(args: Any) -> Any:
    return _map(args, lambda a: a.like if isinstance(a, Value) else a.to("meta") if a.dim() else a.item())


def _map(args: Any, function: Callable[[Any], Any]) -> Any:
    """Of nested arguments the values and tensors changed, all else as it is."""
    if isinstance(args, Value | Tensor):
        return function(args)
    if isinstance(args, tuple | list):
        return type(args)(_map(a, function) for a in args)
    if isinstance(args, dict):
        return {key: _map(a, function) for key, a in args.items()}
    return args
