"""What every architecture promises."""

import json

import pytest
import torch

from parelu.count import skeleton
from parelu.errors import UserError
from parelu.models import families, spec_from_json, spec_of
from parelu.sites import instrument

NAMES = [name for cls in families().values() for name in cls.examples if "(" not in name]
INPUT = (3, 16, 16)


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name):
    spec = spec_of(name, INPUT, 7)
    assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("name", NAMES)
def test_every_op_has_a_place_and_every_site_a_stage(name):
    network = skeleton(spec_of(name, INPUT, 7))
    assert network.problems == ()
    assert network.notes == ()
    stages = [site.stage for site in network.sites.values()]
    assert stages == sorted(stages, key=lambda stage: (stage != "stem", stage)), "stages come in order"
    assert len(set(stages)) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_scaling(name):
    spec = spec_of(name, INPUT, 7)
    full = sum(site.relus for site in skeleton(spec).sites.values())
    assert sum(site.relus for site in skeleton(spec.scale_channels(0.5)).sites.values()) * 2 == full
    assert sum(site.relus for site in skeleton(spec.scale_fmap(0.5)).sites.values()) * 4 == full
    with pytest.raises(UserError):
        spec.scale_channels(1 / 3 + 1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if "m=" in n or n in ("resnet20", "resnet32")])
def test_output_shape_and_gradients(name):
    spec = spec_of(name, (1, 8, 8), 7)
    network = instrument(spec.module(), spec.input)
    logits = network(torch.randn(2, *spec.input))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    "name", ["resnet7", "resnet18 m=0", "resnet18 m=8 2x2x", "resnet18 q=3", "", "hrn-0x1x1x", "x" * 500]
)
def test_bad_names(name):
    with pytest.raises(UserError):
        spec_of(name, INPUT, 7)


@pytest.mark.parametrize(("input", "classes"), [((3, 0, 8), 10), ((3, 8, 99999), 10), ((3, 8, 8), 1)])
def test_bad_shapes(input, classes):
    with pytest.raises(UserError):
        spec_of("resnet18", input, classes)
