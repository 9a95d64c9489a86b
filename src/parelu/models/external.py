"""A network of the user's own: `package.module:callable`, which returns a torch.fx-traceable module.

`torchvision:NAME` and `timm:NAME` are networks of these libraries, where they are installed.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import traceback
from typing import ClassVar

import torch
from torch import nn

from parelu.errors import UserError
from parelu.models import libraries
from parelu.network.spec import Spec

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

    The callable is called with `num_classes=classes` where it takes that argument, else with nothing; a library's
    network gets the classes, and timm's the channels of the input, without trained weights. Its channels
    cannot be scaled. A file never decides which code runs: a spec that was read from one builds only what
    `from_name` was given in this process.

    Attributes:
        target: "package.module:callable".
    """

    family: ClassVar[str] = "external"
    examples: ClassVar[tuple[str, ...]] = (
        "package.module:callable (your own)",
        "torchvision:NAME",
        "timm:NAME",
    )

    target: str

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> External | None:
        if not re.fullmatch(r"[\w.]+:[\w.]+", name):
            return None
        _permitted.add(name)
        return cls(input, classes, name)

    def scale_channels(self, factor: float) -> External:
        raise UserError(f"{self.target}: the channels of your own network cannot be scaled by {factor:g}")

    def module(self) -> nn.Module:
        if self.target not in _permitted:
            raise UserError(
                f"this network is built by {self.target}, and a file does not decide which code runs; "
                f"name it yourself: --model {self.target} where a command trains, spec_of({self.target!r}, …) in Python"
            )
        path, _, name = self.target.partition(":")
        with torch.device("cpu"):  # also where only a skeleton is wanted: a user's code may read its initial values
            if path in libraries.LIBRARIES:
                module = libraries.build(path, name, self.input[0], self.classes)
            else:
                module = _built(path, name, self.classes)
        if not isinstance(module, nn.Module):
            raise UserError(f"{self.target} returned a {type(module).__name__}, not a torch.nn.Module")
        return module


def _built(path: str, name: str, classes: int) -> object:
    try:
        builder = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{path}:{name}: {error}; is its folder on PYTHONPATH?") from error
    except Exception as error:  # whatever a user's code raises, a SyntaxError among it
        raise _failed(path, name, error) from error
    try:
        takes_classes = "num_classes" in inspect.signature(builder).parameters
        return builder(num_classes=classes) if takes_classes else builder()
    except UserError:
        raise
    except Exception as error:
        raise _failed(path, name, error) from error


def _failed(path: str, name: str, error: Exception) -> UserError:
    """With the place of the error, as far as it is in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    reason = (str(error).splitlines() or [""])[0]
    return UserError(f"{path}:{name} failed: {type(error).__name__}: {reason}{place}; mend it and run again")
