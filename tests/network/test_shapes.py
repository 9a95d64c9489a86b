"""Shapes on the meta device: what is answered at once is what torch finds out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parelu.network import shapes
from parelu.network.shapes import ShapesAlone


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


CALLS = {
    "normal_": lambda x: x.normal_(),
    "uniform_": lambda x: x.uniform_(),
    "relu": F.relu,
    "relu_": lambda x: x.relu_(),
    "hardtanh": F.hardtanh,
    "hardtanh_": lambda x: F.hardtanh(x, inplace=True),
    "sigmoid": torch.sigmoid,
    "sqrt": torch.sqrt,
    "reciprocal": lambda x: 1 / x,
    "add": lambda x: x + meta(3, 4, 5, 6),
    "add_": lambda x: x.add_(meta(4, 1, 1)),
    "add, a number": lambda x: x + 2.5,
    "sub, spread": lambda x: x - meta(4, 1, 6),
    "mul, the second is larger": lambda x: meta(4, 1, 1) * x,
    "mul_": lambda x: x.mul_(2),
    "mul, of two types": lambda x: x * meta(4, 1, 1, dtype=torch.float64),
    "div": lambda x: x / meta(6),
    "add, whole numbers": lambda x: x.long() + 0.5,
    "add, what does not fit": lambda x: x + meta(5),
    "mean": lambda x: x.mean((2, 3)),
    "mean, kept": lambda x: F.adaptive_avg_pool2d(x, 1),
    "linear": lambda x: F.linear(x.flatten(1), meta(7, 120), meta(7)),
    "linear, of another bias": lambda x: torch.addmm(meta(3, 7), x.flatten(1), meta(120, 7)),
    "batch_norm": lambda x: F.batch_norm(x, meta(4), meta(4), meta(4), meta(4)),
    "batch_norm, training": lambda x: F.batch_norm(x, meta(4), meta(4), training=True),
}


def told(call) -> tuple[object, ...]:
    x = meta(3, 4, 5, 6)
    try:
        found = call(x)
    except RuntimeError as error:
        return (type(error),)
    return found.shape, found.dtype, found.device, found is x


@pytest.mark.parametrize("name", CALLS)
def test_they_are_torchs_own(name):
    expected = told(CALLS[name])
    with ShapesAlone():
        assert told(CALLS[name]) == expected


def test_all_that_is_answered_is_among_them():
    answered = {op.__name__.removeprefix("_") for op in (*shapes._IN_PLACE, *shapes._OF_EACH_NUMBER)}
    assert answered == {name.partition(",")[0] for name in CALLS} - {"mean", "linear", "batch_norm"}


def test_numbers_are_computed_as_ever():
    x = torch.tensor([[-1.0, 2.0]])
    with ShapesAlone():
        assert torch.equal(F.relu(x) + 1, torch.tensor([[1.0, 3.0]]))
