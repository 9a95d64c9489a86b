"""The contract of what learns which ReLUs stay."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parelu.masks.gate import Gate, gates_of, put_gates
from parelu.masks.projection import Granularity, project
from parelu.network.sites import Network
from parelu.training.callback import Learner


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
