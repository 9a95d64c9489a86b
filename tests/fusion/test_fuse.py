"""Fused networks against the unfused: random chains, residual networks, what every method makes, published depths."""

import functools
import random

import pytest
import torch
from contracts.test_methods import FULL, DryBench
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from two_parties import Residual, ready

from parelu.errors import UserError
from parelu.fusion.fuse import MapConv2d, fuse, nothing
from parelu.fusion.packing import Prices, seconds
from parelu.methods.base import methods
from parelu.network import nodes
from parelu.network.count import count, skeleton
from parelu.network.functions import Affine
from parelu.network.plan import SitePlan
from parelu.network.sites import Network
from parelu.network.spec import spec_of
from parelu.network.steps import apply_steps

LAYERS = (nn.Conv2d, nn.Linear)
FEWEST = {"cost": lambda layer: 1.0}  # every layer costs the same: whatever can be merged is merged


def same(network, fused, seed=0):
    """Both on random images, border included, to 1e-4 of the outputs' size."""
    x = torch.randn(4, *network.input_shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected, found = network(x), fused(x)
    return torch.allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max())))


def layers(network):
    return len(list(nodes.calls(network, LAYERS)))


class Branches(nn.Module):
    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x):
        return self.left(x) + self.right(x)


def random_layers(rng: random.Random, channels: int, length: int, residual: bool = True) -> tuple[nn.Sequential, int]:
    """Linear layers of all kinds, activations that may stay, and residual additions; and their output channels."""
    units: list[nn.Module] = []
    for _ in range(length):
        kind = rng.choice(("conv", "conv", "pointwise", "grouped", "pool", "norm", "relu", "sum", "sum"))
        if kind == "pool":
            kernel = rng.choice((1, 2, 3))
            units.append(nn.AvgPool2d(kernel, rng.choice((1, 2)), rng.randrange(kernel // 2 + 1)))
        elif kind == "norm":
            units.append(nn.BatchNorm2d(channels))
        elif kind == "relu":
            units.append(nn.ReLU())
        elif kind == "sum" and residual:
            side = [_same_size(rng, channels, rng.randrange(1, 4)) for _ in range(2)]
            units.append(Branches(side[0], rng.choice((nn.Identity(), side[1]))))
        else:
            outputs, kernel = rng.choice((2, 4)), {"pointwise": 1, "sum": 3}.get(kind) or rng.choice((2, 3, 5))
            groups = 2 if kind == "grouped" and channels % 2 == 0 else 1
            stride, padding = rng.choice((1, 1, 2)), rng.randrange(kernel)
            units.append(nn.Conv2d(channels, outputs, kernel, stride, padding, groups=groups, bias=rng.random() < 0.7))
            channels = outputs
    return nn.Sequential(*units), channels


def _same_size(rng: random.Random, channels: int, length: int) -> nn.Sequential:
    units: list[nn.Module] = []
    for _ in range(length):
        kernel = rng.choice((1, 3))
        units.append(
            rng.choice(
                (
                    nn.Conv2d(channels, channels, kernel, 1, kernel // 2),
                    nn.ReLU(),
                    nn.BatchNorm2d(channels),
                    nn.Conv2d(channels, channels, 1, bias=False),
                )
            )
        )
    return nn.Sequential(*units)


def random_network(rng: random.Random, side: int, length: int) -> Network:
    """A random classifier whose sites keep all, some or no ReLUs, with the identity or a line elsewhere."""
    torch.manual_seed(rng.randrange(2**32))
    while True:
        body, channels = random_layers(rng, 3, length)
        module = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))
        try:
            network = ready(module, (3, side, side))
        except Exception as error:  # a pool or kernel became larger than its map
            assert "size" in str(error)
            continue
        for site in network.sites.values():
            lines = torch.randn(3, site.shape[0])
            lines[2] = 0
            kept = {"all": 2.0, "some": 0.5, "none": -1.0}[rng.choice(("all", "some", "none", "none", "none"))]
            site.assign(torch.rand(site.shape) < kept, rng.choice(((0.0, 1.0, 0.0), lines)))
        return network


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(4, 9), st.integers(1, 7))
def test_fused_is_unfused_for_random_chains(rng, side, length):
    network = random_network(rng, side, length)
    for options in ({}, FEWEST, {"cost": nothing}):
        fused = fuse(network, **options)
        assert same(network, fused)
        assert layers(fused) <= layers(network) + sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("name", methods())
def test_fused_is_unfused_for_what_every_method_makes(name):
    """Sites lose what the method says, and their polynomials are lines where it knows polynomials."""
    bench = DryBench()
    try:
        methods()[name]().reduce(bench, (FULL // 2, FULL // 8, 40))
    except UserError as error:  # whole channels go only so far down
        assert "at the least" in str(error)
        methods()[name]().reduce(bench, (FULL // 2,))
    assert bench.jobs
    for number, job in enumerate(bench.jobs):
        torch.manual_seed(number)
        network = ready(job.spec.module(), job.spec.input)
        job.plan.apply(network)
        if hasattr(methods()[name], "degree"):
            for site in network.sites.values():
                line = torch.randn(3, site.shape[0]) * torch.tensor([[1.0], [1.0], [0.0]])
                site.assign(SitePlan(site.mask, line).mask, line)
        assert same(network, fuse(network)) and same(network, fuse(network, **FEWEST))


def test_a_stage_that_lost_its_relus_becomes_one_matrix_with_the_head():
    reduced = apply_steps(spec_of("resnet18 m=8", (3, 16, 16), 10), "cull S4")
    network = ready(reduced.spec.module(), reduced.spec.input)
    reduced.plan.apply(network)
    fused = fuse(network)
    assert same(network, fused)
    assert fused.get_submodule("fc").in_features == 32 * 4 * 4
    assert not hasattr(fused, "layer4")
    before, after = count(network), count(fused)
    assert (before.depth - after.depth, before.relus) == (4, after.relus)
    assert after.macs < before.macs


def test_a_block_with_a_stride_on_a_map_of_odd_size_becomes_one_convolution():
    reduced = apply_steps(spec_of("resnet18 m=8", (1, 28, 28), 10), "thin S4")
    network = ready(reduced.spec.module(), reduced.spec.input)
    reduced.plan.apply(network)
    fused = fuse(network)
    assert same(network, fused)
    merged = fused.get_submodule("layer4.0.conv2")
    assert (merged.kernel_size, merged.stride, merged.padding) == ((7, 7), (2, 2), (3, 3))
    assert count(fused).depth == count(network).depth - 1
    assert not hasattr(fused.get_submodule("layer4.0"), "downsample"), "the shortcut is inside"


class Shift(nn.Module):
    """A batch-norm that only a later layer can take in, as in a wide ResNet whose ReLU went."""

    def __init__(self, padding):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=padding)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        y = torch.relu(self.conv(self.norm(x)))
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_ahead_of_a_padded_layer_ends_at_the_border(padding):
    network = ready(Shift(padding), (3, 6, 6))
    fused = fuse(network)
    assert same(network, fused) and layers(fused) == 2
    assert isinstance(fused.get_submodule("conv"), MapConv2d) == bool(padding)
    bias = fused.get_submodule("conv").bias
    if padding:
        assert bias.shape == (4, 6, 6) and torch.allclose(bias[:, 1:-1, 1:-1], bias[:, 2:3, 2:3], atol=1e-5)
        assert not torch.allclose(bias[:, 0, 0], bias[:, 2, 2], atol=1e-3)
    assert same(network, fuse(fused)), "what is merged can be fused again"


def test_a_block_whose_shapes_forbid_it_is_not_merged():
    """Strides 2 and 1 that end in maps of one size: no convolution is their sum."""
    block = Branches(nn.Conv2d(3, 4, 1, 2), nn.Conv2d(3, 4, 4))
    network = ready(nn.Sequential(block, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), (3, 7, 7))
    fused = fuse(network, padded=True, **FEWEST)
    assert layers(fused) == layers(network) == 3 and same(network, fused)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(self.conv(x))).mean((2, 3)) + self.conv(x).mean((2, 3)))


def test_a_layer_that_is_called_elsewhere_keeps_its_own_numbers():
    network = ready(Twice(), (3, 5, 5))
    assert same(network, fuse(network)) and same(network, fuse(network, **FEWEST))


@pytest.mark.parametrize(("prices", "expected"), [(Prices(), 1), (Prices(mac=1e3), 2)])
def test_prices_decide_what_is_merged(prices, expected):
    """Two 3×3 kernels as one of 5×5: half of the products, but 25/18 of the multiply-adds."""
    module = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 144, 5))
    network = ready(module, (16, 16, 16))
    fused = fuse(network, cost=functools.partial(seconds, prices=prices))
    assert layers(fused) == expected + 1 and same(network, fused)


def test_folding_alone_keeps_the_layers():
    for name in ("resnet10 m=4", "resnet9 m=4", "resnet20 m=4"):
        network = ready(spec_of(name, (3, 16, 16), 10).module(), (3, 16, 16))
        folded = fuse(network, cost=nothing)
        assert same(network, folded)
        assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
        assert [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)], "the original keeps its own"
        assert list(folded.sites) == list(network.sites) and layers(folded) == layers(network)


def test_a_batch_norm_that_cannot_be_folded_is_a_shift():
    network = ready(Residual(), (1, 6, 6))
    folded = fuse(network, cost=nothing)
    assert [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d | Affine)] == ["late"]
    assert same(network, folded)


@pytest.mark.parametrize(
    ("steps", "depth"),
    [
        ("cull S1; thin S2+S3+S4; fmap 0.5", 8),
        ("cull S1+S4; thin S2+S3; channels 0.5", 7),
    ],
)
def test_published_depths(steps, depth):
    """DeepReDuce, Table 7, last rows: the stem counts 1, a culled stage 1, a thinned block 1."""
    reduced = apply_steps(spec_of("resnet18", (3, 32, 32), 100), steps)
    network = skeleton(reduced.spec)
    reduced.plan.apply(network)
    ends = {site.stage: name for name, site in network.sites.items()}
    merged = fuse(network, padded=True, apart=ends.values(), **FEWEST)
    assert count(merged).depth == depth
    assert count(fuse(network, padded=True)).depth < depth, "merging does not stop at stages where it pays"
    assert count(network).depth == 17


def test_padding_ahead_changes_the_border_and_nothing_else():
    """On a large map the middle of what a padded merge makes is what the layers made."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
    network = ready(nn.Sequential(body, nn.Flatten(), nn.Linear(4 * 81, 3)), (3, 18, 18))
    merged = fuse(network, padded=True, **FEWEST)
    assert layers(merged) == 2
    x = torch.randn(2, 3, 18, 18)
    with torch.no_grad():
        expected, found = body(x), torch.relu(merged.get_submodule("0.2")(x))
    assert torch.allclose(found[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-5)
    assert not torch.allclose(found[:, :, 0], expected[:, :, 0], atol=1e-2)


def test_the_original_stays_as_it_was():
    network = ready(Residual(), (1, 6, 6))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fuse(network, **FEWEST)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
