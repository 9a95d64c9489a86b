"""AutoReP: an indicator for every ReLU, with hysteresis, and polynomials for the rest (Peng et al., ICCV 2023)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.masks.gate import Fit
from parelu.masks.optimizer import MaskOptimizer, MaskOptions
from parelu.masks.projection import kept_share
from parelu.methods.base import Context
from parelu.methods.learned import Polynomials
from parelu.network.plan import Plan
from parelu.network.settings import younger
from parelu.network.sites import Network
from parelu.training.callback import Step


@dataclasses.dataclass(frozen=True)
class Indicators(MaskOptions):
    """Options of an `IndicatorOptimizer`.

    Attributes:
        mu: μ of the penalty μ·max(0, density − wanted), density the share of ReLUs that stand.
        threshold: t; 0 for no hysteresis.
        lr: of Adam.
        spread: m starts uniform in [0, spread].
        anneal: the wanted density follows `kept_share` down to the budget's; off, it is the budget's after one step.
    """

    mu: float = 80.0
    threshold: float = 0.003
    lr: float = 1e-3
    spread: float = 1.0
    anneal: bool = True

    def build(self, network: Network) -> IndicatorOptimizer:
        return IndicatorOptimizer(network, self)


class IndicatorOptimizer(MaskOptimizer):
    """Indicators s in {0, 1}, the gates, that follow auxiliary parameters m, moved by Adam.

    The gradient passes straight through s to m, scaled by softplus(m) (section 3.2). A ReLU goes when m ≤ −t and comes
    back when m > t (eq. 10), in training steps only.

    Attributes:
        auxiliary: site → m, (C, H, W).
        wanted: density above which the penalty acts, float32.
        flips: how often an indicator has changed since the start, whichever way.
    """

    def __init__(self, network: Network, options: Indicators) -> None:
        super().__init__(network, options)
        self.options = options
        self.wanted, self.flips = torch.tensor(1.0).to(self.device), torch.tensor(0).to(self.device)
        self.auxiliary: dict[str, nn.Parameter] = {}
        for name, gate in self.gates.items():
            gate.open.requires_grad_(True)
            self.auxiliary[name] = nn.Parameter((options.spread * torch.rand(gate.shape)).to(gate.open.device))

    def state_dict(self) -> dict[str, Tensor]:
        auxiliary = {f"auxiliary/{name}": m for name, m in self.auxiliary.items()}
        return {"wanted": self.wanted, "flips": self.flips, **auxiliary}

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(self.auxiliary.values()), lr=self.options.lr)

    @torch.no_grad()
    def before_step(self) -> None:
        too_dense = self._density() > self.wanted
        for name, gate in self.gates.items():
            m, gradient = self.auxiliary[name], gate.open.grad
            assert gradient is not None
            pushed = gradient + self.options.mu * self.charge(name) / self.total
            gradient = torch.where(too_dense, pushed, gradient)
            m.grad = (gradient * F.softplus(m)).masked_fill_(~gate.allowed, 0.0)
            gate.open.grad = None

    def _density(self) -> Tensor:
        """What `kept` is of the total, on the device: float32."""
        taken = torch.zeros((), dtype=torch.int64, device=self.device)
        for name, gate in self.gates.items():
            number = self.stands(gate).count_nonzero()
            taken += self.charges.relu[name] * number + self.charges.site[name] * (number > 0)
        return (taken.double() / self.total).float()

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        share, threshold = self.budget / self.total, self.options.threshold
        self.wanted.fill_(kept_share(step.progress, share, reached=0.8) if self.options.anneal else share)
        for name, gate in self.gates.items():
            m = self.auxiliary[name]
            goes = (m <= -threshold) & (gate.open > 0)
            returns = (m > threshold) & (gate.open == 0) & gate.allowed
            gate.open.masked_fill_(goes, 0.0).masked_fill_(returns, 1.0)
            self.flips += goes.count_nonzero() + returns.count_nonzero()

    def report(self) -> dict[str, Any]:
        """Also the flips."""
        return {**super().report(), "flips": int(self.flips)}

    def scores(self) -> dict[str, Tensor]:
        """Standing ReLUs first, each group by m."""
        return {name: self.auxiliary[name].detach() + 1e3 * gate.open.detach() for name, gate in self.gates.items()}


@dataclasses.dataclass(frozen=True)
class AutoReP(Polynomials):
    """Discrete indicators with hysteresis; the rest becomes polynomials fitted to the input's distribution (DaPa).

    The defaults are for a search of some 800 steps. The paper's 150 epochs have 58,000, where the order of the start is
    long forgotten; its settings, and its public code's, are the trainings `autorep` and `autorep-public`.

    Attributes:
        mu: weight of the penalty on the share of ReLUs above the budget's; or one for each of some budgets, as shares
            of the ReLUs or numbers: each budget then has a search of its own, with the value of the nearest.
        threshold: of the hysteresis; 0 for none.
        indicator_lr: of Adam on the auxiliary parameters.
        spread: they start uniform in [0, spread].
        anneal: the penalty follows a falling share of ReLUs, so that one search passes through several budgets; off,
            it aims at the smallest budget from the first step.
        fit: of the polynomials: by the paper's eq. 13, or as its public code does, which trains them.
    """

    name: ClassVar[str] = "autorep"
    source: ClassVar[str] = "Peng et al., AutoReP, ICCV 2023"

    mu: float | Mapping[float, float] = 10.0
    threshold: float = 0.01
    indicator_lr: float = 3e-3
    spread: float = 0.2
    anneal: bool = True
    fit: Fit = younger("paper")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.mu, Mapping) and not (self.mu and all(budget > 0 for budget in self.mu)):
            raise UserError(f"mu has {dict(self.mu)}; each key should be a budget above 0: {{0.1: 40, 6000: 200}}")

    def shares(self, budgets: Sequence[int]) -> bool:
        return not isinstance(self.mu, Mapping)

    def weight(self, budget: int, relus: int) -> float:
        """μ for a budget of a network with so many ReLUs: that of the nearest in the mapping, by the ratio."""
        if not isinstance(self.mu, Mapping):
            return self.mu
        known = {key if key < 1 else key / relus: mu for key, mu in self.mu.items()}
        return known[min(known, key=lambda share: abs(math.log(share * relus / budget)))]

    def optimizer(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Indicators:
        return Indicators(
            budgets[-1],
            degree=self.degree,
            wide=self.wide,
            fit=self.fit,
            mu=self.weight(*context.unit.sizes(budgets[-1], context.teacher.spec, plan)),
            threshold=self.threshold,
            lr=self.indicator_lr,
            anneal=self.anneal,
            spread=self.spread,
        )
