"""Methods that learn their masks in a search, then finetune."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from parelu.errors import UserError
from parelu.masks.optimizer import MaskOptions
from parelu.methods.base import Context, Method
from parelu.methods.jobs import Job, Search
from parelu.network.candidate import Candidate
from parelu.network.metrics import SearchMetrics, Tags
from parelu.network.plan import Plan
from parelu.network.steps import apply_steps
from parelu.training.objectives import CrossEntropy, Distillation
from parelu.training.schedule import Training

THIN = "thin all"  # in the grammar of `steps`
FINETUNE_CLIP = 0.5  # a network of few ReLUs can be lost at the rate of fresh weights


def thinned(teacher: Candidate, budgets: Sequence[int]) -> Plan:
    """Where ReLUs may stand when alternate ones of every site are dropped first (DeepReShape, Table 5)."""
    plan = apply_steps(teacher.spec, THIN).plan
    if max(budgets) > plan.relus:
        raise UserError(
            f"a budget of {max(budgets):,} ReLUs is more than the {plan.relus:,} that thinning leaves; "
            "give a smaller one, or no --thin"
        )
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
        finetune_epochs: of each candidate after it; the training's own number if left out.
        finetune_lr: learning rate there; the training's own if left out.
        temperature: of the distillation, in the search and after it.
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

    def start(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Plan:
        """Where a search may place ReLUs, of the positions of a plan; budgets: its own, the largest first."""
        return plan

    @abc.abstractmethod
    def optimizer(self, context: Context, plan: Plan, budgets: Sequence[int]) -> MaskOptions:
        """plan: where ReLUs may stand; budgets: of one search, the largest first, in which it ends at the last."""

    @abc.abstractmethod
    def search_training(self, training: Training) -> Training:
        """How the weights are trained in the search; its epochs are set from `search_epochs`."""

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        plan = thinned(context.teacher, budgets) if self.thin else context.teacher.plan
        descending = tuple(sorted(budgets, reverse=True))
        groups = [descending] if self.shares_search else [(budget,) for budget in descending]
        searches = [self._search(context, self.start(context, plan, group), group) for group in groups]
        jobs = {}
        for search, found in zip(searches, context.search(searches), strict=True):
            jobs |= {budget: self._finetuning(context, search, budget, found[budget]) for budget in search.budgets}
        return self.finetuned(context, [jobs[budget] for budget in budgets])

    def finetuned(self, context: Context, jobs: Sequence[Job]) -> list[Candidate]:
        """The candidates, from the finetuning of what the searches left: a job a budget."""
        return context.train(jobs)

    def _search(self, context: Context, plan: Plan, budgets: tuple[int, ...]) -> Search:
        label = f"{self.searches_as or self.name}{'-thin' if self.thin else ''}"
        name = label if self.shares_search else f"{label}-{budgets[0]}"
        training = self.search_training(context.training).changed(epochs=self.search_epochs)
        objective = self.objective(finetuning=False)
        optimizer = self.optimizer(context, plan, budgets)
        return Search(name, context.teacher.spec, plan, training, objective, optimizer, budgets)

    def _finetuning(self, context: Context, search: Search, budget: int, found: Candidate) -> Job:
        assert isinstance(found.metrics, SearchMetrics), "a search left it"
        clip = search.training.clip or FINETUNE_CLIP
        changes = {"epochs": self.finetune_epochs, "lr": self.finetune_lr, "clip": clip}
        return Job(
            name=f"{self._label}-{budget}",
            role="candidate",
            spec=found.spec,
            plan=found.plan,
            training=context.training.changed(**{k: v for k, v in changes.items() if v is not None}),
            objective=self.objective(finetuning=True),
            tags=Tags(self.name, THIN if self.thin else "", budget, self._note(), found.metrics.searched),
            start=search.start_of(budget),
        )

    def objective(self, *, finetuning: bool) -> CrossEntropy | Distillation:
        """Of the search, or of the finetuning after it."""
        return Distillation(self.temperature, self.kd_weight)

    @property
    def _label(self) -> str:
        return f"{self.name}-thin" if self.thin else self.name

    def _note(self) -> str:
        """The options that are not their defaults and change what the method is, for tables."""
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in self.unnoted}
        words = [
            f"{f.name} {changed[f.name]}"
            for f in dataclasses.fields(self)
            if f.name in changed and changed[f.name] != f.default
        ]
        return ", ".join(words).replace("_", " ")


@dataclasses.dataclass(frozen=True)
class Polynomials(LearnedMasks):
    """Learned masks with polynomials where no ReLU stays, fitted to the distribution of each channel's input (DaPa).

    Attributes:
        degree: of the polynomials; 0 is the identity. Squares are counted apart from ReLUs.
        wide: the polynomials are fitted to a normal distribution so many times as wide as the input's, 1 in the paper:
            wider ones have smaller squares, which feed less on each other.
        tails: weight of the loss term against images that stand out (`losses.tails`): with squares in a row a few of
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
        return training.changed(lr=self.weight_lr, schedule="constant", clip=self.clip)
