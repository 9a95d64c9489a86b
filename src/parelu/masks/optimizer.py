"""The contract of what learns which ReLUs stay."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from parelu.masks.charges import Charges, of_relus
from parelu.masks.gate import Fit, Gate
from parelu.masks.projection import Granularity, project
from parelu.network.plan import Plan, SitePlan
from parelu.network.settings import younger
from parelu.network.sites import Network
from parelu.training.callback import Callback, CallbackOptions


@dataclasses.dataclass(frozen=True)
class MaskOptions(CallbackOptions):
    """Options of a mask optimizer.

    Attributes:
        budget: ReLUs at the end of the search, or in the unit of `charges`.
        granularity: what is kept or dropped as one: a position, a channel of a site, or a site.
        degree: of the polynomials that stand where no ReLU does: 0, the identity, or 1 or 2, fitted to the running
            distribution of each channel's input (see `dapa`).
        wide: they are fitted to one so many times as wide.
        keeps_best: whether a search leaves its best epoch, by validation accuracy, instead of its last: for optimizers
            whose masks have the budget's ReLUs after every epoch.
        fit: "public" trains them, as AutoReP's public code does (see `Gate.follow_inputs`).
        charges: what sites take of a budget that is not counted in ReLUs, over squares where the degree is 2.
    """

    keeps_best: ClassVar[bool] = False

    budget: int
    granularity: Granularity = "pixel"
    degree: int = 0
    wide: float = 1.0
    fit: Fit = younger("paper")
    charges: Charges | None = younger(None)

    @abc.abstractmethod
    def build(self, network: Network) -> MaskOptimizer: ...


class MaskOptimizer(Callback):
    """Takes the ReLUs of a network away while it trains: moves the gates that it has put in the place of sites.

    Attributes:
        gates: site → gate, in order of execution; what they hold is in the network's state.
        positions: site → how many ReLUs its gate may hold; where a site had no ReLU, there is never one.
        total: what all these take of a budget: their number, unless the budget's unit is another.
        budget: at the end of the search; it and the total are without what is fixed.
        spent: what a plan takes of a budget, by the price itself; None where nobody said it.
    """

    spent: Callable[[Plan], int] | None = None

    def __init__(self, network: Network, options: MaskOptions) -> None:
        self.network = network
        self.granularity: Granularity = options.granularity
        sites = network.sites
        self.gates = put_gates(network)
        self.positions = {name: sites[name].relus for name in self.gates}
        self._priced, self.charges = options.charges, options.charges or of_relus(self.gates)
        self.total, self.budget = self.charges.of(self.positions), options.budget - self.charges.fixed
        self._each = self.charges.each({name: max(1, number) for name, number in self.positions.items()})
        for gate in self.gates.values():
            gate.open.requires_grad_(False)
            if options.degree and self.positions[gate.name]:  # a ReLU that is gone already is no square
                gate.follow_inputs(options.degree, options.wide, options.fit)

    @property
    def device(self) -> torch.device:
        """Of what moves at each step, so that nothing waits for it."""
        return next(iter(self.gates.values())).open.device

    def parameters(self) -> Iterable[nn.Parameter]:
        return (gate.open for gate in self.gates.values())

    def activations(self) -> Mapping[str, nn.Module]:
        return self.gates

    @abc.abstractmethod
    def scores(self) -> dict[str, Tensor]:
        """Site → (C, H, W): positions with higher scores, which they have for each unit of the budget, come first."""

    def stands(self, gate: Gate) -> Tensor:
        """bool, (C, H, W): where a gate's ReLU counts as kept."""
        return gate.open > 0.5

    def kept(self) -> int:
        """What the ReLUs that stand now take of a budget: their number, unless its unit is another."""
        return self.charges.of(self._standing())

    def _standing(self) -> dict[str, int]:
        """Site → ReLUs that stand now; read off the device at once."""
        counts = torch.stack([self.stands(gate).count_nonzero() for gate in self.gates.values()])
        return dict(zip(self.gates, counts.tolist(), strict=True))

    def has_passed(self, budget: int) -> bool:
        """Whether what stands now is within a budget; it holds what is fixed."""
        return self.kept() <= budget - self.charges.fixed

    def charge(self, name: str) -> float:
        """What a ReLU of a site takes of a budget, with its part of the site's round."""
        return self._each[name]

    def for_each_unit(self, felt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores, of what each position is worth: the same, for each unit of the budget that it takes."""
        if self._priced is None:
            return dict(felt)
        whole = self.granularity == "layer"
        return {n: score / (self._each[n] if whole else self.charges.relu[n]) for n, score in felt.items()}

    def report(self) -> dict[str, Any]:
        """ReLUs that stand now, in all and per stage."""
        stages: dict[str, int] = {}
        for name, number in self._standing().items():
            stages[self.gates[name].stage] = stages.get(self.gates[name].stage, 0) + number
        return {"relus": sum(stages.values()), "stages": stages}

    def project(self, budget: int) -> dict[str, Tensor]:
        """Site → bool mask: exactly `budget` positions, or for a coarser granularity at most as many.

        In another unit than ReLUs, what fits into a budget that holds nothing fixed.
        """
        scores = {
            name: score.masked_fill(~self.gates[name].allowed, -torch.inf) for name, score in self.scores().items()
        }
        return project(scores, budget, self.granularity, self._priced, sum(self.positions.values()))

    def plan(self, budget: int) -> Plan:
        """The projection onto a budget, which holds what is fixed, with the gates' polynomials."""
        masks = self.project(budget - self.charges.fixed)
        return Plan(
            {name: SitePlan(masks[name].cpu(), gate.polynomial().detach().cpu()) for name, gate in self.gates.items()}
        )

    def weights(self) -> dict[str, Tensor]:
        """A copy of the state dict that the network has without its gates."""
        inside = tuple(f"{name}." for name in self.gates)
        state = self.network.state_dict().items()
        return {name: tensor.cpu().clone() for name, tensor in state if not name.startswith(inside)}


def put_gates(network: Network) -> dict[str, Gate]:
    """Replace every site by a gate that computes the same; returns site name → gate, in order of execution."""
    gates = {name: Gate(site) for name, site in network.sites.items()}
    for name, gate in gates.items():
        network.set_submodule(name, gate)
    return gates
