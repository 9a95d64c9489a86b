"""The independent counter of dispatched ops (benchmarks/aten.py), which counts are held against."""

import importlib
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from parelu.network.count import count
from parelu.network.instrument import instrument


@pytest.fixture(scope="module")
def aten():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield importlib.import_module("aten")


class Called(nn.Module):
    def __init__(self, function, shape=(3, 7, 9)):
        super().__init__()
        self.conv, self.function, self.shape = nn.Conv2d(shape[0], 4, 1), function, shape
        self.slopes = nn.Parameter(torch.full((4,), 0.2))
        self.register_buffer("blur", torch.ones(4, 1, 2, 2) / 4)

    def forward(self, x):
        return self.function(self, self.conv(x)).flatten(1)

    def counted(self, aten):
        cost, counts = aten.count(self, self.shape), count(instrument(self, self.shape))
        assert (counts.relus, counts.comparisons, counts.macs) == (cost.relus, cost.comparisons, cost.macs)
        return cost


PIXELS = 4 * 7 * 9


@pytest.mark.parametrize(
    ("function", "relus"),
    [
        (lambda m, x: F.relu(x), PIXELS),
        (lambda m, x: x.relu_() + x, PIXELS),
        (lambda m, x: F.relu6(x), 2 * PIXELS),
        (lambda m, x: F.hardswish(x), 2 * PIXELS),
        (lambda m, x: x.clamp(min=-1), PIXELS),
        (lambda m, x: x.clamp(max=1), PIXELS),
        (lambda m, x: F.leaky_relu(x, 0.1), PIXELS),
        (lambda m, x: F.prelu(x, m.slopes), PIXELS),
        (lambda m, x: torch.maximum(x, x.flip(1)), PIXELS),
        (lambda m, x: x.relu()[:, :1], PIXELS),
        (lambda m, x: (x.relu(), x + 1)[1], 0),  # nobody reads it
        (lambda m, x: x + m.conv.bias.relu().view(-1, 1, 1), 0),  # no image
    ],
)
def test_relus(aten, function, relus):
    assert Called(function).counted(aten).relus == relus


@given(kernel=st.integers(1, 6), stride=st.integers(1, 3), padding=st.integers(0, 3), ceil=st.booleans())
@settings(max_examples=30, deadline=None)
def test_comparisons(aten, kernel, stride, padding, ceil):
    assume(padding <= kernel // 2)
    Called(lambda m, x: F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil)).counted(aten)


def test_infinity_around_a_map_is_padding(aten):
    """So that the largest of a window at the edge takes fewer comparisons."""
    cost = Called(lambda m, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 2, 2)).counted(aten)
    assert cost.comparisons == 4 * (4 * 7 + 3 * 5)


def test_a_fixed_filter_is_apart(aten):
    cost = Called(lambda m, x: F.conv2d(x, m.blur, groups=4)).counted(aten)
    assert (cost.macs, cost.filtered) == (3 * PIXELS, 4 * 4 * 6 * 8)


def test_sigmoids_and_what_is_smooth(aten):
    """Of a map each number is counted, and of two branches the difference alone; others by their names."""
    assert aten.count(Called(lambda m, x: x + x.sigmoid()), (3, 7, 9)).sigmoids == PIXELS
    assert aten.count(Called(lambda m, x: x.view(-1, 2, 2, 7, 9).softmax(1)), (3, 7, 9)).sigmoids == PIXELS // 2

    def call(m, x):
        return F.silu(x) + F.silu(x, inplace=True) + F.gelu(x) + F.gelu(x, approximate="tanh")

    assert aten.count(Called(call), (3, 7, 9)).smooth == {"silu": 2 * PIXELS, "gelu": PIXELS, "gelu tanh": PIXELS}
