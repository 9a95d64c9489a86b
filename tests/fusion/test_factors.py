"""Factors of batch-norms and affine maps: folded into the layer before, or carried through the activation behind."""

import numpy as np
import pytest
import torch
from torch import nn
from two_parties import Pair, images_of, lowered_of, preprocessing_of, ready

from parelu.fusion.factors import uniform
from parelu.fusion.fuse import fuse, layers, nothing
from parelu.network import functions, ops
from parelu.network.preprocessing import normalise
from parelu.private.lowering import reference

SHAPE = (2, 6, 6)


class Dense(nn.Module):
    """Batch-norms behind a concatenation, an addition and a pool; the readers are grouped, pooled and flattened."""

    def __init__(self, affine=False):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm1, self.relu1 = nn.BatchNorm2d(6), nn.ReLU()
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.norm2, self.relu2 = nn.BatchNorm2d(6), nn.ReLU()
        self.conv2, self.skip = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.norm3 = functions.Affine((6, 1, 1)) if affine else nn.BatchNorm2d(6)
        self.norm3.relu3 = nn.ReLU()  # as timm has it
        self.pool, self.fc = nn.AvgPool2d(3), nn.Linear(24, 5)

    def forward(self, x):
        x = torch.cat([self.stem(x), x], 1)
        x = x + self.conv1(self.relu1(self.norm1(x)))
        y = self.relu2(self.norm2(x))
        x = self.conv2(y) + self.skip(y) + x
        return self.fc(torch.flatten(self.pool(self.norm3.relu3(self.norm3(x))), 1))


def network(factor=lambda c: torch.rand(c) + 0.5, affine=False, coefficients=None):
    module = Dense(affine)
    with torch.no_grad():
        for norm in (module.norm1, module.norm2, module.norm3):
            norm.weight.copy_(factor(6).view(norm.weight.shape))
            norm.bias.copy_(torch.randn(norm.bias.shape))
    return ready(module, SHAPE, lambda u: u < 0.6, coefficients)


def polynomials(channels):
    return torch.tensor([[0.1], [0.8], [0.1]]) * torch.rand(3, channels)


@pytest.mark.parametrize("coefficients", [None, polynomials])
@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_norm_before_an_activation_is_a_shift(affine, coefficients):
    found = network(affine=affine, coefficients=coefficients)
    fused = fuse(found, cost=nothing)
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(fused(x), found(x), rtol=1e-4, atol=1e-5)
    kinds = [type(ops.read(node)) for node in fused.graph.nodes]
    assert ops.BatchNorm not in kinds and kinds.count(ops.Affine) == 3
    assert all(uniform(op) == 1 for op in map(ops.read, fused.graph.nodes) if isinstance(op, ops.Affine))
    assert len(layers(fused)) == 5
    lowered = lowered_of(found, cost=nothing)
    kinds = [op.kind for op in lowered.program.ops]
    assert (kinds.count("conv"), kinds.count("linear"), kinds.count("shift"), kinds.count("multiply")) == (4, 1, 3, 0)


@pytest.mark.parametrize(
    "factor", [lambda c: -torch.ones(c), lambda c: torch.arange(c) / c, lambda c: torch.full((c,), 1e-6)]
)
def test_a_factor_that_an_activation_does_not_carry_stays(factor):
    found = network(factor)
    fused = fuse(found, cost=nothing)
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(fused(x), found(x), rtol=1e-4, atol=1e-5)
    assert sum(isinstance(ops.read(node), ops.BatchNorm) for node in fused.graph.nodes) == 3


@pytest.mark.parametrize("offline", ["dealer", "hints"])
def test_two_parties_add_shifts_as_the_reference(offline):
    lowered, image = lowered_of(network()), images_of(1, SHAPE, seed=1)[0]
    with Pair(lowered, "sign", offline, timeout=60) as pair:
        result, shares = pair.infer(image)
    assert pair.server_error is None
    assert (result == reference.replay(lowered, image, shares, "sign")).all()


def test_a_constant_factor_costs_nothing():
    """As behind ReLU6: b − relu(b − x)."""
    found = ready(Behind(), SHAPE, lambda u: u < 0.6)
    lowered = lowered_of(found, 64)
    assert [op.kind for op in lowered.program.ops if op.is_secret] == ["conv", "linear"]
    images = images_of(8, SHAPE, seed=1)
    p = preprocessing_of(2)
    expected = found(normalise(images, tuple(p["mean"]), tuple(p["std"]))).detach().double().numpy()
    assert np.abs(reference.run(lowered, images).logits - expected).max() < 0.01


class Behind(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.cap, self.fc = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ReLU(), nn.Linear(64, 5)

    def forward(self, x):
        return self.fc(torch.flatten(0.5 - self.cap(0.5 - self.relu(self.conv(x) * 0.7)), 1))


def test_dilated_convolutions_count_their_taps_and_merge_with_nothing():
    """By hand: 8·8·9·28² multiply-adds at 28 × 28."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 1),
        nn.Conv2d(8, 8, 3, dilation=4, bias=False),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    found = ready(module, (1, 36, 36))
    for cost in (nothing, lambda layer: 1.0):
        fused = fuse(found, cost=cost)
        x = torch.randn(2, 1, 36, 36)
        torch.testing.assert_close(fused(x), found(x), rtol=1e-4, atol=1e-5)
        (dilated,) = (layer for layer in layers(fused) if layer.dilation == (4, 4))
        assert dilated.macs == 8 * 8 * 9 * 28 * 28 and dilated.expanded.kernel == (9, 9)
        assert dilated.output_size == dilated.expanded.output_size == (28, 28)
