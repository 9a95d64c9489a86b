"""ReLUPruner's Fisher score: ReLUs go, least missed first, while the network trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from parelu.masks.gate import Gate, gates_of, positions
from parelu.masks.optimizer import MaskLearner
from parelu.masks.projection import kept_share
from parelu.methods.base import Context
from parelu.methods.learned import LearnedMasks
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.training.callback import Step
from parelu.training.schedule import Training


@dataclasses.dataclass(frozen=True)
class Ranked(MaskLearner):
    """Keeps the ReLUs whose loss would be felt most, fewer and fewer of them, by a running score.

    With z a site's input, d = relu(z) − p(z) what the polynomial p misses, and g the loss's gradient of an image at the
    site's output, all position by position and in the mean over images: |g·z|·P(z < 0) + ½·z²·E[g²] for the identity
    (ReLUPruner), |g·d| + ½·d²·E[g²] for other polynomials.

    Attributes:
        target: share of the ReLUs at the end.
        every: steps between two renewals of the masks; the step before each is observed.
        weight: of a new observation in the running score.
    """

    target: float = 0.0
    every: int = 8
    weight: float = 0.2

    def equip(self, gate: Gate) -> None:
        gate.register_buffer("score", torch.zeros(gate.shape))
        gate.register_buffer("steps", torch.tensor(0))
        gate.register_forward_hook(self._observe)

    def _observe(self, gate: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(gate, Gate)
        if not (gate.training and output.requires_grad):
            return
        steps, score = gate.get_buffer("steps"), gate.get_buffer("score")
        steps += 1
        if steps % self.every and steps > 1:
            return
        z = inputs[0].detach()

        def add(gradient: Tensor) -> None:
            g = gradient * len(z)  # of one image's loss, not of the mean
            if self.degree:
                c0, c1, c2 = (c.view(-1, 1, 1) for c in gate.coefficients)
                d = z.clamp(min=0) - ((c2 * z + c1) * z + c0)
                felt = (g * d).abs().mean(0) + 0.5 * d.square().mean(0) * g.square().mean(0)
            else:
                below = (z < 0).float().mean(0)
                felt = (g * z).abs().mean(0) * below + 0.5 * z.square().mean(0) * g.square().mean(0)
            score.lerp_(felt, self.weight if steps > 1 else 1.0)

        output.register_hook(add)

    @torch.no_grad()
    def after_step(self, network: Network, step: Step) -> None:
        if (step.number + 1) % self.every:
            return
        gates = gates_of(network)
        allowed = positions(gates)
        kept = round(kept_share(step.progress, self.target) * allowed)
        for name, mask in self.project(gates, kept).items():
            gates[name].open.copy_(mask)

    def scores(self, gates: Mapping[str, Gate]) -> dict[str, Tensor]:
        return {name: gate.get_buffer("score") for name, gate in gates.items()}


@dataclasses.dataclass(frozen=True)
class Fisher(LearnedMasks):
    """ReLUs ranked by what the loss feels of them; the kept share falls with a cosine^1.5, the weights train along."""

    name: ClassVar[str] = "fisher"
    source: ClassVar[str] = "ReLUPruner's score and schedule"

    weight_lr: float = 0.1

    def learner(self, context: Context, plan: Plan, budgets: Sequence[int]) -> MaskLearner:
        return Ranked(target=budgets[-1] / plan.relus)

    def search_training(self, training: Training) -> Training:
        return dataclasses.replace(training, lr=self.weight_lr, schedule="constant")
