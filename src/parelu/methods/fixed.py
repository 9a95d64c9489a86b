"""Methods that draw their masks before training."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from parelu.methods.base import Context, Method
from parelu.methods.jobs import FRESH, FROM_TEACHER, Job, Start
from parelu.network.candidate import Candidate
from parelu.network.metrics import Tags
from parelu.network.plan import Plan
from parelu.training.objectives import Distillation

FULL_WEIGHTS = "from the full network's weights"  # in a candidate's note


@dataclasses.dataclass(frozen=True)
class FixedMasks(Method):
    """A method that draws its masks before training; each network then learns with distillation.

    The training is DeepReDuce's, so that at equal ReLUs only the place of the ReLUs differs.

    Attributes:
        temperature: of the distillation.
        kd_weight: of its soft loss.
        from_teacher: start from the full-ReLU network's weights, as learned masks do, not from fresh ones.
    """

    exact: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = True

    temperature: float = 4.0  # DeepReDuce, section 4
    kd_weight: float = 0.9  # DeepReDuce, section 4
    from_teacher: bool = False

    @abc.abstractmethod
    def masks(self, shapes: Mapping[str, tuple[int, ...]], budget: int, seed: int) -> dict[str, Tensor]:
        """Site → bool mask, with exactly `budget` ReLUs in all; shapes: site → (C, H, W)."""

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        shapes = {name: tuple(site.mask.shape) for name, site in context.teacher.plan.sites.items()}
        masks = {budget: self.masks(shapes, budget, context.seed) for budget in budgets}
        objective = Distillation(self.temperature, self.kd_weight)
        jobs = masked_jobs(self.name, context, masks, objective, start=FROM_TEACHER if self.from_teacher else FRESH)
        if self.from_teacher:
            jobs = [replace(j, name=f"{j.name}-from-teacher", tags=replace(j.tags, note=FULL_WEIGHTS)) for j in jobs]
        return context.train(jobs)


def masked_jobs(
    name: str, context: Context, masks: Mapping[int, Mapping[str, Tensor]], objective: Distillation, *, start: Start
) -> list[Job]:
    """A candidate of the teacher's architecture for each budget's masks; name: of the method."""
    return [
        Job(
            name=f"{name}-{budget}",
            role="candidate",
            spec=context.teacher.spec,
            plan=Plan.from_masks(masks[budget]),
            training=context.training,
            objective=objective,
            tags=Tags(name, "", budget, note=""),
            start=start,
        )
        for budget in masks
    ]
