"""The contract of an engine: it runs a program between parties and says what that took."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from parelu import registry
from parelu.errors import UserError
from parelu.private.lowering.lowered import Lowered
from parelu.private.offline.mode import DEFAULT
from parelu.private.rows import QUERIES, Costs


@dataclasses.dataclass(frozen=True)
class Options:
    """What a measurement is asked for; an engine leaves aside what it has no choice of.

    relu: ReLU protocol; offline: offline mode; link: as `transport.link.link_of` reads it; batch: images a query;
    truncation: of `protocol.delphi.TRUNCATIONS`; queries: that the client says it will ask for, for what comes once.
    """

    relu: str = "sign"
    offline: str = DEFAULT
    link: str = "loopback"
    batch: int = 1
    truncation: str = "local"
    queries: int = QUERIES


@dataclasses.dataclass(frozen=True)
class Measurement:
    """logits: float64 (N, classes), as the client gets them.

    costs: medians over the queries after one that warms up.
    """

    logits: NDArray[np.float64]
    costs: Costs


class Engine(abc.ABC):
    """An engine. A concrete class has no subclasses."""

    name: ClassVar[str]

    def check(self, options: Options) -> None:  # noqa: B027
        """Raises UserError where the engine has no such option, or is not installed and cannot be."""

    @abc.abstractmethod
    def described(self, options: Options) -> dict[str, str]:
        """relu, offline_mode and threat_model of its rows; truncation, where it has the choice."""

    @abc.abstractmethod
    def run(self, lowered: Lowered, images: Tensor, options: Options) -> Measurement:
        """Private inference of uint8 images (N, C, H, W) of the program's size, `batch` a query.

        Raises:
            UserError: the engine cannot run the program, or a party failed.
        """


def engines() -> dict[str, Engine]:
    """Name → engine: those in `parelu.private.engines`, and those of plugins."""
    return registry.instances(Engine, "parelu.private.engines")


def chosen(names: Sequence[str], options: Options) -> list[Engine]:
    """Engines by name, checked; raises UserError for one that is not there."""
    known = engines()
    for name in names:
        if name not in known:
            raise UserError(f"unknown engine {name!r}; known are {', '.join(known)}")
        known[name].check(options)
    return [known[name] for name in names]
