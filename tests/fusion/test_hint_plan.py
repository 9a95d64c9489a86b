"""Plans: the same for both parties, complete, and no dearer than others."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.fusion import hint_plan
from parelu.fusion.composition import Convolution
from parelu.fusion.hint_geometry import DEGREE
from parelu.fusion.hint_layout import Layer, Upload
from parelu.fusion.hint_plan import OFTEN, ONCE, best, plan, plans, seconds, stated, upload_cost

BLOCK = (
    Layer(1, 0, Convolution(3, 16, (32, 32), (3, 3), padding=(1, 1))),
    Layer(3, 2, Convolution(16, 32, (32, 32), (3, 3), (2, 2), (1, 1))),
    Layer(5, 4, Convolution(32, 32, (16, 16), (3, 3), padding=(1, 1))),
    Layer(6, 2, Convolution(16, 32, (32, 32), (1, 1), (2, 2))),
    Layer(9, 8, Convolution(32, 10, (1, 1))),
)


@st.composite
def networks(draw):
    found, number = [], 0
    for source in range(draw(st.integers(1, 3))):
        inputs, side = draw(st.integers(1, 40)), draw(st.integers(1, 60))
        for _ in range(draw(st.integers(1, 3))):
            number += 1
            outputs, groups = draw(st.sampled_from([(7, 1), (32, 1), (inputs, inputs)]))
            kernel, stride = draw(st.integers(1, min(side, 4))), draw(st.integers(1, 2))
            shape = Convolution(inputs, outputs, (side, side), (kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2, groups)
            found.append(Layer(10 * number, source, shape))
    return found


@settings(max_examples=60, deadline=None)
@given(networks(), st.randoms(), st.integers(1, 2000))
def test_both_parties_find_the_same_plan(layers, random, queries):
    """Whatever the order and what was planned before; each layer is in it once, with the source that it reads."""
    found = plan(layers, queries)
    shuffled = list(layers)
    random.shuffle(shuffled)
    hint_plan._cheapest.cache_clear()
    again = plan(shuffled, queries)
    assert (again, again.text) == (found, found.text)
    read = [(layer, upload.source) for upload in found.uploads for layer in upload.layers]
    assert sorted(layer for layer, _ in read) == sorted(layers)
    assert all(layer.source == source for layer, source in read)
    assert sorted(found.readers) == sorted(layer.number for layer in layers)


@settings(max_examples=30, deadline=None)
@given(networks(), st.integers(1, 2000))
def test_a_plan_is_read_as_it_is_stated(layers, queries):
    found = plan(layers, queries)
    again = stated(sorted(layers), found.stated)
    assert (again, again.text) == (found, found.text)


@pytest.mark.parametrize(
    ("uploads", "message"),
    [
        ([(0, 1), (1, 1), (2, 1), (1, 2), (3, 1)], "upload 1 is not one"),  # two numbers of outputs
        ([(0, 1), (1, 1), (1, 1), (2, 1), (3, 1)], "upload 1 is not one"),  # two sources
        ([(0, 1), (1, 1), (2, 1), (1, 1), (4, 1)], "some are missing"),
        ([(0, 0), (1, 1), (2, 1), (1, 1), (3, 1)], "rows of other than 1 to 32 outputs"),
        ([(0, 1), (1, 33), (2, 1), (1, 33), (3, 1)], "rows of other than 1 to 32 outputs"),
        ([(0, 32), (1, 1), (2, 1), (1, 1), (3, 1)], "32 outputs of .* elements in a row"),
        ([(0, 1), (1, 1), (2, 1), (1, 1)], "argument 2 is shorter"),
    ],
)
def test_what_is_no_plan_is_refused(uploads, message):
    assert stated(BLOCK, [(0, 1), (1, 1), (2, 1), (1, 1), (3, 1)]).secrets == 1
    with pytest.raises(ValueError, match=message):
        stated(BLOCK, uploads)


def test_an_upload_is_not_shared_by_more_than_eight():
    layers = [Layer(number, 0, Convolution(2, 2, (9, 9), (3, 3))) for number in range(1, 10)]
    stated(layers[:8], [(0, 1)] * 8)
    with pytest.raises(ValueError, match="or too large"):
        stated(layers, [(0, 1)] * 9)


@settings(max_examples=60, deadline=None)
@given(networks(), st.integers(1, 2000), st.data())
def test_no_upload_of_a_layer_alone_is_cheaper(layers, queries, data):
    alone = []
    for layer in layers:
        one = Upload(layer.source, (layer,))
        widest = min(hint_plan.MOST_OUTPUTS, layer.shape.outputs, DEGREE // one.spacing)
        most = data.draw(st.sampled_from(hint_plan._candidates(one.spacing, widest)))
        alone.append(Upload(layer.source, (layer,), most))
    assert _weight(plan(layers, queries).uploads, queries) <= _weight(alone, queries)


def _weight(uploads, queries):
    return sum(upload_cost(upload).weight(queries) for upload in uploads)


def test_what_is_counted_is_what_is_sent():
    layers = [Layer(1, 0, Convolution(3, 5, (70, 70), (5, 5), (2, 2), (2, 2))), *BLOCK[1:]]
    found = plan(layers, ONCE)
    bits = sum(153 * upload.parts * upload.tiles * len(upload.coefficients) for upload in found.uploads)
    assert found.cost.up == bits + 153 * 3 * DEGREE * len(found.public_parts)
    assert found.cost.down == 78 * sum(int(reader.used.sum()) for reader in found.readers.values())
    assert found.cost.hint == 78 * 3 * DEGREE * found.rows
    for reader in found.readers.values():
        matrix = reader.matrix(np.ones(reader.layer.weight_shape))
        assert reader.macs == matrix.size * reader.slots * reader.upload.tiles
        assert reader.gathered == reader.parts.size * reader.slots * reader.upload.tiles


def test_secrets_and_their_public_parts():
    """A layer in tiles has a secret a tile and one matrix; all else is under the first secret and eight."""
    tiled, small = Layer(1, 0, Convolution(3, 12, (70, 70), (3, 3), padding=(1, 1))), BLOCK[2]
    found = plan([tiled, small], OFTEN)
    assert found.secrets == found.readers[1].upload.tiles == 3
    assert found.public_parts == (*((0, matrix) for matrix in range(8)), (1, 0), (2, 0))
    assert plan([BLOCK[-1]], ONCE).public_parts == ((0, 0),)


def test_a_client_that_asks_often_takes_larger_hints_and_sends_less():
    once, often = (found.cost for found in plans(BLOCK))
    assert once.hint < often.hint and once.up > often.up
    assert [best(plans(BLOCK), queries) for queries in (1, 1000)] == [0, 1]


def test_equal_plans_are_offered_once():
    assert len(plans([Layer(1, 0, Convolution(3, 1, (32, 32), (3, 3)))])) == 1


def test_a_shortcut_shares_its_blocks_upload():
    uploads = plan(BLOCK, OFTEN).uploads
    assert [[layer.number for layer in upload.layers] for upload in uploads] == [[1], [3, 6], [5], [9]]


def test_many_readers_are_planned_in_a_moment():
    layers = [Layer(number, 0, Convolution(2, 2, (9, 9), (3, 3))) for number in range(1, 2001)]
    found = plan(layers, OFTEN)
    assert len(found.uploads) == 2000
    assert found == plan(reversed(layers), OFTEN)


def test_the_text_is_canonical_json():
    text = plan(BLOCK, ONCE).text
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text
    assert text != plan(BLOCK, OFTEN).text


def test_a_map_that_is_too_wide_costs_infinitely_much_and_is_refused():
    wide = Convolution(3, 8, (1100, 1100), (3, 3), padding=(1, 1))
    assert seconds(wide) == math.inf
    with pytest.raises(ValueError, match="does not fit"):
        plan([Layer(1, 0, wide)], ONCE)


def test_seconds_are_a_layers_cost_alone():
    layer = BLOCK[2].shape
    (upload,) = plan([Layer(1, 0, layer)], OFTEN).uploads
    assert seconds(layer) == pytest.approx(1e-12 * (upload_cost(upload).weight(OFTEN) / OFTEN + 300 * layer.macs))
