"""The price of a query of a network, before it is trained: by the calibrated cost of private inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from parelu.methods.limits import BYTES, OFFLINE, ONLINE, TOTAL
from parelu.methods.unit import Price
from parelu.network import storage
from parelu.network.plan import Plan, SitePlan
from parelu.network.sites import IDENTITY
from parelu.network.spec import Spec
from parelu.private.cost import calibration
from parelu.private.cost.calibration import Calibration
from parelu.private.cost.predict import predict
from parelu.private.engines.base import Options
from parelu.private.lowering.ops import Activation, Op
from parelu.private.lowering.outline import planned
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import ring_for


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A `Price`: what a program of its shapes and masks alone is predicted to take.

    Attributes:
        query: how it runs.
        calibration: of seconds.
        known: spec and digest of a plan → its price.
        programs: spec and which kinds of activation each site has → the program of such a plan. Other plans of these
            kinds differ in positions only: their price is a walk over that program, not a network that is outlined.
    """

    query: Options
    calibration: Calibration = dataclasses.field(repr=False)
    known: dict[tuple[Spec, str], Mapping[str, float]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    programs: dict[tuple[Spec, tuple[Kinds, ...]], Program] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def __call__(self, spec: Spec, plan: Plan, /) -> Mapping[str, float]:
        key = spec, plan.digest()
        if key not in self.known:
            self.known[key] = self._predicted(spec, plan)
        return self.known[key]

    def _predicted(self, spec: Spec, plan: Plan) -> Mapping[str, float]:
        program = self._program(spec, plan)
        found = predict(program, self.query, self.calibration)
        online, offline = found.online, found.offline
        return {
            ONLINE: online.seconds,
            OFFLINE: offline.seconds,
            TOTAL: online.seconds + offline.seconds,
            BYTES: float(sum(online.sent.values()) + sum(offline.sent.values())),
        }

    def _program(self, spec: Spec, plan: Plan) -> Program:
        kinds = tuple(Kinds.of(site) for site in plan.sites.values())
        if any(kind.squares and kind.lines for kind in kinds):
            return self._outlined(spec, plan)
        if (spec, kinds) not in self.programs:
            sites = {n: kind.usual(site) for (n, site), kind in zip(plan.sites.items(), kinds, strict=True)}
            self.programs[spec, kinds] = self._outlined(spec, Plan(sites))
        return with_positions(self.programs[spec, kinds], plan)

    def _outlined(self, spec: Spec, plan: Plan) -> Program:
        return planned(spec, plan, ring=ring_for(self.query.offline))


class Kinds(NamedTuple):
    """Which kinds of activation a site has: ReLUs, squares, and polynomials of degree 1 but the identity."""

    relus: bool
    squares: bool
    lines: bool

    @classmethod
    def of(cls, site: SitePlan) -> Kinds:
        open_channels = ~site.mask.flatten(1).all(1) if site.mask.dim() > 1 else ~site.mask
        c = site.coefficients[:, open_channels]
        is_line = (c[2] == 0) & (c[:2] != torch.tensor(IDENTITY[:2])[:, None]).any(0)
        return cls(bool(site.mask.any()), bool((c[2] != 0).any()), bool(is_line.any()))

    def usual(self, site: SitePlan) -> SitePlan:
        """A site of the same shape with just these kinds, whichever is asked for first; lines and squares are not both
        there."""
        elsewhere = (0.0, 0.5, 0.25 * self.squares) if self.squares or self.lines else IDENTITY
        mask = torch.full_like(site.mask, self.relus)
        if elsewhere != IDENTITY:
            mask.view(-1)[0] = False
        return SitePlan(mask, torch.tensor(elsewhere)[:, None].repeat(1, len(site.mask)))


def with_positions(program: Program, plan: Plan) -> Program:
    """A program whose sites have the ReLUs and squares of a plan; of the same kinds, or it were another program."""

    def moved(op: Op, layer: str) -> Op:
        if not isinstance(op, Activation) or layer not in plan.sites:
            return op
        site = plan.sites[layer]
        squared = (site.coefficients[2] != 0).view(-1, *[1] * (site.mask.dim() - 1)) & ~site.mask
        relus, squares = (where.flatten().nonzero()[:, 0].numpy() for where in (site.mask, squared))
        return dataclasses.replace(op, relus=relus, squares=squares)

    ops = tuple(moved(op, layer) for op, layer in zip(program.ops, program.layers, strict=True))
    return dataclasses.replace(program, ops=ops)


def price_of(query: Options) -> Price:
    """Of a query that runs so, by this machine's calibration or the one that ships."""
    return Calibrated(query, calibration.chosen())


def config(query: Options) -> dict[str, Any]:
    """What decides a price, as JSON values."""
    known = storage.digest(calibration.chosen().to_json())
    return {"link": query.link, "relu": query.relu, "offline": query.offline, "calibration_sha256": known}
