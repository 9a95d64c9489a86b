"""Networks that are written down: any steps of the language, trained as the tables of the papers train them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from parelu.errors import UserError
from parelu.methods.base import Context, Method, decoupled, fitting, stepped_job
from parelu.methods.fixed import FULL_WEIGHTS
from parelu.methods.jobs import FRESH, FROM_TEACHER, Job
from parelu.methods.unit import Unit
from parelu.network.candidate import Candidate
from parelu.network.count import shared_skeleton
from parelu.network.settings import younger
from parelu.network.spec import Spec
from parelu.network.steps import apply_steps, parsed
from parelu.training.objectives import CrossEntropy, DecoupledDistillation, Distillation
from parelu.training.schedule import Training

NOTES = {"kd": "", "dkd": "dkd", "none": "no distillation"}


@dataclasses.dataclass(frozen=True)
class Steps(Method):
    """The networks that steps name, such as "cull S1; thin all"; with budgets, those within the largest.

    `none` is the network itself, trained by distillation; `cull all` is the network without ReLUs.

    Attributes:
        steps: a network each.
        from_teacher: start from the full-ReLU network's weights, not from fresh ones.
        distillation: plain (kd), decoupled (dkd), or none: the labels alone.
        temperature: of the distillation.
        kd_weight: of the soft loss of kd.
        ce_weight: of the hard loss of kd; 1 - kd_weight if left out.
        alpha, beta: weights of the target's and the other classes' terms of dkd.
        warmup: share of the training in which the weight of dkd grows.
        warmup_epochs: epochs in which it grows instead, which dkd trains more than kd.
    """

    name: ClassVar[str] = "steps"
    source: ClassVar[str] = "steps by hand, as the papers' tables have them"
    exact: ClassVar[bool] = False
    needs_budget: ClassVar[bool] = False

    steps: tuple[str, ...] = ("none", "thin all", "cull all")
    from_teacher: bool = False
    distillation: Literal["kd", "dkd", "none"] = "kd"
    temperature: float = 4.0  # DeepReDuce, section 4; DeepReShape, Appendix J
    kd_weight: float = 0.9  # likewise
    ce_weight: float | None = younger(None)
    alpha: float = 1.0  # DeepReShape, Appendix J
    beta: float = 1.0  # DeepReShape, Appendix J: of 0.8, 1, 2, 6
    warmup: float = 0.09  # DeepReShape, Appendix J: 20 of 220 epochs
    warmup_epochs: int | None = younger(None)  # DeepReShape, Appendix J: 20 on top of 200

    def __post_init__(self) -> None:
        if not self.steps:
            raise UserError('steps names no network; give some, such as "cull S1; thin all"')

    def check(self, spec: Spec, training: Training) -> None:
        """Refuses steps that the network cannot take, and weights that would not fit."""
        full = {name: tensor.shape for name, tensor in shared_skeleton(spec).state_dict().items()}
        for steps in self.steps:
            try:
                reduced = shared_skeleton(apply_steps(spec, steps).spec).state_dict()
            except UserError as error:
                raise UserError(f"steps {steps!r}: {error}") from error
            if self.from_teacher and {name: tensor.shape for name, tensor in reduced.items()} != full:
                raise UserError(
                    f"steps {steps!r}: the full network's weights do not fit its layers; leave out from_teacher"
                )

    def check_budgets(self, spec: Spec, unit: Unit, budgets: Sequence[int]) -> None:
        fitting(self.name, [apply_steps(spec, steps) for steps in self.steps], budgets, unit)

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        texts = dict.fromkeys("; ".join(parsed(steps)) or "none" for steps in self.steps)
        jobs = [self._job(context, steps) for steps in texts]
        return context.train(fitting(self.name, jobs, budgets, context.unit))

    def _job(self, context: Context, steps: str) -> Job:
        training, objective = self._trained(context.training)
        job = stepped_job(self.name, context, steps, objective, prefix=f"{self.name}-")
        beta = f"beta {self.beta:g}" if self.distillation == "dkd" and self.beta != 1 else ""
        note = ", ".join(filter(None, (NOTES[self.distillation], beta, self.from_teacher * FULL_WEIGHTS)))
        start = FROM_TEACHER if self.from_teacher else FRESH
        return dataclasses.replace(job, training=training, start=start, tags=dataclasses.replace(job.tags, note=note))

    def _trained(self, training: Training) -> tuple[Training, CrossEntropy | Distillation | DecoupledDistillation]:
        if self.distillation == "none":
            return training, CrossEntropy(training.label_smoothing)
        if self.distillation == "kd":
            return training, Distillation(self.temperature, self.kd_weight, ce_weight=self.ce_weight)
        return decoupled(training, self.temperature, self.alpha, self.beta, self.warmup, self.warmup_epochs)
