"""A method of ours: sites, positions and channels that are worth most for the seconds that they take.

Over a slow link a ReLU more costs next to nothing and a site its round; on one machine it is the other way round. So
both are weighed: how much the loss rises where a whole site goes, which is measured, and which of its positions carry
that, by Fisher's score. What rounds leave of a budget goes into more channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.masks.projection import kept_share, worth
from parelu.methods.base import Context
from parelu.methods.fisher import Ranked, RankOptimizer
from parelu.methods.jobs import Job, Search
from parelu.methods.learned import LearnedMasks
from parelu.methods.unit import Unit
from parelu.network.candidate import Candidate
from parelu.network.count import shared_skeleton
from parelu.network.instrument import network_of
from parelu.network.plan import Plan, SitePlan
from parelu.network.sites import Network
from parelu.network.spec import Spec
from parelu.training import ranks
from parelu.training.callback import Step
from parelu.training.schedule import Training

STEPS = 8  # widths are multiples of so many parts of the network's own
LOOKS = 2  # renewals of the masks from one measurement of sites to the next
CLOSED = 1e-3  # what a site that has gone is worth, of what it was when it went
TRIED = 4  # sites of which it is tried, at the price itself, what the network takes without them, or with them
RAMP = 40  # steps in which a ReLU goes


@dataclasses.dataclass(frozen=True)
class Weighed(Ranked):
    """Options of a `WeighingOptimizer`.

    Attributes:
        sites: whether whole sites are measured; off, a site is worth the sum of its positions' scores.
        positions: whether those differ; off, all of a site are alike.
    """

    sites: bool = True
    positions: bool = True

    def build(self, network: Network) -> WeighingOptimizer:
        return WeighingOptimizer(network, self)


class WeighingOptimizer(RankOptimizer):
    """Keeps the sites and positions whose loss would be felt most for what they take, fewer and fewer of them.

    The positions' scores of a site are Fisher's, scaled so that they sum to what the loss was measured to rise without
    it: by themselves they add up only where positions hardly matter to each other.

    Attributes:
        worth: site → rise of the loss without it, a running mean.
        target: site → where the gates move to, (C, H, W).
    """

    options: Weighed

    def __init__(self, network: Network, options: Weighed) -> None:
        super().__init__(network, options)
        self.worth = {name: torch.tensor(0.0) for name in self.gates}
        self.target = {name: gate.open.detach().clone() for name, gate in self.gates.items()}

    def state_dict(self) -> dict[str, Tensor]:
        worth = {f"worth/{name}": value for name, value in self.worth.items()}
        return {**super().state_dict(), **worth, **{f"target/{name}": mask for name, mask in self.target.items()}}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        every = self.options.every
        self.steps.fill_(step.number + 1)
        if self.options.sites and (step.number == 0 or (step.number + 1) % (LOOKS * every) == 0):
            self._look(step)
        if (step.number + 1) % every == 0:
            for name, mask in self.project(self._allowed(step.progress)).items():
                self.target[name].copy_(mask)
        for name, gate in self.gates.items():
            gate.open.add_((self.target[name] - gate.open).clamp(-1 / RAMP, 1 / RAMP))

    def _allowed(self, progress: float) -> int:
        """Of a budget without what is fixed, in the course of the search."""
        if self.spent is None:
            return round(kept_share(progress, self.budget / self.total) * self.total)
        whole, fixed = self._whole(self.gates), self.charges.fixed
        return round(kept_share(progress, (self.budget + fixed) / whole) * whole) - fixed

    def project(self, budget: int) -> dict[str, Tensor]:
        """With a price by that itself: what a site takes hangs on its neighbours, with which layers fuse.

        Of the sites that are there the one goes first without which most worth is left within the budget, as long as
        that is more than with it; then those come back that fit beside the others.
        """
        if self.spent is None:
            return super().project(budget)
        most, scores = budget + self.charges.fixed, self.scores()
        fitted: dict[frozenset[str], tuple[float, dict[str, Tensor]]] = {}

        def fit(sites: frozenset[str]) -> tuple[float, dict[str, Tensor]]:
            if sites not in fitted:
                fitted[sites] = self._fit(sites, scores, most)
            return fitted[sites]

        sites = frozenset(name for name, mask in self.target.items() if mask.any())
        if most < self._whole(()):
            return fit(frozenset())[1]
        while sites:
            fewer = [sites - {one} for one in self._least(sites, scores)]
            best = max(fewer, key=lambda some: fit(some)[0])
            if fit(best)[0] < 0:  # several have to go: one after the other, the one that is missed least
                best = fewer[0]
            elif fit(best)[0] <= fit(sites)[0]:
                break
            sites = best
        gone = sorted(self.gates.keys() - sites, key=lambda name: -float(self.worth[name]))[:TRIED]
        for one in gone:
            sites = max(sites, sites | {one}, key=lambda some: fit(some)[0])
        return fit(sites)[1]

    def _least(self, sites: frozenset[str], scores: Mapping[str, Tensor]) -> list[str]:
        """The sites that by the sum of charges are worth least for what they take."""

        def per_unit(name: str) -> float:
            relus = self.positions[name]
            return float(scores[name].sum()) * self.charges.relu[name] / max(1, self.charges.of({name: relus}))

        return sorted(sites, key=per_unit)[:TRIED]

    def _whole(self, sites: Collection[str]) -> int:
        """What the network takes with all positions of these sites."""
        assert self.spent is not None
        return self.spent(Plan.from_masks({n: (g.allowed & (n in sites)).cpu() for n, g in self.gates.items()}))

    def _fit(self, sites: frozenset[str], scores: Mapping[str, Tensor], budget: int) -> tuple[float, dict[str, Tensor]]:
        """(worth, masks): in these sites the positions that are worth most for what they take, as many as the budget
        holds; worth below 0 where it does not even hold the rounds."""
        room = budget - self._whole(sites)
        names = [name for name in self.gates if name in sites and self.positions[name]]
        masks = {name: gate.allowed & (name in sites) for name, gate in self.gates.items()}
        if room >= 0 or not names:
            return (self._worth(scores, masks) if room >= 0 else float(room)), masks
        flat = torch.cat([scores[n].masked_fill(~masks[n], torch.inf).flatten() for n in names])
        charge = torch.cat(
            [torch.full_like(scores[n].flatten(), self.charges.relu[n], dtype=torch.float64) for n in names]
        )
        order = flat.argsort(stable=True)[: int(flat.isfinite().count_nonzero())]
        saved = charge[order].cumsum(0)
        if float(saved[-1]) < -room:
            return room + float(saved[-1]), masks
        going = torch.zeros_like(flat, dtype=torch.bool)
        going[order[: int((saved < -room).count_nonzero()) + 1]] = True
        parts = going.split([masks[n].numel() for n in names])
        masks |= {n: masks[n] & ~part.view_as(masks[n]) for n, part in zip(names, parts, strict=True)}
        return self._worth(scores, masks), masks

    def _worth(self, scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
        return worth(scores, masks, self.charges)

    def _look(self, step: Step) -> None:
        """Measure what the loss rises without each site that is there, in one batch."""
        with _normalising(self.network):
            teacher = step.teacher(step.images).log_softmax(1) if step.teacher is not None else None

            def loss() -> Tensor:
                logits = self.network(step.images)
                if teacher is None:
                    return ranks.average(F.cross_entropy(logits, step.labels), len(logits))
                felt = F.kl_div(logits.log_softmax(1), teacher, reduction="batchmean", log_target=True)
                return ranks.average(felt, len(logits))

            whole = loss()
            for name, gate in self.gates.items():
                if not self.target[name].any():
                    continue
                before = gate.open.clone()
                gate.open.zero_()
                rise = (loss() - whole).clamp(min=1e-6)
                gate.open.copy_(before)
                self.worth[name].lerp_(rise.cpu(), self.options.weight if step.number else 1.0)

    def scores(self) -> dict[str, Tensor]:
        felt = self.score
        if not self.options.positions:
            felt = {name: torch.full_like(score, float(score.mean())) for name, score in felt.items()}
        if self.options.sites:
            felt = {name: self._as_measured(name, score) for name, score in felt.items()}
        return self.for_each_unit(felt)

    def _as_measured(self, name: str, score: Tensor) -> Tensor:
        """Scaled to the site's worth, but all alike where there are none."""
        allowed = score * self.gates[name].allowed
        if not float(allowed.sum()) > 0:
            allowed = self.gates[name].allowed.float()
        worth = float(self.worth[name]) * (1.0 if self.target[name].any() else CLOSED)
        return allowed * (worth / max(float(allowed.sum()), 1e-30))


@contextmanager
def _normalising(network: Network) -> Iterator[None]:
    """Evaluation mode, but batch-norms take the batch's statistics, as they would once they have learnt them, and keep
    their own."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    network.eval()
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, (mean, var) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, var
        network.train()


@dataclasses.dataclass(frozen=True)
class Latency(LearnedMasks):
    """Sites and positions by what the loss rises without them, for the seconds that they take.

    Attributes:
        sites: measure what each whole site is worth; off, it is the sum of its positions' scores.
        positions: choose among a site's positions by their scores; off, the first ones.
        widest: rounds leave up to one of them unspent; what is left is spent on channels, up to so many times as many.
    """

    name: ClassVar[str] = "latency"
    source: ClassVar[str] = "ours: accuracy for predicted seconds"

    shares_search: ClassVar[bool] = False  # each budget has the sites that it holds, and comes down to them in time

    sites: bool = True
    positions: bool = True
    widest: float = 2.0
    weight_lr: float = 0.1

    def optimizer(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Weighed:
        return Weighed(budgets[-1], sites=self.sites, positions=self.positions)

    def search_training(self, training: Training) -> Training:
        return training.changed(lr=self.weight_lr, schedule="constant")

    def _finetuning(self, context: Context, search: Search, budget: int, found: Candidate) -> Job:
        job = super()._finetuning(context, search, budget, found)
        spec = wider(found.spec, found.plan, self.widest, context.unit, budget)
        if spec == found.spec:
            return job
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(context.seed)
            wide = Candidate(spec, widened_plan(found.plan, spec), widened_weights(found, spec))
        start = context.keep(f"{job.name}-wide", wide)
        tags = context.unit.foretold(job.tags, spec, wide.plan)
        return dataclasses.replace(job, spec=spec, plan=wide.plan, start=start, tags=tags)


def wider(spec: Spec, plan: Plan, widest: float, unit: Unit, budget: int) -> Spec:
    """The network with most channels, up to `widest` times its own, that is still within a budget; itself for none.

    A network of one's own has no other widths.
    """
    low, high = 0, int((widest - 1) * STEPS)  # parts more, of which the first fit
    found = spec
    while low < high:
        parts = (low + high + 1) // 2
        try:
            wide = spec.scale_channels(1 + parts / STEPS)
            fits = unit.holds(budget, wide, widened_plan(plan, wide))
        except UserError:
            fits, wide = False, spec
        low, high, found = (parts, high, wide) if fits else (low, parts - 1, found)
    return found


def widened_plan(plan: Plan, spec: Spec) -> Plan:
    """New channels of a site have the mask and the polynomial of its old ones, in turn."""
    sites = {}
    for name, site in shared_skeleton(spec).sites.items():
        old = plan.sites[name]
        turn = torch.arange(site.shape[0]) % len(old.mask)
        sites[name] = SitePlan(old.mask[turn].clone(), old.coefficients[:, turn].clone())
    return Plan(sites)


def widened_weights(found: Candidate, spec: Spec) -> dict[str, Tensor]:
    """The network's weights among fresh ones: old channels read nothing of the new, so that it computes the same.

    {} of a network without weights.
    """
    if not found.weights:
        return {}
    wide = {name: tensor.clone() for name, tensor in network_of(spec).state_dict().items()}
    for name, old in found.weights.items():
        new = wide[name]
        if new.dim() > 1:
            new[: len(old), old.shape[1] :] = 0
        new[tuple(slice(size) for size in old.shape)] = old
    return wide
