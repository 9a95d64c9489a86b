"""Block coordinate descent: from a larger mask, random blocks of ReLUs go when the accuracy allows it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from parelu.masks.optimizer import MaskOptimizer, MaskOptions
from parelu.masks.projection import project
from parelu.methods.base import Context
from parelu.methods.learned import LearnedMasks
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.training import ranks
from parelu.training.callback import Step
from parelu.training.schedule import Training


@dataclasses.dataclass(frozen=True)
class Blocks(MaskOptions):
    """Options of a `BlockOptimizer`.

    Attributes:
        every: steps between two blocks.
        trials: blocks tried; the first that costs at most `tolerance` points of training accuracy is taken, else the
            one that costs least.
    """

    every: int = 10
    trials: int = 8
    tolerance: float = 0.3

    def build(self, network: Network) -> BlockOptimizer:
        return BlockOptimizer(network, self)


class BlockOptimizer(MaskOptimizer):
    """Tries random blocks of ReLUs; one goes for good, and the weights train on.

    Each block takes a constant share of what stands; the budget is reached after 0.8 of the steps.

    Attributes:
        draws: blocks tried so far.
    """

    def __init__(self, network: Network, options: Blocks) -> None:
        super().__init__(network, options)
        self.options, self.draws = options, torch.tensor(0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"draws": self.draws}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        if (step.number + 1) % self.options.every:
            return
        wanted = round(self.total * (self.budget / self.total) ** min(1.0, step.progress / 0.8))
        before = {name: gate.open.clone() for name, gate in self.gates.items()}
        block = self.kept() - wanted
        if block <= 0:
            return
        right, lost = self._right(step), self.options.tolerance / 100 * ranks.total(len(step.labels))
        best, chosen = -1, before
        for _ in range(self.options.trials):
            tried = self._without(before, block)
            self._open(tried)
            found = self._right(step)
            if found > best:
                best, chosen = found, tried
            if right - found <= lost:
                break
        self._open(chosen)

    def _without(self, open: Mapping[str, Tensor], block: int) -> dict[str, Tensor]:
        """Without standing ReLUs that take `block`, drawn from all; the draw depends on the number of those before."""
        self.draws += 1
        generator = torch.Generator().manual_seed(int(self.draws))
        flat = torch.cat([value.flatten() for value in open.values()])
        standing = flat.nonzero()[:, 0]
        drawn = standing[torch.randperm(len(standing), generator=generator).to(flat.device)]
        taken = torch.cat([torch.full((v.numel(),), self.charges.relu[name]) for name, v in open.items()])
        flat[drawn[: int((taken.to(flat.device)[drawn].cumsum(0) <= block).count_nonzero())]] = 0
        parts = flat.split([value.numel() for value in open.values()])
        return {name: part.view_as(value) for (name, value), part in zip(open.items(), parts, strict=True)}

    def _open(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.gates[name].open.copy_(value)

    def _right(self, step: Step) -> int:
        """Images of the step's batch, of all ranks, that the network classifies as their labels say."""
        self.network.eval()
        right = (self.network(step.images).argmax(1) == step.labels).sum()
        self.network.train()
        ranks.add_up(right)
        return int(right)

    def scores(self) -> dict[str, Tensor]:
        return {name: gate.open.detach() for name, gate in self.gates.items()}


@dataclasses.dataclass(frozen=True)
class BCD(LearnedMasks):
    """Random blocks removed from a larger mask, that of `snip`, when the training accuracy allows it.

    Attributes:
        head_start: ReLUs of the larger mask, as a multiple of the budget.
        trials: blocks tried for one that goes.
        weight_lr: of SGD in the search.
    """

    name: ClassVar[str] = "bcd"
    source: ClassVar[str] = "block coordinate descent on masks"
    shares_search: ClassVar[bool] = False  # random blocks from a far larger mask would end in a random mask

    head_start: float = 2.0
    trials: int = 8
    weight_lr: float = 0.1

    def start(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Plan:
        scores = {name: gradient.abs() for name, gradient in context.slope_gradients(1024).items()}
        scores = {name: score.masked_fill(~plan.sites[name].mask, -torch.inf) for name, score in scores.items()}
        charges = context.unit.charges(context.teacher.spec, plan, budgets[0])
        budget, whole = context.unit.sizes(budgets[0], context.teacher.spec, plan)
        if charges is not None:  # blocks of all sites end no site's round: it starts in those that the budget affords
            scores = {name: score / charges.relu[name] for name, score in scores.items()}
            kept = project(scores, budget, charges=charges)
            scores = {n: score if kept[n].any() else score.fill_(-torch.inf) for n, score in scores.items()}
        return Plan.from_masks(project(scores, min(whole, math.ceil(self.head_start * budget)), charges=charges))

    def optimizer(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Blocks:
        return Blocks(budgets[-1], trials=self.trials)

    def search_training(self, training: Training) -> Training:
        return training.changed(lr=self.weight_lr, schedule="constant")
