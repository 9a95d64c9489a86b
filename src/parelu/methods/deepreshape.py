"""DeepReShape: networks whose stages have ReLUs by their criticality, and what to drop in them (Jha and Reagen 2024).

Algorithm 1, ReLU equalisation, makes the networks (HybReNets): `equalise_width`, `equalise_depth`, `designs`.
Algorithm 2 reduces one of them: the method `DeepReShape`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import ClassVar, Literal

from parelu.errors import UserError
from parelu.methods.base import Context, Method, decoupled, fitting, stepped_job
from parelu.methods.deepreduce import DeepReDuce
from parelu.methods.jobs import Job
from parelu.models.hybrenet import hybrid
from parelu.models.resnet import ResNet
from parelu.network.candidate import Candidate
from parelu.network.count import counts, shared_skeleton
from parelu.network.settings import younger
from parelu.network.steps import stage_order, stages_of
from parelu.training.objectives import Distillation

RESHAPINGS = ("", "; channels 0.5", "; reuse 4", "; reuse 8", "; reuse 16")  # Algorithm 2, lines 5 to 9
LEAST = 2  # the smallest multiplier (section 4.1)


def parse_order(text: str, stages: int) -> tuple[int, ...]:
    """(3, 2, 4, 1) from "S3>S2>S4>S1" or "S3,S2,S4,S1", most critical first.

    Raises:
        UserError: unless each stage is there once.
    """
    known = [f"S{number}" for number in range(1, stages + 1)]
    return tuple(int(name[1:]) for name in stage_order(text, known))


def equalise_width(order: Sequence[int], depths: Sequence[int]) -> list[tuple[int, ...]]:
    """The minimal multipliers λ_1 … λ_(D−1) that give the stages ReLUs in an order (Algorithm 1).

    A stage k has φ_k·λ_1·…·λ_(k−1) / 4^(k−1) of S1's ReLUs a block. Minimal: no λ of a solution can be smaller
    without another being larger.

    Args:
        order: numbers of the stages from 1, most critical first.
        depths: φ, blocks of each stage.

    Raises:
        UserError: no multipliers of at least 2 do so.
    """
    found: list[tuple[int, ...]] = []
    for solution in sorted(_feasible(order, depths), key=lambda s: (sum(s), s)):
        if not any(all(a <= b for a, b in zip(known, solution, strict=True)) for known in found):
            found.append(solution)
    if not found:
        raise UserError(
            f"no multipliers of at least {LEAST} give stages of depths {tuple(depths)} the order "
            f"{_written(order)}; give other depths"
        )
    return sorted(found)


def _feasible(order: Sequence[int], depths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Solutions, all minimal ones among them."""
    rank = {stage: place for place, stage in enumerate(order)}

    def extend(multipliers: tuple[int, ...], relus: tuple[Fraction, ...]) -> Iterator[tuple[int, ...]]:
        stage = len(relus) + 1
        if stage > len(depths):
            yield multipliers
            return
        unit = relus[-1] * depths[stage - 1] / depths[stage - 2] / 4
        below = [r for number, r in enumerate(relus, start=1) if rank[number] > rank[stage]]
        above = [r for number, r in enumerate(relus, start=1) if rank[number] < rank[stage]]
        low = max(LEAST, *(r // unit + 1 for r in below)) if below else LEAST
        high = min([_largest(order, depths, multipliers), *(-(-r // unit) - 1 for r in above)])
        if stage == len(depths):
            high = min(high, low)
        for multiplier in range(low, high + 1):
            yield from extend((*multipliers, multiplier), (*relus, unit * multiplier))

    return extend((), (Fraction(depths[0]),))


def _largest(order: Sequence[int], depths: Sequence[int], known: Sequence[int]) -> int:
    """A bound on the multiplier behind the known ones, λ_j, in minimal solutions.

    Where λ_j cannot be one smaller, that would break an inequality between neighbours in the order, of a stage a
    behind λ_j that is more critical than a stage b before it: (λ_j − 1)·Π of the other λ between them
    ≤ 4^(a−b)·φ_b / φ_a.
    """
    largest, number = LEAST, len(known) + 1
    for a, b in itertools.pairwise(order):
        if b <= number < a:
            others = math.prod(known[b - 1 :]) * LEAST ** (a - 1 - number)
            largest = max(largest, depths[b - 1] * 4 ** (a - b) // (depths[a - 1] * others) + 1)
    return largest


def equalise_depth(order: Sequence[int], multipliers: Sequence[int]) -> tuple[int, ...]:
    """The smallest depths φ that give the stages ReLUs in an order, at these multipliers (Algorithm 1).

    order: as in `equalise_width`.
    """
    widths = list(itertools.accumulate((1, *multipliers), lambda a, b: a * b))
    a_block = {stage: Fraction(width, 4 ** (stage - 1)) for stage, width in enumerate(widths, start=1)}
    depths, relus = {}, Fraction(0)
    for stage in reversed(order):
        depths[stage] = int(relus // a_block[stage]) + 1
        relus = depths[stage] * a_block[stage]
    return tuple(depths[stage] for stage in sorted(depths))


def _written(order: Sequence[int]) -> str:
    return ">".join(f"S{stage}" for stage in order)


def designs(base: str, order: str, m: int, by: Literal["width", "depth"]) -> list[str]:
    """Names of the equalised networks of a base ResNet, then of their α = 2 variants for small budgets.

    Raises:
        UserError: the base is no ResNet's plain name, or the order cannot be had.
    """
    spec = ResNet.from_name(base, (3, 32, 32), 10)
    if spec is None or " " in base:
        raise UserError(f"--base {base!r} is not the plain name of a ResNet, such as resnet18, resnet34 or resnet20")
    stages = parse_order(order, len(spec.depths))
    if by == "depth":
        depths = equalise_depth(stages, spec.multipliers)
        return [f"{base} m={m} d={'-'.join(map(str, depths))}"]
    solutions = equalise_width(stages, spec.depths)
    narrow = sorted({(LEAST, *solution[1:]) for solution in solutions} - set(solutions))
    return [hybrid(base, multipliers, m) for multipliers in (*solutions, *narrow)]


@dataclasses.dataclass(frozen=True)
class DeepReShape(Method):
    """Cull the least critical stage if it has the most ReLUs, thin the rest, then halve channels or reuse ReLUs.

    The network before thinning is a candidate as well: culled, or with all its ReLUs.

    It is made for networks that ReLU equalisation designed (`parelu design`). Without a budget, all candidates; with
    budgets, those within the largest.

    Attributes:
        order: stages, the most critical first, such as "S3>S2>S4>S1"; DeepReDuce's criticality where it is empty.
        distillation: decoupled (dkd), or plain (kd) with `kd_weight`.
        alpha, beta: weights of the target's and the other classes' terms of dkd.
        warmup: share of the training in which the weight of dkd grows.
        warmup_epochs: epochs in which it grows instead, which dkd trains more than kd.
    """

    name: ClassVar[str] = "deepreshape"
    source: ClassVar[str] = "Jha and Reagen, DeepReShape, TMLR 2024"
    exact: ClassVar[bool] = False
    needs_budget: ClassVar[bool] = False

    order: str = ""
    distillation: Literal["dkd", "kd"] = "dkd"
    alpha: float = 1.0  # Appendix J
    beta: float = 1.0  # Appendix J: of 0.8, 1, 2, 6
    warmup: float = 0.09  # Appendix J: 20 of 220 epochs
    warmup_epochs: int | None = younger(None)  # Appendix J: 20 on top of 200
    temperature: float = 4.0  # Appendix J
    kd_weight: float = 0.9  # Appendix J: "relative weight to cross-entropy loss"; a reading, on the soft loss

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        jobs, skipped = [], {}
        for steps in self._steps(context):
            try:
                jobs.append(self._job(context, steps))
            except UserError as error:
                skipped[steps] = str(error)
        if skipped:
            context.record("deepreshape-skipped", skipped)
        return context.train(fitting(self.name, jobs, budgets, context.unit))

    def _steps(self, context: Context) -> list[str]:
        """Algorithm 2, in the grammar of `steps`: its line 10 has the network before thinning, culled or whole, too."""
        relus = {stage: c.relus for stage, c in counts(context.teacher.spec).stages.items()}
        stages = stages_of(shared_skeleton(context.teacher.spec))
        if self.order:
            least = f"S{parse_order(self.order, len(stages))[-1]}"
        else:
            least = DeepReDuce().least_critical_first(context)[0]
        is_dominant = all(relus[least] > relus[stage] for stage in stages if stage != least) and len(stages) > 1
        if is_dominant:
            before, thin = f"cull {least}", f"cull {least}; thin {'+'.join(s for s in stages if s != least)}"
        else:
            before, thin = "none", "thin all"
        return [before, *(f"{thin}{reshaping}" for reshaping in RESHAPINGS)]

    def _job(self, context: Context, steps: str) -> Job:
        training = context.training
        if self.distillation == "dkd":
            training, objective = decoupled(
                training, self.temperature, self.alpha, self.beta, self.warmup, self.warmup_epochs
            )
            note = f"beta {self.beta:g}" if self.beta != 1 else ""
        else:
            objective, note = Distillation(self.temperature, self.kd_weight), "kd"
        prefix = "-".join([self.name, *note.split(), ""])
        job = stepped_job(self.name, context, steps, objective, prefix=prefix)
        return dataclasses.replace(job, training=training, tags=dataclasses.replace(job.tags, note=note))
