"""SNIP's saliency on activations: keep the ReLUs whose slope the loss feels most (after Lee et al., ICLR 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import ClassVar

from torch import Tensor

from parelu.errors import UserError
from parelu.masks.projection import project
from parelu.methods.base import Context, Method
from parelu.methods.fixed import masked_jobs
from parelu.methods.jobs import FROM_TEACHER, FromJob
from parelu.methods.learned import THIN, baseline_job, checked_baseline
from parelu.methods.unit import Unit, single_relus
from parelu.network.candidate import Candidate
from parelu.network.plan import Plan
from parelu.network.spec import Spec
from parelu.training.objectives import Distillation


@dataclasses.dataclass(frozen=True)
class Snip(Method):
    """One shot: the ReLUs with the largest |∂L/∂a|, a the slope of the full-ReLU network's activation, 1 for a ReLU.

    The networks start from the full-ReLU network's weights: a position means nothing without them.

    Attributes:
        thin: drop alternate ReLUs before the choice (DeepReShape, Table 5).
        saliency_images: training images that the gradient is the mean of.
        temperature: of the distillation.
        kd_weight: of its soft loss.
    """

    name: ClassVar[str] = "snip"
    source: ClassVar[str] = "after Lee et al., SNIP, ICLR 2019"
    exact: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = True

    thin: bool = False
    saliency_images: int = 1024
    temperature: float = 4.0  # DeepReDuce, section 4
    kd_weight: float = 0.9  # DeepReDuce, section 4

    def __post_init__(self) -> None:
        if self.saliency_images < 1:
            raise UserError(f"saliency_images is {self.saliency_images}; it should be a whole number, 1 or more")

    def check_budgets(self, spec: Spec, unit: Unit, budgets: Sequence[int]) -> None:
        if self.thin:
            checked_baseline(spec, THIN, unit, budgets)

    def least(self, plan: Plan) -> Sequence[Plan]:
        return single_relus(plan)

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        plan, start = context.teacher.plan, FROM_TEACHER
        if self.thin:
            job = baseline_job(context, THIN, budgets)
            context.train([job])
            plan, start = job.plan, FromJob(job.name)
        gradients = context.slope_gradients(self.saliency_images)
        scores = {name: gradients[name].abs().masked_fill(~site.mask, -inf) for name, site in plan.sites.items()}
        plans = {budget: best_within(self.name, context, plan, scores, budget) for budget in budgets}
        objective = Distillation(self.temperature, self.kd_weight)
        jobs = masked_jobs(self.name, context, plans, objective, start=start)
        if self.thin:
            jobs = [
                replace(
                    j,
                    name=f"snip-thin-{j.name.removeprefix('snip-')}",
                    tags=replace(j.tags, steps=THIN),
                    teacher=start.name,
                )
                for j in jobs
            ]
        return context.train(jobs)


def best_within(name: str, context: Context, plan: Plan, felt: Mapping[str, Tensor], budget: int) -> Plan:
    """The positions of a plan that are felt most, for each unit of the budget that they take. name: of the method."""
    spec, unit = context.teacher.spec, context.unit
    charges = unit.charges(spec, plan, budget)
    if charges is None:
        return Plan.from_masks(project(felt, budget))
    scores = {name: score / charges.relu[name] for name, score in felt.items()}
    whole = charges.fixed + charges.of({name: site.relus for name, site in plan.sites.items()})

    def plan_of(number: int) -> Plan:
        return Plan.from_masks(project(scores, number - charges.fixed, charges=charges))

    return unit.met(name, budget, spec, plan_of, whole)
