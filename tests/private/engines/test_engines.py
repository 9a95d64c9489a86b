"""Engines behind one contract, and a program on fixed-point numbers: numpy stands in for jax."""

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import UserError
from parelu.private.bench import difference
from parelu.private.engines import environment
from parelu.private.engines.base import Options, chosen, engines
from parelu.private.engines.spu.engine import RECIPE, check_range
from parelu.private.engines.spu.evaluate import PRECISION, evaluate, exponents, numbers, truncations
from parelu.private.lowering import reference
from parelu.private.lowering.encode import encode_images
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Scale
from parelu.private.rows import Difference

SPU = environment.made(RECIPE)  # before the tests have a cache of their own
CACHE = environment.cache.folder().parent
ROOT = Path(__file__).parents[3]


def convolve(x, weight, stride, padding, groups):
    """SPU has convolutions of one group, and depthwise ones."""
    assert groups in (1, x.shape[1])
    x = np.pad(x, ((0, 0), (0, 0), *((side, side) for side in padding)))
    windows = sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, :: stride[0], :: stride[1]]
    windows = windows.reshape(len(x), groups, -1, *windows.shape[2:])
    weight = weight.reshape(groups, -1, *weight.shape[1:])
    y = np.einsum("ngchwij,gocij->ngohw", windows, weight)
    return y.reshape(len(x), -1, *y.shape[3:])


def on_numbers(lowered, images, digits=None):
    """Logits of `evaluate` with numpy; digits: bits behind the point that the weights are rounded to."""
    program = json.loads(lowered.program.to_bytes())
    integers = {f"{op}/{name}": array for op, own in lowered.weights.items() for name, array in own.items()}
    secrets = numbers(program, integers)
    if digits is not None:
        secrets = {name: np.rint(array * 2.0**digits) / 2.0**digits for name, array in secrets.items()}
    x = encode_images(lowered.program, images) / 2.0**lowered.program.fraction
    last = evaluate(program, secrets, x, np, convolve)
    return last * lowered.program.output_unit * 2.0 ** exponents(program)[-1]


def polynomial(channels):
    """Identity, degree 1 and degree 2 in turn."""
    c = torch.tensor([[0.0, 1.0, 0.0], [0.1, 0.7, 0.0], [0.05, 0.5, 0.2], [-0.1, 0.9, -0.15]])
    return c[torch.arange(channels) % 4].T.contiguous()


class Odd(nn.Module):
    """Windows that are not square, padded pools that overlap, two groups, a position with its own weight."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), (2, 1), (0, 1)),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.AvgPool2d((2, 3), (1, 2), (1, 1)),
            nn.Flatten(),
            nn.Linear(96, 8),
            nn.ReLU(),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        return self.layers(x)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0, 1), st.booleans())
def test_a_program_on_numbers_is_the_ring_reference(seed, keep, odd):
    """The integers' rounding is all that is between them: half a unit an element, 2^−11, a truncation."""
    module, shape = (Odd(seed), (2, 7, 6)) if odd else (Residual(width=4, seed=seed), (1, 6, 6))
    lowered = lowered_of(ready(module, shape, lambda u: u < keep, polynomial))
    images = images_of(3, shape, seed=seed)
    expected = reference.run(lowered, images).logits
    found = on_numbers(lowered, images)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.02 * max(1.0, np.abs(expected).max())
    assert np.abs(on_numbers(lowered, images, PRECISION) - found).max() < 2e-3 * max(1.0, np.abs(expected).max())


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_where_truncations_leave_no_rest_they_are_equal(seed, keep):
    torch.manual_seed(seed % 1000)
    layers = (nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    lowered = lowered_of(ready(nn.Sequential(*layers), (2, 7, 6), lambda u: u < keep))
    bits = truncations(json.loads(lowered.program.to_bytes()))
    ops = tuple(
        dataclasses.replace(op, factor=3 << bits[number]) if isinstance(op, Scale) else op
        for number, op in enumerate(lowered.program.ops, start=1)
    )
    weights = {
        i: {name: (values % 5 - 2) << bits.get(i + 1, 0) for name, values in own.items()}
        for i, own in lowered.weights.items()
    }
    whole = Lowered(dataclasses.replace(lowered.program, ops=ops), weights, lowered.ranges)
    images = images_of(2, (2, 7, 6), seed=seed)
    assert np.array_equal(on_numbers(whole, images), reference.run(whole, images, relu="full").logits)


def test_weights_of_small_numbers_keep_their_bits():
    """A weight below 2^−18 would be nothing behind 18 bits: numbers grow instead, and the next layer takes it back."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        layers[0].weight *= 2.0**-17
        layers[2].weight *= 2.0**17
    lowered = lowered_of(ready(layers, (1, 6, 6)))
    program = json.loads(lowered.program.to_bytes())
    assert min(exponents(program)) < lowered.program.fraction == exponents(program)[0]
    images = images_of(4, (1, 6, 6), seed=1)
    expected = on_numbers(lowered, images)
    assert np.abs(on_numbers(lowered, images, PRECISION) - expected).max() < 1e-3 * np.abs(expected).max()


def test_a_network_too_large_for_64_bits_is_refused():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    lowered = lowered_of(ready(layers, (1, 6, 6)))
    vast = tuple(dataclasses.replace(seen, largest=seen.largest * 2.0**40) for seen in lowered.ranges)
    lowered = dataclasses.replace(lowered, ranges=vast)
    with pytest.raises(UserError, match=r"^0: activations reach .*, too large for spu-x$"):
        check_range("spu-x", lowered, exponents(json.loads(lowered.program.to_bytes())))


def test_every_engine_says_whom_it_trusts():
    found = engines()
    assert list(found) == ["delphi", "spu-aby3", "spu-cheetah", "spu-semi2k"]
    page = (ROOT / "docs/private-inference.md").read_text()
    for name, engine in found.items():
        said = engine.described(Options())
        assert set(said) - {"truncation"} == {"relu", "offline_mode", "threat_model"}
        assert said.get("truncation") == ("local" if name == "delphi" else None)
        assert said["threat_model"].startswith("semi-honest")
        assert f"`{name}`" in page


def test_engines_that_cannot_be_had_are_one_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="unknown engine 'spu'; known are delphi, spu-aby3, spu-cheetah, spu-semi2k"):
        chosen(["delphi", "spu"], Options())
    with pytest.raises(UserError, match="spu-aby3 cannot shape a link; leave --link at loopback"):
        chosen(["spu-aby3"], Options(link="wan"))
    with pytest.raises(UserError, match=r"^ReLU fss does not truncate exactly: give --relu full or sign, or --trunc"):
        chosen(["delphi"], Options(relu="fss", truncation="exact"))
    environment.interpreter.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"spu needs an environment of its own, made with python3.11 or python3.10 and"):
        chosen(["spu-semi2k"], Options())


def test_a_process_that_fails_ends_the_others():
    with pytest.raises(UserError, match=r"^b ended with status 3: an error of its own$"):
        environment.run({"a": ("sleep", "60"), "b": ("sh", "-c", "echo an error of its own; exit 3")}, {})


def test_the_environment_is_the_dependency_group():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert RECIPE.installs == (tuple(groups["spu"]),)


def test_differences_are_between_any_two():
    logits = np.array([[0.0, 1.0], [0.0, 0.1], [2.0, 0.0]])
    other = logits + np.array([[0.0, 0.0], [0.2, 0.0], [0.0, 0.3]])
    assert difference([logits, other, logits]) == Difference(pytest.approx(0.3), 2, 2, 2)


@pytest.mark.slow
@pytest.mark.skipif(SPU is None, reason="SPU's environment is not made: parelu bench --engine spu-semi2k makes it")
@pytest.mark.parametrize(("module", "shape"), [(Odd, (2, 7, 6)), (Residual, (1, 6, 6))])
def test_semi2k_is_the_ring_reference(monkeypatch, module, shape):
    """Every op that a program can have, in SPU's own processes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE))
    environment.interpreter.cache_clear()
    lowered = lowered_of(ready(module(seed=0), shape, lambda u: u < 0.5, polynomial))
    assert lowered.program.squares and lowered.program.relus
    images, options = images_of(4, shape, seed=1), Options(batch=2)
    (engine,) = chosen(["spu-semi2k"], options)
    measured = engine.run(lowered, images, options)
    apart = difference([reference.run(lowered, images).logits, measured.logits])
    assert apart.largest < 0.02 and apart.same == apart.clear
    assert np.abs(measured.logits - on_numbers(lowered, images)).max() < 2e-3
    total = measured.costs.total
    assert total.rounds > 10 and min(total.sent["client"], total.sent["server"]) > 10_000
    assert measured.costs.offline is None
