"""Graphs: what is written is the network it was read from, and nothing in a file is taken that is not checked."""

import contextlib
import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from parelu.errors import UserError
from parelu.models.external import read
from parelu.models.graph import Graph
from parelu.models.writing import graph_of, weights_of
from parelu.network.candidate import Candidate
from parelu.network.count import count, skeleton
from parelu.network.instrument import instrument
from parelu.network.ops import unsupported
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import families, spec_from_json, spec_of

OWN = [name for cls in families().values() for name in cls.examples if ":" not in name and "." not in name]


def moved(network: Network) -> Network:
    """With numbers of training in its batch-norms, and none of its parameters as it was drawn."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network.eval()


def assert_same(network: Network, classes: int) -> None:
    """The network that is built again of what is written of one, is it."""
    spec = spec_from_json(json.loads(json.dumps(graph_of(network, classes).to_json())))
    assert isinstance(spec, Graph)
    again, x = (
        Candidate(spec, Plan.of(network), weights_of(spec, network)).network(),
        torch.randn(3, *network.input_shape),
    )
    with torch.no_grad():
        assert torch.allclose(again(x), network(x), atol=1e-5)
    places = [
        [(s.name, s.shape, s.stage, s.block, s.after_addition) for s in n.sites.values()] for n in (network, again)
    ]
    assert places[0] == places[1]
    problems = [
        [(p.path, p.op.lower().replace("_", "").removesuffix("2d")) for p in unsupported(n)] for n in (network, again)
    ]
    assert problems[0] == problems[1]
    if not unsupported(network):
        assert count(again) == count(network)
        pairs = zip(graph_of(again, classes).layers.splitlines(), spec.layers.splitlines(), strict=True)
        assert [pair for pair in pairs if pair[0] != pair[1]] == []


@pytest.mark.parametrize("name", OWN)
def test_every_network_of_our_own_can_be_written(name):
    torch.manual_seed(0)
    spec = spec_of(name, (3, 32, 32), 7)
    for share in (0.25, 0.5):
        with contextlib.suppress(UserError):
            spec = spec.scale_channels(share)
            break
    assert_same(moved(instrument(spec.module(), spec.input)), 7)


class Everything(nn.Module):
    """Modules that share weights or stand in each other, and what runs in plaintext only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.third = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.fourth = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.fourth.weight = self.third.weight
        self.norm, self.again = nn.BatchNorm2d(4, eps=1e-3, momentum=0.01), self.second
        self.drop, self.flat = nn.Dropout(0.25), nn.BatchNorm1d(5, affine=False)
        self.inner, self.fc = nn.Linear(16, 5), nn.Linear(5, 3, bias=False)
        self.plain = nn.LayerNorm(5), nn.SiLU()
        self.layer, self.silu = self.plain

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.norm(self.second(x)) + x)
        x = torch.relu(self.again(x)) + torch.relu(self.third(x))
        x = torch.cat([torch.relu(self.fourth(x)), x], 1)
        x = nn.functional.avg_pool2d(x, 2)[:, 1:5]
        return x.reshape(x.shape[0], -1)


class Body(Everything):
    def forward(self, x):
        return self.fc(self.flat(self.drop(self.inner(super().forward(x)))))


class Plain(Everything):
    def forward(self, x):
        x = self.silu(self.layer(self.inner(super().forward(x))))
        return self.fc(torch.sigmoid(x) * nn.functional.gelu(x, approximate="tanh")).softmax(-1)


def test_shared_and_tied_layers_stay_so():
    torch.manual_seed(0)
    network = moved(instrument(Body(), (2, 4, 4)))
    assert_same(network, 3)
    spec = graph_of(network, 3, source="nets.py:build")
    assert {"tie", "dropout", "norm", "concat"} <= {line.split()[0] for line in spec.layers.splitlines()}
    built = spec.module()
    assert built.get_parameter("fourth.weight") is built.get_parameter("third.weight")
    assert built.get_submodule("norm").eps == 1e-3 and built.get_submodule("drop").p == 0.25


def test_what_cannot_run_privately_can_be_written():
    torch.manual_seed(0)
    assert_same(moved(instrument(Plain(), (2, 4, 4))), 3)


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(4, eps=0.1, affine=True), nn.InstanceNorm2d(4, eps=0.1), nn.RMSNorm(4, eps=0.1)]
)
def test_norms_of_an_image_can_be_written(norm):
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    module = nn.Sequential(nn.Conv2d(2, 4, 1), norm, nn.Flatten(), nn.Linear(64, 3))
    assert_same(moved(instrument(module, (2, 4, 4))), 3)


def test_fresh_weights_have_the_scale_of_the_builders():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    nn.init.normal_(module[0].weight, 0.5, 0.25)
    nn.init.zeros_(module[4].weight)
    spec = graph_of(instrument(module, (3, 8, 8)), 4)
    torch.manual_seed(1)
    fresh = spec.module()
    drawn = fresh.get_parameter("0.weight").detach()
    assert abs(float(drawn.mean()) - 0.5) < 0.03 and abs(float(drawn.std()) - 0.25) < 0.02
    assert not torch.equal(drawn, module[0].weight)
    assert not bool(fresh.get_parameter("4.weight").any()) and bool((fresh.get_parameter("1.weight") == 1).all())


SMALL = functools.cache(lambda: graph_of(instrument(Plain(), (2, 4, 4)), 3))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("", "a graph of 0 lines"),
        ("conv a 0 1 4 3 3 1 1 1 1", "line 1 of a graph, 'conv a 0 1 4 3 3 1 1 1 1', is no op"),
        ("conv a 0 1 4 3 3 0 1 1 1 1", "is no op"),
        ("conv a 0 1 4 300 3 1 1 1 1 1", "is no op"),
        ("conv a 0 3 4 3 3 1 1 1 1 2", "is no op"),
        ("conv ../a 0 1 4 3 3 1 1 1 1 1", "is no op"),
        ("conv a 0 1 4 3 3 1 1 1 1 1 bias=1", "is no op"),
        ("conv a 0 1 4 3 3 1 1 1 1 1 dilation=2", "is no op"),
        ("conv a 0 1 4 3 3 1 1 1 1 1 bias=0 dilation=2,2", "is no op"),
        ("norm a 0 1 eps=nan", "is no op"),
        ("norm a 0 1 eps=1e-05", "is no op"),
        ("linear a 1 4 4", "is no op"),
        ("concat", "is no op"),
        ("concat 0 1", "is no op"),
        ("slice 0 1", "is no op"),
        ("linear a 0 4 4000000", "is no op"),
        ("relu a 0", "is no op"),
        ("relu a 0 S1\nrelu a 1 S1", "share the path"),
        ("linear a 0 4 4\nlinear a 1 4 5", "share the path"),
        ("linear a 0 4 4\nrelu a.weight 1 S1", "share the path"),
        ("add 0 1", "is no op"),
        ("evil a 0", "is no op"),
        ("call eval %0", "is no op"),
        ("call exp %1", "is no op"),
        ("call add %0 %0 out=%0", "it writes into what it reads"),
        ("call silu %0 inplace=True", "it writes into what it reads"),
        ("call local_response_norm %0 1000000000", "it reads too many channels"),
        ("parameter a 1000000 1000000", "it has too many numbers"),
        ("affine a 0 1000000 1000000", "it has too many numbers"),
        ("resample a 0 0 1000000 1000000", "its matrix is too large"),
        ("linear import 0 8 8", "cannot be called 'import'"),
        ("linear a.class 0 8 8", "cannot be called 'class'"),
        ("linear __class__ 0 8 8", "cannot be called '__class__'"),
        ("linear forward 0 8 8", "cannot be called 'forward'"),
        ("linear training 0 8 8", "cannot be called 'training'"),
        ("linear graph.a 0 8 8", "cannot be called 'graph'"),
        ("call exp __import__('os')", "is no op"),
        ("call softmax %0 dim=1.0e0", "is no op"),
        ("tie a a", "is no op"),
        ("linear a 0 8 4\ntie a.weight b.weight", "ties a.weight to b.weight, which are no parameters"),
        ("resample a 0 0 8 2 0 9 0.5", "is no op"),
        ("select 0 7 1 2", "is no op"),
        ("permute 0 0 0 0", "does not take an input"),
        ("\n".join(f"concat {n} {n}" for n in range(40)), "at most"),
        ("linear a 0 8 1000000\nlinear b 1 1000000 1000000", "weights; at most"),
    ],
)
def test_bad_descriptions(layers, message):
    with pytest.raises(UserError) as error:
        Graph((1, 8, 8), 10, layers).module()
    assert message in str(error.value) and "\n" not in str(error.value)


@settings(max_examples=150)
@given(st.data())
def test_changed_descriptions_are_refused_or_sound(data):
    """A word of a description is replaced, removed or doubled: what is taken is written in one way only."""
    spec = SMALL()
    words = spec.layers.replace("\n", " \n ").split(" ")
    place = data.draw(st.integers(0, len(words) - 1))
    other = data.draw(st.sampled_from([*words, "-1", "999999999", "x y", "", "0", "1e400", "%0", "a=b"]))
    words[place : place + 1] = data.draw(st.sampled_from([[other], [], [words[place], other]]))
    layers = " ".join(words).replace(" \n ", "\n")
    try:
        changed = Graph(spec.input, spec.classes, layers)
    except UserError:
        return
    assert changed.layers == layers
    try:
        skeleton(changed)
    except UserError as error:
        assert "\n" not in str(error)


def test_bad_fresh_weights():
    spec = Graph((1, 2, 2), 4, "flatten 0\nlinear a 1 4 4")
    for initial in ("b.weight 0 1", "a.weight 0", "a.weight 0 -1", "a.weight nan 1", "a.bias = 1 2", "a.weight"):
        with pytest.raises(UserError, match="are of no tensor of it"):
            Graph(spec.input, 4, spec.layers, initial=initial).module()


def test_networks_of_earlier_versions():
    layers = "conv c 0 1 4 3 3 1 1 1 1 1\nrelu r 1 S1\npool 2 8 8 8 8 0 0\nflatten 3\nlinear f 4 4 10"
    spec = spec_from_json({"family": "merged", "input": [1, 8, 8], "classes": 10, "layers": layers})
    assert [(site.stage, site.relus) for site in skeleton(spec).sites.values()] == [("S1", 256)]
    with pytest.raises(UserError, match="a file does not decide which code runs"):
        spec_from_json({"family": "external", "input": [1, 8, 8], "classes": 10, "target": "os:getcwd"})


def test_a_graph_cannot_be_scaled():
    spec = Graph((1, 2, 2), 4, "flatten 0\nlinear a 1 4 4", "nets.py:build")
    with pytest.raises(
        UserError, match=r"nets.py:build: the channels of a network of your own cannot be scaled by 0\.5"
    ):
        spec.scale_channels(0.5)
    with pytest.raises(UserError, match=r"nets.py:build: the input of a network of your own cannot be scaled by 0\.5"):
        spec.scale_fmap(0.5)


def test_pools_of_large_maps():
    conv, head = nn.Conv2d(3, 2, 1), nn.Linear(2, 5)
    for pool, shape in ((nn.AdaptiveAvgPool2d(1), (3, 300, 9)), (nn.AdaptiveMaxPool2d(1), (3, 9, 300))):
        assert_same(instrument(nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), head), shape).eval(), 5)


def test_the_largest_of_a_large_map():
    class Largest(nn.Module):
        def forward(self, x):
            return x.amax((2, 3))

    assert_same(instrument(nn.Sequential(nn.Conv2d(3, 5, 1), Largest()), (3, 37, 53)).eval(), 5)


def test_names_with_hyphens_as_torchvisions_regnets_have_them():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential()
            for name in ("block1-0", "2-1"):
                self.block.add_module(name, nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()))
            self.head = nn.Linear(3 * 8 * 8, 4)

        def forward(self, x):
            return self.head(self.block(x).flatten(1))

    module = Net().eval()
    found = read(module, (3, 8, 8), 4, "Net")
    network = instrument(found.spec.module(), found.spec.input)
    network.load_state_dict(found.weights)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), module(images))
    assert list(network.sites) == ["block.block1-0.2", "block.2-1.2"]
