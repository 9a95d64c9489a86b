"""Smooth activations as piecewise linear functions: as close as they say, few knots, lines without ReLUs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from two_parties import images_of, lowered_of, preprocessing_of

from parelu.errors import UserError
from parelu.network import ops
from parelu.network.canonical import replacements, smooth
from parelu.network.canonical.knots import _Seen, knots
from parelu.network.count import count
from parelu.network.instrument import instrument
from parelu.network.preprocessing import normalise
from parelu.network.tracing import agreement
from parelu.private.lowering import reference

X = torch.linspace(-40, 40, 160_001, dtype=torch.float64)
NAMES = sorted(smooth.SMOOTH)


@pytest.mark.parametrize("name", NAMES)
def test_the_error_is_what_it_says(name):
    found, function = smooth.knots_of(name), smooth.SMOOTH[name].function
    off = (found(X) - function(X)).abs()
    assert 0.95 * found.error <= float(off.max()) <= 1.01 * found.error <= 1.01 * smooth.LARGEST_ERROR


@pytest.mark.parametrize("name", NAMES)
def test_far_numbers_lie_on_the_lines(name):
    found, case = smooth.knots_of(name), smooth.SMOOTH[name]
    numbers = [default for _, default in case.options if not isinstance(default, str)]
    for line, x in ((case.left(*numbers), -1e4), (case.right(*numbers), 1e4)):
        assert float(found(torch.tensor([x], dtype=torch.float64))) == pytest.approx(line[0] * x + line[1], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_about_as_few_knots_as_a_curve_takes(name):
    """Many short pieces of a curve take ∫√|f″| / (4√error); the lines on either side save some."""
    found, function = smooth.knots_of(name), smooth.SMOOTH[name].function
    step = float(X[1] - X[0])
    bent = torch.diff(function(X), n=2).abs() / step**2
    bent = bent[bent < 10]  # without the corner of SELU
    assert len(found.places) <= 3 + float(bent.sqrt().sum()) * step / (4 * found.error**0.5)


@settings(max_examples=8)
@example("gelu", 0.09375)
@example("silu", 0.1347)
@given(st.sampled_from(["sigmoid", "silu", "gelu", "elu", "softplus", "tanh"]), st.floats(0.004, 0.2))
def test_no_path_over_a_lattice_of_the_tunnel_has_fewer_pieces(name, error):
    case = smooth.SMOOTH[name]
    numbers = [default for _, default in case.options if not isinstance(default, str)]
    left, right = case.left(*numbers), case.right(*numbers)

    def function(x):
        return case.function(torch.from_numpy(x)).numpy()

    found = knots(function, left, right, error, case.kept)
    assert found.error <= error
    bound = _Seen(function, left, right, error).bound
    assert len(found.places) <= 1 + _pieces_over_a_lattice(function, left, right, 0.97 * error, bound)


def _pieces_over_a_lattice(function, left, right, error: float, bound: float) -> int:
    """Fewest pieces between the lines, whose ends are places of a lattice in the tunnel."""
    x, fine = np.linspace(-bound, bound, 33), np.linspace(-bound, bound, 257)
    y, exact = function(x), function(fine)
    points = [(a, b + part * error) for a, b in zip(x, y, strict=True) for part in (-1, 0, 1)]

    def is_on(line, point, side: int) -> bool:
        outside = fine[(fine - point[0]) * side >= 0]
        return abs(line[0] * point[0] + line[1] - point[1]) < 0.1 * error and bool(
            (np.abs(line[0] * outside + line[1] - function(outside)) <= error).all()
        )

    pieces = {point: 0 if is_on(left, point, -1) else 99 for point in points}
    for after in points:
        for before in points:
            if before[0] < after[0] and pieces[before] + 1 < pieces[after]:
                inside = (fine >= before[0]) & (fine <= after[0])
                slope = (after[1] - before[1]) / (after[0] - before[0])
                if (np.abs(before[1] + slope * (fine[inside] - before[0]) - exact[inside]) <= error).all():
                    pieces[after] = pieces[before] + 1
    return min(pieces[point] for point in points if is_on(right, point, 1))


@pytest.mark.parametrize(
    "options", [("elu", 1e-4), ("elu", 3.0), ("celu", 1e-3), ("softplus", 500.0), ("softplus", 0.5)]
)
def test_unusual_options_are_met(options):
    name, number = options
    found, function = smooth.knots_of(*options), smooth.SMOOTH[name].function
    assert float((found(X) - function(X, number)).abs().max()) <= 1.02 * smooth.LARGEST_ERROR


def test_what_has_no_such_function_says_so():
    with pytest.raises(UserError, match="no 128 ReLUs are as close as 1e-07"):
        knots(lambda x: np.tanh(x), (0.0, -1.0), (0.0, 1.0), 1e-7, "middle")


# Kind of `--replace KIND=relus` → a module or a function, and the options of its name in `SMOOTH`.
MODULES = {
    "SiLU": ("silu", nn.SiLU(), "silu"),
    "SiLU in place": ("silu", nn.SiLU(inplace=True), "silu"),
    "F.silu": ("silu", F.silu, "silu"),
    "x·sigmoid(x)": ("silu", lambda x: x * torch.sigmoid(x), "silu"),
    "x·sigmoid(1.702x)": ("silu", lambda x: x * torch.sigmoid(1.702 * x), "silu"),
    "GELU": ("gelu", nn.GELU(), "gelu", "none"),
    "GELU by tanh": ("gelu", nn.GELU("tanh"), "gelu", "tanh"),
    "F.gelu by tanh": ("gelu", lambda x: F.gelu(x, approximate="tanh"), "gelu", "tanh"),
    "Mish": ("mish", nn.Mish(), "mish"),
    "Softplus": ("softplus", nn.Softplus(), "softplus", 1.0),
    "Softplus(2, 12)": ("softplus", nn.Softplus(2.0, 12.0), "softplus", 2.0, 12.0),
    "ELU": ("elu", nn.ELU(), "elu", 1.0),
    "ELU(0.5)": ("elu", nn.ELU(0.5), "elu", 0.5),
    "F.elu_": ("elu", lambda x: F.elu_(x.clone(), 1.5), "elu", 1.5),
    "CELU(2)": ("elu", nn.CELU(2.0), "celu", 2.0),
    "SELU": ("elu", nn.SELU(), "selu"),
    "LogSigmoid": ("logsigmoid", nn.LogSigmoid(), "logsigmoid"),
    "Tanh": ("tanh", nn.Tanh(), "tanh"),
    "Tensor.tanh": ("tanh", lambda x: x.tanh(), "tanh"),
    "erf": ("erf", torch.erf, "erf"),
    "Sigmoid": ("sigmoid", nn.Sigmoid(), "sigmoid"),
    "sigmoid(2x)": ("", lambda x: x + torch.sigmoid(2 * x), "sigmoid"),
}


class Called(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def images() -> Tensor:
    return 4 * torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODULES)
def test_a_map_runs_within_the_error(name):
    kind, function, key, *options = MODULES[name]
    module = function if isinstance(function, nn.Module) else Called(function)
    whole = nn.Sequential(module, nn.Flatten()).eval()
    network = instrument(whole, (3, 4, 4)).eval()
    assert not ops.unsupported(network) and not network.is_replaced
    if kind:
        asked = instrument(whole, (3, 4, 4), {kind: "relus"}, keeps_smooth=True).eval()
        assert (asked.code, asked.notes) == (network.code, network.notes)
    found = smooth.knots_of(key, *options)
    expected = whole(images())
    assert float((network(images()) - expected).abs().max()) <= found.error * 1.01
    assert count(network).relus == 48 * len(found.places) and not count(network).squares
    cheaper = f"; --replace {kind}=relu, and finetune, costs 1 each" if key in ops.SMOOTH else ""
    assert network.notes[0].endswith(f"{key} is piecewise linear within 0.001, {len(found.places)} ReLUs each{cheaper}")
    for site in network.sites.values():
        site.assign(torch.zeros(site.shape, dtype=torch.bool))
    slope, offset = found.left
    if "sigmoid(" not in name:
        assert torch.allclose(network(images()), (slope * images() + offset).flatten(1), atol=1e-3)


def test_what_stands_without_relus():
    """x itself, about: an open gate for a sigmoid, and the line through 0 for what is odd."""
    lines = {name: smooth.knots_of(name).left for name in NAMES}
    for name, (slope, offset) in lines.items():
        wanted = {"sigmoid": (0, 1), "selu": (1.05, 0), "erf": (1.12, 0)}.get(name, (1, 0))
        assert (slope, offset) == pytest.approx(wanted, abs=0.02)


def test_every_smooth_function_is_written_by_itself_or_kept():
    assert {*ops.SMOOTH, "logsigmoid", "erf", "sigmoid"} == {*smooth.SMOOTH}
    for name, kind in ops.SMOOTH.items():
        assert replacements.PIECES[kind] == "relus" and f"--replace {kind}=relu," in ops._REMEDIES[name]
    kept = instrument(nn.Sequential(nn.SiLU(), nn.Flatten()), (1, 4, 4), keeps_smooth=True)
    assert not kept.sites and ops.unsupported(kept)[0].replacements == [("silu", "relu")]


@pytest.mark.parametrize("module", [nn.Softplus(threshold=1.0), nn.Softplus(beta=-1.0)])
def test_what_jumps_or_has_no_lines_is_left(module):
    network = instrument(nn.Sequential(module, nn.Flatten()), (1, 4, 4))
    (problem,) = ops.unsupported(network)
    assert str(problem) == "0: Softplus is not supported; --replace softplus=relu, and finetune"


class Many(nn.Module):
    """Smooth functions of which one reads another, and one of whose parts nobody else reads."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(F.silu(x)) + x
        return (x * torch.sigmoid(x.mean((2, 3), keepdim=True)) - F.softplus(x)).flatten(1)


def test_what_was_read_is_compared_without_what_pieces_are_made_of(monkeypatch):
    """29 times the memory of the map, and of all maps at once, is what they would take."""
    network, elements = instrument(Many(), (2, 6, 6)), []
    exactly = agreement._Exactly(network, {})

    def run(self, node):
        result = run_node(self, node)
        elements.append(sum(value.numel() for value in self.env.values() if isinstance(value, Tensor)))
        return result

    run_node = agreement._Exactly.run_node
    monkeypatch.setattr(agreement._Exactly, "run_node", run)
    instrument(Many(), (2, 6, 6))
    assert 0 < max(elements) <= 2 * 6 * 72 and len(elements) < len(exactly._last)
    images = torch.randn(3, 2, 6, 6)
    assert torch.equal(exactly.outputs(images), network(images))


class Excited(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * torch.sigmoid(x.mean((2, 3), keepdim=True))).flatten(1)


def test_what_was_read_is_compared_with_the_functions_themselves(monkeypatch):
    """A small error of a gate is no reason for what is around it to be wrong."""
    seen = []
    check = agreement._off
    monkeypatch.setattr(
        agreement, "_off", lambda *pair: seen.append(float((pair[0] - pair[1]).abs().max())) or check(*pair)
    )
    instrument(Excited(), (2, 4, 4))
    assert seen == [pytest.approx(0, abs=1e-6)]


def test_a_network_with_pieces_runs_in_the_ring():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.ELU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    network = instrument(module, (1, 8, 8)).eval()
    assert [site.shape for site in network.sites.values()] == [(4, 29, 36), (4, 28, 16), (4, 17, 16)]
    lowered, pictures = lowered_of(network), images_of(20, (1, 8, 8), seed=1)
    found = torch.from_numpy(reference.run(lowered, pictures).logits)
    mean, std = (tuple(values) for values in preprocessing_of(1).values())
    with torch.no_grad():
        expected = module(normalise(pictures, mean, std))
    assert (found - expected).abs().max() < 0.01
