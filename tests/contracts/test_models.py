"""What every architecture promises."""

import functools
import json

import pytest
import torch

from parelu.errors import UserError
from parelu.network.count import skeleton
from parelu.network.instrument import instrument, network_of
from parelu.network.ops import unsupported
from parelu.network.spec import families, spec_from_json, spec_of

NAMES = [name for cls in families().values() if cls.family != "external" for name in cls.examples]
INPUT = (3, 64, 64)


@functools.cache
def drawn(name):
    return skeleton(spec_of(name, INPUT, 7))


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name):
    spec = spec_of(name, INPUT, 7)
    assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("name", NAMES)
def test_every_op_has_a_place_and_every_site_a_stage(name):
    network = drawn(name)
    assert unsupported(network) == ()
    assert all("sigmoid is piecewise linear within 0.001" in note for note in network.notes)
    stages = [site.stage for site in network.sites.values()]
    assert stages == sorted(stages, key=lambda stage: (stage != "stem", stage)), "stages come in order"
    assert len(set(stages)) >= 3
    for stage in set(stages):
        blocks = [site.block for site in network.sites.values() if site.stage == stage]
        assert blocks == sorted(blocks) and set(blocks) == set(range(max(blocks) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_scaling(name):
    """Half the channels everywhere, and half the side of every map."""
    spec = spec_of(name, INPUT, 7)
    small = skeleton(spec.scale_channels(0.5).scale_fmap(0.5)).sites
    for site, (channels, *sides) in {site.name: site.shape for site in drawn(name).sites.values()}.items():
        halved = [side // 2 if min(sides) > 1 else side for side in sides]
        assert small[site].shape == (channels // 2, *halved) and channels % 2 == 0
    with pytest.raises(UserError):
        spec.scale_channels(1 / 3 + 1e-6)


def narrow(name):
    """For small images, with few channels."""
    spec = spec_of(name, (1, 8, 8), 7)
    try:
        return spec.scale_channels(0.25)
    except UserError:
        return spec


@pytest.mark.parametrize("name", [n for n in NAMES if "m=" in n or n in ("resnet20", "resnet32")])
def test_output_shape_and_gradients(name):
    spec = narrow(name)
    network = instrument(spec.module(), spec.input)
    logits = network(torch.randn(2, *spec.input))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", [n for n in NAMES if "m=" in n])
def test_a_network_of_a_spec_that_was_traced_before_is_what_tracing_gives(name):
    """Weights, code, output, and what the generator gives next."""
    spec = narrow(name)

    def told(make):
        torch.manual_seed(1)
        network = make(spec)
        after, x = torch.rand(1), torch.rand(2, *spec.input, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            logits = network(x)
        return network.training, network.code, network.notes, [*network.state_dict().items(), ("", after), ("", logits)]

    expected = told(lambda spec: instrument(spec.module(), spec.input))
    for _ in range(2):
        found = told(network_of)
        assert found[:3] == expected[:3]
        for (name, one), (other, two) in zip(found[3], expected[3], strict=True):
            assert name == other and torch.equal(one, two), name
        site = next(iter(network_of(spec).sites.values()))
        site.assign(torch.zeros_like(site.mask))  # of one network alone


@pytest.mark.parametrize(
    "name",
    [
        "resnet7",
        "resnet18 m=0",
        "resnet18 m=8 2x2x",
        "resnet18 q=3",
        "",
        "hrn-0x1x1x",
        "x" * 500,
        "resnet18 d=1-0-1-1",
        "wrn-12-2",
        "wrn-10-0",
        "vgg16 m=0",
        "vgg16 (0 classifier)",
        "vgg16 () classifier",
        "mobilenetv1 m=4000",
        "mobilenetv2",
        "efficientnet-b1 (relu)",
        "efficientnet-b2",
        "efficientnet-b2 (relu) m=1",
        "regnetx-100mf",
        "convnextv2-x",
        "stagech-0x",
    ],
)
def test_bad_names(name):
    with pytest.raises(UserError):
        spec_of(name, INPUT, 7)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("wrn-22-8", {"depth": 23}),
        ("wrn-22-8", {"depth": 10**9}),
        ("wrn-22-8", {"stem": 10**9}),
        ("vgg16", {"stem": 10**9}),
        ("vgg16", {"hidden": [0]}),
        ("mobilenetv1", {"stem": -1}),
        ("efficientnet-b2 (relu)", {"depths": [1]}),
        ("efficientnet-b2 (relu)", {"widths": [10**9] * 7}),
        ("efficientnet-b2 (relu)", {"squeeze": 1}),
        ("regnetx-200mf", {"widths": [8]}),
        ("regnetx-200mf", {"group": 7}),
        ("regnetx-200mf", {"group": 0}),
        ("resnet18", {"reuse": [4]}),
        ("resnet18", {"reuse": [3, 3, 3, 3]}),
        ("resnet18", {"reuse": [1, 1, 1, -4]}),
        ("resnet18", {"multipliers": [2]}),
        ("resnet18", {"depths": []}),
        ("convnextv2-a", {"depths": [1] * 60}),
        ("resnet18", {"unknown": 1}),
    ],
)
def test_a_file_that_asks_for_too_much_is_refused(name, fields):
    spec = spec_of(name, INPUT, 7)
    with pytest.raises(UserError):
        spec_from_json({**json.loads(json.dumps(spec.to_json())), **fields})


def test_a_spec_from_before_a_field_with_a_default_can_be_read():
    spec = spec_of("resnet18", INPUT, 7)
    old = {key: value for key, value in spec.to_json().items() if key != "reuse"}
    assert spec_from_json(old) == spec


@pytest.mark.parametrize(("input", "classes"), [((3, 0, 8), 10), ((3, 8, 99999), 10), ((3, 8, 8), 1)])
def test_bad_shapes(input, classes):
    with pytest.raises(UserError):
        spec_of("resnet18", input, classes)
