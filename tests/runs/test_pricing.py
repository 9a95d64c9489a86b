"""A price by the program of a plan's kinds of sites, against that of the plan itself, and of weights."""

import pytest
import torch
from small_networks import program_of

from parelu.network.count import skeleton
from parelu.network.plan import Plan, SitePlan
from parelu.network.sites import IDENTITY
from parelu.network.spec import spec_of
from parelu.private.cost import calibration
from parelu.private.cost.predict import predict
from parelu.private.engines.base import Options
from parelu.private.lowering.ops import Activation
from parelu.private.lowering.outline import planned
from parelu.private.offline.mode import ring_for
from parelu.runs.pricing import Calibrated, with_positions

SPEC = spec_of("resnet10 m=2", (1, 8, 8), 10)
WHOLE = Plan.of(skeleton(SPEC))
ELSEWHERE = {"identity": IDENTITY, "lines": (0.1, 0.7, 0.0), "squares": (0.1, 0.5, 0.2), "both": None}


def drawn(seed, elsewhere):
    """Sites of all ReLUs, of none and of some."""
    generator = torch.Generator().manual_seed(seed)
    sites = {}
    for number, (name, site) in enumerate(WHOLE.sites.items()):
        share = (1.0, 0.0, 0.4)[number % 3]
        mask = torch.rand(site.mask.shape, generator=generator) < share
        coefficients = torch.tensor(elsewhere or (0.1, 0.5, 0.2))[:, None].repeat(1, len(mask))
        if elsewhere is None:
            coefficients[2, ::2] = 0
        sites[name] = SitePlan(mask, coefficients)
    return Plan(sites)


@pytest.fixture(scope="module")
def price():
    return Calibrated(Options(link="wan"), calibration.chosen())


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_it_is_the_price_of_the_plan(price, elsewhere):
    plan = drawn(0, ELSEWHERE[elsewhere])
    found, ring = price(SPEC, plan), ring_for(price.query.offline)
    own = predict(planned(SPEC, plan, ring=ring), price.query, price.calibration)
    assert (found["online"], found["offline"]) == (own.online.seconds, own.offline.seconds)
    lowered = program_of(SPEC, plan, ring).program
    real = predict(lowered, price.query, price.calibration)
    assert found["online"] == pytest.approx(real.online.seconds, rel=0.01), "how large numbers are is all that differs"
    assert found["offline"] == pytest.approx(real.offline.seconds, rel=0.05)
    moved = [op for op in price._program(SPEC, plan).ops if isinstance(op, Activation)]
    for one, other in zip(moved, (op for op in lowered.ops if isinstance(op, Activation)), strict=True):
        assert one.relus.tolist() == other.relus.tolist() and one.squares.tolist() == other.squares.tolist()


def test_it_does_not_hang_on_what_was_asked_before(price):
    first, second = drawn(1, IDENTITY), drawn(2, IDENTITY)
    fresh = Calibrated(price.query, price.calibration)
    assert fresh(SPEC, second) == price(SPEC, second)
    assert price(SPEC, first) == price(SPEC, first) and fresh(SPEC, first) == price(SPEC, first)
    assert len(fresh.programs) == 1 and len(fresh.known) == 2


def test_positions_that_are_there_stay():
    program = planned(SPEC, WHOLE)
    assert with_positions(program, WHOLE).to_bytes() == program.to_bytes()
