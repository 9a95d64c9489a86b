"""DELPHI's planner on layers: whole layers of ReLUs become quadratics (after Mishra et al., USENIX Security 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from parelu.methods.base import Context
from parelu.methods.fisher import Ranked
from parelu.methods.learned import Polynomials
from parelu.network.plan import Plan


@dataclasses.dataclass(frozen=True)
class Delphi(Polynomials):
    """Whole layers become polynomials, least missed a ReLU first, while the weights train along.

    DELPHI searches the layers by population-based training; here a running score ranks them (see `fisher`), and the
    polynomials are fitted to each channel's input (AutoReP) where DELPHI takes one for all.
    """

    name: ClassVar[str] = "delphi"
    source: ClassVar[str] = "after Mishra et al., DELPHI, USENIX Security 2020"
    exact: ClassVar[bool] = False

    def optimizer(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Ranked:
        return Ranked(budgets[-1], "layer", self.degree, self.wide)
