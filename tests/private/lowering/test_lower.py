"""Lowering, the program's format, and the ring reference against the float network."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import program_of
from torch import nn
from two_parties import Residual, images_of, lowered_of, preprocessing_of, ready, without_relus_at

from parelu.errors import UserError
from parelu.fusion.fuse import fuse, nothing
from parelu.models.reuse import ReuseConv
from parelu.network.instrument import instrument
from parelu.network.preprocessing import normalise
from parelu.network.spec import spec_of
from parelu.network.steps import apply_steps
from parelu.private.crypto.kernels import NAMES, load
from parelu.private.crypto.ring import WIDTHS, LinearMap, Ring
from parelu.private.fresh import LEAST_NOISE, fresh, noise, sketch
from parelu.private.lowering import lower as lower_module
from parelu.private.lowering import program as program_module
from parelu.private.lowering import reference, refusals
from parelu.private.lowering.lower import LARGEST_WRAP, WEIGHT_BITS, Lowered, lower
from parelu.private.lowering.ops import Activation, Pool, Resample
from parelu.private.lowering.program import Program
from parelu.private.lowering.refusals import problems, too_large


def float_logits(network, images):
    p = preprocessing_of(network.input_shape[0])
    with torch.no_grad():
        return network(normalise(images, tuple(p["mean"]), tuple(p["std"]))).double().numpy()


def test_the_reference_is_the_float_network_up_to_rounding():
    coefficients = torch.tensor([[0.1, -0.05], [0.8, 0.9], [0.0, 0.12]])
    for seed in range(4):
        torch.manual_seed(seed)
        network = ready(Residual(), (1, 6, 6), lambda u: u < 0.5, lambda c: coefficients.repeat(1, c // 2))
        lowered = lowered_of(network, 64)
        images = images_of(64, (1, 6, 6))
        result = reference.run(lowered, images)
        assert np.abs(result.logits - float_logits(network, images)).max() < 0.02
        assert result.overflows == 0
        assert lowered.wrap_bound < 1e-4


@pytest.mark.parametrize("gone", [("relu3",), ("relu", "relu2"), ("relu2", "relu3"), ("relu", "relu2", "relu3")])
def test_the_reference_of_a_fused_network_is_that_of_the_unfused_up_to_rounding(gone):
    """Layers become one matrix, one convolution, and a convolution whose bias is a map."""
    for seed in range(3):
        network = without_relus_at(ready(Residual(seed=seed), (1, 6, 6), lambda u: u < 0.6), *gone)
        fused, plain = (lowered_of(network, 64, cost=cost) for cost in (lambda layer: 1.0, nothing))
        has_gain = gone != ("relu", "relu2")  # there the pool and the late batch-norm, a shift, cost nothing alone
        assert (len(fused.program.ops) < len(plain.program.ops)) == has_gain
        assert fused.wrap_bound <= plain.wrap_bound
        images = images_of(64, (1, 6, 6), seed=1)
        expected = float_logits(network, images)
        found = [reference.run(lowered, images).logits for lowered in (fused, plain)]
        assert max(np.abs(logits - expected).max() for logits in found) < 0.02
        assert np.abs(found[0] - found[1]).max() < 0.02


def test_many_squares_take_fewer_bits(monkeypatch):
    """From 12 to 6 for the largest coefficient of a site; below, a network is refused."""
    torch.manual_seed(0)
    network = ready(
        spec_of("resnet10 m=4", (1, 8, 8), 10).module(),
        (1, 8, 8),
        lambda u: u < 0.5,
        lambda c: torch.tensor([[0.1], [0.5], [0.15]]) * torch.rand(3, c),
    )
    images = images_of(32, (1, 8, 8))
    expected = float_logits(network, images)
    full, bits = lowered_of(network, 32).wrap_bound, []
    for part in (1, 3, 45):
        monkeypatch.setattr(lower_module, "LARGEST_WRAP", full / part)
        lowered = lowered_of(network, 32)
        assert lowered.wrap_bound <= full / part
        assert np.abs(reference.run(lowered, images).logits - expected).max() < 0.02 * np.abs(expected).max()
        bits.append(
            {int(np.abs(secret["c2"]).max()).bit_length() for secret in lowered.weights.values() if "c2" in secret}
        )
        assert sum(r.kind == "square" for r in lowered.ranges) == 9
    assert bits == [{12}, {10}, {6}]
    monkeypatch.setattr(lower_module, "LARGEST_WRAP", full / 128)
    with pytest.raises(UserError, match=r"may wrap with probability .* keep activations and the number of squares"):
        lowered_of(network, 32)


class Loud(nn.Module):
    """Reaches 2·weight at its ReLU, for a pixel of 255."""

    def __init__(self, weight):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.conv.weight.data.fill_(weight)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(1, 2)

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


def test_the_wrap_bound_is_four_times_the_mean_of_each_truncated_integer_over_the_ring():
    network = instrument(Loud(0.7), (1, 4, 4)).eval()
    images, seen = images_of(16, (1, 4, 4)), []
    network.get_submodule("conv").register_forward_hook(lambda module, inputs, output: seen.append(output))
    float_logits(network, images)
    lowered, wide = (lowered_of(network, 16, cost=nothing, ring=Ring(bits)) for bits in WIDTHS)
    (truncated,) = (r for r in lowered.ranges if r.kind == "truncate")
    unit = 2.0 ** -(10 + 12)  # an activation's fraction and the bits of 0.7
    assert (truncated.unit, truncated.elements, truncated.bits) == (unit, 16, 12)
    assert truncated.mean == pytest.approx(float(seen[0].abs().mean()))
    assert truncated.largest == pytest.approx(float(seen[0].abs().max()))
    assert lowered.wrap_bound == pytest.approx(16 * 4 * float(seen[0].abs().mean()) / unit / 2**59)
    assert wide.wrap_bound == lowered.wrap_bound / 32


@pytest.mark.parametrize("weight", [2.0**50, 1000.0, 1e-3, 2.0**-12])
def test_large_activations_have_fewer_bits_after_the_point_and_small_ones_more(weight):
    """What they lose is small beside them."""
    network, images = instrument(Loud(weight), (1, 4, 4)).eval(), images_of(16, (1, 4, 4))
    for ring in map(Ring, WIDTHS):
        lowered = lowered_of(network, ring=ring)
        (relu,) = (op for op in lowered.program.ops if isinstance(op, Activation))
        assert 11 <= relu.bits <= 23
        expected = float_logits(network, images)
        assert np.abs(reference.run(lowered, images).logits - expected).max() < 0.003 * np.abs(expected).max()


def test_an_input_outside_of_the_calibrated_range_is_counted():
    network = ready(Residual(), (1, 6, 6))
    lowered = lowered_of(network)
    narrow = tuple(dataclasses.replace(op, bits=4) if op.kind == "activation" else op for op in lowered.program.ops)
    result = reference.run(
        dataclasses.replace(lowered, program=dataclasses.replace(lowered.program, ops=narrow)), images_of(8, (1, 6, 6))
    )
    assert 0 < result.overflows <= result.values == 8 * lowered.program.relus


def test_an_image_that_leaves_the_exact_range_is_lost_alone(monkeypatch):
    network = ready(Residual(), (1, 6, 6))
    lowered, images = lowered_of(network), images_of(16, (1, 6, 6))
    whole = reference.run(lowered, images)
    layer, limits = reference.ExactLinear.__call__, []

    def limited(self, x):
        limits.append(float(np.abs(x).max()))
        if np.abs(x).max() >= limit:
            raise OverflowError
        return layer(self, x)

    limit = math.inf
    monkeypatch.setattr(reference.ExactLinear, "__call__", limited)
    for image in images.split(1):
        reference.run(lowered, image)
    layers = len(limits) // len(images)
    largest = [max(limits[i * layers : (i + 1) * layers]) for i in range(len(images))]
    limit = sorted(largest)[-3]
    lost = np.array(largest) >= limit
    result = reference.run(lowered, images)
    assert 3 <= lost.sum() < len(images)
    assert not result.logits[lost].any()
    assert np.array_equal(result.logits[~lost], whole.logits[~lost])
    assert result.overflows >= lost.sum() * lowered.program.relus
    assert result.values == whole.values


class Joined(nn.Module):
    """Slices and concatenations: a ReLU-reuse layer, and one behind an average pool, which has another unit."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.reuse = ReuseConv(8, 4)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.down = nn.Conv2d(8, 4, 2, 2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = self.conv(x)
        x = self.relu(self.reuse(x) + x)
        return self.fc(torch.cat([self.down(x), self.pool(x[:, -4:]), self.pool(x)[:, 2:6]], dim=-3).mean((2, 3)))


def test_slices_and_concatenations_are_lowered():
    network = ready(Joined(), (1, 6, 6), lambda u: u < 0.5)
    lowered = lowered_of(network)
    kinds = [op.kind for op in lowered.program.ops]
    assert kinds.count("concat") == 4 and kinds.count("select") == 5
    images = images_of(16, (1, 6, 6), seed=1)
    assert np.abs(reference.run(lowered, images).logits - float_logits(network, images)).max() < 0.02


@pytest.mark.parametrize("nothing_much", [nn.Identity(), nn.Dropout(), nn.Dropout2d()])
def test_what_does_nothing_at_inference_costs_nothing(nothing_much):
    images = images_of(8, (1, 6, 6))
    torch.manual_seed(0)
    with_it = ready(Bad(nn.Sequential(nothing_much, nn.ReLU(), nothing_much)), (1, 6, 6))
    without = ready(Bad(nn.ReLU()), (1, 6, 6))
    without.load_state_dict({name.replace("op.1.", "op."): value for name, value in with_it.state_dict().items()})
    found = [lowered_of(network, 8) for network in (with_it, without)]
    assert len({tuple(op.kind for op in lowered.program.ops) for lowered in found}) == 1
    logits = [reference.run(lowered, images).logits for lowered in found]
    assert np.array_equal(*logits) and np.abs(logits[0] - float_logits(without, images)).max() < 0.02


class Sums(nn.Module):
    """Sums of products of different bits, of a product and what a ReLU gave, and of a product that another op reads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(width, 4, 3, padding=1) for width in (1, 1, 1, 4, 4, 4))
        self.convs[1].weight.data /= 32
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.relus[0](self.convs[0](x) + self.convs[1](x) + self.convs[2](x))
        x = self.relus[1](self.convs[3](x) + x)
        y = self.convs[4](x)
        return self.fc(self.relus[2](self.convs[5](y) + y).mean((2, 3)))


def test_a_truncation_waits_for_an_addition_that_alone_reads_it():
    network = ready(Sums(), (1, 6, 6))
    program = lowered_of(network, cost=nothing).program
    ops = dict(enumerate(program.ops, start=1))
    sums = [op for op in ops.values() if op.kind == "add"]
    assert [{ops[number].kind for number in (op.source, op.other)} for op in sums] == [
        {"conv", "scale"},  # the second's weights are smaller, so that they have more bits
        {"add", "scale"},
        {"conv", "scale"},
        {"conv", "scale"},
    ]
    assert [op.kind for op in ops.values()].count("truncate") == 4, "one a sum that is read, and y's own"
    assert all(ops[op.source].kind == "truncate" for op in ops.values() if op.kind == "activation")
    read_twice = ops[ops[sums[-1].other].source]
    assert read_twice.kind == "truncate" and ops[read_twice.source].kind == "conv"


def test_where_a_wrap_would_be_too_likely_truncations_do_not_wait(monkeypatch):
    network, images = ready(Sums(), (1, 6, 6)), images_of(64, (1, 6, 6), seed=1)
    late = lowered_of(network, 64, cost=nothing)
    monkeypatch.setattr(lower_module, "LARGEST_WRAP", 0.999 * late.wrap_bound)
    early = lowered_of(network, 64, cost=nothing)
    assert early.wrap_bound < late.wrap_bound
    found = [[op.kind for op in lowered.program.ops].count("truncate") for lowered in (late, early)]
    assert found == [4, 6]
    expected = float_logits(network, images)
    errors = [np.abs(reference.run(lowered, images).logits - expected).max() for lowered in (late, early)]
    assert max(errors) < 0.02


class Bad(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.op = op
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.op(self.conv(x))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["resnet10 m=2", "wrn-10-1 m=4", "mobilenetv1 m=4", "regnetx-200mf m=16"])
def test_a_network_is_not_called_too_large_that_fits(name, monkeypatch):
    """What shapes tell is at most what the program has, and more than a third of it."""
    spec = spec_of(name, (3, 8, 8), 10)
    network = instrument(spec.module(), spec.input)
    total = sum(map(math.prod, program_of(spec, apply_steps(spec, "none").plan).program.shapes))
    monkeypatch.setattr(refusals, "LARGEST_TOTAL", total)
    assert too_large(fuse(network)) is None
    monkeypatch.setattr(refusals, "LARGEST_TOTAL", total // 3)
    assert str(too_large(fuse(network))).endswith(
        "is not supported; use smaller images, or replace what has many ReLUs"
    )


def test_a_network_that_is_too_large_is_refused_before_it_is_calibrated(monkeypatch):
    monkeypatch.setattr(refusals, "LARGEST_TOTAL", 1000)
    monkeypatch.setattr(lower_module, "calibrate", lambda *_: pytest.fail("calibrated"))
    with pytest.raises(UserError, match=r"a query of [\d,]+ values or more \(1,000 at the most\) is not supported"):
        sketch(spec := spec_of("resnet10 m=2", (1, 8, 8), 10), apply_steps(spec, "none").plan)


@pytest.mark.parametrize(
    ("op", "path", "remedy"),
    [
        (nn.Softsign(), "op: Softsign", ""),
    ],
)
def test_what_has_no_lowering_is_named_with_its_path_and_a_remedy(op, path, remedy):
    network = instrument(Bad(op), (1, 6, 6))
    (problem,) = problems(network)
    assert path in str(problem) and remedy in str(problem)
    with pytest.raises(UserError, match="op"):
        lowered_of(network.eval())


def test_a_program_survives_bytes_and_files(tmp_path):
    lowered = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.5))
    again = Program.from_bytes(lowered.program.to_bytes())
    assert again.digest == lowered.program.digest and again.shapes == lowered.program.shapes
    lowered.save(tmp_path)
    loaded = Lowered.load(tmp_path)
    assert loaded.program.digest == lowered.program.digest and loaded.ranges == lowered.ranges
    images = images_of(4, (1, 6, 6))
    assert np.array_equal(reference.run(loaded, images).logits, reference.run(lowered, images).logits)


PROGRAM = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.5)).program.to_bytes()
JOINED = lowered_of(ready(Joined(), (1, 6, 6), lambda u: u < 0.5)).program.to_bytes()
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats())
JUNK = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.lists(NUMBERS, max_size=4))


def refused_or_sound(data):
    """Whether the decoder refuses; what it takes is a program in canonical form that can be walked."""
    try:
        program = Program.from_bytes(data)
    except ValueError:
        return True
    assert program.to_bytes() == data
    assert len(program.shapes) == len(program.ops) + 1 and program.classes >= 1
    return False


@settings(max_examples=800)
@given(st.data())
def test_mutated_programs_are_refused_or_sound(draw):
    """One value anywhere in the JSON is replaced, removed or doubled."""
    value = json.loads(draw.draw(st.sampled_from([PROGRAM, JOINED])))
    place = value
    while isinstance(place, dict | list) and place:
        key = draw.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw.draw(st.integers(0, 3)) == 0:
            action = draw.draw(st.integers(0, 2))
            if action == 0:
                place[key] = draw.draw(JUNK)
            elif action == 1:
                del place[key]
            elif isinstance(place, list):
                place.insert(key, inner)
            break
        place = inner
    refused_or_sound(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


@settings(max_examples=800)
@given(
    st.lists(st.tuples(st.integers(0, len(PROGRAM) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, len(PROGRAM)),
)
def test_mutated_bytes_of_programs_are_refused_or_sound(changes, end):
    data = bytearray(PROGRAM)
    for position, byte in changes:
        data[position] = byte
    assert refused_or_sound(bytes(data[: max(end, 1)])) or end == len(PROGRAM)


def test_a_program_that_would_not_fit_into_memory_is_refused():
    value = json.loads(PROGRAM)
    value["input_shape"], value["layers"] = [1, 1 << 13, 1 << 13], ["scale"] * 5
    value["ops"] = [{"kind": "scale", "source": 0, "factor": 2} for _ in range(5)]
    with pytest.raises(ValueError, match="elements together, more than"):
        Program.from_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


ROW = np.arange(1024, dtype=np.int32)


@pytest.mark.parametrize(
    ("op", "source"),
    [
        (Resample(0, 0, 1 << 20, 0 * ROW, ROW, 0 * ROW + 1), (1024,)),  # one long row, and many that are empty
        (Resample(0, 0, 1024, ROW, ROW, 0 * ROW + 1), (1024, 1 << 21)),
        (Pool(0, (4096, 4096), (4096, 4096), (4096, 4096)), (8, 1, 1)),
        (Pool(0, (2048, 2048), (1, 1), (0, 0)), (1, 4096, 4096)),
    ],
)
def test_an_op_of_few_bytes_that_would_take_all_memory_or_days_is_refused(op, source):
    with pytest.raises(ValueError, match="on shape"):
        op.shape(source)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b'{"format":"parelu-program-3"}', b"\xff"]
)
def test_what_is_no_program_is_refused(text):
    with pytest.raises(ValueError):
        Program.from_bytes(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "parelu-program-2"}, "its format is 'parelu-program-2', that of this version 'parelu-program-3'"),
        ({"ring": 60}, "a ring of 60 bits; known are 59 and 64"),
        ({"ring": 59.0}, "'59.0' is not an integer of this format"),
        ({"output_bits": 60}, "an output of 60 bits"),
    ],
)
def test_a_program_of_another_version_or_ring_is_refused_by_name(changes, message):
    text = json.dumps(json.loads(PROGRAM) | changes, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(ValueError, match=re.escape(message)):
        Program.from_bytes(text)


SEEDS = st.integers(0, 2**32)
RINGS = st.builds(Ring, st.sampled_from(WIDTHS))


@given(
    st.integers(0, 2**32),
    st.integers(1, 2),
    st.integers(0, 1),
    st.sampled_from([1, 2]),
    st.integers(1, 40),
    RINGS,
)
def test_linear_maps_are_exact_modulo_the_ring(seed, stride, padding, groups, bits, ring):
    generator = np.random.default_rng(seed)
    weight = generator.integers(-(2**bits), 2**bits, (4, 4 // groups, 3, 3))
    x = generator.integers(0, 1 << 64, (2, 4, 5, 5), dtype=np.uint64)
    found = LinearMap(weight, (stride, stride), (padding, padding), groups, ring)(x)
    padded = np.pad(x.astype(object), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = (5 + 2 * padding - 3) // stride + 1
    for n, o, i, j in np.ndindex(2, 4, size, size):
        group = o // (4 // groups) * (4 // groups)
        window = padded[n, group : group + 4 // groups, i * stride : i * stride + 3, j * stride : j * stride + 3]
        expected = sum(int(a) * int(b) for a, b in zip(window.flat, weight[o].flat, strict=True))
        assert int(found[n, o, i, j]) % 2**ring.bits == expected % 2**ring.bits


@given(
    st.integers(0, 2**32),
    st.integers(1, 2),
    st.integers(0, 1),
    st.sampled_from([1, 3]),
    st.floats(0, 1),
    RINGS,
)
def test_a_sparse_input_can_be_added_position_by_position(seed, stride, padding, kernel, share, ring):
    generator = np.random.default_rng(seed)
    weight = generator.integers(-(2**12), 2**12, (5, 4, kernel, kernel))
    apply = LinearMap(weight, (stride, stride), (padding, padding), ring=ring)
    whole = generator.integers(0, 1 << 64, (1, 4, 5, 6), dtype=np.uint64)
    positions = np.flatnonzero(generator.random(whole.size) < share)
    rest = whole.copy()
    rest.reshape(-1)[positions] = 0
    found = apply(rest)
    apply.add(found, whole.shape[1:], positions, whole.reshape(-1)[positions])
    assert np.array_equal(ring.reduce(found), ring.reduce(apply(whole)))


@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.tuples(st.integers(0, 1), st.integers(0, 2)),
)
def test_both_sets_of_kernels_give_the_same_products(seed, stride, padding):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 2**64, (2, 3, 6, 7), dtype=np.uint64)
    positions = generator.permutation(3 * 6 * 7)[:20]
    weight = generator.integers(0, 2**64, (3, 3, 2, 4), dtype=np.uint64)
    shape = [
        (size + 2 * pad - k) // step + 1 for size, k, step, pad in zip((6, 7), (3, 2), stride, padding, strict=True)
    ]
    found = []
    for kernels in map(load, NAMES):
        columns, joined = np.empty((3, 3, 2, 3, 2, *shape)), np.empty((2, 9, *shape), np.uint64)
        kernels.limb_columns(x, 22, stride, padding, columns)
        products = columns.reshape(9, 2, 3, 2, *shape)[:, 0].copy()
        kernels.join_limbs(products, 22, joined)
        added = joined[0, :4].copy()
        kernels.add_sparse(weight, (6, 7), stride, padding, positions, x.reshape(-1)[:20], added)
        found.append((columns, joined, added))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "classes", "steps"),
    [
        pytest.param("wrn-22-8", (3, 32, 32), 100, "none", marks=pytest.mark.long),
        pytest.param("resnet34", (3, 32, 32), 100, "cull S1+S4; thin S2+S3", marks=pytest.mark.long),
        ("resnet18", (3, 64, 64), 200, "none"),
    ],
)
def test_networks_that_59_bits_refuse_lower_at_64(name, shape, classes, steps, monkeypatch):
    """Networks of the literature with fresh weights: at 64 bits a wrap is 32 times less likely."""
    reduced = apply_steps(spec_of(name, shape, classes), steps)
    candidate, images = fresh(reduced.spec, reduced.plan), noise(LEAST_NOISE, shape, seed=1)
    lowered = lower(candidate.network(), images, candidate.preprocessing)
    assert lowered.program.ring == Ring(64) and lowered.wrap_bound < LARGEST_WRAP
    monkeypatch.setattr(lower_module, "LEAST_SQUARE_BITS", WEIGHT_BITS)  # none has squares: try once
    with pytest.raises(UserError, match=r"may wrap .* a ring of 64 bits"):
        lower(candidate.network(), images, candidate.preprocessing, ring=Ring(59))


def test_a_network_that_no_program_holds_is_refused_in_a_line(monkeypatch):
    monkeypatch.setattr(program_module, "LARGEST_TOTAL", 100)
    with pytest.raises(UserError, match=r"too large to be run privately: values of \d+ elements together"):
        lowered_of(ready(Residual(), (1, 6, 6)))
