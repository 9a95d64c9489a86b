"""What a user lets stand in an op's place: each replacement against the module written with it from the start."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.models import external
from parelu.network import ops
from parelu.network.canonical import replacements
from parelu.network.count import count
from parelu.network.instrument import instrument

SHAPE = (3, 8, 8)


class Calls(nn.Module):
    """A convolution, and a function of its map and of the module."""

    def __init__(self, function, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.conv(x)).flatten(1)


def both(given, wanted, replace: str, **parts):
    """The outputs of `given` with its replacement, and of `wanted`, which has the same weights."""
    before, after = Calls(given, **parts).eval(), Calls(wanted, **parts).eval()
    network = instrument(before, SHAPE, replacements.parsed(replace))
    assert not ops.unsupported(network)
    assert network.notes
    images = torch.randn(3, *SHAPE)
    with torch.no_grad():
        return network(images), after(images)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("silu", lambda m, x: F.silu(x)),
        ("silu", lambda m, x: F.silu(x, inplace=True)),
        ("silu", lambda m, x: nn.SiLU()(x)),
        ("silu", lambda m, x: x * torch.sigmoid(x)),
        ("silu", lambda m, x: x.sigmoid() * x),
        ("gelu", lambda m, x: F.gelu(x, approximate="tanh")),
        ("hardswish", lambda m, x: F.hardswish(x)),
        ("mish", lambda m, x: F.mish(x)),
        ("elu", lambda m, x: F.elu(x)),
        ("elu", lambda m, x: F.selu_(x)),
        ("softplus", lambda m, x: F.softplus(x)),
        ("tanh", lambda m, x: x.tanh()),
        ("relu6", lambda m, x: F.relu6(10 * x)),
        ("leaky", lambda m, x: F.leaky_relu(x, 0.2)),
    ],
)
def test_an_activation_becomes_a_relu(kind, call):
    factor = 10 if kind == "relu6" else 1
    given, wanted = both(call, lambda m, x: F.relu(factor * x), f"{kind}=relu")
    assert torch.allclose(given, wanted, atol=1e-6)


def test_an_activation_in_place_is_read_through_its_input():
    def call(m, x):
        F.silu(x, inplace=True)
        return x + 1

    given, wanted = both(call, lambda m, x: F.relu(x) + 1, "silu=relu")
    assert torch.allclose(given, wanted, atol=1e-6)


@pytest.mark.parametrize("gate", [torch.sigmoid, F.hardsigmoid, lambda x: torch.softmax(x, 1), lambda x: x])
@pytest.mark.parametrize("spread", [False, True])
def test_a_gate_on_channels_goes_with_all_that_only_it_reads(gate, spread):
    def call(m, x):
        found = gate(m.down(x.mean((2, 3), keepdim=True)))
        return x * (found.expand_as(x) if spread else found)

    before = Calls(call, down=nn.Conv2d(4, 4, 1)).eval()
    network = instrument(before, SHAPE, replacements.parsed("se=none"))
    assert "down.weight" not in network.state_dict()
    images = torch.randn(3, *SHAPE)
    assert torch.allclose(network(images), before.conv(images).flatten(1), atol=1e-6)


def test_a_product_of_maps_is_no_gate():
    network = instrument(Calls(lambda m, x: x * x.flip(1)).eval(), SHAPE, replacements.parsed("se=none"))
    assert not network.is_replaced


@pytest.mark.parametrize(
    ("replace", "notes"),
    [
        ("gelu=relu,se=none", ("network: there is nothing to replace (gelu, se)",)),
        ("relu6=relu", ("network: ReLU6 became a ReLU; finetune the network with it",)),
        ("relu6=relu,gelu=relu", ("network: ReLU6 became a ReLU; finetune the network with it",)),
    ],
)
def test_replacements_of_what_is_not_there_are_named(replace, notes):
    network = instrument(Calls(lambda m, x: F.relu6(x)).eval(), SHAPE, replacements.parsed(replace))
    assert network.notes == notes


GATES = {
    "sigmoid": lambda m, x: x * torch.sigmoid(m.down(x.mean((2, 3), keepdim=True))),
    "method": lambda m, x: m.down(x.mean((2, 3), keepdim=True)).sigmoid() * x,
    "module": lambda m, x: x * nn.Sigmoid()(m.down(x.mean((2, 3), keepdim=True))).expand_as(x),
    "hard": lambda m, x: x * F.hardsigmoid(m.down(x.mean((2, 3), keepdim=True))),
    "of vectors": lambda m, x: x * torch.sigmoid(m.down(x.mean((2, 3), keepdim=True)).flatten(1))[:, :, None, None],
    "of rows": lambda m, x: x * torch.sigmoid(x.mean((2, 3))[:, None]).transpose(1, 2).unsqueeze(3),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_becomes_a_quadratic_that_is_trained(name):
    before = Calls(GATES[name], down=nn.Conv2d(4, 4, 1)).eval()
    read = external.read(before, SHAPE, 256, "net", replace=replacements.parsed("se=quadratic"))
    network = instrument(read.spec.module(), SHAPE)  # from the lines of a candidate
    network.load_state_dict(dict(read.weights))
    counts = count(network)
    assert (counts.relus, counts.squares) == (0, 4 + 2 * 256), "one a number of the gate, two a position of the map"
    images = torch.randn(5, *SHAPE)
    maps: Tensor = before.conv(images)
    pooled = maps.mean((2, 3), keepdim=True)
    x = pooled if name == "of rows" else before.get_submodule("down")(pooled)
    function = F.hardsigmoid if name == "hard" else torch.sigmoid
    c0, c1, c2, error = replacements.fitted(function)
    assert torch.allclose(network(images), (maps * (c0 + c1 * x + c2 * x * x)).flatten(1), atol=1e-5)
    assert 0 < (network(images) - before(images)).abs().max() <= error * maps.abs().max()
    network(images).square().sum().backward()
    new = [p for path, p in network.named_parameters() if path.split(".")[0] not in ("conv", "down")]
    assert sum(p.numel() for p in new) == 3 * 4
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in new)


def test_no_quadratic_of_the_same_degree_is_closer():
    x = torch.linspace(*replacements.FITTED, 1001, dtype=torch.float64)
    for function in (torch.sigmoid, F.hardsigmoid):
        c0, c1, c2, error = replacements.fitted(function)
        rest = c0 + c1 * x + c2 * x * x - function(x)
        assert error == pytest.approx(float(rest.abs().max())) and error < 0.14
        assert all(abs(float((rest * x**power).mean())) < 1e-6 for power in range(3)), "nothing left to fit"


def test_a_swish_and_a_sigmoid_of_a_map_are_no_gates():
    for call in (lambda m, x: x * torch.sigmoid(x), lambda m, x: torch.sigmoid(x * 1.702) * x):
        network = instrument(Calls(call).eval(), SHAPE, replacements.parsed("se=quadratic"))
        assert "silu is piecewise linear" in network.notes[0] and not network.is_replaced
        network = instrument(Calls(call).eval(), SHAPE, {"se": "quadratic"}, keeps_smooth=True)
        (problem,) = ops.unsupported(network)
        assert problem.op == "sigmoid" and problem.replacements == [("silu", "relu")]
    pooled = Calls(lambda m, x: (y := x.mean((2, 3))) * torch.sigmoid(y)).eval()
    assert not any("quadratic" in note for note in instrument(pooled, SHAPE, {"se": "quadratic"}).notes)


def test_replacements_are_written_as_they_are_read():
    for text in ("all", "se=quadratic", "maxpool=avgpool,silu=relu"):
        kinds = replacements.parsed(text)
        assert replacements.parsed(replacements.written(kinds)) == kinds


def test_a_sigmoid_of_a_map_becomes_a_hard_one():
    given, wanted = both(lambda m, x: torch.sigmoid(3 * x), lambda m, x: F.hardsigmoid(3 * x), "sigmoid=hardsigmoid")
    assert torch.allclose(given, wanted, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"padding": 1, "stride": 2}, {"ceil_mode": True}])
def test_a_max_pool_becomes_an_average_pool_of_the_same_windows(options):
    given, wanted = both(
        lambda m, x: F.max_pool2d(x, 3, **options),
        lambda m, x: F.avg_pool2d(x, 3, count_include_pad=False, **options),
        "maxpool=avgpool",
    )
    assert torch.allclose(given, wanted, atol=1e-6)


def last(m, x):
    """With the channels behind."""
    return x.permute(0, 2, 3, 1)


def scaled(m, x):
    """What a batch-norm with fresh statistics does to (batch, channels, …)."""
    shape = (-1, *[1] * (x.dim() - 2))
    bias = 0 if m.norm.bias is None else m.norm.bias.view(shape)
    return x * m.norm.weight.view(shape) / (1 + 1e-5) ** 0.5 + bias


@pytest.mark.parametrize(
    ("given", "wanted", "norm"),
    [
        (lambda m, x: m.norm(last(m, x)), lambda m, x: last(m, scaled(m, x)), nn.LayerNorm(4)),
        (lambda m, x: F.layer_norm(last(m, x), (4,), m.norm.weight, m.norm.bias),
         lambda m, x: last(m, scaled(m, x)), nn.LayerNorm(4)),
        (lambda m, x: m.norm(x.mean((2, 3))), lambda m, x: scaled(m, x.mean((2, 3))), nn.LayerNorm(4)),
        (lambda m, x: m.norm(x.flatten(2).mT), lambda m, x: scaled(m, x.flatten(2)).mT, nn.LayerNorm(4, bias=False)),
        (lambda m, x: m.norm(x), scaled, nn.GroupNorm(2, 4)),
        (lambda m, x: F.group_norm(x, 1, m.norm.weight, m.norm.bias), scaled, nn.GroupNorm(1, 4)),
        (lambda m, x: m.norm(x), scaled, nn.InstanceNorm2d(4, affine=True)),
    ],
)  # fmt: skip
def test_a_norm_of_an_image_becomes_a_batch_norm_with_its_factors(given, wanted, norm):
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(-1, 2)
    before, after = both(given, wanted, "layernorm=batchnorm, groupnorm=batchnorm", norm=norm)
    assert torch.allclose(before, after, atol=1e-5)


def test_attention_that_pools_becomes_a_mean():
    def call(m, x):
        weights = torch.softmax(m.key(x).view(x.shape[0], 1, -1), -1).unsqueeze(3)
        return torch.matmul(x.view(x.shape[0], 1, 4, -1), weights)

    given, wanted = both(call, lambda m, x: x.mean((2, 3)), "attention=mean", key=nn.Conv2d(4, 1, 1))
    assert torch.allclose(given, wanted, atol=1e-6)


def test_all_is_every_replacement_of_what_has_no_exact_form():
    assert replacements.parsed("all") == dict(replacements.ALL)
    others = set(dict(replacements.REPLACEMENTS)) - set(replacements.ALL.items())
    assert {(kind, other) for kind, other in others if other != "relus"} == {
        ("relu6", "relu"), ("leaky", "relu"), ("maxpool", "avgpool"), ("se", "quadratic"),
    }  # fmt: skip
    assert {kind for kind, other in replacements.ALL.items() if other == "relus"} == {"erf", "logsigmoid"}
    assert replacements.parsed("all, maxpool=avgpool")["maxpool"] == "avgpool"


@pytest.mark.parametrize("text", ["silu", "silu=gelu", "softmax=relu", "all=relu"])
def test_an_unknown_replacement_names_those_there_are(text):
    with pytest.raises(UserError, match=f"--replace {text}: no such replacement; there are all, silu=relu"):
        replacements.parsed(text)
