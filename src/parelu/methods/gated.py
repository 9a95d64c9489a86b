"""Making models shallow again: after SENet, blocks with few ReLUs learn to do with one convolution."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from parelu.errors import UserError
from parelu.methods.base import Context
from parelu.methods.jobs import FromJob, Job
from parelu.methods.senet import LayerBudgets
from parelu.models.branches import Branched
from parelu.models.resnet import BasicBlocks
from parelu.network.candidate import Candidate
from parelu.network.count import shared_skeleton
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import Spec
from parelu.training.callback import Callback, CallbackOptions, Step
from parelu.training.objectives import Distillation
from parelu.training.schedule import Training

GAMMA = "gamma"  # the buffer of a block with two branches


@dataclasses.dataclass(frozen=True)
class Blend(CallbackOptions):
    """Options of a `BranchBlender`.

    Attributes:
        schedule: of γ.
    """

    schedule: Literal["linear", "cosine"] = "linear"

    def gamma(self, progress: float) -> float:
        """γ where `progress`, in [0, 1], of all steps are done."""
        return progress if self.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * progress))

    def build(self, network: Network) -> BranchBlender:
        return BranchBlender(network, self)


class BranchBlender(Callback):
    """Moves γ, the weight of the shallow branches, from 0, all main branch, to 1 at the end of the training.

    γ is a buffer of each block with two branches, so that the network's own state holds it.
    """

    def __init__(self, network: Network, options: Blend) -> None:
        self.network, self.options = network, options

    def after_step(self, step: Step) -> None:
        for buffer in self._gammas():
            buffer.fill_(self.options.gamma(step.progress))

    def report(self) -> dict[str, Any]:
        return {"gamma": float(next(self._gammas()))}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def _gammas(self) -> Iterator[Tensor]:
        return (buffer for name, buffer in self.network.named_buffers() if name.endswith(f".{GAMMA}"))


@dataclasses.dataclass(frozen=True)
class Gated(LayerBudgets):
    """SENet's masks; in finetuning, blocks below a ReLU sensitivity give way to one convolution each.

    A block's sensitivity is the share of ReLUs kept between its two convolutions. That ReLU goes with the block's main
    branch, so a candidate has fewer ReLUs than its budget. The stem's ReLU and those after the additions stay. The one
    convolution is 3×3 and takes the block's stride and channels upon it, so that it is one layer on the longest path.

    Attributes:
        d_th: blocks with a smaller sensitivity get a shallow branch.
        gate_epochs: of the finetuning's epochs, the first ones, in which the shallow branches take over; if left out,
            those before the first drop of a step schedule, else half. The learning rate's schedule goes on after them.
        gate_schedule: of γ, from 0 to 1 over these epochs, moved every step.
        auxiliary: train a classifier ahead of the last stage too (AKD); each exit is a candidate of its own.
    """

    name: ClassVar[str] = "gated"
    source: ClassVar[str] = "Kundu et al., Making Models Shallow Again, 2023"
    exact: ClassVar[bool] = False
    unnoted: ClassVar[tuple[str, ...]] = (*LayerBudgets.unnoted, "gate_epochs", "auxiliary")

    d_th: float = 0.05  # Table 1: 0.05 or 0.1
    gate_epochs: int | None = None  # section 5.1: 90 of 180
    gate_schedule: Literal["linear", "cosine"] = "linear"  # section 5.1
    auxiliary: bool = False

    def check(self, spec: Spec, training: Training) -> None:
        if not isinstance(spec, Branched):
            raise UserError(f"gated branching rebuilds the blocks of our ResNets, not of the family {spec.family}")
        if isinstance(spec, BasicBlocks) and max(spec.reuse, default=1) > 1:
            raise UserError("gated branching has no shallow branch for blocks with ReLU-reuse; give a network without")
        if self.auxiliary and not isinstance(spec, BasicBlocks):
            raise UserError(
                f"an auxiliary classifier is for basic blocks (ResNets), not for the family {spec.family}, whose "
                "stages end ahead of their activations; leave --auxiliary out"
            )
        super().check(spec, training)
        finetuning = self.finetuning(training)
        if finetuning is None:
            raise UserError("gated moves γ in the finetuning, and finetune has epochs 0; give more")
        self._epochs(finetuning)

    def start(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Plan:
        """Refuses, before the searches, a threshold that would leave no block."""
        weights = self.weights(context, plan)
        for budget in budgets:
            kept = self.split(context, plan, weights, budget)
            self._shallow(_branched(context.teacher), context.teacher.plan, kept)
        return plan

    def finetuned(self, context: Context, jobs: Sequence[Job]) -> list[Candidate]:
        both = [self._branches(context, job) for job in jobs]
        context.train([branches for branches, _ in both if branches])
        found = context.train([job for _, job in both])
        return found if not self.auxiliary else context.train([cut for _, job in both for cut in _cuts(job)])

    def objective(self, *, finetuning: bool) -> Distillation:
        first = super().objective(finetuning=finetuning)
        return dataclasses.replace(first, auxiliary=float(self.auxiliary)) if finetuning else first

    def _branches(self, context: Context, job: Job) -> tuple[Job | None, Job]:
        """The training in which the shallow branches take over, None without any; and the one without main branches."""
        assert job.training
        spec = _branched(job)
        if isinstance(spec, BasicBlocks):
            spec = dataclasses.replace(spec, exits="both" if self.auxiliary else "last")
        blocks = self._shallow(spec, context.teacher.plan, {name: site.relus for name, site in job.plan.sites.items()})
        context.record(job.name, {"d_th": self.d_th, "shallow": list(blocks)})
        epochs, gate_epochs = job.training.epochs, self._epochs(job.training)
        role = "scaffold" if self.auxiliary else "candidate"
        name = f"{job.name}-both" if self.auxiliary else job.name
        if not blocks:
            return None, dataclasses.replace(job, name=name, spec=spec, role=role)
        gating = dataclasses.replace(job.training, epochs=gate_epochs, end=gate_epochs / epochs)
        rest = dataclasses.replace(job.training, epochs=epochs - gate_epochs, begin=gate_epochs / epochs)
        gated, shallow = (dataclasses.replace(spec, **{form: blocks}) for form in ("gated", "shallow"))
        first = dataclasses.replace(
            job,
            name=f"{job.name}-branches",
            role="scaffold",
            spec=gated,
            training=gating,
            callback=Blend(self.gate_schedule),
        )
        plan = _without(job.plan, shallow)
        second = dataclasses.replace(
            job,
            name=name,
            role=role,
            spec=shallow,
            training=rest,
            start=FromJob(first.name),
            plan=plan,
            tags=context.unit.foretold(job.tags, shallow, plan),
        )
        return first, second

    def _shallow(self, spec: Branched, full: Plan, kept: Mapping[str, int]) -> tuple[int, ...]:
        """The blocks below `d_th`; kept: site → ReLUs."""
        inner = spec.inner
        sensitivity = {name: kept[name] / full.sites[name].mask.numel() for name in inner}
        blocks = tuple(number for name, number in inner.items() if sensitivity[name] < self.d_th)
        if blocks and len(blocks) == len(inner):
            raise UserError(
                f"d_th {self.d_th:g} removes the main branch of every block: {sum(kept.values()):,} ReLUs leave none "
                f"above {max(sensitivity.values()):.3g}; give a smaller --d-th or a larger budget"
            )
        return blocks

    def _epochs(self, finetuning: Training) -> int:
        """Epochs in which γ moves, of those of the finetuning."""
        until_drop = finetuning.epochs // (4 if finetuning.schedule == "step" else 2)
        if finetuning.milestones:
            until_drop = finetuning.milestones[0]
        epochs = until_drop if self.gate_epochs is None else self.gate_epochs
        if not 1 <= epochs < finetuning.epochs:
            raise UserError(
                f"γ moves for {epochs} of {finetuning.epochs} finetuning epochs; it takes at least 1 and leaves at "
                "least 1: give another --gate-epochs, or more --finetune-epochs"
            )
        return epochs


def _branched(of: Candidate | Job) -> Branched:
    assert isinstance(of.spec, Branched), "checked before"
    return of.spec


def _without(plan: Plan, spec: Branched) -> Plan:
    """Of a plan, the sites that a network has."""
    return Plan({name: plan.sites[name] for name in shared_skeleton(spec).sites})


def _cuts(job: Job) -> Iterator[Job]:
    """A candidate for each exit of a network with both, with its weights as they are."""
    whole = _branched(job)
    for exits, ending in (("last", ""), ("auxiliary", "-auxiliary")):
        spec = dataclasses.replace(whole, exits=exits)
        note = ", ".join(part for part in (job.tags.note, f"{exits} exit") if part)
        name = job.name.removesuffix("-both") + ending
        yield dataclasses.replace(
            job,
            name=name,
            role="candidate",
            spec=spec,
            plan=_without(job.plan, spec),
            training=None,
            start=FromJob(job.name),
            tags=dataclasses.replace(job.tags, note=note),
        )
