"""What may move beside the weights while a network trains: the contract of a learner."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parelu.masks.gate import Gate
from parelu.network.sites import Network


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a training, behind it.

    Attributes:
        number: from 0; progress: share of all steps done, in (0, 1].
        images: the batch, (N, C, H, W), normalised; labels: (N,).
        teacher: the full-ReLU network, frozen.
    """

    number: int
    progress: float
    images: Tensor
    labels: Tensor
    teacher: Network | None = None


@dataclasses.dataclass(frozen=True)
class Learner(abc.ABC):
    """Moves something of a network while it trains.

    The fields are options. All that changes lives in the network, as parameters or buffers, so that a training's
    checkpoint holds it.
    """

    def optimizer(self, gates: Mapping[str, Gate]) -> torch.optim.Optimizer | None:
        """For the learner's own parameters; the training's schedule scales its rates."""
        return None

    def before_step(self, gates: Mapping[str, Gate]) -> None:  # noqa: B027
        """Between the loss's gradient and the optimizers' step."""

    @abc.abstractmethod
    def after_step(self, network: Network, step: Step) -> None:
        """Behind the optimizers' step."""

    def after_epoch(self, gates: Mapping[str, Gate], epoch: int) -> None:  # noqa: B027
        """epoch: finished ones."""

    @abc.abstractmethod
    def report(self, network: Network) -> dict[str, Any]:
        """JSON values for an epoch of the history."""
