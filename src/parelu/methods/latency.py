"""A method of ours: sites and positions that are worth most for the seconds that they take.

Over a link a ReLU more costs next to nothing, and a site its round; on one machine it is the other way round. So what is
weighed is both: how much the loss rises where a whole site goes, which is measured, and which of its positions carry
that, by Fisher's score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu.masks.projection import kept_share
from parelu.methods.base import Context
from parelu.methods.fisher import Ranked, RankOptimizer
from parelu.methods.learned import LearnedMasks
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.training.callback import Step
from parelu.training.schedule import Training

LOOKS = 2  # renewals of the masks from one measurement of sites to the next
CLOSED = 1e-3  # what a site that has gone is worth, of what it was when it went
RAMP = 40  # steps in which a ReLU goes


@dataclasses.dataclass(frozen=True)
class Weighed(Ranked):
    """Options of a `WeighingOptimizer`.

    Attributes:
        sites: whether whole sites are measured; off, a site is worth the sum of its positions' scores.
        positions: whether those differ; off, all of a site are alike.
    """

    sites: bool = True
    positions: bool = True

    def build(self, network: Network) -> WeighingOptimizer:
        return WeighingOptimizer(network, self)


class WeighingOptimizer(RankOptimizer):
    """Keeps the sites and positions whose loss would be felt most for what they take, fewer and fewer of them.

    The positions' scores of a site are Fisher's, scaled so that they sum to what the loss was measured to rise without
    it: scores add up where positions hardly matter to each other, and a whole site is more, or less, than their sum. A
    site that has gone does not come back: the weights have learnt to do without.

    Attributes:
        worth: site → rise of the loss without it, a running mean.
        target: site → where the gates move to, (C, H, W).
    """

    options: Weighed

    def __init__(self, network: Network, options: Weighed) -> None:
        super().__init__(network, options)
        self.worth = {name: torch.tensor(0.0) for name in self.gates}
        self.target = {name: gate.open.detach().clone() for name, gate in self.gates.items()}

    def state_dict(self) -> dict[str, Tensor]:
        worth = {f"worth/{name}": value for name, value in self.worth.items()}
        return {**super().state_dict(), **worth, **{f"target/{name}": mask for name, mask in self.target.items()}}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        every = self.options.every
        self.steps.fill_(step.number + 1)
        if self.options.sites and (step.number == 0 or (step.number + 1) % (LOOKS * every) == 0):
            self._look(step)
        if (step.number + 1) % every == 0:
            kept = round(kept_share(step.progress, self.budget / self.total) * self.total)
            for name, mask in self.project(kept).items():
                self.target[name].copy_(mask)
        for name, gate in self.gates.items():
            gate.open.add_((self.target[name] - gate.open).clamp(-1 / RAMP, 1 / RAMP))

    def _look(self, step: Step) -> None:
        """Measure what the loss rises without each site that is there, in one batch."""
        with _normalising(self.network):
            teacher = step.teacher(step.images).log_softmax(1) if step.teacher is not None else None

            def loss() -> Tensor:
                logits = self.network(step.images)
                if teacher is None:
                    return F.cross_entropy(logits, step.labels)
                return F.kl_div(logits.log_softmax(1), teacher, reduction="batchmean", log_target=True)

            whole = loss()
            for name, gate in self.gates.items():
                if not self.target[name].any():
                    continue
                before = gate.open.clone()
                gate.open.zero_()
                rise = (loss() - whole).clamp(min=1e-6)
                gate.open.copy_(before)
                self.worth[name].lerp_(rise.cpu(), self.options.weight if step.number else 1.0)

    def scores(self) -> dict[str, Tensor]:
        felt = self.score
        if not self.options.positions:
            felt = {name: torch.full_like(score, float(score.mean())) for name, score in felt.items()}
        if self.options.sites:
            felt = {name: self._as_measured(name, score) for name, score in felt.items()}
        return self.for_each_unit(felt)

    def _as_measured(self, name: str, score: Tensor) -> Tensor:
        """Scaled to the site's worth, but all alike where there are none."""
        allowed = score * self.gates[name].allowed
        if not float(allowed.sum()) > 0:
            allowed = self.gates[name].allowed.float()
        worth = float(self.worth[name]) * (1.0 if self.target[name].any() else CLOSED)
        return allowed * (worth / max(float(allowed.sum()), 1e-30))


@contextmanager
def _normalising(network: Network) -> Iterator[None]:
    """Evaluation mode, but batch-norms take the batch's statistics, as they would once they have learnt them, and keep
    their own."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    network.eval()
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, (mean, var) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, var
        network.train()


@dataclasses.dataclass(frozen=True)
class Latency(LearnedMasks):
    """Sites and positions by what the loss rises without them, for the seconds that they take.

    Attributes:
        sites: measure what each whole site is worth; off, it is the sum of its positions' scores.
        positions: choose among a site's positions by their scores; off, the first ones.
    """

    name: ClassVar[str] = "latency"
    source: ClassVar[str] = "ours: accuracy for predicted seconds"

    sites: bool = True
    positions: bool = True
    weight_lr: float = 0.1

    def optimizer(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Weighed:
        return Weighed(budgets[-1], sites=self.sites, positions=self.positions)

    def search_training(self, training: Training) -> Training:
        return training.changed(lr=self.weight_lr, schedule="constant")
