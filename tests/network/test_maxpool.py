"""Max-pools as comparisons, against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from parelu.network import maxpool

SIDES = st.tuples(st.integers(3, 12), st.integers(3, 12))
KERNELS = st.tuples(st.integers(1, 6), st.integers(1, 6))


def run(levels: tuple[maxpool.Level, ...], x: torch.Tensor) -> torch.Tensor:
    for level in levels:
        a, b = (x.index_select(level.axis + 1, torch.tensor(side)) for side in (level.left, level.right))
        x = b + F.relu(a - b)
        assert tuple(x.shape[1:]) == level.shape
    return x


def depth(window: int) -> int:
    return math.ceil(math.log2(window))


@given(
    sides=SIDES,
    kernel=KERNELS,
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    ceil_mode=st.booleans(),
    data=st.data(),
)
def test_equals_torch(sides, kernel, stride, dilation, ceil_mode, data):
    kernel = tuple(min(k, (side - 1) // d + 1) for k, side, d in zip(kernel, sides, dilation, strict=True))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    x = torch.randint(-50, 50, (2, 3, *sides), generator=torch.Generator().manual_seed(0)).double()
    expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    levels = maxpool.levels((3, *sides), tuple(expected.shape[1:]), kernel, stride, padding, dilation)
    assert torch.equal(run(levels, x), expected)
    rounds = sum(bool(level.comparisons) for level in levels)
    assert rounds <= sum(map(depth, kernel))
    unshared = [
        sum(
            len(w) - 1
            for w in maxpool.windows(sides[d], expected.shape[2 + d], kernel[d], stride[d], padding[d], dilation[d])
        )
        for d in (0, 1)
    ]
    rows_first = unshared[0] * sides[1] + unshared[1] * expected.shape[2]
    assert maxpool.comparisons(levels) <= 3 * rows_first


@pytest.mark.parametrize(
    ("side", "after", "kernel", "stride", "padding", "comparisons", "rounds"),
    [
        (8, 4, 2, 2, 0, 8 * 4 + 4 * 4, 2),
        (8, 4, 3, 2, 1, 7 * 8 + 7 * 4, 4),  # 1 + 3·2 a line
        (112, 56, 3, 2, 1, 111 * 112 + 111 * 56, 4),  # of a ResNet at 224×224: 1 + 55·2 a line
        (8, 8, 5, 1, 2, 18 * 8 * 2, 6),  # 26 a line if windows shared nothing
        (8, 2, 1, 4, 0, 0, 0),  # it only skips
        (7, 1, 7, 7, 0, 6 * 7 + 6, 6),
    ],
)
def test_number_and_rounds(side, after, kernel, stride, padding, comparisons, rounds):
    levels = maxpool.levels((1, side, side), (1, after, after), (kernel,) * 2, (stride,) * 2, (padding,) * 2)
    assert maxpool.comparisons(levels) == comparisons
    assert sum(bool(level.comparisons) for level in levels) == rounds


def test_less_along_the_cheaper_dimension_first():
    levels = maxpool.levels((1, 4, 16), (1, 4, 2), (1, 8), (1, 8), (0, 0))
    assert {level.axis for level in levels} == {2}
    tall = maxpool.levels((2, 8, 8), (2, 2, 4), (4, 2), (4, 2), (0, 0))
    assert tall[0].axis == 1 and maxpool.comparisons(tall) == 2 * (6 * 8 + 2 * 4)


def test_window_in_the_padding_alone():
    with pytest.raises(ValueError, match="padding alone"):
        maxpool.tree([(), (0,)], 1)
