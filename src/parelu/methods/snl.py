"""SNL: a learnable slope for every ReLU, driven to the identity by an ℓ1 penalty (Cho et al., ICML 2022)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from parelu.masks.gate import Gate
from parelu.masks.optimizer import MaskOptimizer, MaskOptions
from parelu.masks.projection import Granularity, kept_share
from parelu.methods.base import Context
from parelu.methods.learned import LearnedMasks
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.training.callback import Step
from parelu.training.schedule import Training

ALIVE = 1e-2  # a ReLU counts as kept while its slope is larger (section 4)
CREEP = 1.1  # λ grows by this (section 4)
PATIENCE = 5  # epochs before it may
GAIN = 0.2  # of the fast schedule: λ moves with this power of excess slopes a step
SETTLES, SETTLED = 0.6, 0.8  # of its steps: between them the positions with a slope come down to the budget
RATES = {"fast": (1e-2, 0.1), "paper": (1e-3, 1e-3)}  # of slopes and of weights; the paper's: section 4


@dataclasses.dataclass(frozen=True)
class Slopes(MaskOptions):
    """Slopes a of a·relu(x) + (1 − a)·x in [0, 1], moved by Adam on the loss + λ·Σa,
    each a by its charge.

    Attributes:
        schedule: of λ: "fast" is `FollowingSlopes`, "paper" `CreepingSlopes`.
        lam: λ at the start.
        lr: of Adam.
    """

    schedule: Literal["fast", "paper"] = "fast"
    lam: float = 1e-5
    lr: float = 1e-3

    def build(self, network: Network) -> SlopeOptimizer:
        return FollowingSlopes(network, self) if self.schedule == "fast" else CreepingSlopes(network, self)


class SlopeOptimizer(MaskOptimizer):
    """What both schedules share: the penalty, the range, the ranking.

    Attributes:
        lam: λ, float32.
    """

    def __init__(self, network: Network, options: Slopes) -> None:
        super().__init__(network, options)
        self.options, self.lam = options, torch.tensor(options.lam).to(self.device)
        for gate in self.gates.values():
            gate.open.requires_grad_(True)

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        return {"lam": self.lam}

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([gate.open for gate in self.gates.values()], lr=self.options.lr)

    def before_step(self) -> None:
        scale = sum(self.positions.values()) / max(1, self.total)  # the mean charge is 1
        for name, gate in self.gates.items():
            gradient = gate.open.grad
            assert gradient is not None
            gradient += self.lam * (self.charge(name) * scale)
            gradient.masked_fill_(~gate.allowed, 0.0)
            if self.granularity != "pixel":  # equal gradients keep a group's slopes equal
                gradient.copy_(_group_mean(gradient, self.granularity))

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        for gate in self.gates.values():
            gate.open.clamp_(0, 1)

    def stands(self, gate: Gate) -> Tensor:
        return gate.open > ALIVE

    def scores(self) -> dict[str, Tensor]:
        return {name: gate.open.detach() for name, gate in self.gates.items()}


class FollowingSlopes(SlopeOptimizer):
    """λ rises and falls after each step so that Σa follows `kept_share`; then the positions settle on the budget.

    Attributes:
        sloped: what ReLUs take of a budget as they begin to settle; 0 before.
    """

    def __init__(self, network: Network, options: Slopes) -> None:
        super().__init__(network, options)
        self.sloped = torch.tensor(0)

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "sloped": self.sloped}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        super().after_step(step)
        sums = torch.stack([self.charge(name) * gate.open.sum().double() for name, gate in self.gates.items()])
        standing = sums.cumsum(0)[-1]  # in order: another one would round otherwise
        excess = standing / (self.total * kept_share(step.progress, self.budget / self.total))
        self.lam.mul_((excess**GAIN).clamp(1 / CREEP, CREEP).float()).clamp_(min=self.options.lam)
        if step.progress >= SETTLES:
            self._settle((step.progress - SETTLES) / (SETTLED - SETTLES))

    def _settle(self, share: float) -> None:
        """Σa is a budget's long before the positions are, and what is cut at once the weights cannot make up for.

        share: of the time that this takes; from 1 on the mask stands and the weights train with it.
        """
        if not self.sloped:
            self.sloped.fill_(self.kept())
        standing = round(self.budget * max(1.0, float(self.sloped) / self.budget) ** (1 - min(share, 1.0)))
        for name, mask in self.project(standing).items():
            open = self.gates[name].open
            open.copy_(mask if share >= 1 else mask * open)


class CreepingSlopes(SlopeOptimizer):
    """λ grows after each epoch that brought no new minimum of ReLUs; the search is done at its budget (section 4).

    Attributes:
        fewest: what ReLUs took after any epoch; before the first more than all do.
    """

    def __init__(self, network: Network, options: Slopes) -> None:
        super().__init__(network, options)
        self.fewest = torch.tensor(self.total + 1)

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "fewest": self.fewest}

    def after_epoch(self, epoch: int) -> None:
        kept = self.kept()
        if epoch > PATIENCE and kept >= self.fewest:
            self.lam.mul_(CREEP)
        self.fewest.clamp_(max=kept)

    def is_done(self) -> bool:
        return self.kept() <= self.budget


def _group_mean(x: Tensor, granularity: Granularity) -> Tensor:
    """x: (C, H, W)."""
    over = tuple(range(1 if granularity == "channel" else 0, x.dim()))
    return x.mean(over, keepdim=True).expand_as(x)


@dataclasses.dataclass(frozen=True)
class SNL(LearnedMasks):
    """Learned slopes; those of the highest rank become ReLUs, the rest the identity.

    Attributes:
        granularity: a slope a position or a channel.
        schedule: "fast" moves λ each step so that the slopes follow a schedule, and settles on a mask for the last of
            the search's epochs; "paper" lets λ creep and stops at the budget, after `search_epochs`, some hundreds, at
            the latest.
        lam: λ at the start.
        slope_lr: of Adam on the slopes; 0.01, or 0.001 in the paper's schedule, if left out.
        weight_lr: of the weights; 0.1 with SGD, or 0.001 with Adam in the paper's schedule, if left out.
    """

    name: ClassVar[str] = "snl"
    source: ClassVar[str] = "Cho et al., Selective Network Linearization, ICML 2022"

    granularity: Literal["pixel", "channel"] = "pixel"
    schedule: Literal["fast", "paper"] = "fast"
    lam: float = 1e-5  # section 4
    slope_lr: float | None = None
    weight_lr: float | None = None

    def optimizer(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Slopes:
        lr = RATES[self.schedule][0] if self.slope_lr is None else self.slope_lr
        return Slopes(budgets[-1], self.granularity, schedule=self.schedule, lam=self.lam, lr=lr)

    def search_training(self, training: Training) -> Training:
        optimizer = "adam" if self.schedule == "paper" else training.optimizer
        lr = RATES[self.schedule][1] if self.weight_lr is None else self.weight_lr
        return training.changed(lr=lr, schedule="constant", optimizer=optimizer)
