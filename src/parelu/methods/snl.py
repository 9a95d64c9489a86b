"""SNL: a learnable slope for every ReLU, driven to the identity by an ℓ1 penalty (Cho et al., ICML 2022)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from parelu.masks.gate import Gate, gates_of, positions
from parelu.masks.optimizer import MaskLearner
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
class Slopes(MaskLearner):
    """Slopes a of a·relu(x) + (1 − a)·x in [0, 1], moved by Adam on the loss + λ·Σa.

    Attributes:
        lam: λ at the start.
        lr: of Adam.
        target: share of the ReLUs at the end; with one, λ rises and falls after each step so that Σa follows the
            schedule of `kept_share`, then positions with a slope become as few as that and their slopes 1; with None, λ
            grows after each epoch that brought no new minimum of ReLUs.
    """

    lam: float = 1e-5
    lr: float = 1e-3
    target: float | None = None

    @property
    def stops_at_budget(self) -> bool:
        return self.target is None

    def equip(self, gate: Gate) -> None:
        gate.open.requires_grad_(True)
        gate.register_buffer("lam", torch.tensor(self.lam))
        gate.register_buffer("fewest", torch.tensor(float("inf")))  # ReLUs of the whole network after any epoch
        gate.register_buffer("sloped", torch.tensor(0))  # ReLUs of the whole network as they begin to settle

    def optimizer(self, gates: Mapping[str, Gate]) -> torch.optim.Optimizer:
        return torch.optim.Adam([gate.open for gate in gates.values()], lr=self.lr)

    def before_step(self, gates: Mapping[str, Gate]) -> None:
        for gate in gates.values():
            gradient = gate.open.grad
            assert gradient is not None
            gradient += gate.get_buffer("lam")
            gradient.masked_fill_(~gate.allowed, 0.0)
            if self.granularity != "pixel":  # equal gradients keep a group's slopes equal
                gradient.copy_(_group_mean(gradient, self.granularity))

    @torch.no_grad()
    def after_step(self, network: Network, step: Step) -> None:
        gates = gates_of(network)
        for gate in gates.values():
            gate.open.clamp_(0, 1)
        if self.target is None:
            return
        allowed = positions(gates)
        standing = sum(float(gate.open.sum()) for gate in gates.values())
        excess = standing / (allowed * kept_share(step.progress, self.target))
        factor = min(max(excess**GAIN, 1 / CREEP), CREEP)
        for gate in gates.values():
            gate.get_buffer("lam").mul_(factor).clamp_(min=self.lam)
        if step.progress >= SETTLES:
            self._settle(gates, round(allowed * self.target), (step.progress - SETTLES) / (SETTLED - SETTLES))

    def _settle(self, gates: Mapping[str, Gate], budget: int, share: float) -> None:
        """Σa is a budget's long before the positions are, and what is cut at once the weights cannot make up for.

        share: of the time that this takes; from 1 on the mask stands and the weights train with it.
        """
        sloped = next(iter(gates.values())).get_buffer("sloped")
        if not sloped:
            sloped.fill_(self.kept(gates))
        standing = round(budget * max(1.0, float(sloped) / budget) ** (1 - min(share, 1.0)))
        for name, mask in self.project(gates, standing).items():
            gates[name].open.copy_(mask if share >= 1 else mask * gates[name].open)

    def after_epoch(self, gates: Mapping[str, Gate], epoch: int) -> None:
        if self.target is not None:
            return
        kept = self.kept(gates)
        for gate in gates.values():
            fewest = gate.get_buffer("fewest")
            if epoch > PATIENCE and kept >= fewest:
                gate.get_buffer("lam").mul_(CREEP)
            fewest.clamp_(max=kept)

    def kept(self, gates: Mapping[str, Gate]) -> int:
        return sum(int((gate.open > ALIVE).count_nonzero()) for gate in gates.values())

    def scores(self, gates: Mapping[str, Gate]) -> dict[str, Tensor]:
        return {name: gate.open.detach() for name, gate in gates.items()}


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

    def learner(self, context: Context, plan: Plan, budgets: Sequence[int]) -> MaskLearner:
        target = budgets[-1] / plan.relus if self.schedule == "fast" else None
        lr = RATES[self.schedule][0] if self.slope_lr is None else self.slope_lr
        return Slopes(granularity=self.granularity, lam=self.lam, lr=lr, target=target)

    def search_training(self, training: Training) -> Training:
        optimizer = "adam" if self.schedule == "paper" else training.optimizer
        lr = RATES[self.schedule][1] if self.weight_lr is None else self.weight_lr
        return dataclasses.replace(training, lr=lr, schedule="constant", optimizer=optimizer)
