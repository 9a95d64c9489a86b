"""SENet: a budget for each layer by its sensitivity, then masks where the full and the partial network differ most."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.masks.charges import Charges
from parelu.masks.optimizer import MaskOptimizer, MaskOptions
from parelu.masks.projection import worthwhile
from parelu.methods.base import Context
from parelu.methods.learned import LearnedMasks
from parelu.network import nodes
from parelu.network.count import shared_skeleton
from parelu.network.plan import Plan
from parelu.network.settings import younger
from parelu.network.sites import Network, Site, observed
from parelu.network.spec import Spec
from parelu.training import ranks
from parelu.training.callback import Step
from parelu.training.losses import PramForm
from parelu.training.objectives import Distillation
from parelu.training.schedule import Training


@dataclasses.dataclass(frozen=True)
class Mismatch(MaskOptions):
    """Options of a `MismatchOptimizer`.

    Attributes:
        layers: site → ReLUs; the budget in all.
        every: steps between two looks at the difference.
    """

    keeps_best: ClassVar[bool] = True  # shallow-again, section 5.1: what "provided the best accuracy" in stage 2

    layers: Mapping[str, int] = dataclasses.field(default_factory=dict, kw_only=True)
    every: int = 4

    def build(self, network: Network) -> MismatchOptimizer:
        return MismatchOptimizer(network, self)


class MismatchOptimizer(MaskOptimizer):
    """Keeps in each layer the positions where full and partial network differ most after the activation (stage 2).

    Attributes:
        difference: site → |full − partial|, (C, H, W), the sum over the looks of the mean over images.
    """

    def __init__(self, network: Network, options: Mismatch) -> None:
        super().__init__(network, options)
        self.options = options
        self.difference = {name: torch.zeros_like(gate.open) for name, gate in self.gates.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {f"difference/{name}": difference for name, difference in self.difference.items()}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        if step.number == 0:  # as if no ReLU stood, for a first choice
            for gate in self.gates.values():
                gate.open.zero_()
        if step.number % self.options.every == 0:
            self._look(step)
        if step.number == 0:
            self._choose()

    def after_epoch(self, epoch: int) -> None:
        self._choose()

    def _look(self, step: Step) -> None:
        assert step.teacher is not None
        self.network.eval()
        with observed(step.teacher.sites) as full, observed(self.gates) as partial:
            step.teacher(step.images)
            self.network(step.images)
        self.network.train()
        for name, difference in self.difference.items():
            difference.add_(ranks.mean((full[name] - partial[name]).abs()))

    @torch.no_grad()
    def _choose(self) -> None:
        for name, mask in self.project(self.budget).items():
            self.gates[name].open.copy_(mask)

    def scores(self) -> dict[str, Tensor]:
        """The layer's budget less the position's rank in it: above 0 only for those that it keeps."""
        found = {}
        for name, gate in self.gates.items():
            difference = self.difference[name].masked_fill(~gate.allowed, -torch.inf).flatten()
            ranks = torch.empty_like(difference)
            ranks[difference.argsort(descending=True, stable=True)] = torch.arange(
                len(difference), dtype=ranks.dtype, device=ranks.device
            )
            found[name] = (self.options.layers[name] - ranks).view(gate.shape)
        return found


@dataclasses.dataclass(frozen=True)
class LayerBudgets(LearnedMasks):
    """SENet's three stages, for it and for what builds on it.

    Attributes:
        density: of the proxy that the sensitivity is read from: the weights of largest magnitude of all layers.
        densities: instead of sensitivities, the share of ReLUs that each layer keeps, in order of execution, such as
            "0.02 0.05 0.1"; what they leave of the budget or lack is spread in their proportions.
        pram: β, the weight of the mismatch of post-ReLU maps in finetuning; pram_form: see `losses.pram`.
        weight_lr: of SGD in the search; search_kd_weight: `kd_weight` there.
    """

    shares_search: ClassVar[bool] = False  # each budget has its own layer budgets
    searches_as: ClassVar[str] = "senet"
    compares_maps: ClassVar[bool] = True

    kd_weight: float = 0.9  # λ of stage 3
    search_kd_weight: float = 0.5  # stage 2
    density: float = 0.1
    densities: str = younger("")
    pram: float = 1000.0  # β of shallow-again, eq. 2
    pram_form: PramForm = younger("elements")  # ours; the authors' later code has "attention"
    weight_lr: float = 0.05  # stage 2

    def optimizer(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Mismatch:
        weights = self.weights(context, plan)
        split = self.split(context, plan, weights, budgets[0])
        what = "weights" if self.densities else "sensitivity"
        context.record(f"{self.searches_as}-{context.unit.called(budgets[0])}", {what: weights, "budgets": split})
        return Mismatch(budgets[0], layers=split)

    def split(self, context: Context, plan: Plan, weights: Mapping[str, float], budget: int) -> dict[str, int]:
        """Site → ReLUs within a budget, by the weights."""
        sizes, charges = sizes_of(plan), context.unit.charges(context.teacher.spec, plan, budget)
        return allocate(weights, sizes, budget) if charges is None else allocate_priced(weights, sizes, budget, charges)

    def weights(self, context: Context, plan: Plan) -> dict[str, float]:
        """Site → what its share of a budget is proportional to."""
        if not self.densities:
            return sensitivities(context.teacher.network(), self.density)
        shares = parse_densities(self.densities, len(plan.sites))
        return {name: share * size for share, (name, size) in zip(shares, sizes_of(plan).items(), strict=True)}

    def check(self, spec: Spec, training: Training) -> None:
        super().check(spec, training)
        if self.densities:
            parse_densities(self.densities, len(shared_skeleton(spec).sites))

    def search_training(self, training: Training) -> Training:
        return training.changed(lr=self.weight_lr, schedule="cosine")

    def objective(self, *, finetuning: bool) -> Distillation:
        if not finetuning:
            return Distillation(self.temperature, self.search_kd_weight, ce_weight=self.ce_weight)
        return Distillation(self.temperature, self.kd_weight, self.pram, form=self.pram_form, ce_weight=self.ce_weight)


@dataclasses.dataclass(frozen=True)
class SENet(LayerBudgets):
    """Layer budgets from pruning sensitivity; masks by activation mismatch; finetuning with PRAM."""

    name: ClassVar[str] = "senet"
    source: ClassVar[str] = "Kundu et al., SENet, ICLR 2023"


def sizes_of(plan: Plan) -> dict[str, int]:
    """Site → ReLUs that it may have."""
    return {name: site.relus for name, site in plan.sites.items()}


def parse_densities(text: str, layers: int) -> list[float]:
    """Shares from "0.02 0.05 0.1"; raises `UserError` unless each layer has one, from 0 to 1, and not all are 0."""
    words = text.replace(",", " ").split()
    try:
        shares = [float(word) for word in words]
    except ValueError:
        shares = [-1.0]
    if len(words) != layers or not all(0 <= share <= 1 for share in shares) or not any(shares):
        raise UserError(
            f"densities {text[:40]!r} are not {layers} numbers from 0 to 1, a share for each layer with ReLUs; "
            f"there are {len(words)}"
        )
    return shares


def sensitivities(network: Network, density: float) -> dict[str, float]:
    """Site → 1 − η, η the share of its convolution's weights that are among the largest `density` of all weights.

    A site's layer is the last large convolution before it, or linear layer; a shortcut's 1×1 is none. A site without
    one of its own, such as the second of a ReLU6, has the layer of the site before; the first ones, the mean of all.
    """
    layers: dict[str, nn.Conv2d | nn.Linear | None] = {}
    waiting: list[nn.Conv2d | nn.Linear] = []
    before = None
    for node in network.graph.nodes:
        module = nodes.called_module(node)
        if isinstance(module, nn.Conv2d | nn.Linear):
            waiting.append(module)
        elif isinstance(module, Site):
            layers[module.name] = before = max(waiting, key=_side, default=before)
            waiting = []
    weights = {layer: layer.weight.detach().abs().flatten() for layer in layers.values() if layer is not None}
    if not weights:
        return dict.fromkeys(layers, 1.0)
    every = torch.cat(list(weights.values()))
    least = every.kthvalue(max(1, round((1 - density) * len(every)))).values
    found: dict[nn.Module | None, float] = {w: 1 - float((x > least).float().mean()) for w, x in weights.items()}
    found[None] = sum(found.values()) / len(found)
    return {name: found[layer] for name, layer in layers.items()}


def _side(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else 1


def allocate(sensitivity: Mapping[str, float], sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Site → ReLUs, proportional to the sensitivities, at most the site's size, summing to the budget exactly."""
    split = dict.fromkeys(sizes, 0)
    while (left := budget - sum(split.values())) > 0:
        free = {name: sensitivity[name] for name in sizes if split[name] < sizes[name]}
        total = sum(free.values())
        shares = {name: left * (value / total if total else 1 / len(free)) for name, value in free.items()}
        given = {name: min(int(share), sizes[name] - split[name]) for name, share in shares.items()}
        if not any(given.values()):  # the remainder, one each, the most sensitive first
            for name in sorted(free, key=lambda name: -free[name])[:left]:
                given[name] = 1
        for name, number in given.items():
            split[name] += number
    return split


def allocate_priced(
    sensitivity: Mapping[str, float], sizes: Mapping[str, int], budget: int, charges: Charges
) -> dict[str, int]:
    """The same for a budget that is not counted in ReLUs: as many as it holds, in the sites worth their rounds."""
    scores = {name: torch.full((size,), sensitivity[name] / charges.relu[name]) for name, size in sizes.items()}
    chosen = worthwhile(scores, budget - charges.fixed, charges)
    open = {name: size for name, size in sizes.items() if name in chosen}
    low, high = 0, sum(open.values())
    while low < high:
        middle = (low + high + 1) // 2
        fits = charges.of(allocate(sensitivity, open, middle)) <= budget - charges.fixed
        low, high = (middle, high) if fits else (low, middle - 1)
    return dict.fromkeys(sizes, 0) | allocate(sensitivity, open, low)
