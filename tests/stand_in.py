"""A price of queries that needs no engine: what is fixed, each ReLU and square by its site, and a round a site."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from parelu.network.count import count, skeleton
from parelu.network.plan import Plan
from parelu.network.spec import Spec


@dataclasses.dataclass(frozen=True)
class StandIn:
    """round, relu: seconds; a ReLU of every third site takes one, two or three times that. bent: the share by which the
    whole is more than the sum, as if it were not linear."""

    round: float = 1e-3
    relu: float = 1e-6
    bent: float = 0.0

    def __call__(self, spec: Spec, plan: Plan) -> Mapping[str, float]:
        sites = list(enumerate(plan.sites.values()))
        active = [site for _, site in sites if site.relus or site.squares]
        relus = sum(self.relu * (1 + number % 3) * site.relus for number, site in sites)
        changing = relus + sum(0.2 * self.relu * site.squares for site in active) + self.round * len(active)
        changing *= 1 + self.bent * plan.relus / (1000 + plan.relus)
        online = 1e-9 * _macs(spec) + changing
        sent = 1000 + sum(30 * (1 + number % 3) * site.relus + 16 * site.squares for number, site in sites)
        return {"online": online, "offline": 3 * online, "total": 4 * online, "bytes": float(sent)}


@functools.lru_cache(256)
def _macs(spec: Spec) -> int:
    return count(skeleton(spec)).macs
