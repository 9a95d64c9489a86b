"""Learning which ReLUs stay: the contract of a learner, projection onto a budget, schedule of the kept share."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from parelu.gates import Gate, gates_of, put_gates
from parelu.learner import Learner
from parelu.sites import Network

Granularity = Literal["pixel", "channel", "layer"]


@dataclasses.dataclass(frozen=True)
class MaskLearner(Learner):
    """Moves the gates of a network while it trains.

    All that changes lives in the gates.

    Attributes:
        granularity: what is kept or dropped as one: a position, a channel of a site, or a site.
        degree: of the polynomials that stand where no ReLU does: 0, the identity, or 1 or 2, fitted to the running
            distribution of each channel's input (see `dapa`).
        wide: they are fitted to one so many times as wide.
    """

    granularity: Granularity = "pixel"
    degree: int = 0
    wide: float = 1.0

    @property
    def stops_at_budget(self) -> bool:
        """Whether the search ends as soon as it has passed its smallest budget."""
        return False

    def prepare(self, network: Network) -> None:
        """Put gates in the place of sites; a position whose site has no ReLU never gets one."""
        for gate in put_gates(network).values():
            gate.open.requires_grad_(False)
            if self.degree:
                gate.follow_inputs(self.degree, self.wide)
            self.equip(gate)

    def equip(self, gate: Gate) -> None:
        """Register what this learner keeps of a gate: parameters, buffers, hooks."""

    @abc.abstractmethod
    def scores(self, gates: Mapping[str, Gate]) -> dict[str, Tensor]:
        """Site → (C, H, W): positions with higher scores keep their ReLU first."""

    def kept(self, gates: Mapping[str, Gate]) -> int:
        """ReLUs that stand now."""
        return sum(int((gate.open > 0.5).count_nonzero()) for gate in gates.values())

    def report(self, network: Network) -> dict[str, Any]:
        """ReLUs that stand now, in all and a stage."""
        stages: dict[str, int] = {}
        for gate in gates_of(network).values():
            stages[gate.stage] = stages.get(gate.stage, 0) + self.kept({gate.name: gate})
        return {"relus": sum(stages.values()), "stages": stages}

    def project(self, gates: Mapping[str, Gate], budget: int) -> dict[str, Tensor]:
        """Site → bool mask: exactly `budget` positions, or for a coarser granularity at most as many."""
        scores = {
            name: score.masked_fill(~gates[name].allowed, -torch.inf) for name, score in self.scores(gates).items()
        }
        return project(scores, budget, self.granularity)


def project(scores: Mapping[str, Tensor], budget: int, granularity: Granularity = "pixel") -> dict[str, Tensor]:
    """Site → bool mask of the highest scores; scores: site → (C, H, W), −inf where no ReLU may stand.

    "pixel" keeps exactly `budget` positions, of equal scores the first; smaller budgets lie inside larger ones.
    "channel" and "layer" take whole channels or sites, those with the highest mean first, as long as they fit.

    Raises:
        ValueError: fewer positions than the budget may hold a ReLU.
    """
    if granularity == "pixel":
        flat = torch.cat([score.flatten() for score in scores.values()])
        if int((flat > -torch.inf).count_nonzero()) < budget:
            raise ValueError(f"{budget} ReLUs do not fit into {int((flat > -torch.inf).count_nonzero())} positions")
        kept = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        kept[torch.argsort(flat, descending=True, stable=True)[:budget]] = True
        parts = kept.split([score.numel() for score in scores.values()])
        return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}
    masks = {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    groups = []
    for name, score in scores.items():
        groups += zip(score, masks[name], strict=True) if granularity == "channel" else [(score, masks[name])]
    means = [float(score[score > -torch.inf].mean().nan_to_num(-math.inf)) for score, _ in groups]
    for number in sorted(range(len(groups)), key=lambda number: -means[number]):
        score, mask = groups[number]
        may = score > -torch.inf
        if int(may.count_nonzero()) <= budget:
            mask.copy_(may)
            budget -= int(may.count_nonzero())
    return masks


def kept_share(progress: float, target: float, reached: float = 0.6) -> float:
    """The share of ReLUs kept where `progress`, in [0, 1], of all steps are done.

    It falls from 1 to `target` with the 1.5th power of a cosine and stays there from `reached` on (ReLUPruner).
    """
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, progress / reached)))
    return target + (1 - target) * left**1.5
