"""Methods that draw their masks before training."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from parelu.methods.base import Context, Method
from parelu.methods.jobs import FRESH, FROM_TEACHER, Job, Start
from parelu.methods.unit import affordable, single_relus
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

    def least(self, plan: Plan) -> Sequence[Plan]:
        return single_relus(plan)

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        plans = {budget: self._plan(context, budget) for budget in budgets}
        objective = Distillation(self.temperature, self.kd_weight)
        jobs = masked_jobs(self.name, context, plans, objective, start=FROM_TEACHER if self.from_teacher else FRESH)
        if self.from_teacher:
            jobs = [replace(j, name=f"{j.name}-from-teacher", tags=replace(j.tags, note=FULL_WEIGHTS)) for j in jobs]
        return context.train(jobs)

    def _plan(self, context: Context, budget: int) -> Plan:
        """Masks of the sites that keep most ReLUs within the budget: of all, unless a site takes some of it itself."""
        spec, whole = context.teacher.spec, context.teacher.plan
        charges = context.unit.charges(spec, whole, budget)
        if charges is None:
            shapes = {name: tuple(site.mask.shape) for name, site in whole.sites.items()}
            return Plan.from_masks(self.masks(shapes, budget, context.seed))
        closed = {name: torch.zeros_like(site.mask) for name, site in whole.sites.items()}

        def plan_of(number: int) -> Plan:
            open = {name: site for name, site in whole.sites.items() if name in affordable(charges, whole, number)}
            relus = {name: site.relus for name, site in open.items()}
            total, taken = sum(relus.values()), charges.of(relus)
            rounds = sum(charges.site[name] for name in open)
            share = (number - charges.fixed - rounds) / max(1, taken - rounds)
            kept = min(total, max(1, int(share * total))) if total else 0
            shapes = {name: tuple(site.mask.shape) for name, site in open.items()}
            return Plan.from_masks(closed | (self.masks(shapes, kept, context.seed) if kept else {}))

        most = charges.fixed + charges.of({name: site.relus for name, site in whole.sites.items()})
        return context.unit.met(self.name, budget, spec, plan_of, most)


def masked_jobs(
    name: str, context: Context, plans: Mapping[int, Plan], objective: Distillation, *, start: Start
) -> list[Job]:
    """A candidate of the teacher's architecture for each budget's plan; name: of the method."""
    spec, unit = context.teacher.spec, context.unit
    return [
        Job(
            name=f"{name}-{unit.called(budget)}",
            role="candidate",
            spec=spec,
            plan=plan,
            training=context.training,
            objective=objective,
            tags=unit.tags(Tags(name, "", note=""), budget, spec, plan),
            start=start,
        )
        for budget, plan in plans.items()
    ]
