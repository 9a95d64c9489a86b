"""The contract of a method, and what a method may use.

A method is one file in this folder: a frozen dataclass that derives from `Method`. Its fields are its options, each
with the default of its paper. The command line, the contract tests and the table in the documentation are built from
what stands here; adding a method touches its own file only.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import inspect
import math
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from parelu.distill import CrossEntropy, DecoupledDistillation, Distillation
from parelu.errors import UserError
from parelu.learner import Learner
from parelu.masks import MaskLearner
from parelu.models import Spec
from parelu.plan import Candidate, Plan
from parelu.steps import reduce
from parelu.train import Training

TEACHER = "teacher"
THIN = "thin all"  # in the grammar of `steps`
FINETUNE_CLIP = 0.5  # a network of few ReLUs can be lost at the rate of fresh weights


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
        learner: moves something beside the weights, such as a buffer of the network.
    """

    name: str
    role: str
    spec: Spec
    plan: Plan
    training: Training | None
    objective: CrossEntropy | Distillation | DecoupledDistillation
    tags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    start: str = ""
    learner: Learner | None = None


@dataclasses.dataclass(frozen=True)
class Search:
    """A training of the full-ReLU network in which a learner takes its ReLUs away.

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
    learner: MaskLearner
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

    def reduce(self, bench: Workbench, budgets: Sequence[int]) -> list[Candidate]:
        shapes = {name: tuple(site.mask.shape) for name, site in bench.teacher.plan.sites.items()}
        masks = {budget: self.masks(shapes, budget, bench.seed) for budget in budgets}
        objective = Distillation(self.temperature, self.kd_weight)
        jobs = masked_jobs(self.name, bench, masks, objective, start=TEACHER if self.from_teacher else "")
        if self.from_teacher:
            note = {"note": "from the full network's weights"}
            jobs = [dataclasses.replace(j, name=f"{j.name}-from-teacher", tags={**j.tags, **note}) for j in jobs]
        return bench.train(jobs)


def stepped_job(name: str, bench: Workbench, steps: str, objective: Distillation | DecoupledDistillation, *,
                role: str = "candidate", prefix: str = "") -> Job:  # fmt: skip
    """The teacher's architecture behind steps, from fresh weights; name: of the method; prefix: of the job's name.

    Raises:
        UserError: the network cannot be reshaped so: a user's own, or a width that does not halve.
    """
    reduced = reduce(bench.teacher.spec, steps)
    return Job(
        name=prefix + steps.replace("; ", "_").replace(" ", "-").replace("+", ""),
        role=role,
        spec=reduced.spec,
        plan=reduced.plan,
        training=bench.training,
        objective=objective,
        tags={"method": name, "steps": steps, "budget": None},
    )


def masked_jobs(name: str, bench: Workbench, masks: Mapping[int, Mapping[str, Tensor]], objective: Distillation,
                *, start: str) -> list[Job]:  # fmt: skip
    """A candidate of the teacher's architecture for each budget's masks; name: of the method."""
    return [
        Job(
            name=f"{name}-{budget}",
            role="candidate",
            spec=bench.teacher.spec,
            plan=Plan.from_masks(masks[budget]),
            training=bench.training,
            objective=objective,
            tags={"method": name, "steps": "", "budget": budget, "note": ""},
            start=start,
        )
        for budget in masks
    ]


def thinned(teacher: Candidate, budgets: Sequence[int]) -> Plan:
    """Where ReLUs may stand when alternate ones of every site are dropped first (DeepReShape, Table 5)."""
    plan = reduce(teacher.spec, THIN).plan
    if max(budgets) > plan.relus:
        raise UserError(f"a budget of {max(budgets):,} ReLUs is more than the {plan.relus:,} that thinning leaves; "
                        "give a smaller one, or no --thin")  # fmt: skip
    return plan


@dataclasses.dataclass(frozen=True)
class LearnedMasks(Method):
    """A method that learns its masks from the full-ReLU network, then finetunes each candidate with frozen masks.

    Several budgets share one search where the method passes through them.

    Attributes:
        searches_as: the method whose searches it uses, where it is not its own.
        unnoted: options that do not change what the method is.
        thin: drop alternate ReLUs before the search (DeepReShape, Table 5).
        search_epochs: of the search.
        finetune_epochs: of each candidate behind it; the training's own number if left out.
        finetune_lr: learning rate there; the training's own if left out.
        temperature: of the distillation, in the search and behind it.
        kd_weight: of its soft loss.
    """

    exact: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = True
    shares_search: ClassVar[bool] = True
    searches_as: ClassVar[str] = ""
    unnoted: ClassVar[tuple[str, ...]] = ("thin", "search_epochs", "finetune_epochs")

    thin: bool = False
    search_epochs: int = 10
    finetune_epochs: int | None = None
    finetune_lr: float | None = None
    temperature: float = 4.0
    kd_weight: float = 0.9

    def __post_init__(self) -> None:
        for name in ("search_epochs", "finetune_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it should be a whole number, 1 or more")

    def start(self, bench: Workbench, plan: Plan, budgets: Sequence[int]) -> Plan:
        """Where a search may place ReLUs, of the positions of a plan; budgets: its own, the largest first."""
        return plan

    @abc.abstractmethod
    def learner(self, bench: Workbench, plan: Plan, budgets: Sequence[int]) -> MaskLearner:
        """plan: where ReLUs may stand; budgets: of one search, the largest first."""

    @abc.abstractmethod
    def search_training(self, training: Training) -> Training:
        """How the weights are trained in the search; its epochs are set from `search_epochs`."""

    def reduce(self, bench: Workbench, budgets: Sequence[int]) -> list[Candidate]:
        plan = thinned(bench.teacher, budgets) if self.thin else bench.teacher.plan
        descending = tuple(sorted(budgets, reverse=True))
        groups = [descending] if self.shares_search else [(budget,) for budget in descending]
        searches = [self._search(bench, self.start(bench, plan, group), group) for group in groups]
        jobs = {}
        for search, found in zip(searches, bench.search(searches), strict=True):
            jobs |= {budget: self._finetuning(bench, search, budget, found[budget]) for budget in search.budgets}
        return self.finetuned(bench, [jobs[budget] for budget in budgets])

    def finetuned(self, bench: Workbench, jobs: Sequence[Job]) -> list[Candidate]:
        """The candidates, from the finetuning of what the searches left: a job a budget."""
        return bench.train(jobs)

    def _search(self, bench: Workbench, plan: Plan, budgets: tuple[int, ...]) -> Search:
        label = f"{self.searches_as or self.name}{'-thin' if self.thin else ''}"
        name = label if self.shares_search else f"{label}-{budgets[0]}"
        training = dataclasses.replace(self.search_training(bench.training), epochs=self.search_epochs)
        objective = self.objective(finetuning=False)
        learner = self.learner(bench, plan, budgets)
        return Search(name, bench.teacher.spec, plan, training, objective, learner, budgets)

    def _finetuning(self, bench: Workbench, search: Search, budget: int, found: Candidate) -> Job:
        clip = search.training.clip or FINETUNE_CLIP
        changes = {"epochs": self.finetune_epochs, "lr": self.finetune_lr, "clip": clip}
        return Job(
            name=f"{self._label}-{budget}",
            role="candidate",
            spec=found.spec,
            plan=found.plan,
            training=dataclasses.replace(bench.training, **{k: v for k, v in changes.items() if v is not None}),
            objective=self.objective(finetuning=True),
            tags={
                "method": self.name,
                "steps": THIN if self.thin else "",
                "budget": budget,
                "note": self._note(),
                "searched": {key: found.metrics[key] for key in ("epochs", "seconds", "validation_accuracy")},
            },
            start=search.start_of(budget),
        )

    def objective(self, *, finetuning: bool) -> CrossEntropy | Distillation:
        """Of the search, or of the finetuning behind it."""
        return Distillation(self.temperature, self.kd_weight)

    @property
    def _label(self) -> str:
        return f"{self.name}-thin" if self.thin else self.name

    def _note(self) -> str:
        """The options that are not their defaults and change what the method is, for tables."""
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in self.unnoted}
        words = [f"{f.name} {changed[f.name]}" for f in dataclasses.fields(self)
                 if f.name in changed and changed[f.name] != f.default]  # fmt: skip
        return ", ".join(words).replace("_", " ")


@dataclasses.dataclass(frozen=True)
class Polynomials(LearnedMasks):
    """Learned masks with polynomials where no ReLU stays, fitted to the distribution of each channel's input (DaPa).

    Attributes:
        degree: of the polynomials; 0 is the identity. Squares are counted apart from ReLUs.
        wide: the polynomials are fitted to a normal distribution so many times as wide as the input's, 1 in the paper:
            wider ones have smaller squares, which feed less on each other.
        tails: weight of the loss term against images that stand out (`distill.tails`): with squares in a row a few of
            them grow without bound, and with them the batch-norms' statistics.
        clip: largest norm of the weights' gradient.
        weight_lr: of SGD in the search.
    """

    finetune_lr: float | None = 0.05  # with squares, rates for fresh weights end in a blow-up
    degree: Literal[0, 1, 2] = 2
    wide: float = 3.0
    tails: float = 1.0
    clip: float = 0.5
    weight_lr: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.wide) and self.wide > 0):
            raise UserError(f"wide is {self.wide:g}; it should be a number above 0, such as 3")

    def objective(self, *, finetuning: bool) -> CrossEntropy | Distillation:
        return Distillation(self.temperature, self.kd_weight, tails=self.tails if self.degree == 2 else 0.0)

    def search_training(self, training: Training) -> Training:
        return dataclasses.replace(training, lr=self.weight_lr, schedule="constant", clip=self.clip)


def methods() -> dict[str, type[Method]]:
    """Method name → class: every concrete `Method` in a file of this folder."""
    package = importlib.import_module("parelu.methods")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"parelu.methods.{info.name}")

    def concrete(cls: type[Method]) -> list[type[Method]]:
        below = [c for sub in cls.__subclasses__() for c in concrete(sub)]
        complete = hasattr(cls, "name") and not inspect.isabstract(cls)
        here = cls.__module__.startswith("parelu.methods.") and complete
        return [cls, *below] if here else below

    return {cls.name: cls for cls in sorted(concrete(Method), key=lambda cls: cls.name)}


def parse_budget(text: str, relus: int) -> int:
    """A number of ReLUs from "50k", "12.9k", "1.2m", "50000" or a fraction of the network's such as "0.1".

    Args:
        relus: ReLUs of the network, the stem's included; a fraction is rounded to the nearest number of them.

    Raises:
        UserError: not a number, not positive, or more than the network has.
    """
    number = text.strip().lower()
    unit = {"k": 1e3, "m": 1e6}.get(number[-1:], 1.0)
    try:
        value = float(number[:-1] if unit > 1 else number) * unit
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"budget {text!r} is not a number of ReLUs; write 50k, 50000, or a fraction such as 0.1")
    if unit == 1 and 0 < value < 1:
        value = value * relus
    budget = round(value)
    if budget < 1:
        raise UserError(f"budget {text!r} is {value:g} ReLUs; the smallest is 1")
    if budget > relus:
        raise UserError(f"budget {text!r} is more than the network's {relus:,} ReLUs; give a smaller one")
    return budget
