"""The plain convolution is the layer, and it is class 0 of the ring product, whatever stands where nothing is sent."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from parelu.fusion.composition import Convolution
from parelu.fusion.hint_geometry import DEGREE
from parelu.fusion.hint_layout import Layer, Reader, Upload

FEW = settings(max_examples=200, deadline=None)


@st.composite
def shapes(draw, size=None, inputs=None):
    groups = draw(st.sampled_from([1, 1, 2, 3])) if inputs is None else draw(st.sampled_from([1, inputs]))
    inputs = inputs or groups * draw(st.integers(1, 3))
    outputs = groups * draw(st.integers(1, 4))
    size = size or (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    kernel, stride, padding = draw(pair(1, 4)), draw(pair(1, 3)), draw(pair(0, 2))
    assume(all(n + 2 * p >= k for n, k, p in zip(size, kernel, padding, strict=True)))
    return Convolution(inputs, outputs, size, kernel, stride, padding, groups)


@st.composite
def uploads(draw):
    """Of small maps, and of some that are cut into tiles."""
    first = draw(shapes())
    if draw(st.integers(0, 3)) == 0:
        first = dataclasses.replace(first, size=(draw(st.integers(50, 90)), draw(st.integers(25, 70))))
    others = [draw(shapes(first.size, first.inputs)) for _ in range(draw(st.integers(0, 2)))]
    layers = tuple(Layer(10 + k, 3, shape) for k, shape in enumerate([first, *others]))
    widest = DEGREE // Upload(3, layers).spacing
    return Upload(3, layers, draw(st.integers(1, min(widest, 7))))


def weights(reader: Reader, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 10, reader.layer.weight_shape)


def source(upload: Upload, seed: int = 1) -> np.ndarray:
    count = upload.channels * int(np.prod(upload.layers[0].shape.size))
    return np.random.default_rng(seed).integers(-(1 << 63), 1 << 63, count)


def direct(reader: Reader, weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    layer = reader.layer
    x = torch.from_numpy(values).reshape(1, layer.inputs, *layer.size)
    y = F.conv2d(x, torch.from_numpy(weight), None, layer.stride, layer.padding, 1, layer.groups)
    return y.numpy().reshape(-1)


def plain(reader: Reader, weight: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """(rows, tiles, slots) by the matrix, modulo 2^64; packed: (tiles, V, coefficients)."""
    matrix = reader.matrix(weight).astype(np.int64)
    tiles = []
    for tile in packed.astype(np.int64):
        sums = [matrix[group] @ reader.gather(tile[None], group)[:, 0] for group in range(reader.groups)]
        tiles.append(np.concatenate(sums))
    return np.stack(tiles, 1)


def ring(reader: Reader, weight: np.ndarray, sent: np.ndarray, seed: int = 2) -> np.ndarray:
    """(rows, slots) of class 0 of Σ_i b_i·w_i, with arbitrary numbers where a tile's (V, coefficients) are not."""
    upload, rng = reader.upload, np.random.default_rng(seed)
    b = rng.integers(-1000, 1000, (upload.polynomials, upload.points, upload.classes))
    for part in range(upload.parts):
        b[part // upload.classes, upload.coefficients, part % upload.classes] = sent[part]
    b = b.reshape(upload.polynomials, DEGREE)
    w = reader.polynomials(reader.matrix(weight), slice(None)).astype(np.int64)
    out = np.zeros((reader.rows, reader.slots), np.int64)
    for row in range(reader.rows):
        total = np.zeros(DEGREE, np.int64)
        for i in range(upload.polynomials):
            for power in np.flatnonzero(w[:, i, row]):
                total += w[power, i, row] * np.concatenate([-b[i, DEGREE - power :], b[i, : DEGREE - power]])
        out[row] = total[upload.classes * reader.positions]
    return out


@FEW
@given(uploads())
def test_the_plain_convolution_is_each_layer(upload):
    values = source(upload)
    packed = upload.pack(values.astype(np.uint64))
    assert packed.shape == (upload.tiles, upload.parts, len(upload.coefficients))
    for reader in upload.readers:
        weight = weights(reader)
        out = reader.outputs(plain(reader, weight, packed))
        assert np.array_equal(out, direct(reader, weight, values))


@FEW
@given(uploads())
def test_the_plain_convolution_is_class_0_of_the_ring_product(upload):
    """Of any ciphertext: what is sent is noise here, in the padding too."""
    sent = np.random.default_rng(0).integers(-1000, 1000, (1, upload.parts, len(upload.coefficients)))
    for reader in upload.readers:
        weight = weights(reader)
        wanted, found = plain(reader, weight, sent)[:, 0], ring(reader, weight, sent[0])
        assert np.array_equal(found, wanted)


STEM = Convolution(3, 64, (224, 224), (7, 7), (2, 2), (3, 3))


@pytest.mark.parametrize(
    ("layers", "tiles", "points", "sent"),
    [
        ([Convolution(64, 64, (4, 4), (3, 3), padding=(1, 1))], 1, 32, 31),
        ([Convolution(64, 64, (32, 32), (3, 3), padding=(1, 1))], 1, 2048, 1123),
        ([Convolution(512, 10, (1, 1))], 1, 1, 1),
        ([Convolution(256, 64, (32, 32))], 1, 1024, 1024),
        ([STEM], 8, 2048, 1939),
        ([Convolution(64, 64, (56, 56), (3, 3), padding=(1, 1))], 2, 2048, 1711),
    ],
)
def test_sizes(layers, tiles, points, sent):
    upload = Upload(0, tuple(Layer(k + 1, 0, layer) for k, layer in enumerate(layers)))
    assert (upload.tiles, upload.points, len(upload.coefficients)) == (tiles, points, sent)


def test_a_block_and_its_shortcut_read_one_upload():
    """The shortcut reads one of four phases, and multiplies with no zeros."""
    block = Convolution(16, 32, (32, 32), (3, 3), (2, 2), (1, 1))
    shortcut = Convolution(16, 32, (32, 32), (1, 1), (2, 2))
    alone, both = (Upload(0, (Layer(1, 0, block),)), Upload(0, (Layer(1, 0, block), Layer(2, 0, shortcut))))
    assert (both.parts, both.points, len(both.coefficients)) == (alone.parts, 512, len(alone.coefficients))
    assert [reader.columns for reader in both.readers] == [9 * 16, 16]
    assert [reader.macs for reader in both.readers] == [block.macs, shortcut.macs]


def test_taps_that_only_meet_padding_are_not_multiplied():
    (reader,) = Upload(0, (Layer(1, 0, Convolution(5, 7, (1, 2), (3, 3), padding=(1, 1))),)).readers
    assert reader.columns == 5 * 3
    (reader,) = Upload(0, (Layer(1, 0, Convolution(1, 1, (3, 3), (3, 3), (7, 7), (2, 2))),)).readers
    assert reader.columns == 1


def test_a_row_holds_outputs_of_several_groups():
    layer = Convolution(48, 48, (4, 4), (3, 3), padding=(1, 1), groups=48)
    (reader,) = Upload(0, (Layer(1, 0, layer),), 10).readers
    assert (reader.per_row, reader.rows, reader.columns) == (10, 5, 90)


def test_a_map_that_is_too_wide_is_refused():
    with pytest.raises(ValueError, match="a map 1100 wide with a kernel of 3 rows does not fit"):
        Upload(0, (Layer(1, 0, Convolution(3, 8, (1100, 1100), (3, 3), padding=(1, 1))),))
