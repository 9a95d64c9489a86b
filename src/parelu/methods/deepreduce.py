"""DeepReDuce: drop, thin and reshape whole stages, least critical first (Jha et al., ICML 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from parelu.errors import UserError
from parelu.methods.base import Context, Method, fitting, stepped_job
from parelu.methods.jobs import Job
from parelu.network.candidate import Candidate
from parelu.network.count import shared_skeleton
from parelu.network.metrics import Role
from parelu.network.settings import younger
from parelu.network.spec import Spec
from parelu.network.steps import stage_order, stages_of
from parelu.training.objectives import Distillation
from parelu.training.schedule import Training

RESHAPINGS = ("", "; channels 0.5", "; fmap 0.5", "; channels 0.5; fmap 0.5")  # section 3.3


@dataclasses.dataclass(frozen=True)
class DeepReDuce(Method):
    """Stage-wise culling, thinning and reshaping, with distillation from the full-ReLU network.

    Without a budget, all 5·(D − 1) candidates of a network with D stages; with budgets, those within the largest.

    Attributes:
        w: exponent of the ReLU count in the criticality.
        temperature: of the distillation.
        kd_weight: of its soft loss.
        order: stages, the most critical first, such as "S3>S2>S4>S1"; then no network is trained to find it.
    """

    name: ClassVar[str] = "deepreduce"
    source: ClassVar[str] = "Jha et al., DeepReDuce, ICML 2021"
    exact: ClassVar[bool] = False
    needs_budget: ClassVar[bool] = False

    w: float = 0.07  # section 3.1
    temperature: float = 4.0  # section 4
    kd_weight: float = 0.9  # section 4
    order: str = younger("")

    def check(self, spec: Spec, training: Training) -> None:
        stages = stages_of(shared_skeleton(spec))
        if len(stages) < 2:
            raise UserError(f"deepreduce drops whole stages, and this network has {len(stages)}; take another method")
        if self.order:
            stage_order(self.order, stages)

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        order = self.least_critical_first(context)
        steps = candidate_steps(order, thin_order=stages_of(shared_skeleton(context.teacher.spec)))
        jobs, skipped = [], {}
        for step in steps:
            try:
                jobs.append(self._job(context, step, "candidate"))
            except UserError as error:
                if "channels" not in step and "fmap" not in step:
                    raise
                skipped[step] = str(error)
        if skipped:
            context.record("skipped", skipped)
        return context.train(fitting(self.name, jobs, budgets, context.unit))

    def least_critical_first(self, context: Context) -> list[str]:
        """By `order`, or by a network for each stage with ReLUs there only; eq. 1's numbers go to the run folder."""
        stages = stages_of(shared_skeleton(context.teacher.spec))
        if self.order:
            return stage_order(self.order, stages)[::-1]
        trained = context.train([self._job(context, f"only {stage}", "criticality") for stage in stages])
        accuracy = {s: c.trained.validation_accuracy for s, c in zip(stages, trained, strict=True)}
        relus = {s: c.plan.relus for s, c in zip(stages, trained, strict=True)}
        values = criticality(accuracy, relus, self.w)
        order = sorted(stages, key=lambda stage: values[stage])
        rows = {
            s: {
                "relus": relus[s],
                "relus_thousands": relus[s] / 1000,
                "accuracy": accuracy[s],
                "criticality": values[s],
            }
            for s in stages
        }
        context.record("criticality", {"w": self.w, "stages": rows, "order": order})
        return order

    def _job(self, context: Context, steps: str, role: Role) -> Job:
        """Raises `UserError` where the network cannot be reshaped so: a user's own, or a width that does not halve."""
        return stepped_job(self.name, context, steps, Distillation(self.temperature, self.kd_weight), role=role)


def criticality(accuracy: Mapping[str, float], relus: Mapping[str, int], w: float = 0.07) -> dict[str, float]:
    """C_k = (Acc[S_k] − min_i Acc[S_i]) / (#ReLU[S_k])^w (DeepReDuce, eq. 1).

    Args:
        accuracy: stage → accuracy in percent of the network with ReLUs in that stage only, trained with KD.
        relus: stage → ReLUs; in thousands inside the formula, which is how the published values come out.
    """
    least = min(accuracy.values())
    return {stage: (accuracy[stage] - least) / (relus[stage] / 1000) ** w for stage in accuracy}


def candidate_steps(least_critical_first: Sequence[str], thin_order: Sequence[str]) -> list[str]:
    """The steps of the 5·(D − 1) candidates: for each culling, culled; thinned; and thinned with each reshaping."""
    steps = []
    for number in range(1, len(least_critical_first)):
        culled = [stage for stage in thin_order if stage in least_critical_first[:number]]
        rest = [stage for stage in thin_order if stage not in culled]
        cull = f"cull {'+'.join(culled)}"
        thin = f"{cull}; thin {'+'.join(rest)}"
        steps += [cull, *(thin + reshaping for reshaping in RESHAPINGS)]
    return steps
