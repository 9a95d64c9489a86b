"""SNIP's saliency on activations: keep the ReLUs whose slope the loss feels most (after Lee et al., ICLR 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from parelu.distill import Distillation
from parelu.errors import UserError
from parelu.masks import project
from parelu.methods.base import TEACHER, Method, Workbench, masked_jobs
from parelu.plan import Candidate


@dataclasses.dataclass(frozen=True)
class Snip(Method):
    """One shot: the ReLUs with the largest |∂L/∂a|, a the slope of the full-ReLU network's activation, 1 for a ReLU.

    The networks start from the full-ReLU network's weights: a position means nothing without them.

    Attributes:
        saliency_images: training images that the gradient is the mean of.
        temperature: of the distillation.
        kd_weight: of its soft loss.
    """

    name: ClassVar[str] = "snip"
    source: ClassVar[str] = "after Lee et al., SNIP, ICLR 2019"
    exact: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = True

    saliency_images: int = 1024
    temperature: float = 4.0  # DeepReDuce, section 4
    kd_weight: float = 0.9  # DeepReDuce, section 4

    def __post_init__(self) -> None:
        if self.saliency_images < 1:
            raise UserError(f"saliency_images is {self.saliency_images}; it should be a whole number, 1 or more")

    def reduce(self, bench: Workbench, budgets: Sequence[int]) -> list[Candidate]:
        scores = {name: gradient.abs() for name, gradient in bench.slope_gradients(self.saliency_images).items()}
        masks = {budget: project(scores, budget) for budget in budgets}
        objective = Distillation(self.temperature, self.kd_weight)
        return bench.train(masked_jobs(self.name, bench, masks, objective, start=TEACHER))
