"""The price of a query of a network, before it is trained: by the calibrated cost of private inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from parelu.methods.limits import BYTES, OFFLINE, ONLINE, TOTAL
from parelu.methods.unit import Price
from parelu.network import storage
from parelu.network.plan import Plan
from parelu.network.spec import Spec
from parelu.private.cost import calibration
from parelu.private.cost.calibration import Calibration
from parelu.private.cost.predict import predict
from parelu.private.engines.base import Options
from parelu.private.fresh import program_of
from parelu.private.offline.mode import ring_for


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A `Price`: what a program with fresh weights is predicted to take.

    Attributes:
        query: how it runs.
        calibration: of seconds.
        known: spec and digest of a plan → its price.
    """

    query: Options
    calibration: Calibration = dataclasses.field(repr=False)
    known: dict[tuple[Spec, str], Mapping[str, float]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def __call__(self, spec: Spec, plan: Plan, /) -> Mapping[str, float]:
        key = spec, plan.digest()
        if key not in self.known:
            self.known[key] = self._predicted(spec, plan)
        return self.known[key]

    def _predicted(self, spec: Spec, plan: Plan) -> Mapping[str, float]:
        with torch.random.fork_rng(devices=()):  # a search that asks goes on as if it had not
            program = program_of(spec, plan, ring_for(self.query.offline)).program
        found = predict(program, self.query, self.calibration)
        online, offline = found.online, found.offline
        return {
            ONLINE: online.seconds,
            OFFLINE: offline.seconds,
            TOTAL: online.seconds + offline.seconds,
            BYTES: float(sum(online.sent.values()) + sum(offline.sent.values())),
        }


def price_of(query: Options) -> Price:
    """Of a query that runs so, by this machine's calibration or the one that ships."""
    return Calibrated(query, calibration.chosen())


def config(query: Options) -> dict[str, Any]:
    """What decides a price, as JSON values."""
    known = storage.digest(calibration.chosen().to_json())
    return {"link": query.link, "relu": query.relu, "offline": query.offline, "calibration_sha256": known}
