"""The contract of a method, and what a method may use.

A method is one file in this folder: a frozen dataclass that derives from `Method`. Its fields are its options, each
with the default of its paper. The command line, the contract tests and the table in the documentation are built from
what stands here; adding a method touches its own file only.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor

from parelu import registry
from parelu.errors import UserError
from parelu.methods.jobs import FromKept, Job, Search
from parelu.methods.unit import Unit
from parelu.network.candidate import Candidate
from parelu.network.metrics import Role, Tags
from parelu.network.plan import Plan
from parelu.network.spec import Spec
from parelu.network.steps import Reduced, apply_steps
from parelu.training.objectives import CrossEntropy, DecoupledDistillation, Distillation
from parelu.training.schedule import Training

Made = TypeVar("Made", Job, Reduced)


class Context(Protocol):
    """What a method gets from the run it works in."""

    @property
    def teacher(self) -> Candidate:
        """The trained full-ReLU network."""
        ...

    @property
    def training(self) -> Training: ...

    @property
    def seed(self) -> int: ...

    @property
    def unit(self) -> Unit:
        """What the budgets are counted in."""
        ...

    def train(self, jobs: Sequence[Job]) -> list[Candidate]:
        """Train networks side by side; those that the run folder holds already are read instead."""
        ...

    def search(self, searches: Sequence[Search]) -> list[dict[int, Candidate]]:
        """Conduct searches side by side; for each: budget → what it left, with its validation accuracy as it is."""
        ...

    def slope_gradients(self, images: int) -> dict[str, Tensor]:
        """Site → ∂L/∂a, (C, H, W), of the teacher's activations a·relu(x) + (1 − a)·x at a = 1.

        L: cross-entropy, the mean over so many training images (all of them, where there are fewer).
        """
        ...

    def keep(self, name: str, candidate: Candidate) -> FromKept:
        """Put a network into the run folder for jobs to start from; returns what `Job.start` takes."""
        ...

    def record(self, name: str, value: Any) -> None:
        """Keep figures, a JSON value, in the run folder."""
        ...


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """Turns a full-ReLU network and budgets into candidates.

    Attributes:
        name: of the method on the command line.
        source: the paper.
        exact: whether a candidate has exactly its budget's ReLUs; otherwise at most as many.
        needs_budget: whether it must be given a budget.
        needs: a package beyond parelu's own that it imports, and the extra that brings it.
        compares_maps: whether it compares maps of a network with its teacher's, which must then have the same sites.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    exact: ClassVar[bool]
    needs_budget: ClassVar[bool]
    needs: ClassVar[tuple[str, str] | None] = None
    compares_maps: ClassVar[bool] = False

    def check(self, spec: Spec, training: Training) -> None:  # noqa: B027
        """Refuse, before anything is trained, a network or a training that it cannot work with; raises `UserError`."""

    def check_budgets(self, spec: Spec, unit: Unit, budgets: Sequence[int]) -> None:  # noqa: B027
        """Refuse, before anything is trained, budgets for which it sees that it has no network; raises `UserError`."""

    @abc.abstractmethod
    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        """The candidates for these budgets, each at most what the network takes, counted in the context's unit."""

    def least(self, plan: Plan) -> Sequence[Plan]:
        """Plans of which one takes least of a budget, of those that it makes from the full-ReLU network's plan; none
        where that is not known before it is asked for candidates."""
        return ()


def stepped_job(
    name: str,
    context: Context,
    steps: str,
    objective: CrossEntropy | Distillation | DecoupledDistillation,
    *,
    role: Role = "candidate",
    prefix: str = "",
) -> Job:
    """The teacher's architecture after steps, from fresh weights; name: of the method; prefix: of the job's name.

    Raises:
        UserError: the network cannot be reshaped so: a user's own, or a width that does not halve.
    """
    reduced = apply_steps(context.teacher.spec, steps)
    return Job(
        name=prefix + slug(steps),
        role=role,
        spec=reduced.spec,
        plan=reduced.plan,
        training=context.training,
        objective=objective,
        tags=Tags(name, steps),
    )


def fitting(name: str, jobs: Sequence[Made], budgets: Sequence[int], unit: Unit) -> list[Made]:
    """The jobs, or networks, within any of the budgets, or all without one; name: of the method.

    Raises:
        UserError: none is.
    """
    found = [job for job in jobs if not budgets or any(unit.holds(budget, job.spec, job.plan) for budget in budgets)]
    if not found:
        least = unit.said(min(unit.spent(job.spec, job.plan) for job in jobs))
        raise UserError(f"{name} reaches {least} at the least on this network; give a larger budget")
    return found


def slug(steps: str) -> str:
    """Steps as a part of a name: cull-S1S4_thin-S2."""
    return steps.replace("; ", "_").replace(" ", "-").replace("+", "")


def decoupled(
    training: Training, temperature: float, alpha: float, beta: float, warmup: float, warmup_epochs: int | None
) -> tuple[Training, DecoupledDistillation]:
    """A training with decoupled distillation, whose weight grows in the first epochs.

    warmup: their share of the training as it is; warmup_epochs: so many, by which the training is longer, instead.
    """
    if warmup_epochs is not None:
        training = training.changed(epochs=training.epochs + warmup_epochs)
        warmup = warmup_epochs / training.epochs
    return training, DecoupledDistillation(temperature, alpha, beta, warmup)


def methods() -> dict[str, type[Method]]:
    """Method name → class: those in `parelu.methods`, one file a paper, and those of plugins."""
    return registry.classes(Method, "parelu.methods")
