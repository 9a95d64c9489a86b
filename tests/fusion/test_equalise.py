"""Equalisation: the same function, with channels of like ranges."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from two_parties import images_of, ready

from parelu.fusion.equalise import equalise
from parelu.fusion.fuse import fuse, nothing
from parelu.network.sites import Network
from parelu.network.spec import spec_of
from parelu.private.fresh import untrained


class Mixed(nn.Module):
    """Groups, a sum, a pool, a late batch-norm, a vector made of a map, a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(2, 8, 3, padding=1), nn.ReLU()
        self.depthwise, self.relu2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()
        self.point, self.grouped = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 12, 1, groups=4)
        self.norm, self.relu3 = nn.BatchNorm2d(8), nn.ReLU()
        self.twice, self.relu4 = nn.Conv2d(12, 12, 1), nn.ReLU()
        self.hidden, self.relu5 = nn.Linear(12 * 9, 16), nn.ReLU()
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        x = x + self.point(self.relu2(self.depthwise(x)))
        x = self.grouped(self.relu3(self.norm(x)))
        x = self.relu4(self.twice(self.twice(x)))
        return self.fc(self.relu5(self.hidden(torch.flatten(F.avg_pool2d(x, 2), 1))))


def layer(network: Network, name: str) -> nn.Conv2d:
    found = network.get_submodule(name)
    assert isinstance(found, nn.Conv2d)
    return found


def uneven(network: Network, decades: float) -> Network:
    """Each channel of each layer by a factor of its own, up to so many powers of ten either way."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not network.get_submodule("fc"):
            with torch.no_grad():
                factor = 10 ** (decades * (2 * torch.rand(len(module.weight)) - 1))
                module.weight *= factor.view(-1, *[1] * (module.weight.dim() - 1))
    return network


def polynomial(channels: int) -> torch.Tensor:
    return torch.tensor([[0.1], [0.7], [0.0]]).repeat(1, channels)


@settings(max_examples=12)
@given(st.integers(0, 1000), st.sampled_from([0.0, 1.0, 3.0]), st.booleans(), st.booleans())
def test_it_is_the_same_function_to_the_bit(seed: int, decades: float, is_fused: bool, has_squares: bool):
    """Powers of two round nothing."""
    torch.manual_seed(seed)
    network = uneven(ready(Mixed(), (2, 6, 6), lambda u: u < 0.7, polynomial), decades)
    if has_squares:
        network.sites["relu2"].assign(network.sites["relu2"].mask, (0.1, 0.6, 0.2))
    fused = fuse(network, cost=(lambda layer: 1.0) if is_fused else nothing)
    images = images_of(8, (2, 6, 6), seed).float() / 64 - 2
    equal = equalise(fused, images)
    changed = [n for n, t in fused.state_dict().items() if not torch.equal(t, equal.state_dict()[n])]
    assert changed or decades < 3.0
    with torch.no_grad():
        assert torch.equal(fused(images), equal(images))
    kept = {"twice.weight", "twice.bias", *(("depthwise.bias",) if has_squares else ())}
    assert not kept & set(changed), "what is called twice, and what writes squares, takes no factors"


def test_what_drowns_is_raised_to_where_the_others_are():
    """A depthwise layer over four orders of magnitude, which the next layer undoes."""
    torch.manual_seed(0)
    network = ready(Mixed(), (2, 6, 6))
    factor = torch.logspace(-4, 0, 8)
    with torch.no_grad():
        layer(network, "depthwise").weight *= factor.view(-1, 1, 1, 1)
        layer(network, "depthwise").bias.mul_(factor)
        layer(network, "point").weight /= factor.view(1, -1, 1, 1)
    fused = fuse(network, cost=nothing)
    equal = equalise(fused, images_of(8, (2, 6, 6)).float() / 64 - 2)
    spreads = []
    for each in (fused, equal):
        rows = layer(each, "depthwise").weight.detach().abs().amax((1, 2, 3))
        columns = layer(each, "point").weight.detach().abs().amax((0, 2, 3))
        spreads.append((float(rows.max() / rows.min()), float(columns.max() / columns.min())))
    assert min(spreads[0]) > 3000 and max(spreads[1]) < 100


def test_a_network_of_like_channels_stays_as_it_is():
    candidate = untrained(spec_of("resnet10 m=4", (1, 8, 8), 10), 0.5, seed=0)
    fused = fuse(candidate.network())
    equal = equalise(fused, images_of(8, (1, 8, 8)).float() / 64 - 2)
    assert all(torch.equal(a, b) for a, b in zip(fused.parameters(), equal.parameters(), strict=True))


@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_a_channel_that_is_never_on_needs_no_factor(value: float):
    network = ready(Mixed(), (2, 6, 6))
    with torch.no_grad():
        layer(network, "depthwise").weight[3] = value
        layer(network, "depthwise").bias[3].zero_()
    fused, images = fuse(network, cost=nothing), images_of(8, (2, 6, 6)).float() / 64 - 2
    equal = equalise(fused, images)
    assert all(bool(torch.isfinite(t).all()) for t in equal.state_dict().values())
    with torch.no_grad():
        assert torch.equal(fused(images), equal(images))
