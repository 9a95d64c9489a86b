"""Programs of shapes alone, beside those of networks with weights."""

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from small_networks import program_of

from parelu.errors import UserError
from parelu.network.count import skeleton
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.private.lowering import refusals
from parelu.private.lowering.ops import Activation, Scale
from parelu.private.lowering.outline import outline, planned
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import modes, ring_for

NETWORKS = {
    "resnet10 m=4": (1, 8, 8),
    "vgg16 m=4 (8 classifier)": (3, 32, 32),
    "mobilenetv1 m=4": (3, 16, 16),
    "convnextv2-n m=4": (3, 16, 16),
    "regnetx-200mf m=8": (3, 16, 16),
    "resnet9 m=4": (3, 16, 16),
}


def described(program: Program):
    """What a query takes hangs on this; a public factor, which numbers may ask for, costs nothing."""
    found = zip(program.ops, program.shapes[1:], program.layers, strict=True)
    return [
        (type(op).__name__, shape, layer, *((len(op.relus), len(op.squares)) if isinstance(op, Activation) else ()))
        for op, shape, layer in found
        if not isinstance(op, Scale)
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_program_of_a_network_with_weights_but_for_how_large_numbers_are(name):
    spec, ring = spec_of(name, NETWORKS[name], 10), ring_for("hints")
    plan = Plan.of(skeleton(spec))
    found, real = planned(spec, plan, ring=ring), program_of(spec, plan, ring).program
    assert described(found) == described(real)
    pairs = zip(*([op for op in one.ops if isinstance(op, Activation)] for one in (found, real)), strict=True)
    assert all(abs(a.bits - b.bits) <= 3 for a, b in pairs)
    assert found.ring == real.ring


@settings(max_examples=8)
@given(st.integers(0, 2**32), st.sampled_from(["resnet10 m=2", "mobilenetv1 m=2", "wrn-22-1 m=2", "resnet9 m=2"]))
def test_masks_and_polynomials_are_the_plans(seed, name):
    """ReLUs, squares, straight lines and sites without anything."""
    generator = torch.Generator().manual_seed(seed)
    spec = spec_of(name, (1, 8, 8), 10)
    network = skeleton(spec)
    for site in network.sites.values():
        share, kind = torch.randint(4, (2,), generator=generator).tolist()
        mask = torch.rand(site.shape, generator=generator) < (0.0, 0.0, 0.3, 1.0)[share]
        polynomial = ((0.0, 1.0, 0.0), (0.1, 0.5, 0.01), (0.3, 0.4, 0.0), (0.0, 0.7, 0.0))[kind]
        site.assign(mask, torch.tensor(polynomial)[:, None].expand(3, site.shape[0]).clone())
    plan = Plan.of(network)
    try:
        real = program_of(spec, plan).program
    except UserError:
        reject()  # squares in a row outgrow the ring
    assert described(planned(spec, plan, ring=ring_for("hints"))) == described(real)


def test_lines_without_a_relu_fuse_with_the_layers_around_them():
    spec = spec_of("resnet10 m=4", (1, 8, 8), 10)
    network = skeleton(spec)
    for site in network.sites.values():
        if site.stage != "stem":
            site.assign(torch.zeros(site.shape, dtype=torch.bool), (0.0, 0.7, 0.0))
    plan = Plan.of(network)
    assert described(planned(spec, plan, ring=ring_for("hints"))) == described(program_of(spec, plan).program)


def test_what_has_no_program_is_refused_as_ever(monkeypatch):
    monkeypatch.setattr(refusals, "LARGEST_TOTAL", 1000)
    with pytest.raises(UserError, match="use smaller images"):
        outline(skeleton(spec_of("resnet10 m=4", (1, 8, 8), 10)))


def test_each_mode_has_a_ring_for_it():
    spec = spec_of("resnet10 m=4", (1, 8, 8), 10)
    for mode in modes():
        assert planned(spec, Plan.of(skeleton(spec)), ring=ring_for(mode)).ring == ring_for(mode)
