"""The parameters, buffers and modules that a traced graph names, and what is computed of them while it is traced."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx, nn
from torch.utils.weak import WeakTensorKeyDictionary

from parelu.network.tracing.memory import version


class Constants:
    """What does not depend on the image.

    A parameter or buffer that is read as it is keeps its name. What is computed of a parameter becomes a parameter, by
    that one's name if it is not read itself; what is computed of none becomes a buffer.
    """

    def __init__(self, root: nn.Module) -> None:
        modules = [*root.named_modules(remove_duplicate=False)]
        tensors = (*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False))
        self.named: dict[str, Tensor | nn.Module] = {}  # what the graph names
        self.notes: list[str] = []
        self._paths = {id(module): path for path, module in reversed(modules)}
        self._names = {id(tensor): name for name, tensor in reversed(tensors)}
        self._parameters = dict(root.named_parameters(remove_duplicate=False))
        self._computed = WeakTensorKeyDictionary()  # computed → (its name, its version)
        self._origins = WeakTensorKeyDictionary()  # computed → name of the parameter that it is computed of
        self._long = WeakTensorKeyDictionary()  # as many equal entries as the batch has images → True
        self._origin_of: dict[str, str] = {}  # name of what is computed → its origin

    def path(self, module: nn.Module, owner: str) -> str:
        """Of a module; one that is made in a forward, or hidden in a list, gets one in its owner's."""
        if id(module) not in self._paths:
            self._paths[id(module)] = self.unused(join(owner, type(module).__name__.lower()))
        return self._paths[id(module)]

    def follow(self, results: Iterable[Tensor], given: Iterable[Tensor], batch: int, is_told: bool = False) -> None:
        """Remember what was computed of what; is_told: whether the call was given the batch's length."""
        given = list(given)
        origin = next((name for t in given if (name := self._origin(t))), "")
        is_long = is_told or any(t in self._long for t in given)
        for t in results:
            if id(t) in self._names:
                continue
            if origin:
                self._origins[t] = origin
            if is_long and t.dim() and t.shape[0] == batch:
                self._long[t] = True

    def name(self, value: Tensor, owner: str) -> str:
        """Of a constant in the graph."""
        name = self._names.get(id(value))
        if name is not None:
            self.named.setdefault(name, value)
            return name
        name, known = self._computed.get(value) or ("", -1)
        if known != version(value):
            name = self._kept(value, owner)
            self._computed[value] = (name, version(value))
        return name

    def is_long(self, value: Tensor) -> bool:
        """Whether it has an equal entry for each image, of which one is kept."""
        return value in self._long

    def _kept(self, value: Tensor, owner: str) -> str:
        origin = self._origin(value)
        name = self.unused(origin or join(owner, "constant"))
        one = (value[:1] if self.is_long(value) else value).detach()
        if not origin:
            self.named[name] = one.clone()
            return name
        source = self._parameters[origin]
        is_view = one.numel() == source.numel() and one.untyped_storage()._cdata == source.untyped_storage()._cdata
        self.named[name] = nn.Parameter(one if is_view else one.clone(), one.is_floating_point())
        self._origin_of[name] = origin
        if not is_view:
            self.notes.append(f"{origin}: what the network computes of it is computed once, and is a parameter itself")
        return name

    def finish(self, graph: fx.Graph) -> None:
        """Keep what the graph names; what is computed of a parameter takes its name where nothing else has it."""
        used = {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}
        for name, origin in self._origin_of.items():
            if name not in used or origin in used or any(origin.startswith(f"{path}.") for path in used):
                continue
            self.named[origin] = self.named.pop(name)
            used.add(origin)
            for node in graph.nodes:
                if node.op == "get_attr" and node.target == name:
                    node.target = origin
        self.notes = list(dict.fromkeys(self.notes))

    def _origin(self, value: Tensor) -> str:
        if isinstance(value, nn.Parameter):
            return self._names.get(id(value), "")
        return self._origins.get(value) or ""

    def unused(self, name: str) -> str:
        """`name`, or `name_2`, `name_3`, … where something else has it."""
        taken = {*self.named, *self._paths.values(), *self._names.values()}
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        return candidate


def join(*parts: str) -> str:
    """A dotted name."""
    return ".".join(p for p in parts if p)
