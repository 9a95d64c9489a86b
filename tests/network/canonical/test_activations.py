"""Activations as ReLUs and linear maps: each equals the module, also at its corners, and is x without its ReLUs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from method_networks import networks
from torch import Tensor, nn

from parelu.network import ops
from parelu.network.canonical import smooth
from parelu.network.count import count
from parelu.network.instrument import instrument
from parelu.network.sites import Network

SHAPE = (3, 4, 4)
CORNERS = (-6.0, -3.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 6.0, 7.5)


class Called(nn.Module):
    """What a function makes of a map."""

    def __init__(self, function, weight: Tensor | None = None) -> None:
        super().__init__()
        self.function = function
        if weight is not None:
            self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if not hasattr(self, "weight") else self.function(x, self.weight)


def images() -> Tensor:
    """Random ones, and one of the corners of the usual activations."""
    random = 4 * torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor(CORNERS * 4).view(1, *SHAPE)
    return torch.cat([random, corners])


def logits_of(module: nn.Module, shape: tuple[int, ...] = SHAPE) -> tuple[nn.Module, Network]:
    """The module with the map made to logits, and its network, every node of which has a place."""
    whole = nn.Sequential(module, nn.Flatten()).eval()
    network = instrument(whole, shape).eval()
    assert not ops.unsupported(network)
    return whole, network


def without_relus(network: Network, *names: str) -> None:
    for name in names or list(network.sites):
        network.sites[name].assign(torch.zeros(network.sites[name].shape, dtype=torch.bool))


def prelu(channels: int) -> nn.PReLU:
    module = nn.PReLU(channels)
    nn.init.uniform_(module.weight, -0.5, 1.5)
    return module


# A module or a function → ReLUs a position, and what it is where none of them stands.
CASES = {
    "ReLU": (nn.ReLU(), 1),
    "ReLU in place": (nn.ReLU(inplace=True), 1),
    "torch.relu": (torch.relu, 1),
    "Tensor.relu_": (lambda x: x.clone().relu_(), 1),
    "clamp(min=0)": (lambda x: x.clamp(min=0), 1),
    "torch.clamp(x, 0)": (lambda x: torch.clamp(x, 0), 1),
    "clip(0.5)": (lambda x: x.clip(0.5), 1),
    "clamp_min": (lambda x: torch.clamp_min(x, 0), 1),
    "clamp_max": (lambda x: x.clamp_max(2), 1),
    "clamp(max)": (lambda x: torch.clamp(x, max=-0.5), 1),
    "clamp(-1, 2)": (lambda x: x.clamp(-1, 2), 2),
    "clamp by a tensor": (lambda x: torch.clamp(x, min=torch.tensor(-1.0), max=torch.tensor(2.0)), 2),
    "Threshold": (nn.Threshold(0, 0), 1),
    "F.threshold": (lambda x: F.threshold(x, 0.25, 0.25), 1),
    "LeakyReLU": (nn.LeakyReLU(0.2), 1),
    "LeakyReLU in place": (nn.LeakyReLU(0.2, inplace=True), 1),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.3), 1),
    "RReLU": (nn.RReLU(), 1),
    "PReLU": (prelu(1), 1),
    "PReLU a channel": (prelu(3), 1),
    "ReLU6": (nn.ReLU6(), 2),
    "ReLU6 in place": (nn.ReLU6(inplace=True), 2),
    "F.relu6": (F.relu6, 2),
    "Hardtanh": (nn.Hardtanh(), 2),
    "Hardtanh(-2, 0.5)": (nn.Hardtanh(-2.0, 0.5), 2),
    "F.hardtanh": (lambda x: F.hardtanh(x, 0.0, 1.0), 2),
    "Hardsigmoid": (nn.Hardsigmoid(), 2),
    "F.hardsigmoid": (F.hardsigmoid, 2),
    "Hardswish": (nn.Hardswish(), 2),
    "F.hardswish": (F.hardswish, 2),
    "abs": (torch.abs, 1),
    "Tensor.abs": (lambda x: x.abs(), 1),
    "maximum": (lambda x: torch.maximum(x, 2 * x - 1), 1),
    "minimum": (lambda x: torch.minimum(x, x.flip(2)), 1),
    "torch.max of two": (lambda x: torch.max(x, x[:, :1]), 1),
    "Tensor.min of two": (lambda x: x.min(x * 0.5), 1),
    "maxout": (lambda x: torch.maximum(x, torch.zeros(1)), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_module(name):
    function, relus = CASES[name]
    module = function if isinstance(function, nn.Module) else Called(function)
    whole, network = logits_of(module)
    assert torch.allclose(network(images()), whole(images()), rtol=0, atol=1e-6)
    counts = count(network)
    assert counts.relus == relus * images()[0].numel()
    assert counts.squares == (2 * images()[0].numel() if "swish" in name.lower() else 0)


LINEAR = [name for name in CASES if not any(part in name for part in ("ard", "abs", "max", "min of", "minimum"))]


@pytest.mark.parametrize("name", LINEAR)
def test_is_the_identity_without_its_relus(name):
    function, _ = CASES[name]
    _, network = logits_of(function if isinstance(function, nn.Module) else Called(function))
    without_relus(network)
    assert torch.allclose(network(images()), images().flatten(1), rtol=0, atol=1e-6)


@given(slope=st.floats(-2, 2, width=32))
def test_leaky_slopes(slope):
    whole, network = logits_of(nn.LeakyReLU(slope))
    assert torch.allclose(network(images()), whole(images()), rtol=0, atol=1e-5)


@given(low=st.floats(-4, 4, width=32), width=st.floats(0.125, 8, width=32))
def test_bounds(low, width):
    x = torch.cat([images(), torch.full((1, *SHAPE), low), torch.full((1, *SHAPE), low + width)])
    whole, network = logits_of(nn.Hardtanh(low, low + width))
    assert torch.allclose(network(x), whole(x), rtol=0, atol=1e-5)
    first, second = network.sites
    without_relus(network, second)
    assert torch.allclose(network(x), x.clamp(min=low).flatten(1), rtol=0, atol=1e-5)
    whole, network = logits_of(nn.Hardtanh(low, low + width))
    without_relus(network, first)
    assert torch.allclose(network(x), x.clamp(max=low + width).flatten(1), rtol=0, atol=1e-5)


def test_sites_of_a_cap_are_named_after_it():
    _, network = logits_of(nn.ReLU6())
    assert list(network.sites) == ["0", "0_cap"]
    assert network.notes == ()


def test_a_prelu_keeps_its_trained_weight():
    module = nn.Sequential(nn.Conv2d(3, 3, 1), prelu(3), nn.Conv2d(3, 3, 1), nn.Flatten())
    network = instrument(module, SHAPE)
    assert "1.weight" in dict(network.named_parameters())
    network(images()).sum().backward()
    gradient = dict(network.named_parameters())["1.weight"].grad
    module(images()).sum().backward()
    assert gradient is not None and module[1].weight.grad is not None
    assert torch.allclose(gradient.flatten(), module[1].weight.grad, atol=1e-3)


def test_a_prelu_that_is_called_twice_has_one_weight():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = prelu(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.act(x) - 1)

    whole, network = logits_of(Twice())
    assert torch.allclose(network(images()), whole(images()), atol=1e-6)
    assert [name for name, _ in network.named_parameters()] == ["0.act.weight"]
    assert len(network.sites) == 2


def test_an_activation_in_place_is_what_later_readers_see():
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z = F.leaky_relu_(y, 0.1)
            return torch.cat([y, z, F.hardtanh(y, -1.0, 1.0, True), y], 1)

    whole, network = logits_of(Aliased())
    assert torch.allclose(network(images()), whole(images()), atol=1e-6)


class Excited(nn.Module):
    """Squeeze-and-excitation: a gate a channel, of a pooled map."""

    def __init__(self, gate, pooled_to_vector: bool = False, channels: int = 3, is_spread: bool = False) -> None:
        super().__init__()
        self.is_spread = is_spread
        self.conv, self.gate, self.is_vector = nn.Conv2d(channels, 6, 1), gate, pooled_to_vector
        self.fc = nn.Linear(6, 6) if pooled_to_vector else nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        pooled = y.mean((2, 3), keepdim=not self.is_vector)
        gate = self.gate(8 * self.fc(pooled))
        gate = gate[:, :, None, None] if self.is_vector else gate
        return y * (gate.expand_as(y) if self.is_spread else gate)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("gate", [nn.Sigmoid(), torch.sigmoid, lambda x: x.sigmoid()])
def test_a_gate_runs_as_it_is(gate, vector):
    torch.manual_seed(0)
    module = Excited(gate, vector)
    whole, network = logits_of(module)
    found, expected = network(images()), whole(images())
    largest = module.conv(images()).abs().flatten(1).amax(1, keepdim=True)
    assert bool(((found - expected).abs() <= largest * smooth.LARGEST_ERROR).all())
    assert not torch.equal(found, expected)
    counts = count(network)
    assert counts.relus == 6 * len(smooth.knots_of("sigmoid").places)
    assert counts.squares == 2 * 6 * 16
    assert counts.params == sum(p.numel() for p in module.parameters())
    assert any("sigmoid is piecewise linear within 0.001" in note for note in network.notes)


def test_a_gate_without_relus_is_open():
    whole, network = logits_of(Excited(nn.Sigmoid()))
    without_relus(network)
    assert torch.allclose(network(images()), whole[0].conv(images()).flatten(1), atol=1e-5)


@pytest.mark.parametrize("function", [nn.Softmax(1), lambda x: F.softmax(x, dim=-4), lambda x: x.softmax(1)])
def test_a_softmax_of_two_branches_runs_as_it_is(function):
    """As of selective kernels: two numbers for each channel, which weigh two maps."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down, self.softmax = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1), Called(function)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            weights = self.softmax(self.down(x.mean((2, 3), keepdim=True)).view(-1, 2, 6, 1, 1))
            return (x.view(-1, 2, 6, *x.shape[2:]) * weights).sum(1).flatten(1)

    torch.manual_seed(0)
    whole, network = logits_of(Branches())
    assert not ops.unsupported(network)
    assert (network(images()) - whole(images())).abs().max() <= 2 * whole[0].conv(
        images()
    ).abs().max() * smooth.LARGEST_ERROR
    assert count(network).relus == 6 * len(smooth.knots_of("sigmoid").places)


def test_a_softmax_of_three_is_refused():
    (problem,) = ops.unsupported(instrument(nn.Sequential(Called(lambda x: x.softmax(1)), nn.Flatten()), SHAPE))
    assert problem.op == "softmax"


def test_a_hard_gate_is_exact():
    whole, network = logits_of(Excited(nn.Hardsigmoid()))
    assert torch.allclose(network(images()), whole(images()), atol=1e-5)


@pytest.mark.parametrize("function", [torch.tanh, F.silu, F.gelu, F.elu, F.mish, F.softplus, F.logsigmoid, torch.erf])
def test_smooth_activations_of_maps_run_as_they_are(function):
    torch.manual_seed(0)
    whole, network = logits_of(nn.Sequential(nn.Conv2d(3, 6, 1), Called(function)))
    assert not ops.unsupported(network)
    off = (network(images()) - whole(images())).abs().max()
    assert 0 < off <= 1.01 * smooth.LARGEST_ERROR
    assert any("is piecewise linear within 0.001" in note for note in network.notes)


@pytest.mark.parametrize("is_spread", [False, True])
def test_a_gate_and_an_activation_of_two_readers_open_no_stage(is_spread):
    """The stem ends where a block begins, not at a LeakyReLU, which reads its input twice; a gate is of its block."""

    class Block(nn.Module):
        def __init__(self, stride: int) -> None:
            super().__init__()
            self.conv, self.excited = nn.Conv2d(6, 6, 3, stride, 1), Excited(nn.Sigmoid(), False, 6, is_spread)
            self.act, self.shortcut = nn.PReLU(), nn.Conv2d(6, 6, 1, stride)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.excited(self.act(self.conv(x))) + self.shortcut(x))

    stem = nn.Sequential(nn.Conv2d(3, 6, 1), nn.LeakyReLU())
    network = instrument(nn.Sequential(stem, Block(1), Block(2), nn.Flatten()), SHAPE)
    stages = [site.stage for site in network.sites.values()]
    assert stages == ["stem", "S1", "S1", "S1", "S2", "S2", "S2"]
    assert [site.block for site in network.sites.values()] == [0, 0, 0, 0, 0, 0, 0]
    plain = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), Excited(nn.Sigmoid(), channels=6), nn.ReLU(), nn.Flatten())
    assert {site.stage for site in instrument(plain, SHAPE).sites.values()} == {"S1"}, "without a block, no stem"


def test_a_gate_is_the_same_with_fresh_weights():
    """Its knots are no weights: a network that is written out and built anew has them as they are."""
    spec = networks()["a gate"]
    network = instrument(spec.module(), spec.input)
    knots = [module for name, module in network.named_modules() if name.endswith("_knots")]
    (slopes,) = [module for name, module in network.named_modules() if name.endswith("_slopes")]
    assert torch.allclose(knots[0].bias.flatten(), -torch.tensor(smooth.knots_of("sigmoid").places))
    assert torch.allclose(slopes.matrix.flatten(), torch.tensor(smooth.knots_of("sigmoid").changes))
