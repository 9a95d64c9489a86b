"""What the rules of canonical form write with: nodes with shapes, layers at paths, sites, notes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.network import nodes, ops
from parelu.network.shapes import ShapesAlone
from parelu.network.sites import Site

# What a rule makes of a node that it is asked about: the node that stands for it from now on, written before it; the
# node itself or None where it stays as it is. What a rule writes may be rough: the rules are asked about it in turn.
Rule = Callable[[fx.Node, "Builder"], fx.Node | None]

_OWN = ("weight", "bias", "running_mean", "running_var")  # tensors that layers of torch read themselves
_ACTIVATIONS = (nn.ReLU, nn.ReLU6)  # their paths are free for sites


@dataclasses.dataclass(eq=False)
class Builder:
    """Writes before `node`, which a rule is asked about.

    Attributes:
        notes: what was changed, one sentence each.
        replaced: whether anything was changed that changes the outputs.
        kinds: of replacements that found something.
        approximated: what stands for a function but for a small error → what it reads, and the function.
        left_out: what the network did with its logits at the end.
        modules: path → module, as traced: a rule may have put another in its place since.
        constants: path → parameter or buffer, as traced.
        device: of these.
    """

    network: fx.GraphModule
    notes: list[str] = dataclasses.field(default_factory=list)
    replaced: bool = False
    kinds: set[str] = dataclasses.field(default_factory=set)
    approximated: dict[fx.Node, tuple[fx.Node, Callable[[Tensor], Tensor]]] = dataclasses.field(default_factory=dict)
    left_out: Callable[[Tensor], Tensor] = lambda logits: logits
    node: fx.Node = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.modules = dict(self.network.named_modules())
        self.constants: dict[str, Tensor] = {
            **dict(self.network.named_parameters(remove_duplicate=False)),
            **dict(self.network.named_buffers(remove_duplicate=False)),
        }
        for node in self.network.graph.find_nodes(op="get_attr"):  # tensors that are no buffers
            self.constants.setdefault(str(node.target), ops.attribute(self.network, str(node.target)))
        self.device = next((tensor.device for tensor in self.constants.values()), None)
        self._views: dict[tuple[Tensor, tuple[int, ...]], Tensor] = {}
        self._placed: dict[str, nn.Module] = {}
        self._written: dict[fx.Node, nn.Module] = {}

    @property
    def path(self) -> str:
        """Of the module that the node calls, or whose forward makes the call; "" for the network itself."""
        return str(self.node.target) if self.node.op == "call_module" else nodes.owner(self.node)

    def module(self, node: fx.Node) -> nn.Module | None:
        """What a node calls, as traced or as written since."""
        if node.op != "call_module":
            return None
        return self._written.get(node) or self.modules[str(node.target)]

    def constant(self, argument: Any) -> Tensor | None:
        """The parameter, buffer or baked tensor that an argument names; None for anything else."""
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            return self.constants[str(argument.target)]
        return argument if isinstance(argument, Tensor) else None

    def view(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A constant in another shape, which shares its numbers; of a parameter a parameter, the same each time."""
        if (tensor, shape) not in self._views:
            values = tensor.detach().reshape(shape)
            is_trained = isinstance(tensor, nn.Parameter)
            self._views[tensor, shape] = nn.Parameter(values, tensor.requires_grad) if is_trained else values
        return self._views[tensor, shape]

    def callers(self, path: str) -> list[fx.Node]:
        """The nodes that call the module at a path."""
        return self.network.graph.find_nodes(op="call_module", target=path)

    def arguments(self, node: fx.Node, *named: tuple[str, Any]) -> list[Any]:
        """The arguments of a call by name, or what stands for those left out: (name, default), in order."""
        return [
            node.args[i] if i < len(node.args) else node.kwargs.get(name, default)
            for i, (name, default) in enumerate(named)
        ]

    def below(self, name: str) -> str:
        """The path of a module that the call's owner has."""
        return ".".join(filter(None, (nodes.owner(self.node), name)))

    def layer_path(self, weight: Any, name: str) -> str:
        """Where a layer stands whose weight an argument names: the weight's own parent where that is its name there.

        name: of a layer whose weight is computed.
        """
        if not isinstance(weight, fx.Node):
            return self.below(name)
        parent, _, last = str(weight.target).rpartition(".")
        return parent if re.fullmatch(r"(weight|running_mean)(_\d+)?", last) and parent else str(weight.target)

    def run(self, node: fx.Node, tensors: Mapping[fx.Node, Tensor]) -> Any:
        """What a call makes of these tensors, and of the numbers and constants that the graph has for a batch of one.

        It runs on the CPU; calls that make several tensors are run too.
        """

        def value(term: fx.Node) -> Any:
            if term in tensors:
                return tensors[term]
            if term.op == "get_attr":
                constant = self.constants[str(term.target)]
                return constant if constant.is_meta else constant.cpu()
            return term.meta["number"] if ops.is_number(term) else self.run(term, tensors)

        args: Any = fx.map_arg(node.args, value)
        kwargs: Any = fx.map_arg(node.kwargs, value)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        called: Any = self.module(node) or node.target
        return called(*args, **kwargs)

    def moved(self, node: fx.Node, result: fx.Node) -> None:
        """Take down that another node stands for one from now on."""
        self.approximated = {
            (result if made is node else made): (result if source is node else source, function)
            for made, (source, function) in self.approximated.items()
        }

    def note(self, text: str) -> None:
        """Say what was changed at the node; once."""
        note = f"{self.path or 'network'}: {text}"
        if note not in self.notes:
            self.notes.append(note)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Write a call of a function; its node has a shape."""
        with self.network.graph.inserting_before(self.node):
            node = self.network.graph.call_function(function, args, kwargs)
        return self._described(node, function)

    def layer(self, path: str, module: nn.Module, source: fx.Node) -> fx.Node:
        """Write a call of a module at a path, or at path_2, … where another stands there already.

        An equal one with the same parameters is called again.
        """
        name = next(name for name in _names(path) if self._is_free(name) or self._is_same(name, module))
        if name not in self._placed:
            for own, buffer in module.named_buffers(recurse=False):
                module._buffers[own] = buffer.to(device=self.device)
            self._place(name, module.eval())
        with self.network.graph.inserting_before(self.node):
            node = self.network.graph.call_module(name, (source,))
        self._written[node] = self._placed[name]
        return self._described(node, self._placed[name])

    def site(self, source: fx.Node, path: str = "") -> fx.Node:
        """Write a ReLU: a site of its own. path: of the module called, else that of the caller's ReLUs, by default."""
        path = path or (self.path if self.node.op == "call_module" else ".".join(filter(None, (self.path, "relu"))))
        return self._site(next(name for name in _names(path) if self._is_free(name)), source)

    def site_instead(self, site: fx.Node, source: fx.Node) -> fx.Node:
        """Write a site at the path of one that nobody is to read any more."""
        return self._site(str(site.target), source)

    def _site(self, name: str, source: fx.Node) -> fx.Node:
        self._place(name, Site(name, source.meta["shape"]))
        with self.network.graph.inserting_before(self.node):
            node = self.network.graph.call_module(name, (source,))
        self._written[node] = self._placed[name]
        node.meta = {**self._meta(), "shape": source.meta["shape"]}
        return node

    def _meta(self) -> dict[str, Any]:
        """Of a new node: whose forward made the call, and which call it was."""
        stack = self.node.meta.get("nn_module_stack")
        return {"call": self.node.meta.get("call", self.node.name)} | ({"nn_module_stack": stack} if stack else {})

    def _described(self, node: fx.Node, called: Callable[..., Any]) -> fx.Node:
        node.meta = self._meta()
        values = {n: _example(n, self) for n in node.all_input_nodes}
        args: Any = fx.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
        with torch.no_grad(), ShapesAlone():
            if isinstance(called, nn.Module):
                state = {name: t.to("meta") for name, t in (*called.named_parameters(), *called.named_buffers())}
                result = torch.func.functional_call(called, state, args, kwargs)
            else:
                result = called(*args, **kwargs)
        if isinstance(result, Tensor):
            node.meta["shape"] = tuple(result.shape[1:])
        return node

    def _is_free(self, name: str) -> bool:
        if name in self._placed:
            return False
        module = self.modules.get(name)
        is_container = type(module) is nn.Module
        is_own = self.node.op == "call_module" and self.node.target == name
        return module is None or is_container or is_own or isinstance(module, _ACTIVATIONS)

    def _is_same(self, name: str, module: nn.Module) -> bool:
        other = self._placed.get(name)
        if other is None or type(other) is not type(module) or repr(other) != repr(module):
            return False
        mine, theirs = (dict((*m.named_parameters(), *m.named_buffers())) for m in (module, other))
        return all(t is theirs.get(n) or _is_equal_buffer(t, theirs.get(n)) for n, t in mine.items())

    def _place(self, name: str, module: nn.Module) -> None:
        """Put a module at a path, with the children that stood there."""
        *parents, last = name.split(".")
        parent: nn.Module = self.network
        for part in parents:
            if not isinstance(getattr(parent, part, None), nn.Module):
                _set(parent, part, nn.Module())
            parent = getattr(parent, part)
        before = getattr(parent, last, None)
        if isinstance(before, Tensor) and last in _OWN and self.callers(".".join(parents)):
            raise UserError(
                f"{'.'.join(parents)}: its {last} is read by {ops.name(self.node)} in {self.path or 'the network'} as "
                "well; give that a parameter of its own"
            )
        if type(before) is nn.Module:
            for child, inner in before.named_children():
                module.add_module(child, inner)
        _set(parent, last, module)
        self._placed[name] = module

    def restore(self) -> None:
        """Give the constants that nodes still name back to modules that were written in their owners' places."""
        for node in self.network.graph.find_nodes(op="get_attr"):
            parent, _, name = str(node.target).rpartition(".")
            owner, constant = self.network.get_submodule(parent), self.constants[str(node.target)]
            if hasattr(owner, name):
                continue
            if isinstance(constant, nn.Parameter):
                owner.register_parameter(name, constant)
            else:
                owner.register_buffer(name, constant)


def _set(parent: nn.Module, name: str, module: nn.Module) -> None:
    if hasattr(parent, name):
        delattr(parent, name)
    parent.add_module(name, module)


def _names(path: str) -> Iterator[str]:
    number = 1
    while True:
        yield path if number == 1 else f"{path}_{number}"
        number += 1


def _example(node: fx.Node, builder: Builder) -> Any:
    """A tensor without numbers, of a batch of one, or the number that a node makes."""
    if node.op == "get_attr":
        return builder.constants[str(node.target)].to("meta")
    return torch.empty((1, *node.meta["shape"]), device="meta") if "shape" in node.meta else node.meta["number"]


def _is_equal_buffer(first: Tensor, second: Tensor | None) -> bool:
    if second is None or isinstance(first, nn.Parameter) or first.is_meta or second.is_meta:
        return False
    return torch.equal(first, second)
