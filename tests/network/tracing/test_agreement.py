"""A network that was read is compared with its module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.network.instrument import instrument
from parelu.network.tracing.agreement import check_agreement

SHAPE = (1, 4, 4)


class Drifting(nn.Module):
    """One that computes something else each time."""

    def __init__(self, is_early: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.fc = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(2, 3)
        self.calls, self.is_early = 0, is_early

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = torch.relu(self.first(x))
        y = self.second(y * self.calls if self.is_early else y).mean((2, 3))
        return self.fc(y) if self.is_early else self.fc(y) * self.calls


@pytest.mark.parametrize(("is_early", "where"), [(True, "second"), (False, "Drifting")])
def test_what_is_read_in_another_way_is_refused_with_the_first_layer(is_early, where):
    with pytest.raises(UserError, match=rf"^{where}: the network is read in another way .* off by \d\S* of") as error:
        instrument(Drifting(is_early), SHAPE)
    assert "\n" not in str(error.value)


def test_the_shape_of_the_logits_is_compared():
    module, other = (nn.Sequential(nn.Flatten(), nn.Linear(16, classes)) for classes in (3, 4))
    with pytest.raises(UserError, match=r"^1: .*its logits are \(4,\) and not \(3,\)"):
        check_agreement(module, torch.fx.symbolic_trace(other), SHAPE)


def test_weights_without_numbers_agree():
    layer = nn.Linear(16, 3)
    nn.init.constant_(layer.bias, torch.nan)
    instrument(nn.Sequential(nn.Flatten(), layer), SHAPE)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_errors_are_measured_by_the_largest_number(scale):
    layers = nn.Linear(16, 3), nn.Linear(16, 3)
    module, other = (nn.Sequential(nn.Flatten(), layer) for layer in layers)
    for layer, factor in zip(layers, (1.0, 1.001), strict=True):
        nn.init.constant_(layer.weight, scale * factor)
        nn.init.constant_(layer.bias, 0)
    check_agreement(module, torch.fx.symbolic_trace(module), SHAPE)
    with pytest.raises(UserError, match="off by"):
        check_agreement(module, torch.fx.symbolic_trace(other), SHAPE)


class Chaotic(nn.Module):
    """The logistic map, which doubles a difference with each step: of rounding in single precision to all there is."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([factor]))

    def forward(self, x: Tensor) -> Tensor:
        x = (torch.relu(x) / 4 + 0.125).flatten(1)
        for _ in range(30):
            x = self.factor * torch.lerp(x, -x * x, 0.5)
        return x


def test_rounding_that_a_network_magnifies_is_no_difference():
    module = Chaotic(7.98).eval()
    before = module.factor.data_ptr()
    network = instrument(module, SHAPE)
    images = 2 * torch.rand(2, *SHAPE)
    assert not torch.allclose(module(images), network(images), atol=0.1)
    assert module.factor.data_ptr() == before, "its numbers were not touched"
    assert all(tensor.dtype != torch.float64 for tensor in (module.factor, *network.buffers()))
    with pytest.raises(UserError, match="read in another way"):
        check_agreement(Chaotic(7.97), network, SHAPE)
