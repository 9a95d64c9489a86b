"""Counts: against torch's own counter, closed forms, and each other; against the papers in tests/published."""

import math

import pytest
import torch
from method_networks import INPUT, modules
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from parelu.errors import UserError
from parelu.models.reuse import ReuseConv, groups
from parelu.network.count import count, skeleton, stage_shares
from parelu.network.instrument import instrument
from parelu.network.plan import Plan
from parelu.network.spec import families, spec_of


@pytest.mark.parametrize(("channels", "factor"), [(16, 2), (16, 4), (32, 8), (48, 16)])
def test_a_reuse_layer_is_linear_and_costs_what_its_groups_say(channels, factor):
    layer = ReuseConv(channels, factor)
    x, y = torch.randn(2, 2, channels, 5, 5).unbind()
    assert torch.allclose(layer(x - 2 * y), layer(x) - 2 * layer(y), atol=1e-4)
    first, second, third = groups(channels, factor)
    assert (first + second + third, first, third) == (channels, channels // 4, channels // factor)
    dense = 9 * (first**2 + second**2 + third**2)
    joints = first * second + first * third + second * third + channels * first
    counts = count(instrument(nn.Sequential(layer, nn.Flatten()), (channels, 5, 5)))
    assert counts.macs == 25 * (dense + joints)


def test_what_a_reuse_layer_reads():
    """The first group reads its own channels at distance 1; the last reads all three, at distance 3."""
    layer = ReuseConv(8, 4)
    x = torch.zeros(1, 8, 9, 9, requires_grad=True)
    layer.expand.weight.data.zero_()
    for output, channels, distance in ((0, 2, 1), (2, 6, 2), (6, 8, 3)):
        (gradient,) = torch.autograd.grad(layer(x)[0, output, 4, 4], x)
        reach = gradient[0].abs().amax((1, 2)).nonzero().max() + 1, gradient[0].abs().amax((0, 1)).nonzero().max() - 4
        assert reach == (channels, distance)


OURS = [name for cls in families().values() if cls.family != "external" for name in cls.examples]


@pytest.mark.parametrize("name", OURS)
def test_macs_are_half_of_torchs_flops(name):
    spec = spec_of(name, (3, 16, 16), 10)
    with torch.device("meta"):
        module = spec.module().eval()
        with FlopCounterMode(display=False) as counter:
            module(torch.empty(1, 3, 16, 16))
    counts = count(skeleton(spec))
    assert 2 * counts.macs == counter.get_total_flops()
    assert counts.macs == sum(stage.macs for stage in counts.stages.values())
    assert counts.relus == sum(stage.relus for stage in counts.stages.values()) == sum(counts.sites.values())
    assert counts.params == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "slope", "start", "growth", "depth", "group"),
    [
        ("200mf", 36.44, 24, 2.49, 13, 8),
        ("400mf", 24.48, 24, 2.54, 22, 16),
        ("600mf", 36.97, 48, 2.24, 16, 24),
        ("800mf", 35.73, 56, 2.28, 16, 16),
        ("1.6gf", 34.01, 80, 2.25, 18, 24),
        ("3.2gf", 26.31, 88, 2.25, 25, 48),
    ],
)
def test_regnet_shapes_are_the_quantized_linear_function(name, slope, start, growth, depth, group):
    """Radosavovic et al. 2020, eq. 2 to 4: u_j = w0 + w_a·j, rounded to w0·w_m^s, to eights, then to the group."""
    linear = [start + slope * block for block in range(depth)]
    rounded = [8 * round(start * growth ** round(math.log(u / start, growth)) / 8) for u in linear]
    widths = [group * round(width / group) if width >= group else width for width in rounded]
    spec = spec_of(f"regnetx-{name}", (3, 32, 32), 10)
    assert list(spec.widths) == sorted(set(widths))
    assert [widths.count(width) for width in spec.widths] == list(spec.depths)


@pytest.mark.parametrize(
    ("name", "side", "params"),
    [
        ("efficientnet-b0 (relu)", 224, 5_288_548),
        ("efficientnet-b2 (relu)", 224, 9_109_994),
        ("mobilenetv1", 32, 4_231_976),
        ("vgg16 (4096-4096 classifier)", 224, 138_365_992 - 4_224),
    ],
)
def test_parameters_are_those_of_timm_and_torchvision(name, side, params):
    """torchvision's vgg16_bn has 4,224 biases in front of its batch-norms, which do nothing there."""
    assert count(skeleton(spec_of(name, (3, side, side), 1000))).params == params


@pytest.mark.parametrize(("name", "depth"), [("resnet18", 17), ("resnet34", 33), ("resnet9", 8), ("resnet20", 19)])
def test_depth_is_the_longest_path(name, depth):
    assert count(skeleton(spec_of(name, (3, 32, 32), 10))).depth == depth


def test_grouped_and_strided_convolutions():
    layers = [nn.Conv2d(4, 8, (3, 1), (2, 1), (1, 0), groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 6, 3)]
    counts = count(instrument(nn.Sequential(*layers), (4, 8, 6)))
    assert counts.macs == 8 * 4 * 6 * 3 + 8 * 4 * 6 * 3
    assert counts.relus == counts.relus_without_stem == 8 * 4 * 6


def test_the_first_stage_shares_the_stems_relus():
    """DeepReShape, Table 4: 2x2x2x(m=32)."""
    shares = count(skeleton(spec_of("resnet18 m=2", (3, 32, 32), 10))).shares()
    assert [f"{share:.2f}" for share in shares.values()] == ["58.82", "23.53", "11.76", "5.88"]
    assert stage_shares({"S1": 3, "S2": 1, "head": 0}) == {"S1": 75, "S2": 25}, "a network without a stem"
    assert stage_shares({"stem": 5, "head": 0}) == {"stem": 100}
    assert stage_shares({"stem": 0, "S1": 0}) == {"S1": 0}


def test_squares_are_counted_apart():
    network = skeleton(spec_of("resnet10 m=2", (1, 8, 8), 10))
    site = network.sites["relu"]
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, 0] = True
    site.assign(mask, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.0]]))
    counts = count(network)
    assert counts.squares == 64 - 8, "channel 1 has degree 1"
    assert counts.sites["relu"] == 8


def test_nothing_is_counted_as_nothing():
    with pytest.raises(UserError, match="LPPool2d is not supported"):
        count(instrument(nn.Sequential(nn.Conv2d(1, 2, 1), nn.LPPool2d(2, 2), nn.Flatten()), (1, 4, 4)))


def test_comparisons_of_max_pools_are_counted_apart():
    network = instrument(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), (1, 4, 4))
    counts = count(network)
    assert (counts.relus, counts.comparisons) == (2 * 16, 2 * (2 * 4 + 2 * 2))
    assert counts.to_json()["comparisons"] == 24


# Of an operator that torch executes: ReLUs an element of its output.
EXECUTED = {"relu": 1, "relu_": 1, "hardtanh": 2, "leaky_relu": 1, "_prelu_kernel": 1, "sigmoid": 20}


class Executed(TorchDispatchMode):
    """Counts what torch executes, for one image: an account of ReLUs that knows nothing of graphs and sites."""

    def __init__(self) -> None:
        super().__init__()
        self.relus = self.comparisons = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name == "max_pool2d_with_indices":
            self.comparisons += compared(*args)
        self.relus += EXECUTED.get(name, 0) * (result.numel() if isinstance(result, torch.Tensor) else 0)
        return result


def compared(x, kernel, stride, padding=(0, 0)) -> int:
    """Of a square max-pool whose windows share nothing: one less than each window has inside, along both dimensions."""
    inside = torch.nn.functional.pad(torch.ones(x.shape[-1]), (padding[0],) * 2).unfold(0, kernel[0], stride[0])
    a_line = int((inside.sum(1) - 1).sum())
    return x.shape[1] * a_line * (x.shape[-1] + len(inside))


@pytest.mark.parametrize("name", modules())
def test_relus_and_comparisons_are_what_torch_executes(name):
    module = modules()[name].eval()
    with Executed() as executed, torch.no_grad():
        module(torch.zeros(1, *INPUT))
    counts = count(instrument(module, INPUT))
    assert (counts.relus, counts.comparisons) == (executed.relus, executed.comparisons)
    assert counts.relus > 0 and bool(counts.comparisons) == ("max-pool" in name)


def test_counting_does_not_change_the_network():
    network = skeleton(spec_of("resnet10 m=2", (1, 8, 8), 10))
    before = Plan.of(network)
    count(network)
    assert Plan.of(network) == before
