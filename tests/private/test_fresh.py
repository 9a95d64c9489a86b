"""A program of the right shape before anything is trained: its traffic is that of a network with other weights."""

import dataclasses

import pytest
import torch
from small_networks import program_of

from parelu.network.count import skeleton
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.private.cost.traffic import traffic
from parelu.private.fresh import fresh, noise
from parelu.private.lowering.lower import lower
from parelu.private.lowering.ops import Activation, Truncate
from parelu.private.offline.mode import modes, ring_for
from parelu.private.protocol.delphi import Terms
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact


def mixed(spec, seed):
    """A plan with ReLUs at some positions, at one site none, and squares at the others of another."""
    generator, network = torch.Generator().manual_seed(seed), skeleton(spec)
    for number, site in enumerate(network.sites.values()):
        share, square = (0.0, 0.0) if number == 1 else (0.4, 0.1 * (number == 2))
        site.assign(torch.rand(site.shape, generator=generator) < share, (0.0, 1.0, square))
    return Plan.of(network)


def of_one_width(program):
    """With the same number of bits everywhere."""
    same = {Activation: {"bits": 16}, Truncate: {"bits": 12}}
    ops = [dataclasses.replace(op, **same.get(type(op), {})) for op in program.ops]
    return dataclasses.replace(program, ops=tuple(ops), output_bits=32)


@pytest.mark.parametrize("name", ["resnet10 m=4", "mobilenetv1 m=4"])
def test_traffic_is_that_of_other_weights_up_to_widths(name):
    spec = spec_of(name, (3, 16, 16), 7)
    plan = mixed(spec, seed=3)
    other = fresh(spec, plan, seed=5)
    ring = ring_for("seal")
    lowered = lower(other.network(), noise(8, spec.input, seed=7), other.preprocessing, ring=ring)
    early = program_of(spec, plan, ring)
    for mode in modes().values():
        found, expected = (
            traffic(Terms(of_one_width(made.program), relus()["sign"], Exact()), mode) for made in (early, lowered)
        )
        assert found == expected
