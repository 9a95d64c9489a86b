"""What a method asks of its run: networks to train, and searches for masks."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from parelu.masks.optimizer import MaskOptimizer, MaskOptions
from parelu.methods.unit import RELUS, Unit
from parelu.network.metrics import Role, Tags
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import Spec
from parelu.training.callback import CallbackOptions
from parelu.training.objectives import CrossEntropy, DecoupledDistillation, Distillation
from parelu.training.schedule import Training

TEACHER = "teacher"
OUTSIDE = "outside-teacher"  # another architecture that teaches, where a run has one


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Fresh weights."""

    @property
    def key(self) -> str:
        return ""

    def folder(self, run: Path) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class FromJob:
    """The weights of another job's network."""

    name: str

    @property
    def key(self) -> str:
        return self.name

    def folder(self, run: Path) -> Path:
        return run / "candidates" / self.name


@dataclasses.dataclass(frozen=True)
class FromSearch:
    """What a search left for a budget."""

    search: str
    budget: int

    @property
    def key(self) -> str:
        return f"{self.search}/{self.budget}"

    def folder(self, run: Path) -> Path:
        return run / "searches" / self.key


@dataclasses.dataclass(frozen=True)
class FromKept:
    """A network that was put into the run folder, not trained there."""

    name: str
    entry: str = "kept"

    @property
    def key(self) -> str:
        return f"{self.name}/{self.entry}"

    def folder(self, run: Path) -> Path:
        return run / "searches" / self.key


# Whose weights a job starts from. `folder`: where in a run they are; `key`: what a job's identity has of it.
Start = Fresh | FromJob | FromSearch | FromKept
FRESH, FROM_TEACHER = Fresh(), FromJob(TEACHER)


@dataclasses.dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        name: of its folder in the run, unique there.
        training: None for a network that takes its weights as they are.
        objective: what is minimised; all but `CrossEntropy` have a teacher.
        tags: what its metrics carry on.
        start: whose weights it starts from; of another architecture it takes the layers that have the same names.
        callback: moves something beside the weights, such as a buffer of the network.
        teacher: the job whose network teaches; a run with another architecture for it says which.
        drawn_as: what draws its fresh weights, with the run's seed; its name if left out.
    """

    name: str
    role: Role
    spec: Spec
    plan: Plan
    training: Training | None
    objective: CrossEntropy | Distillation | DecoupledDistillation
    tags: Tags
    start: Start = FRESH
    callback: CallbackOptions | None = None
    teacher: str = TEACHER
    drawn_as: str = ""


@dataclasses.dataclass(frozen=True)
class Search:
    """A training of a network in which a mask optimizer takes its ReLUs away.

    Attributes:
        name: unique in the run.
        plan: where ReLUs may stand.
        budgets: ReLUs to stop at, the largest first: as the search passes each, its masks are projected onto exactly
            that budget (at most, for channels and layers) and kept with the weights of the moment.
        unit: of the budgets.
        teacher: as of a `Job`.
        start: whose weights it starts from.
    """

    name: str
    spec: Spec
    plan: Plan
    training: Training
    objective: CrossEntropy | Distillation
    optimizer: MaskOptions
    budgets: tuple[int, ...]
    teacher: str = TEACHER
    start: FromJob = FROM_TEACHER
    unit: Unit = RELUS

    def build(self, network: Network) -> MaskOptimizer:
        """The optimizer at the start of the search, which can ask what a plan takes where budgets are no ReLUs."""
        optimizer = self.optimizer.build(network)
        if self.unit.name:
            optimizer.spent = functools.partial(self.unit.spent, self.spec)
        return optimizer

    def start_of(self, budget: int) -> FromSearch:
        """For `Job.start`."""
        return FromSearch(self.name, budget)

    def left(self, optimizer: MaskOptimizer, budget: int) -> Plan:
        """What it leaves for a budget: the optimizer's plan within it."""
        return self.unit.met(self.name, budget, self.spec, optimizer.plan, optimizer.total + optimizer.charges.fixed)


Task = Job | Search
