"""ReLUPruner's Fisher score: ReLUs go, least missed first, while the network trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from parelu.masks.gate import Gate
from parelu.masks.optimizer import MaskOptimizer, MaskOptions
from parelu.masks.projection import kept_share
from parelu.methods.base import Context
from parelu.methods.learned import LearnedMasks
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.training import ranks
from parelu.training.callback import Step
from parelu.training.schedule import Training


@dataclasses.dataclass(frozen=True)
class Ranked(MaskOptions):
    """Options of a `RankOptimizer`.

    Attributes:
        every: steps between two renewals of the masks; the step before each is observed.
        weight: of a new observation in the running score.
    """

    every: int = 8
    weight: float = 0.2

    def build(self, network: Network) -> RankOptimizer:
        return RankOptimizer(network, self)


class RankOptimizer(MaskOptimizer):
    """Keeps the ReLUs whose loss would be felt most, fewer and fewer of them, by a running score.

    With z a site's input, d = relu(z) − p(z) what the polynomial p misses, and g the loss's gradient of an image at the
    site's output, all position by position and in the mean over images: |g·z|·P(z < 0) + ½·z²·E[g²] for the identity
    (ReLUPruner), |g·d| + ½·d²·E[g²] for other polynomials.

    Attributes:
        score: site → the running score, (C, H, W).
        steps: finished ones.
    """

    def __init__(self, network: Network, options: Ranked) -> None:
        super().__init__(network, options)
        self.options, self.steps = options, torch.tensor(0)
        self.score = {name: torch.zeros_like(gate.open) for name, gate in self.gates.items()}
        for gate in self.gates.values():
            gate.register_forward_hook(self._observe)

    def state_dict(self) -> dict[str, Tensor]:
        return {"steps": self.steps, **{f"score/{name}": score for name, score in self.score.items()}}

    def _observe(self, gate: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(gate, Gate)
        steps = int(self.steps)
        if not (gate.training and output.requires_grad) or ((steps + 1) % self.options.every and steps):
            return
        z, score = inputs[0].detach(), self.score[gate.name]

        def add(gradient: Tensor) -> None:
            g = gradient * ranks.total(len(z))  # of one image's loss, not of the mean
            if self.options.degree:
                c0, c1, c2 = gate.coefficients.view(3, -1, *[1] * (z.dim() - 2))
                d = z.clamp(min=0) - ((c2 * z + c1) * z + c0)
                slope, square, steep = map(ranks.mean, ((g * d).abs(), d.square(), g.square()))
                felt = slope + 0.5 * square * steep
            else:
                of = ((z < 0).float(), (g * z).abs(), z.square(), g.square())
                below, slope, square, steep = map(ranks.mean, of)
                felt = slope * below + 0.5 * square * steep
            score.lerp_(felt, self.options.weight if steps else 1.0)

        output.register_hook(add)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self.steps.fill_(step.number + 1)
        if (step.number + 1) % self.options.every:
            return
        kept = round(kept_share(step.progress, self.budget / self.total) * self.total)
        for name, mask in self.project(kept).items():
            self.gates[name].open.copy_(mask)

    def scores(self) -> dict[str, Tensor]:
        return self.for_each_unit(self.score)


@dataclasses.dataclass(frozen=True)
class Fisher(LearnedMasks):
    """ReLUs ranked by what the loss feels of them; the kept share falls with a cosine^1.5, the weights train along."""

    name: ClassVar[str] = "fisher"
    source: ClassVar[str] = "ReLUPruner's score and schedule"

    weight_lr: float = 0.1

    def optimizer(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Ranked:
        return Ranked(budgets[-1])

    def search_training(self, training: Training) -> Training:
        return training.changed(lr=self.weight_lr, schedule="constant")
