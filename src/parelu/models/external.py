"""A network of the user's own: `package.module:callable`, which returns a torch.fx-traceable module."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import ClassVar

import torch
from torch import nn

from parelu.errors import UserError
from parelu.models.base import Spec

_permitted: set[str] = set()


def permitted() -> frozenset[str]:
    """What a user of this process named as code to run."""
    return frozenset(_permitted)


def permit(targets: frozenset[str]) -> None:
    """Take over `permitted()` of the process that started this one."""
    _permitted.update(targets)


@dataclasses.dataclass(frozen=True)
class External(Spec):
    """A builder outside parelu.

    The callable is called with `num_classes=classes` where it takes that argument, else with nothing. Its channels
    cannot be scaled. A file never decides which code runs: a spec that was read from one builds only what
    `from_name` was given in this process.

    Attributes:
        target: "package.module:callable".
    """

    family: ClassVar[str] = "external"
    examples: ClassVar[tuple[str, ...]] = ("package.module:callable (your own)",)

    target: str

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> External | None:
        if not re.fullmatch(r"[\w.]+:\w+", name):
            return None
        _permitted.add(name)
        return cls(input, classes, name)

    def scale_channels(self, factor: float) -> External:
        raise UserError(f"{self.target}: the channels of your own network cannot be scaled by {factor:g}")

    def module(self) -> nn.Module:
        if self.target not in _permitted:
            raise UserError(f"this network is built by {self.target}; give --model {self.target} to run that code")
        path, _, name = self.target.partition(":")
        try:
            builder = getattr(importlib.import_module(path), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"{self.target}: {error}; is its folder on PYTHONPATH?") from error
        takes_classes = "num_classes" in inspect.signature(builder).parameters
        with torch.device("cpu"):  # also where only a skeleton is wanted: a user's code may read its initial values
            module = builder(num_classes=self.classes) if takes_classes else builder()
        if not isinstance(module, nn.Module):
            raise UserError(f"{self.target} returned a {type(module).__name__}, not a torch.nn.Module")
        return module
