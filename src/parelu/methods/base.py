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
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from parelu.distill import CrossEntropy, Distillation
from parelu.errors import UserError
from parelu.models import Spec
from parelu.plan import Candidate, Plan
from parelu.train import Training

TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        name: of its folder in the run, unique there.
        role: "teacher", "criticality" (a network trained only to be measured) or "candidate".
        objective: what is minimised; a `Distillation` gets the run's full-ReLU network as its teacher.
        from_teacher: start from the full-ReLU network's weights, not from fresh ones.
        tags: JSON values that its metrics carry on: method, steps, budget.
    """

    name: str
    role: str
    spec: Spec
    plan: Plan
    training: Training
    objective: CrossEntropy | Distillation
    tags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    from_teacher: bool = False


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

    def slope_gradients(self, images: int) -> dict[str, Tensor]:
        """Site → ∂L/∂a, (C, H, W), of the teacher's activations a·relu(x) + (1 − a)·x at a = 1.

        L: cross-entropy, the mean over so many training images (all of them, where there are fewer).
        """
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
    """

    name: ClassVar[str]
    source: ClassVar[str]
    exact: ClassVar[bool]
    needs_budget: ClassVar[bool]

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
        jobs = masked_jobs(self.name, bench, masks, objective, from_teacher=self.from_teacher)
        if self.from_teacher:
            note = {"note": "from the full network's weights"}
            jobs = [dataclasses.replace(j, name=f"{j.name}-from-teacher", tags={**j.tags, **note}) for j in jobs]
        return bench.train(jobs)


def masked_jobs(name: str, bench: Workbench, masks: Mapping[int, Mapping[str, Tensor]], objective: Distillation,
                *, from_teacher: bool) -> list[Job]:  # fmt: skip
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
            from_teacher=from_teacher,
        )
        for budget in masks
    ]


def highest(scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Site → bool mask of the `budget` highest scores of all sites; of equals, the first. Smaller budgets lie inside
    larger ones."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[torch.argsort(flat, descending=True, stable=True)[:budget]] = True
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def methods() -> dict[str, type[Method]]:
    """Method name → class: every concrete `Method` in a file of this folder."""
    package = importlib.import_module("parelu.methods")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"parelu.methods.{info.name}")

    def concrete(cls: type[Method]) -> list[type[Method]]:
        below = [c for sub in cls.__subclasses__() for c in concrete(sub)]
        here = cls.__module__.startswith("parelu.methods.") and not inspect.isabstract(cls)
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
