"""Gates against torch's own operations and against sites; the fitted polynomial against numerical quadrature."""

import functools
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.masks import gate as gates_module
from parelu.masks.gate import Gate, gated
from parelu.masks.optimizer import put_gates
from parelu.masks.polynomials import dapa, public_dapa
from parelu.network.instrument import network_of
from parelu.network.sites import Site
from parelu.network.spec import spec_of

SHAPES = [(3, 4, 5), (8, 2, 2), (1, 1, 1)]


def gate_of(shape: tuple[int, ...], coefficients: torch.Tensor, seed: int) -> Gate:
    site = Site("site", shape)
    site.assign(torch.ones(shape, dtype=torch.bool), coefficients)
    gate = Gate(site)
    gate.open.data.copy_(torch.rand(shape, generator=torch.Generator().manual_seed(seed)))
    return gate


@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 1 << 20), channels_last=st.booleans(), square=st.booleans())
@settings(max_examples=40)
def test_the_loops_compute_what_torch_computes(shape, seed, channels_last, square):
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(3, shape[0], generator=generator) * torch.tensor([[1.0], [1.0], [float(square)]])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(6, *shape, generator=generator).contiguous(memory_format=layout)
    weight = torch.randn(6, *shape, generator=generator)
    fast, plain = gate_of(shape, coefficients, seed), gate_of(shape, coefficients, seed)
    nearest = ((x.view(torch.int32) + 0x8000) & ~0xFFFF).view(torch.float32)  # 8 bits, as the backward pass reads x
    mine, rounded = x.clone().requires_grad_(), nearest.requires_grad_()
    y = fast(mine)
    assert y.stride() == mine.stride(), "the layout stays"
    torch.testing.assert_close(y, gated(x, plain.open, plain.coefficients), rtol=1e-5, atol=1e-5)
    (y * weight).sum().backward()
    (gated(rounded, plain.open, plain.coefficients) * weight).sum().backward()
    torch.testing.assert_close(mine.grad, rounded.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast.open.grad, plain.open.grad, rtol=1e-4, atol=1e-4)


CUTS = [lambda x: x[:, ::2], lambda x: x[..., 1:], lambda x: x.transpose(2, 3), lambda x: x[::2]]


@pytest.mark.parametrize("cut", CUTS)
def test_the_loops_take_any_layout(cut):
    generator = torch.Generator().manual_seed(0)
    x = cut(torch.randn(6, 4, 5, 5, generator=generator)).detach()
    plain = x.contiguous()
    gate = gate_of(tuple(x.shape[1:]), torch.randn(3, x.shape[1], generator=generator), 0)
    assert torch.equal(gate(x), gate(plain))
    gradients = [
        torch.autograd.grad(gate(value.requires_grad_()).square().sum(), (value, gate.open)) for value in (x, plain)
    ]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_half_of_the_input_is_kept_for_the_backward_pass(channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    gate, x = gate_of((3, 4, 5), torch.zeros(3, 3), 0), torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes), lambda nothing: nothing):
        gate(x.requires_grad_())
    assert sum(kept) == x.nbytes // 2


def test_a_gate_leaves_its_site_as_it_was():
    site = Site("site", (2, 3, 3))
    gate = Gate(site)
    gate.follow_inputs(2)
    gate(torch.randn(4, 2, 3, 3))
    gate.open.data.zero_()
    gate.allowed.zero_()
    assert site.mask.all() and site.coefficients.T.tolist() == [[0, 1, 0]] * 2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("coefficients", [(0.0, 1.0, 0.0), (0.3, 0.5, 0.1)])
def test_a_closed_or_open_gate_is_a_site(channels_last, coefficients):
    torch.manual_seed(0)
    site = Site("site", (8, 4, 4))
    site.assign(torch.rand(8, 4, 4) < 0.4, coefficients)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(5, 8, 4, 4).contiguous(memory_format=layout)
    torch.testing.assert_close(Gate(site)(x), site(x), rtol=1e-6, atol=1e-6)
    assert site(x).stride() == x.stride()


def test_the_loops_are_in_use_here_and_can_be_missing(monkeypatch):
    assert gates_module.loops() is not None
    gate, x = gate_of((3, 4, 5), torch.tensor([[0.1, 0.9, 0.2]] * 3), 0), torch.randn(2, 3, 4, 5)
    fast = gate(x)
    monkeypatch.setattr(gates_module, "loops", lambda: None)
    torch.testing.assert_close(gate(x), fast)


def test_not_a_number_comes_out_as_such():
    gate, x = gate_of((3, 4, 5), torch.tensor([[0.0] * 3, [1.0] * 3, [0.0] * 3]), 0), torch.randn(2, 3, 4, 5)
    x[1, 2, 3, 4] = math.nan
    assert torch.equal(gate(x).isnan(), x.isnan())


def test_a_network_with_gates_is_the_same_network():
    torch.manual_seed(0)
    spec = spec_of("resnet10 m=8", (3, 8, 8), 10)
    network = network_of(spec).eval()
    names = list(network.sites)
    x = torch.randn(4, 3, 8, 8)
    expected = network(x)
    gates = put_gates(network)
    assert list(gates) == names
    assert not network.sites
    torch.testing.assert_close(network(x), expected)


def test_running_statistics_are_those_of_the_inputs():
    site = Site("site", (4, 16, 16))
    gate = Gate(site)
    gate.follow_inputs(2)
    centre, scale = (
        torch.tensor([0.0, 1.0, -2.0, 0.5]).view(-1, 1, 1),
        torch.tensor([1.0, 0.5, 2.0, 3.0]).view(-1, 1, 1),
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gate(centre + scale * torch.randn(32, 4, 16, 16, generator=generator))
    torch.testing.assert_close(gate.mean, centre.view(-1), rtol=0, atol=0.03)
    torch.testing.assert_close(gate.std, scale.view(-1), rtol=0.02, atol=0)
    torch.testing.assert_close(gate.coefficients, dapa(gate.mean, gate.std, 2))
    wider = Gate(site)
    wider.follow_inputs(2, wide=3.0)
    wider(torch.randn(32, 4, 16, 16, generator=generator))
    torch.testing.assert_close(wider.coefficients, dapa(wider.mean, 3 * wider.std, 2))
    before = gate.coefficients.clone()
    gate.eval()(100 * torch.randn(32, 4, 16, 16))
    assert torch.equal(gate.coefficients, before), "statistics move in training mode only"


def test_running_statistics_are_the_plain_mean_of_ten_batches_then_move_by_tenths():
    gate = Gate(Site("site", (2, 3, 3)))
    gate.follow_inputs(2)
    generator = torch.Generator().manual_seed(0)
    batches = [3 * torch.randn(5, 2, 3, 3, generator=generator) + i for i in range(14)]
    means = [x.mean((0, 2, 3)) for x in batches]
    deviations = [x.std((0, 2, 3), correction=0) for x in batches]
    mean = std = torch.zeros(2)
    for number, x in enumerate(batches, start=1):
        gate(x)
        if number <= 10:
            mean, std = (torch.stack(seen[:number]).mean(0) for seen in (means, deviations))
        else:
            mean, std = (0.9 * old + 0.1 * seen[number - 1] for old, seen in ((mean, means), (std, deviations)))
        torch.testing.assert_close(gate.mean, mean)
        torch.testing.assert_close(gate.std, std)


def test_running_statistics_are_those_of_64_images_of_a_batch():
    x = torch.randn(80, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    whole, part, less = (Gate(Site("site", (2, 3, 3))) for _ in range(3))
    for gate, images in ((whole, x), (part, x[:64]), (less, x[:63])):
        gate.follow_inputs(1)
        gate(images)
    assert torch.equal(whole.mean, part.mean) and torch.equal(whole.std, part.std)
    assert not torch.equal(whole.mean, less.mean)


def least_squares(u: float, v: float, degree: int) -> np.ndarray:
    """The polynomial closest to relu under N(u, v²), by quadrature: the normal equations, relu split at its kink."""
    z = np.linspace(-12, 12, 400_001)
    weight = np.exp(-(z**2) / 2)
    weight /= weight.sum()
    x = u + v * z
    powers = np.stack([x**k for k in range(degree + 1)])
    return np.linalg.solve((powers * weight) @ powers.T, (powers * weight) @ np.maximum(x, 0))


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize(("u", "v"), [(0.0, 1.0), (0.7, 0.3), (-1.2, 0.8), (3.0, 2.0), (-0.1, 5.0)])
def test_dapa_is_the_least_squares_fit(u, v, degree):
    found = dapa(torch.tensor([u]), torch.tensor([v]), degree)[:, 0].double().numpy()
    np.testing.assert_allclose(found[: degree + 1], least_squares(u, v, degree), atol=2e-5)
    assert not found[degree + 1 :].any()


def test_dapa_gives_the_papers_example():
    c0, c1, c2 = dapa(torch.tensor([0.0]), torch.tensor([math.sqrt(2)]), 2)[:, 0].tolist()  # AutoReP, Fig. 6: N(0, 2)
    assert (round(c2, 2), round(c1, 2), round(c0, 2)) == (0.14, 0.5, 0.28)


def test_a_constant_channel_has_a_finite_polynomial():
    for u in (-1.0, 0.0, 2.0):
        coefficients = dapa(torch.tensor([u]), torch.tensor([0.0]), 2)[:, 0]
        assert torch.isfinite(coefficients).all()
        value = coefficients[0] + coefficients[1] * u + coefficients[2] * u * u
        assert value == pytest.approx(max(u, 0), abs=1e-4)


def test_degrees_are_named():
    with pytest.raises(ValueError, match="degree is 3"):
        dapa(torch.zeros(1), torch.ones(1), 3)
    assert dapa(torch.zeros(2), torch.ones(2), 0).tolist() == [[0, 0], [1, 1], [0, 0]]


def test_every_gate_of_a_network_gets_a_gradient():
    torch.manual_seed(0)
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    network = network_of(spec)
    gates = put_gates(network)
    network(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert all(gate.open.grad is not None and gate.open.grad.abs().sum() > 0 for gate in gates.values())


def test_the_public_codes_fit_takes_the_variance_and_shrinks_squares():
    """HarveyP123/AutoReP, approx_2rd_torch and approx_1rd_torch at a variance of 2 and a mean of 1; half at least."""
    mean, variance = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.01])
    for degree in (1, 2):
        whole = dapa(mean, torch.tensor([2.0, 0.5]), degree)
        found = public_dapa(mean, variance, degree)
        torch.testing.assert_close(found, whole * torch.tensor([[0.2], [1.0], [0.1]]))
    u, v = 1.0, 2.0  # written out as there
    bell = math.exp(-(u**2) / (2 * v**2)) * math.sqrt(2)
    c2 = bell / (4 * math.sqrt(math.pi) * v) / 10
    c1 = 1 - u * bell / (2 * math.sqrt(math.pi) * v) - math.erfc(math.sqrt(2) * u / (2 * v)) / 2
    c0 = (u**2 * bell / (4 * math.sqrt(math.pi) * v) + v * bell / (4 * math.sqrt(math.pi))) / 5
    assert public_dapa(mean, variance, 2)[:, 0].tolist() == pytest.approx([c0, c1, c2])


def test_trained_polynomials_are_fitted_every_tenth_batch_at_first_and_learn_between():
    site = Site("site", (2, 3, 3))
    gate = Gate(site).train()
    gate.open.data.zero_()
    gate.follow_inputs(2, fit="public")
    optimizer = torch.optim.Adam([gate.trained], lr=1e-3)
    fitted, draw = [], torch.Generator().manual_seed(0)
    for batch in range(1, 531):
        before = gate.trained.detach().clone()
        y = gate(1 + 2 * torch.randn(8, 2, 3, 3, generator=draw))
        if not torch.equal(before, gate.trained):
            torch.testing.assert_close(gate.trained.detach(), public_dapa(gate.mean, gate.std, 2))
            fitted.append(batch)
        optimizer.zero_grad()
        y.square().mean().backward()
        assert gate.trained.grad is not None and bool((gate.trained.grad != 0).all())
        optimizer.step()
    assert fitted == list(range(10, 501, 10)), "the 508th is the last that may be"
    assert gate.std.tolist() == pytest.approx([4.0, 4.0], rel=0.5), "the variance"
    x = torch.randn(4, 2, 3, 3, generator=draw)
    c0, c1, c2 = (c.view(-1, 1, 1) for c in gate.polynomial())
    torch.testing.assert_close(gate.eval()(x), c0 + c1 * x + c2 * x**2)
    torch.testing.assert_close(gate.polynomial()[2], 0.1 * gate.trained[2])


@pytest.mark.parametrize(
    ("compiled", "is_good"),
    [
        (lambda x, a, c: gated(x, a, c) * 1, True),
        (lambda x, a, c: 1 / 0, False),
        (lambda x, a, c: gated(x, a, c) + 0.1, False),
        (lambda x, a, c: gated(x, a.detach(), c), False),
    ],
)
def test_a_compiled_gate_is_tried_before_it_is_used(compiled, is_good, monkeypatch):
    """A compiler that fails, or another result or gradient, leave torch's own operations, and that is said once."""
    on_cpu = functools.partial(gates_module._try, device="cpu")
    monkeypatch.setattr(gates_module, "find_spec", lambda name: name)
    monkeypatch.setattr(gates_module, "_try", lambda compute, device: on_cpu(compute))
    monkeypatch.setattr(torch, "compile", lambda of, dynamic: compiled)
    fused = gates_module.fused.__wrapped__
    with nullcontext() if is_good else pytest.warns(UserWarning, match="gates are not compiled here"):
        assert fused("cuda") is (compiled if is_good else gated)
    assert fused("cpu") is gated
