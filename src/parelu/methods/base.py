"""The contract of a method, and what a method may use.

A method is one file in this folder: a frozen dataclass that derives from `Method`. Its fields are its options, each
with the default of its paper. The command line, the contract tests and the table in the documentation are built from
what stands here; adding a method touches its own file only.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from parelu import registry
from parelu.masks.optimizer import MaskOptions
from parelu.network.candidate import Candidate
from parelu.network.plan import Plan
from parelu.network.spec import Spec
from parelu.network.steps import apply_steps
from parelu.training.callback import CallbackOptions
from parelu.training.objectives import CrossEntropy, DecoupledDistillation, Distillation
from parelu.training.schedule import Training

TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        name: of its folder in the run, unique there.
        role: "teacher", "criticality" (a network trained only to be measured), "scaffold" (one that candidates are cut
            out of) or "candidate".
        training: None for a network that takes its weights as they are.
        objective: what is minimised; all but `CrossEntropy` get the run's full-ReLU network as their teacher.
        tags: JSON values that its metrics carry on: method, steps, budget.
        start: whose weights it starts from: "" for fresh ones, another job's name (`TEACHER` for the full-ReLU
            network), what a search left for a budget, `Search.start_of(budget)`, or what `Workbench.keep` returned. Of
            another architecture it takes the layers that have the same names.
        callback: moves something beside the weights, such as a buffer of the network.
    """

    name: str
    role: str
    spec: Spec
    plan: Plan
    training: Training | None
    objective: CrossEntropy | Distillation | DecoupledDistillation
    tags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    start: str = ""
    callback: CallbackOptions | None = None


@dataclasses.dataclass(frozen=True)
class Search:
    """A training of the full-ReLU network in which a mask optimizer takes its ReLUs away.

    Attributes:
        name: unique in the run.
        plan: where ReLUs may stand.
        budgets: ReLUs to stop at, the largest first: as the search passes each, its masks are projected onto exactly
            that budget (at most, for channels and layers) and kept with the weights of the moment.
    """

    name: str
    spec: Spec
    plan: Plan
    training: Training
    objective: CrossEntropy | Distillation
    optimizer: MaskOptions
    budgets: tuple[int, ...]

    def start_of(self, budget: int) -> str:
        """For `Job.start`."""
        return f"{self.name}/{budget}"


class Workbench(Protocol):
    """What a method gets from the run it works in."""

    @property
    def teacher(self) -> Candidate:
        """The trained full-ReLU network."""
        ...

    @property
    def training(self) -> Training: ...

    @property
    def seed(self) -> int: ...

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

    def keep(self, name: str, candidate: Candidate) -> str:
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
    """

    name: ClassVar[str]
    source: ClassVar[str]
    exact: ClassVar[bool]
    needs_budget: ClassVar[bool]
    needs: ClassVar[tuple[str, str] | None] = None

    def check(self, spec: Spec, training: Training) -> None:  # noqa: B027
        """Refuse, before anything is trained, a network or a training that it cannot work with; raises `UserError`."""

    @abc.abstractmethod
    def reduce(self, bench: Workbench, budgets: Sequence[int]) -> list[Candidate]:
        """The candidates for these budgets, each a number of ReLUs of at least 1 and at most the network's."""


def stepped_job(
    name: str,
    bench: Workbench,
    steps: str,
    objective: Distillation | DecoupledDistillation,
    *,
    role: str = "candidate",
    prefix: str = "",
) -> Job:
    """The teacher's architecture behind steps, from fresh weights; name: of the method; prefix: of the job's name.

    Raises:
        UserError: the network cannot be reshaped so: a user's own, or a width that does not halve.
    """
    reduced = apply_steps(bench.teacher.spec, steps)
    return Job(
        name=prefix + steps.replace("; ", "_").replace(" ", "-").replace("+", ""),
        role=role,
        spec=reduced.spec,
        plan=reduced.plan,
        training=bench.training,
        objective=objective,
        tags={"method": name, "steps": steps, "budget": None},
    )


def methods() -> dict[str, type[Method]]:
    """Method name → class: those in `parelu.methods`, one file a paper, and those of plugins."""
    return registry.classes(Method, "parelu.methods")
