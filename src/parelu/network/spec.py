"""The contract of an architecture: a frozen dataclass that builds its module and survives a round trip through JSON."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection
from typing import Any, ClassVar, get_type_hints

from torch import nn

from parelu import registry
from parelu.errors import UserError

LARGEST_SIDE = 4096


AUXILIARY = "auxiliary"  # module path of a classifier at a shallower depth, in a network that has one


@dataclasses.dataclass(frozen=True)
class Spec(abc.ABC):
    """What is needed to build a network again.

    A subclass is a frozen dataclass whose fields are ints, bools, strings and tuples of ints.

    Attributes:
        input: (C, H, W) of one image.
        classes: length of the output.
    """

    family: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]  # names that `from_name` takes, shown by --help and run by the contract tests

    input: tuple[int, int, int]
    classes: int

    def __post_init__(self) -> None:
        if len(self.input) != 3 or not all(1 <= side <= LARGEST_SIDE for side in self.input):
            raise UserError(f"input {self.input} is not (channels, height, width), each from 1 to {LARGEST_SIDE}")
        if not 2 <= self.classes <= 1_000_000:
            raise UserError(f"{self.classes} classes: a classifier has at least 2")

    @classmethod
    @abc.abstractmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> Spec | None:
        """The spec of a name such as "resnet18 m=16", or None where the name is not of this family."""

    @abc.abstractmethod
    def module(self) -> nn.Module:
        """A new module with fresh weights: (batch, *input) → (batch, classes)."""

    @abc.abstractmethod
    def scale_channels(self, factor: float) -> Spec:
        """The same network with `factor` times the channels (α in DeepReDuce)."""

    def scale_fmap(self, factor: float) -> Spec:
        """The same network on an input of `factor` times the side (ρ in DeepReDuce)."""
        channels, *sides = self.input
        height, width = (scaled(side, factor, f"an input side of {side}") for side in sides)
        return dataclasses.replace(self, input=(channels, height, width))

    def with_reuse(self, factor: int, stages: Collection[str]) -> Spec:
        """The same network with ReLU-reuse in these stages, such as "S2" (DeepReShape, section 3.3)."""
        raise UserError(
            f"ReLU-reuse cannot be applied in a {self.family}: it is made for basic blocks (ResNets); "
            "leave the step out"
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields, without those that have their default: a field that is added later changes no network's JSON."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value != default[name]}
        return {"family": self.family, **fields}


def scaled(value: int, factor: float, what: str) -> int:
    result = value * factor
    if result != int(result) or result < 1:
        raise UserError(f"{what} times {factor:g} is {result:g}, which is not a whole number of at least 1")
    return int(result)


def families() -> dict[str, type[Spec]]:
    """Family name → spec class: those in `parelu.models`, one file a family, and those of plugins."""
    return registry.classes(Spec, "parelu.models", key="family")


def spec_of(name: str, input: tuple[int, int, int], classes: int) -> Spec:
    """The spec of a network's name; raises `UserError` with the known names."""
    for cls in families().values():
        spec = cls.from_name(name.strip(), input, classes)
        if spec is not None:
            return spec
    known = ", ".join(example for cls in families().values() for example in cls.examples)
    raise UserError(f"unknown network {name!r}; known are {known}")


_EARLIER = {"merged": "graph"}  # family of an earlier version → what it is now
_OF_CODE = ("external", "in-memory")


def spec_from_json(data: Any) -> Spec:
    """The inverse of `Spec.to_json`; raises `UserError` for anything else.

    A field that has a default may be missing: it is younger than the file.
    """
    family = str(data.get("family")) if isinstance(data, dict) else ""
    if family in _OF_CODE:
        raise UserError(
            "this network was saved by an earlier version as a name of code that builds it, and a file does not decide "
            "which code runs; make it again: parelu train or reduce --model NAME writes what the code builds"
        )
    cls = families().get(_EARLIER.get(family, family))
    if cls is None:
        raise UserError(f"no known architecture in {str(data)[:80]!r}")
    types = get_type_hints(cls)
    hints = {f.name: types[f.name] for f in dataclasses.fields(cls)}
    needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "family"}
    if not needed <= set(values) <= set(hints):
        raise UserError(f"architecture {cls.family}: fields {sorted(values)} are not {sorted(hints)}")
    for key, value in values.items():
        if not _is_of(value, hints[key]):
            raise UserError(f"architecture {cls.family}: {key} is {str(value)[:40]!r}, not {hints[key]}")
    return cls(**values)  # pyright: ignore[reportArgumentType]


def _is_of(value: Any, hint: Any) -> bool:
    if hint in (int, bool, str):
        return type(value) is hint
    return isinstance(value, tuple) and len(value) <= 4096 and all(type(v) is int for v in value)
