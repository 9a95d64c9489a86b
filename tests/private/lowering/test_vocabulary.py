"""Each op of the vocabulary is lowered: the ring is the float network up to rounding, and two parties are the ring."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from two_parties import NARROW, WIDE, Pair, images_of, lowered_of, preprocessing_of, ready

from parelu.fusion.fuse import nothing
from parelu.network import functions
from parelu.network.preprocessing import normalise
from parelu.private.lowering import reference

SHAPE = (1, 6, 6)


class Around(nn.Module):
    """An op on a map of 4 channels, 6 × 6, after a ReLU, with a ReLU and a classifier behind it."""

    def __init__(self, op):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.op = op
        self.after = nn.ReLU()
        self.fc = nn.LazyLinear(5)

    def forward(self, x):
        x = self.after(self.op(self.relu(self.conv(x))))
        return self.fc(torch.flatten(x, 1))


class Call(nn.Module):
    def __init__(self, call, **modules):
        super().__init__()
        self.call = call
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.call(self, x)


def affine(*shape):
    layer = functions.Affine(shape)
    generator = torch.Generator().manual_seed(1)
    layer.weight.data = torch.rand(shape, generator=generator) - 0.3
    layer.bias.data = torch.rand(shape, generator=generator) - 0.5
    return layer


class Factor(nn.Module):
    """x + the number of a buffer times a layer's output."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.register_buffer("number", torch.tensor(0.3))

    def forward(self, x):
        return x + self.number * self.conv(x)


BILINEAR = torch.tensor(
    [[1, 0, 0, 0, 0, 0], [0.25, 0.75, 0, 0, 0, 0], [0, 0, 0.75, 0.25, 0, 0], [0, 0, 0, 0, 0.5, 0.5]]
)
ODD = torch.rand(5, 6, generator=torch.Generator().manual_seed(2)) - 0.4
OPS = {
    "max-pool": lambda: nn.MaxPool2d(2),
    "max-pool 3, 2, 1": lambda: nn.MaxPool2d(3, 2, 1),
    "max-pool of one row": lambda: nn.MaxPool2d((1, 3), 1, (0, 1)),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1),
    "a pool and what it reads": lambda: Call(lambda m, x: x + F.avg_pool2d(x, 3, 1, 1)),
    "dilated": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "dilated beyond the map": lambda: nn.Conv2d(4, 6, 3, padding=9, dilation=9),
    "dilated depthwise": lambda: nn.Conv2d(4, 4, (3, 2), padding=(2, 0), dilation=(2, 3), groups=4),
    "affine, a channel": lambda: affine(4, 1, 1),
    "affine, a position": lambda: affine(4, 6, 6),
    "affine, a column": lambda: affine(1, 1, 6),
    "affine behind a layer": lambda: nn.Sequential(nn.Conv2d(4, 3, 1), affine(3, 1, 1)),
    "affine before a layer": lambda: nn.Sequential(affine(4, 1, 1), nn.Conv2d(4, 3, 3, padding=1)),
    "scaled": lambda: Call(lambda m, x: x * 0.37),
    "scaled by a buffer": Factor,
    "scaled, negative": lambda: Call(lambda m, x: m.conv(x) * -1.7, conv=nn.Conv2d(4, 4, 1)),
    "scaled by nothing": lambda: Call(lambda m, x: x * 0.0),
    "scaled in a sum": lambda: Call(lambda m, x: m.conv(x) + x * 0.3, conv=nn.Conv2d(4, 4, 1)),
    "scaled a lot": lambda: Call(lambda m, x: m.conv(x * 1e-4) * 1e4, conv=nn.Conv2d(4, 4, 1, bias=False)),
    "a product of maps": lambda: Call(lambda m, x: x * m.conv(x), conv=nn.Conv2d(4, 4, 1)),
    "a square": lambda: Call(lambda m, x: x * x),
    "a gate": lambda: Call(
        lambda m, x: x * m.b(torch.relu(m.a(x.mean((2, 3), keepdim=True)))), a=nn.Conv2d(4, 3, 1), b=nn.Conv2d(3, 4, 1)
    ),
    "a product of two units": lambda: Call(lambda m, x: F.avg_pool2d(x, 3, 1, 1) * (x * 0.3)),
    "a product of large maps": lambda: Call(lambda m, x: m.conv(x * 1e4 * x) * 1e-4, conv=nn.Conv2d(4, 4, 1)),
    "bilinear rows": lambda: functions.Resample(1, BILINEAR),
    "bilinear both": lambda: nn.Sequential(functions.Resample(1, BILINEAR), functions.Resample(2, BILINEAR)),
    "any matrix": lambda: functions.Resample(2, ODD),
    "channels resampled": lambda: functions.Resample(0, ODD[:, :4]),
    "a resampling of a layer in a sum": lambda: Call(
        lambda m, x: m.b(x) + m.r(m.a(x)),
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 4, 1),
        r=functions.Resample(1, ODD[:, [0] * 6].repeat(2, 1)[:6]),
    ),
    "rows permuted": lambda: Call(lambda m, x: x.permute(0, 2, 1, 3)),
    "shuffled": lambda: Call(lambda m, x: x.view(-1, 2, 2, 6, 6).transpose(1, 2).flatten(1, 2)),
    "reshaped": lambda: Call(lambda m, x: x.reshape(-1, 2, 2, 3, 12)),
    "every second": lambda: Call(lambda m, x: x[:, :, ::2, 1:]),
    "padded": lambda: Call(lambda m, x: F.pad(x, (1, 0, 2, 1))),
    "joined rows": lambda: Call(lambda m, x: torch.cat([x, m.conv(x), x], 2), conv=nn.Conv2d(4, 4, 1)),
    "joined columns of two units": lambda: Call(
        lambda m, x: torch.cat([x * 0.7, m.pool(x)], 3), pool=nn.AvgPool2d((1, 2), (1, 2))
    ),
    "a matrix on columns": lambda: nn.Linear(6, 3),
    "a matrix on channels": lambda: Call(
        lambda m, x: m.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + x, fc=nn.Linear(4, 4)
    ),
    "a matrix on tokens": lambda: Call(lambda m, x: m.fc(x.flatten(2)), fc=nn.Linear(36, 7)),
}
NEW = ["max-pool 3, 2, 1", "dilated", "affine, a column", "bilinear both", "any matrix", "rows permuted", "padded"]
NEW += ["a gate", "a square", "scaled, negative", "joined rows", "a matrix on channels"]


def network_of(op, seed=0):
    module = Around(op)
    torch.manual_seed(seed)
    module(torch.zeros(2, *SHAPE))  # the lazy layer's size
    return ready(module, SHAPE, lambda u: u < 0.6)


def float_logits(network, images):
    p = preprocessing_of(network.input_shape[0])
    with torch.no_grad():
        return network(normalise(images, tuple(p["mean"]), tuple(p["std"]))).double().numpy()


def error_of(lowered, network, images):
    expected = float_logits(network, images)
    return np.abs(reference.run(lowered, images).logits - expected).max() / max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", OPS)
def test_each_op_is_the_float_network_up_to_rounding(name):
    network, images = network_of(OPS[name]()), images_of(16, SHAPE, seed=1)
    for options in ({}, {"cost": nothing}, {"cost": lambda layer: 1.0}, {"ring": WIDE}):
        lowered = lowered_of(network, 32, **options)
        assert error_of(lowered, network, images) < 0.01
        assert lowered.program.relus >= sum(site.relus for site in network.sites.values())
        assert all(re.fullmatch(r"[\w.]+", found.layer) for found in lowered.ranges), "a path, not a function"


@pytest.mark.parametrize("offline", ["dealer", "hints"])
@pytest.mark.parametrize("name", NEW)
def test_two_parties_run_each_op_as_the_reference(name, offline):
    for ring in (NARROW, WIDE):
        lowered = lowered_of(network_of(OPS[name]()), ring=ring)
        with Pair(lowered, "sign", offline, timeout=60) as pair:
            image = images_of(1, SHAPE, seed=1)[0]
            result, shares = pair.infer(image)
        assert pair.server_error is None
        assert np.array_equal(result, reference.replay(lowered, image, shares, "sign"))
