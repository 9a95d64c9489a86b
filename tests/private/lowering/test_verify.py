"""A program that does not compute what its network does is refused, by the first layer that is off."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from two_parties import Residual, images_of, lowered_of, preprocessing_of, ready

from parelu.errors import UserError
from parelu.fusion.fuse import nothing
from parelu.network.instrument import instrument
from parelu.network.preprocessing import normalise
from parelu.network.sites import Network
from parelu.private.lowering import lower as lower_module
from parelu.private.lowering import reference, verify
from parelu.private.lowering.lower import lower
from parelu.private.lowering.ops import Add, Conv
from parelu.private.lowering.translate import Translation


class Mutant(Translation):
    """Writes one op wrongly."""

    mutation = ""

    def emit(self, node, op):
        if isinstance(op, Add) and self.mutation == "a sum of one term with itself":
            op = dataclasses.replace(op, other=op.source)
        if isinstance(op, Conv) and op.stride == (2, 2) and self.mutation == "another kernel":
            op = dataclasses.replace(op, padding=(2, 2), kernel=(5, 5))
        return super().emit(node, op)

    def program(self, preprocessing):
        made = super().program(preprocessing)
        for number, numbers in self.weights.items():
            if self.mutation == "a lost bias" and self.layers[number] == "depthwise":
                numbers["bias"] = numbers["bias"] * 0
            if self.mutation == "turned weights" and self.layers[number] == "fc":
                numbers["weight"] = numbers["weight"][::-1].copy()
            if self.mutation == "another kernel" and self.layers[number] == "depthwise":
                numbers["weight"] = np.pad(numbers["weight"], ((0, 0), (0, 0), (0, 2), (0, 2)))
        return made


@pytest.mark.parametrize(
    ("mutation", "path"),
    [
        ("a sum of one term with itself", "network"),
        ("a lost bias", "depthwise"),
        ("another kernel", "depthwise"),
        ("turned weights", "fc"),
    ],
)
def test_a_wrong_program_is_named_by_its_first_wrong_layer(mutation, path, monkeypatch):
    network = ready(Residual(), (1, 6, 6))
    with torch.no_grad():
        network.get_submodule("bn2").bias += 1
    lowered_of(network, cost=nothing)
    monkeypatch.setattr(Mutant, "mutation", mutation)
    monkeypatch.setattr(lower_module, "Translation", Mutant)
    with pytest.raises(UserError, match=f"^{path}: its integers do not compute what the layer does") as caught:
        lowered_of(network, cost=nothing)
    assert "\n" not in str(caught.value)


def test_weights_that_are_too_coarse_are_named_with_their_channel_and_the_remedy():
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
    with torch.no_grad():
        first.weight[2] /= 8
        first.bias[2] = -2  # a ReLU that is never there
        second.weight[1, 2, 1, 1] = 3000
    module = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    network = instrument(module, (1, 6, 6)).eval()
    with pytest.raises(
        UserError, match=r"^2: 12 bits are too few for its weights \(off by .*\): those of input 2 are "
    ) as line:
        lowered_of(network)
    assert "set its batch-norms' weights to 0" in str(line.value) and "\n" not in str(line.value)
    with torch.no_grad():
        second.weight[1, 2, 1, 1] = 0
    lowered_of(network)


def test_rounding_that_changes_the_logits_is_refused_where_it_begins(monkeypatch):
    network = ready(Residual(), (1, 6, 6))
    monkeypatch.setattr(verify, "LARGEST_ERROR", 1e-5)
    with pytest.raises(UserError, match=r"^(stem|relu|depthwise|network): from here on rounding changes"):
        lowered_of(network)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["stem.weight", "bn.running_var", "fc.bias"])
def test_a_weight_that_is_no_number_is_named(value, name):
    network = ready(Residual(), (1, 6, 6))
    with torch.no_grad():
        network.state_dict()[name].view(-1)[-1] = value
    with pytest.raises(UserError, match=rf"{name} has 1 of \d+ numbers not finite"):
        lowered_of(network)


@pytest.mark.parametrize("size", [1e30, 1e38])
def test_weights_that_are_too_large_are_a_line(size):
    network = ready(Residual(), (1, 6, 6))
    with torch.no_grad():
        for name in ("stem.weight", "fc.weight"):
            network.get_parameter(name).fill_(size)
    with pytest.raises(UserError, match=r"^(stem|relu|fc): .*(train with weight decay|the ring holds)$") as caught:
        lowered_of(network)
    assert "\n" not in str(caught.value)


class Uneven(nn.Module):
    """Depthwise scales over so many orders of magnitude, or two layers of such scales; the next layer undoes them."""

    def __init__(self, decades: float, by_channel: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.relu = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()
        self.depthwise, self.relu2 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU()
        self.point, self.relu3 = nn.Conv2d(16, 16, 1), nn.ReLU()
        self.fc = nn.Linear(16 * 16, 10)
        scale = torch.logspace(-decades, 0, 16)[torch.randperm(16)] if by_channel else torch.full((16,), 10**-decades)
        with torch.no_grad():
            self.depthwise.weight *= scale.view(-1, 1, 1, 1)
            self.depthwise.bias *= scale
            self.point.weight /= scale.view(1, -1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu3(self.point(self.relu2(self.depthwise(self.relu(self.stem(x))))))
        return self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("decades", [0, 2, 4, 6])
def test_ranges_over_orders_of_magnitude(decades: int, by_channel: bool):
    """0.64 of the spread off, and 2.5, before channels were equalised and values had bits of their own."""
    network: Network = instrument(Uneven(decades, by_channel), (3, 8, 8)).eval()
    images, p = images_of(16, (3, 8, 8)), preprocessing_of(3)
    found = reference.run(lower(network, images, p), images).logits
    with torch.no_grad():
        expected = network(normalise(images, tuple(p["mean"]), tuple(p["std"]))).double().numpy()
    spread = np.sqrt(np.square(expected - expected.mean(1, keepdims=True)).mean())
    assert np.abs(found - expected).max() < 0.02 * spread
    assert np.array_equal(found.argmax(1), expected.argmax(1))


def test_a_network_that_gives_a_map_is_told_to_pool_it():
    network = ready(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), (1, 6, 6))
    with pytest.raises(UserError, match=r"^the network gives \(4, 4, 4\) for an image, not a number a class; pool"):
        lowered_of(network)
