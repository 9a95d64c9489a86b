"""What may move beside the weights while a network trains: the contract of a callback, and of its options."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parelu.network.sites import Network


@dataclasses.dataclass(frozen=True)
class Step:
    """One finished step of a training.

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


class Callback(abc.ABC):
    """Moves something of a network while it trains, and holds what it needs to know for that.

    What changes in it is either in the network's own state or in `state_dict`: a training's checkpoint keeps both.
    """

    def parameters(self) -> Iterable[nn.Parameter]:
        """Those of the network that it moves: they are no weights, neither for the optimizer nor for clipping."""
        return ()

    def activations(self) -> Mapping[str, nn.Module]:
        """Site → the module that it has put in the site's place."""
        return {}

    def optimizer(self) -> torch.optim.Optimizer | None:
        """For parameters of its own; the training's schedule scales its rates."""
        return None

    def before_step(self) -> None:  # noqa: B027
        """Between the loss's gradient and the optimizers' step."""

    @abc.abstractmethod
    def after_step(self, step: Step) -> None:
        """After the optimizers' step."""

    def after_epoch(self, epoch: int) -> None:  # noqa: B027
        """epoch: finished ones."""

    def is_done(self) -> bool:
        """Whether the training may end now, before its epochs do."""
        return False

    @abc.abstractmethod
    def report(self) -> dict[str, Any]:
        """JSON values for an epoch of the history."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Name → tensor, the tensors themselves: all that changes and is not in the network's own state."""

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a `state_dict` into its own; raises `ValueError` with the first name or shape that does not fit."""
        own = self.state_dict()
        for name in sorted(set(own) ^ set(state)):
            raise ValueError(f"the state {'lacks' if name in own else 'has an unknown'} {name}")
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                raise ValueError(f"the state's {name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}")
            tensor.copy_(state[name])


@dataclasses.dataclass(frozen=True)
class CallbackOptions(abc.ABC):
    """What a job says of its callback: plain values, which stand in the job's identity with the name of the class."""

    @abc.abstractmethod
    def build(self, network: Network) -> Callback:
        """The callback at the start of a training of the network, which is on its device already."""


class Still(Callback):
    """Moves nothing: the weights train alone."""

    def after_step(self, step: Step) -> None: ...

    def report(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}
