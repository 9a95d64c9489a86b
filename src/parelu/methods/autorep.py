"""AutoReP: an indicator for every ReLU, with hysteresis, and polynomials for the rest (Peng et al., ICCV 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu.masks.gate import Gate, gates_of, positions
from parelu.masks.optimizer import MaskLearner
from parelu.masks.projection import kept_share
from parelu.methods.base import Context
from parelu.methods.learned import Polynomials
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.training.callback import Step


@dataclasses.dataclass(frozen=True)
class Indicators(MaskLearner):
    """Indicators s in {0, 1}, the gates, that follow auxiliary parameters m, moved by Adam.

    The gradient passes straight through s to m, scaled by softplus(m) (section 3.2). A ReLU goes when m ≤ −t and comes
    back when m > t (eq. 10), in training steps only.

    Attributes:
        target: share of ReLUs that the penalty μ·max(0, density − target) aims at.
        mu: μ.
        threshold: t; 0 for no hysteresis.
        lr: of Adam.
        spread: m starts uniform in [0, spread].
        anneal: the penalty follows `kept_share` down to the target.
    """

    target: float = 0.0
    mu: float = 80.0
    threshold: float = 0.003
    lr: float = 1e-3
    spread: float = 1.0
    anneal: bool = True

    def equip(self, gate: Gate) -> None:
        gate.open.requires_grad_(True)
        gate.register_parameter("auxiliary", nn.Parameter(self.spread * torch.rand(gate.shape)))
        gate.register_buffer("wanted", torch.tensor(1.0))
        gate.register_buffer("flips", torch.tensor(0))

    def optimizer(self, gates: Mapping[str, Gate]) -> torch.optim.Optimizer:
        return torch.optim.Adam([gate.get_parameter("auxiliary") for gate in gates.values()], lr=self.lr)

    @torch.no_grad()
    def before_step(self, gates: Mapping[str, Gate]) -> None:
        allowed = positions(gates)
        density = self.kept(gates) / allowed
        for gate in gates.values():
            m, gradient = gate.get_parameter("auxiliary"), gate.open.grad
            assert gradient is not None
            if density > gate.get_buffer("wanted"):
                gradient = gradient + self.mu / allowed
            m.grad = (gradient * F.softplus(m)).masked_fill_(~gate.allowed, 0.0)
            gate.open.grad = None

    @torch.no_grad()
    def after_step(self, network: Network, step: Step) -> None:
        for gate in gates_of(network).values():
            m, wanted = gate.get_parameter("auxiliary"), gate.get_buffer("wanted")
            wanted.fill_(kept_share(step.progress, self.target, reached=0.8) if self.anneal else self.target)
            goes = (m <= -self.threshold) & (gate.open > 0)
            returns = (m > self.threshold) & (gate.open == 0) & gate.allowed
            gate.open.masked_fill_(goes, 0.0).masked_fill_(returns, 1.0)
            gate.get_buffer("flips").add_(goes.count_nonzero() + returns.count_nonzero())

    def report(self, network: Network) -> dict[str, Any]:
        """Also the flips: how often an indicator has changed since the start, whichever way."""
        flips = sum(int(gate.get_buffer("flips")) for gate in gates_of(network).values())
        return {**super().report(network), "flips": flips}

    def scores(self, gates: Mapping[str, Gate]) -> dict[str, Tensor]:
        """Standing ReLUs first, each group by m."""
        return {
            name: gate.get_parameter("auxiliary").detach() + 1e3 * gate.open.detach() for name, gate in gates.items()
        }


@dataclasses.dataclass(frozen=True)
class AutoReP(Polynomials):
    """Discrete indicators with hysteresis; the rest becomes polynomials fitted to the input's distribution (DaPa).

    The defaults are for a search of some 800 steps. The paper's 150 epochs have 58,000, where the order of the start is
    long forgotten, with mu from 40 to 200, threshold 0.003, indicator_lr 0.001, spread 1 and no annealing.

    Attributes:
        mu: weight of the penalty on the share of ReLUs above the budget's.
        threshold: of the hysteresis; 0 for none.
        indicator_lr: of Adam on the auxiliary parameters.
        spread: they start uniform in [0, spread].
        anneal: the penalty follows a falling share of ReLUs, so that one search passes through several budgets; off,
            it aims at the smallest budget from the first step.
    """

    name: ClassVar[str] = "autorep"
    source: ClassVar[str] = "Peng et al., AutoReP, ICCV 2023"

    mu: float = 10.0
    threshold: float = 0.01
    indicator_lr: float = 3e-3
    spread: float = 0.2
    anneal: bool = True

    def learner(self, context: Context, plan: Plan, budgets: Sequence[int]) -> MaskLearner:
        target = budgets[-1] / plan.relus
        return Indicators(
            degree=self.degree,
            wide=self.wide,
            target=target,
            mu=self.mu,
            threshold=self.threshold,
            lr=self.indicator_lr,
            anneal=self.anneal,
            spread=self.spread,
        )
