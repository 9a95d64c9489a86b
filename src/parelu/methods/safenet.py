"""SAFENet on channels: whole channels of ReLUs become polynomials (after Lou et al., ICLR 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from parelu.methods.base import Context
from parelu.methods.fisher import Ranked
from parelu.methods.learned import Polynomials
from parelu.network.plan import Plan


@dataclasses.dataclass(frozen=True)
class SAFENet(Polynomials):
    """Whole channels become polynomials, least missed a ReLU first, while the weights train along.

    SAFENet trains degrees 1 to 3 and their coefficients; here a running score ranks the channels (see `fisher`), and
    the polynomials are fitted to each channel's input (AutoReP).
    """

    name: ClassVar[str] = "safenet"
    source: ClassVar[str] = "after Lou et al., SAFENet, ICLR 2021"
    exact: ClassVar[bool] = False

    def optimizer(self, context: Context, plan: Plan, budgets: Sequence[int]) -> Ranked:
        return Ranked(budgets[-1], "channel", self.degree, self.wide)
