"""Block coordinate descent: from a larger mask, random blocks of ReLUs go when the accuracy allows it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from parelu.masks.gate import Gate, gates_of, positions
from parelu.masks.optimizer import MaskLearner
from parelu.masks.projection import project
from parelu.methods.base import Context
from parelu.methods.learned import LearnedMasks
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.training.callback import Step
from parelu.training.schedule import Training


@dataclasses.dataclass(frozen=True)
class Blocks(MaskLearner):
    """Tries random blocks of ReLUs; one goes for good, and the weights train on.

    Attributes:
        target: share of the ReLUs at the end, reached after 0.8 of the steps, a constant share a block.
        every: steps between two blocks.
        trials: blocks tried; the first that costs at most `tolerance` points of training accuracy is taken, else the
            one that costs least.
    """

    target: float = 0.0
    every: int = 10
    trials: int = 8
    tolerance: float = 0.3

    def equip(self, gate: Gate) -> None:
        gate.register_buffer("draws", torch.tensor(0))

    @torch.no_grad()
    def after_step(self, network: Network, step: Step) -> None:
        if (step.number + 1) % self.every:
            return
        gates = gates_of(network)
        allowed = positions(gates)
        wanted = round(allowed * self.target ** min(1.0, step.progress / 0.8))
        before = {name: gate.open.clone() for name, gate in gates.items()}
        block = self.kept(gates) - wanted
        if block <= 0:
            return
        right = _right(network, step)
        best, chosen = -1, before
        for _ in range(self.trials):
            tried = self._without(before, block, gates)
            _open(gates, tried)
            found = _right(network, step)
            if found > best:
                best, chosen = found, tried
            if right - found <= self.tolerance / 100 * len(step.labels):
                break
        _open(gates, chosen)

    def _without(self, open: Mapping[str, Tensor], block: int, gates: Mapping[str, Gate]) -> dict[str, Tensor]:
        """Without `block` of the standing ReLUs, drawn from all; the draw depends on the number of those before."""
        draws = next(iter(gates.values())).get_buffer("draws")
        draws += 1
        generator = torch.Generator().manual_seed(int(draws))
        flat = torch.cat([value.flatten() for value in open.values()])
        standing = flat.nonzero()[:, 0]
        flat[standing[torch.randperm(len(standing), generator=generator)[:block].to(flat.device)]] = 0
        parts = flat.split([value.numel() for value in open.values()])
        return {name: part.view_as(value) for (name, value), part in zip(open.items(), parts, strict=True)}

    def scores(self, gates: Mapping[str, Gate]) -> dict[str, Tensor]:
        return {name: gate.open.detach() for name, gate in gates.items()}


def _open(gates: Mapping[str, Gate], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        gates[name].open.copy_(value)


def _right(network: Network, step: Step) -> int:
    network.eval()
    right = int((network(step.images).argmax(1) == step.labels).sum())
    network.train()
    return right


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
        return Plan.from_masks(project(scores, min(plan.relus, math.ceil(self.head_start * budgets[0]))))

    def learner(self, context: Context, plan: Plan, budgets: Sequence[int]) -> MaskLearner:
        return Blocks(target=budgets[-1] / plan.relus, trials=self.trials)

    def search_training(self, training: Training) -> Training:
        return dataclasses.replace(training, lr=self.weight_lr, schedule="constant")
