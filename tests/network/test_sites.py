"""Sites: the op against torch.where, and every way a network can write a ReLU."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.network.instrument import instrument
from parelu.network.ops import unsupported
from parelu.network.sites import IDENTITY, Network, Site


def written_out(x: Tensor, mask: Tensor, coefficients: Tensor) -> Tensor:
    """The definition of a site, from plain differentiable ops."""
    c0, c1, c2 = (c.view(-1, *[1] * (mask.dim() - 1)) for c in coefficients)
    return torch.where(mask, F.relu(x), c0 + c1 * x + c2 * x * x)


coefficient = st.floats(-2, 2, width=32)


@settings(max_examples=60)
@given(
    shape=st.sampled_from([(1, 1, 1), (3, 2, 2), (8, 4, 4), (5, 3, 1), (6,)]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    polynomial=st.one_of(st.just(IDENTITY), st.tuples(coefficient, coefficient, coefficient)),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_site_is_the_written_out_formula(shape, share, polynomial, channels_last, seed):
    generator = torch.Generator().manual_seed(seed)
    site = Site("s", shape)
    mask = torch.rand(shape, generator=generator) < share
    c = torch.tensor(polynomial, dtype=torch.float32)[:, None].repeat(1, shape[0])
    c += torch.rand(c.shape, generator=generator) * (polynomial != IDENTITY)
    site.assign(mask, c)
    x = torch.randn(4, *shape, generator=generator)
    x[0] = 0.0  # the kink: the gradient of relu is 0 there
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    gradient = torch.randn(x.shape, generator=generator)
    y, expected = site(ours), written_out(theirs, mask, c)
    torch.testing.assert_close(y, expected)
    (dx,) = torch.autograd.grad(y, ours, gradient)
    (dx_expected,) = torch.autograd.grad(expected, theirs, gradient)
    torch.testing.assert_close(dx, dx_expected)


def test_backward_can_run_twice():
    site = Site("s", (2, 2, 2))
    site.assign(torch.tensor([[[True, False]] * 2] * 2), (0.1, 0.2, 0.3))
    x = torch.randn(3, 2, 2, 2, requires_grad=True)
    y = site(x).sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)


def test_plain_paths_for_all_one_and_identity():
    site = Site("s", (2, 3, 3))
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    assert "Relu" in type(site(x).grad_fn).__name__
    site.assign(torch.zeros(2, 3, 3, dtype=torch.bool))
    assert site(x) is x


@pytest.mark.parametrize(
    ("mask", "coefficients", "message"),
    [
        (torch.ones(2, 2, dtype=torch.bool), IDENTITY, "mask"),
        (torch.ones(2, 3, 3), IDENTITY, "mask"),
        (torch.ones(2, 3, 3, dtype=torch.bool), torch.ones(3, 5), "coefficients"),
        (torch.ones(2, 3, 3, dtype=torch.bool), (0.0, float("nan"), 0.0), "finite"),
    ],
)
def test_assign_refuses_what_does_not_fit(mask, coefficients, message):
    with pytest.raises(ValueError, match=message):
        Site("s", (2, 3, 3)).assign(mask, coefficients)


def test_masks_are_no_weights_and_move_with_the_network():
    site = Site("s", (2, 3, 3))
    site.assign(torch.rand(2, 3, 3) < 0.5, (0.0, 0.5, 0.1))
    assert site.state_dict() == {}
    assert site.to(torch.float64)(torch.randn(1, 2, 3, 3, dtype=torch.float64)).dtype == torch.float64


class Spellings(nn.Module):
    """Each way to write a ReLU, once or more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.shared = nn.ReLU(inplace=True)
        self.own = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.bn(self.conv(x)))
        x = self.shared(self.own(x) - 0.1)
        x = F.relu(x - 0.1)
        x = F.relu(x - 0.1, inplace=True)
        x = torch.relu(x - 0.1)
        x = torch.relu_(x - 0.1)
        x = (x - 0.1).relu()
        x = (x - 0.1).relu_()
        return self.head(x.mean((2, 3)))


def test_every_spelling_is_a_site_of_its_own():
    torch.manual_seed(0)
    module = Spellings()
    network = instrument(module, (3, 6, 6))
    assert len(network.sites) == 9
    assert "shared" in network.sites
    assert "shared_2" in network.sites
    assert "own.1" in network.sites
    assert set(network.state_dict()) - set(module.state_dict()) == {"affine.bias", "affine.weight"}
    assert unsupported(network) == ()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(network.eval()(x), module.eval()(x))
    network.sites["shared_2"].assign(torch.zeros(4, 6, 6, dtype=torch.bool), (9.0, 0.0, 0.0))
    assert network.sites["shared"].relus == 4 * 36, "the two calls of one object are apart"
    assert not torch.equal(network(x), module(x))


class InPlaceRead(nn.Module):
    """The result of the in-place call is thrown away; its input is read afterwards, changed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.relu(x)
        return (x + y).mean((2, 3))


class InPlaceThroughView(InPlaceRead):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.relu(x.flatten(1))
        return x.mean((2, 3))


def test_in_place_calls_keep_their_meaning():
    torch.manual_seed(1)
    module = InPlaceRead().eval()
    x = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(instrument(module, (1, 4, 4))(x), module(x))


def test_in_place_through_another_name_is_refused():
    torch.manual_seed(1)
    with pytest.raises(UserError, match="inplace=False"):
        instrument(InPlaceThroughView(), (1, 4, 4))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Attention(nn.Module):
    """A sigmoid a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x + x).sigmoid()


class Excitation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1))


def test_sigmoids_have_a_place_as_that_of_swish_has():
    def network(module: nn.Module) -> Network:
        return instrument(nn.Sequential(module, nn.Flatten()), (2, 4, 4))

    for module, positions in ((Excitation(), 2 * 20), (Attention(), 32 * 20), (Swish(), 32 * 29)):
        assert not unsupported(network(module))
        assert sum(site.relus for site in network(module).sites.values()) == positions


@pytest.mark.parametrize(
    ("module", "op", "remedy"),
    [
        (nn.GroupNorm(1, 2), "GroupNorm", "groupnorm=batchnorm"),
        (nn.LayerNorm(4), "LayerNorm", "layernorm=batchnorm"),
        (nn.Softsign(), "Softsign", "write it with"),
    ],
)
def test_ops_without_a_place_are_named_with_path_and_remedy(module, op, remedy):
    inner = nn.Sequential(nn.Conv2d(1, 2, 1), module)
    network = instrument(nn.Sequential(inner, nn.Flatten()), (1, 4, 4))
    (problem,) = unsupported(network)
    assert problem.path == "0.1"
    assert op in problem.op
    assert remedy in problem.remedy


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_untraceable_control_flow_names_the_module():
    with pytest.raises(UserError, match=r"^1\.0: cannot be traced"):
        instrument(nn.Sequential(nn.ReLU(), nn.Sequential(Branching())), (1, 4, 4))


def test_wrong_input_is_one_clear_error():
    with pytest.raises(UserError, match="does not take an input of shape 3x4x4"):
        instrument(nn.Conv2d(1, 2, 1), (3, 4, 4))


def test_instrumenting_leaves_the_module_as_it_was():
    module = Spellings().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert instrument(module, (3, 6, 6)).training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert isinstance(module.shared, nn.ReLU)


class Residual(nn.Module):
    """Stem, two residual blocks at one size, one at half the size: written as torchvision does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 3, 2 if i == 4 else 1, 1) for i in range(6)])
        self.down = nn.Conv2d(4, 4, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for i in (0, 2, 4):
            out = self.convs[i + 1](self.relu(self.convs[i](x)))
            out += self.down(x) if i == 4 else x
            x = self.relu(out)
        return x.mean((2, 3))


def test_stages_of_a_foreign_network_are_runs_of_equal_size():
    network = instrument(Residual(), (3, 8, 8))
    places = [(s.stage, s.block, s.after_addition) for s in network.sites.values()]
    assert places == [
        ("stem", 0, False),
        ("S1", 0, False),
        ("S1", 0, True),
        ("S1", 1, False),
        ("S1", 1, True),
        ("S2", 0, False),
        ("S2", 0, True),
    ]


def test_a_network_without_forks_has_no_stem():
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten()]
    network = instrument(nn.Sequential(*layers), (1, 4, 4))
    assert [site.stage for site in network.sites.values()] == ["S1", "S2"]


def test_what_others_call_stages_declares_nothing():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten())
    module.stages = {1: 2, "deep": [64, 128]}
    assert [site.stage for site in instrument(module, (1, 4, 4)).sites.values()] == ["S1"]
