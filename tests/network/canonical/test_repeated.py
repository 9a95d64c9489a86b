"""Constants for each image and assignments to parts of a tensor are read as linear maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from parelu.network import ops
from parelu.network.count import count
from parelu.network.instrument import instrument


class Around(nn.Module):
    def __init__(self, made: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(2, 4, 1), nn.Linear(4, 3)
        self.token = nn.Parameter(torch.rand(1, 2, 1, 1))
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.made(self, self.conv(x))).mean((2, 3)))


def into_zeros(m, y):
    out = torch.zeros(y.size(0), 4, 3, 3)
    out[:, 1:3] = y[:, ::2]
    return out


def into_ones_of_its_kind(m, y):
    out = y.new_ones(y.shape)
    out[:, :, 1] = y[:, :, 0]
    return out


def a_number_into_it(m, y):
    y[:, 0] = 1.5
    return y


def another_into_it(m, y):
    before = y.clone()
    y[:, :2] = 3 * before[:, 2:]
    return y + before


CASES: dict[str, Callable[..., Tensor]] = {
    "zeros behind": lambda m, y: torch.cat([y[:, :2], torch.zeros(y.size(0), 2, 3, 3)], 1),
    "zeros around": lambda m, y: torch.cat([z := y.new_zeros(len(y.shape) and y.shape[0], 1, 3, 3), y[:, 1:3], z], 1),
    "zeros between": lambda m, y: torch.cat([y[:, :1], torch.zeros_like(y[:, :2]), y[:, 3:]], dim=1),
    "ones behind": lambda m, y: torch.cat((y[:, :3], torch.ones(y.shape[0], 1, 3, 3)), 1),
    "columns": lambda m, y: torch.cat([y, torch.full((y.size(0), 4, 3, 2), 0.5)], -1),
    "a parameter behind": lambda m, y: torch.cat([y[:, :2], m.token.expand(y.size(0), -1, 3, 3)], 1),
    "added to": lambda m, y: y + torch.ones(y.shape[0], 4, 1, 1) - 2 * torch.ones_like(y),
    "constants alone": lambda m, y: torch.ones(y.shape[0], 4, 3, 3),
    "into zeros": into_zeros,
    "into ones of its kind": into_ones_of_its_kind,
    "a number into it": a_number_into_it,
    "another into it": another_into_it,
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_of_the_vocabulary_and_computes_the_same(name):
    module = Around(CASES[name])
    network = instrument(module, (2, 3, 3))
    ops.read_all(network)
    x = torch.randn(3, 2, 3, 3)
    torch.testing.assert_close(network(x), module(x))
    assert count(network) == count(instrument(module.to("meta"), (2, 3, 3)))
