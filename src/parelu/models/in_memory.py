"""A network that exists as a module in memory: what `parelu.reduce` is given when it is not given a name."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import fx, nn

from parelu.errors import UserError
from parelu.network.spec import Spec
from parelu.network.trace import trace

_modules: dict[str, nn.Module] = {}


def modules() -> Mapping[str, nn.Module]:
    """What this process was given; for `give` in a process that it starts."""
    return dict(_modules)


def give(known: Mapping[str, nn.Module]) -> None:
    """Take over `modules()` of the process that started this one."""
    _modules.update(known)


@dataclasses.dataclass(frozen=True)
class InMemory(Spec):
    """A module of this process. Its channels and its input cannot be scaled.

    A file holds no code: a candidate that was read from one is built from the same module, which has to be given again
    (`InMemory.of`, `parelu.load(folder, model=module)`).

    Attributes:
        target: name of the module's class, which may be imported from another place next time.
        structure: digest of its layers with their options, the shapes of its parameters and buffers, and its calls.
    """

    family: ClassVar[str] = "in-memory"
    examples: ClassVar[tuple[str, ...]] = ()

    target: str
    structure: str

    @classmethod
    def of(cls, module: nn.Module, input: tuple[int, int, int], classes: int) -> InMemory:
        """The spec of a module, whose architecture is remembered for as long as the process lives.

        Its copy computes in single precision, and all of its parameters are trained, also frozen ones.
        """
        structure = hashlib.sha256("\n".join(_lines(module, input)).encode()).hexdigest()[:16]
        spec = cls(input, classes, type(module).__qualname__, structure)
        _modules[structure] = copy.deepcopy(module).cpu().float().requires_grad_(True)
        return spec

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> None:
        return None

    def scale_channels(self, factor: float) -> InMemory:
        raise UserError(f"{self.target}: the channels of your own network cannot be scaled by {factor:g}")

    def scale_fmap(self, factor: float) -> InMemory:
        raise UserError(f"{self.target}: the input of your own network cannot be scaled by {factor:g}")

    def module(self) -> nn.Module:
        """A copy with fresh weights: every part that has `reset_parameters`, as torch's layers do, draws them anew."""
        if self.structure not in _modules:
            raise UserError(
                f"this network is a {self.target} that was in memory when it was saved; give it again: "
                "parelu.load(folder, model=module)"
            )
        module = copy.deepcopy(_modules[self.structure]).train()
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
        return module


def _lines(module: nn.Module, input: tuple[int, int, int]) -> Iterator[str]:
    """What tells one architecture from another: two that differ in a stride or in one call are not the same."""
    for name, tensor in module.state_dict().items():
        yield f"{name} {tuple(tensor.shape)}"
    for name, part in module.named_modules():
        yield f"{name} {type(part).__qualname__} {part.extra_repr()}"
    for node in trace(module, input).graph.nodes:
        yield f"{node.name} {node.op} {_target(node)} {node.args} {node.kwargs}"


def _target(node: fx.Node) -> str:
    """Of a function its name: its text has an address."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", type(node.target).__name__)
