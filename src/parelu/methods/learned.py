"""Methods that learn their masks in a search, then finetune."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from parelu.errors import UserError
from parelu.masks.charges import Charges
from parelu.masks.optimizer import MaskOptions
from parelu.methods.base import Context, Method, slug
from parelu.methods.jobs import FROM_TEACHER, FromJob, Job, Search
from parelu.methods.unit import Unit, single_relus
from parelu.network.candidate import Candidate
from parelu.network.metrics import SearchMetrics, Tags
from parelu.network.plan import Plan
from parelu.network.settings import younger
from parelu.network.spec import Spec
from parelu.network.steps import apply_steps
from parelu.training.objectives import CrossEntropy, Distillation
from parelu.training.schedule import Training

THIN = "thin all"  # in the grammar of `steps`
FINETUNE_CLIP = 0.5  # a network of few ReLUs can be lost at the rate of fresh weights
CHANGEABLE = tuple(f.name for f in dataclasses.fields(Training) if f.name not in ("begin", "end"))
Changes = Mapping[str, int | float | str | list[int]]  # fields of a Training


def baseline_job(context: Context, steps: str, budgets: Sequence[int]) -> Job:
    """The network after steps, trained as the full-ReLU one is: a search may start from it (DeepReShape, Table 5).

    It then is the teacher too, as in SNL's public code.

    Raises:
        UserError: the steps are unknown, or leave fewer ReLUs than the largest budget.
    """
    plan = checked_baseline(context.teacher.spec, steps, context.unit, budgets)
    return Job(
        name=f"baseline-{slug(steps)}",
        role="baseline",
        spec=context.teacher.spec,
        plan=plan,
        training=context.training,
        objective=CrossEntropy(context.training.label_smoothing),
        tags=Tags("train", steps),
    )


def checked_baseline(spec: Spec, steps: str, unit: Unit, budgets: Sequence[int]) -> Plan:
    """A baseline's plan; raises `UserError` where it has fewer ReLUs than the largest budget."""
    plan = apply_steps(spec, steps).plan
    most, left = max(budgets, default=0), unit.spent(spec, plan)
    if most > left:
        raise UserError(
            f"a budget of {unit.said(most)} is more than the {unit.said(left)} that {steps!r} leaves; "
            "give a smaller one"
        )
    return plan


@dataclasses.dataclass(frozen=True)
class LearnedMasks(Method):
    """A method that learns its masks from the full-ReLU network, then finetunes each candidate with frozen masks.

    Several budgets share one search where the method passes through them.

    Attributes:
        searches_as: the method whose searches it uses, where it is not its own.
        unnoted: options that do not change what the method is.
        thin: short for the baseline "thin all" (DeepReShape, Table 5).
        search_epochs: of the search.
        finetune_epochs: of each candidate after it; the training's own number if left out.
        finetune_lr: learning rate there; the training's own if left out.
        temperature: of the distillation, in the search and after it.
        kd_weight: of its soft loss.
        ce_weight: of its cross-entropy; what kd_weight leaves of 1 if left out.
        search: fields of the search's training, such as lr, before any other option: epochs 400 optimizer adam.
        finetune: likewise of the finetuning; clip 0 for no clipping, epochs 0 for no finetuning.
        baseline: steps that drop ReLUs first, such as "thin all" or "stem linear": the network is trained without them,
            and then starts the search and teaches in it and after it.
    """

    exact: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = True
    shares_search: ClassVar[bool] = True
    searches_as: ClassVar[str] = ""
    unnoted: ClassVar[tuple[str, ...]] = ("thin", "baseline", "search_epochs", "finetune_epochs", "search", "finetune")

    thin: bool = False
    search_epochs: int = 10
    finetune_epochs: int | None = None
    finetune_lr: float | None = None
    temperature: float = 4.0
    kd_weight: float = 0.9
    ce_weight: float | None = younger(None)
    search: Changes | None = younger(None)
    finetune: Changes | None = younger(None)
    baseline: str = younger("")

    def __post_init__(self) -> None:
        for name in ("search_epochs", "finetune_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it should be a whole number, 1 or more")
        for name in ("search", "finetune"):
            for field in getattr(self, name) or {}:
                if field not in CHANGEABLE:
                    raise UserError(f"{name} has no {field!r}; known are {', '.join(CHANGEABLE)}")
        if self.thin and self.baseline:
            raise UserError(
                f"thin is short for the baseline {THIN!r}, and {self.baseline!r} is given too; leave one out"
            )

    def check(self, spec: Spec, training: Training) -> None:
        """Refuses, before anything is trained, values that the search or the finetuning cannot have."""
        if self.steps:
            self._check_baseline(spec)
        self.searching(training)
        self.finetuning(training)

    def check_budgets(self, spec: Spec, unit: Unit, budgets: Sequence[int]) -> None:
        if self.steps:
            checked_baseline(spec, self.steps, unit, budgets)

    def _check_baseline(self, spec: Spec) -> None:
        if apply_steps(spec, self.steps).spec != spec:
            raise UserError(
                f"baseline {self.steps!r} makes another architecture; give steps that only drop ReLUs, such as {THIN!r}"
            )

    @property
    def steps(self) -> str:
        """Of the baseline; "" for the full-ReLU network."""
        return THIN if self.thin else self.baseline

    def searching(self, training: Training) -> Training:
        """How a search trains in a run whose networks train so; raises `UserError` for what cannot be."""
        return _changed("search", self.search_training(training).changed(epochs=self.search_epochs), self.search)

    def finetuning(self, training: Training) -> Training | None:
        """How a candidate trains after it; None for not at all."""
        given = dict(self.finetune or {})
        if given.get("epochs") == 0:
            return None
        clip = self.searching(training).clip or FINETUNE_CLIP
        flat = {"epochs": self.finetune_epochs, "lr": self.finetune_lr, "clip": clip}
        first = training.changed(**{name: value for name, value in flat.items() if value is not None})
        return _changed("finetune", first, given)

    def least(self, plan: Plan) -> Sequence[Plan]:
        """A ReLU alone."""
        return single_relus(plan)

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
        baseline = baseline_job(context, self.steps, budgets) if self.steps else None
        if baseline and baseline.plan == context.teacher.plan:  # nothing to drop: no second training of the same
            baseline = None
        plan, start = (baseline.plan, FromJob(baseline.name)) if baseline else (context.teacher.plan, FROM_TEACHER)
        descending = tuple(sorted(budgets, reverse=True))
        groups = [descending] if self.shares(budgets) else [(budget,) for budget in descending]
        searches = [self._search(context, self.start(context, plan, group), group, start) for group in groups]
        if baseline:
            context.train([baseline])
        jobs = {}
        for search, found in zip(searches, context.search(searches), strict=True):
            jobs |= {budget: self._finetuning(context, search, budget, found[budget]) for budget in search.budgets}
        return self.finetuned(context, [jobs[budget] for budget in budgets])

    def finetuned(self, context: Context, jobs: Sequence[Job]) -> list[Candidate]:
        """The candidates, from the finetuning of what the searches left: a job a budget."""
        return context.train(jobs)

    def shares(self, budgets: Sequence[int]) -> bool:
        """Whether one search passes through all budgets."""
        return self.shares_search

    def _search(self, context: Context, plan: Plan, budgets: tuple[int, ...], start: FromJob) -> Search:
        unit, spec = context.unit, context.teacher.spec
        ending = unit.name if self.shares(budgets) else unit.called(budgets[0])
        name = "-".join(filter(None, (f"{self.searches_as or self.name}{self._ending}", ending)))
        training, objective = self.searching(context.training), self.objective(finetuning=False)
        optimizer = self.optimizer(context, plan, budgets)
        optimizer = dataclasses.replace(
            optimizer, charges=charges_over(unit, spec, plan, budgets[-1], optimizer.degree)
        )
        return Search(name, spec, plan, training, objective, optimizer, budgets, start.name, start, unit)

    def _finetuning(self, context: Context, search: Search, budget: int, found: Candidate) -> Job:
        assert isinstance(found.metrics, SearchMetrics), "a search left it"
        tags = Tags(self.name, self.steps, None, self._note(), found.metrics.searched)
        return Job(
            name=f"{self.name}{self._ending}-{context.unit.called(budget)}",
            role="candidate",
            spec=found.spec,
            plan=found.plan,
            training=self.finetuning(context.training),
            objective=self.objective(finetuning=True),
            tags=context.unit.tags(tags, budget, found.spec, found.plan),
            start=search.start_of(budget),
            teacher=search.teacher,
        )

    def objective(self, *, finetuning: bool) -> CrossEntropy | Distillation:
        """Of the search, or of the finetuning after it."""
        return Distillation(self.temperature, self.kd_weight, ce_weight=self.ce_weight)

    @property
    def _ending(self) -> str:
        """Of names: what was dropped before the search."""
        return f"-{slug(self.steps.removesuffix(' all'))}" if self.steps else ""

    def _note(self) -> str:
        """The options that are not their defaults and change what the method is, for tables; mappings are too long."""
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in self.unnoted}
        words = [
            f"{f.name} {changed[f.name]}"
            for f in dataclasses.fields(self)
            if f.name in changed and changed[f.name] != f.default and not isinstance(changed[f.name], Mapping)
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

    def least(self, plan: Plan) -> Sequence[Plan]:
        """A ReLU, and squares in the place of all others where there are any."""
        return single_relus(plan, squares=self.degree == 2)

    def objective(self, *, finetuning: bool) -> CrossEntropy | Distillation:
        tails = self.tails if self.degree == 2 else 0.0
        return Distillation(self.temperature, self.kd_weight, tails=tails, ce_weight=self.ce_weight)

    def search_training(self, training: Training) -> Training:
        return training.changed(lr=self.weight_lr, schedule="constant", clip=self.clip)


def charges_over(unit: Unit, spec: Spec, plan: Plan, budget: int, degree: int) -> Charges | None:
    """What ReLUs take of a budget beyond what stands in their places; degree: of the polynomials that do."""
    if degree < 2:
        return unit.charges(spec, plan, budget)
    charges = unit.charges(spec, plan, squares=True)  # no site ever goes, and what is fixed stays
    if charges is None:
        return None
    return charges.over_squares({n: site.mask.numel() for n, site in plan.sites.items() if site.relus})


def _changed(name: str, training: Training, given: Changes | None) -> Training:
    """name: of the option, which a refusal begins with."""
    try:
        return training.changed(**(given or {}))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
