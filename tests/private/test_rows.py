"""Rows as JSON: what files hold is read, and written again as it was, in the same order."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parelu.private.rows import Cost, Costs, Difference, LayerCost, Part, PrivateInference, RingAccuracy, Row

COST = {
    "seconds": 0.6,
    "bytes_to_client": 175,
    "bytes_to_server": 154.5,
    "rounds": 21.5,
    "cpu_client": 0.29,
    "cpu_server": 0.5,
}
WITH_HELPER = {"seconds": 1.0, **{f"bytes_to_{who}": 1 for who in ("client", "server", "helper")}, "rounds": 3}
HEAD = {
    "engine": "delphi",
    "relu": "sign",
    "offline_mode": "seal",
    "threat_model": "semi-honest; no third party",
    "network": "wan",
    "relus": 30272,
    "squares": 0,
    "images": 2,
    "batch": 1,
}
TAIL = {
    "max_error": 0.006,
    "agreement": 1.0,
    "ring": {"largest": 0.003, "clear": 2, "same": 2, "same_of_all": 2},
    "labels": [7, 2],
    "logits": [[-0.87, -0.4], [1.0, 2.0]],
}
LAYERS = [
    {
        "phase": "offline",
        "layer": "conv1",
        "cpu_client": 0.01,
        "seconds_client": 0.02,
        "bytes_to_client": 9.0,
        "bytes_to_server": 8,
        "cpu_server": 0.1,
        "seconds_server": 0.2,
    },
    {"phase": "online", "layer": "conv1", "cpu_server": 0.1, "seconds_server": 0.2},
]
OF_DELPHI = {
    **HEAD,
    **dict.fromkeys(("offline", "online", "total", "setup"), COST),
    "peak_mb": 913.3,
    "peak_mb_client": 487.4,
    "peak_mb_server": 425.9,
    "layers": LAYERS,
    **TAIL,
}
PART = {"seconds": 0.5, "bytes_to_client": 1.0, "bytes_to_server": 2.0}
NEWER = {
    **{name: value for name, value in OF_DELPHI.items() if name not in TAIL},
    "parts": {"online": {"linear": PART, "relu": PART}},
    **TAIL,
    "truncation": "exact",
    "queries": 1,
}
OF_SPU = {
    **HEAD,
    "engine": "spu-aby3",
    "total": WITH_HELPER | {f"cpu_{who}": 0.1 for who in ("client", "server", "helper")},
    "seconds": [1.0, 2.0],
    "cold_seconds": 5.0,
    "compile_seconds": 7.5,
    **TAIL,
}
RING = {
    "accuracy": 68.75,
    "float_accuracy": 68.76,
    "agreement": 99.97,
    "max_error": 0.011,
    "overflow_rate": 0.0,
    "images": 10000,
}


@pytest.mark.parametrize("value", [OF_DELPHI, OF_SPU, NEWER])
def test_a_row_of_a_file_is_written_as_it_was(value):
    row = Row.from_json(value)
    assert json.dumps(row.to_json()) == json.dumps(value)
    assert ("with exact truncation" in row.setting) == ("truncation" in value)
    assert ("for 1 query," in row.setting) == ("queries" in value) and row.setting.endswith("link wan")
    assert row.link == "wan" and row.costs.total.seconds == value["total"]["seconds"]
    assert row.costs.total.bytes == sum(n for name, n in value["total"].items() if name.startswith("bytes_to_"))


@pytest.mark.parametrize("others", [{}, {"spu-aby3": OF_SPU}])
def test_what_was_measured_of_a_network_is_written_as_it_was(others):
    value = {"ring": RING, "row": OF_DELPHI, "others": others}
    found = PrivateInference.from_json(value)
    assert json.dumps(found.to_json()) == json.dumps(value)
    assert [row.engine for row in found.rows] == ["delphi", *others]
    without = PrivateInference.from_json({"ring": RING, "row": OF_DELPHI})
    assert without.rows == found.rows[:1]


numbers = st.floats(0, 1e9)
parties = st.dictionaries(st.sampled_from(("client", "server", "helper")), numbers)
part = st.builds(Part, numbers, parties)
rows = st.builds(
    Row,
    costs=st.builds(
        Costs,
        total=st.builds(Cost, numbers, parties, numbers, parties),
        peak_mb=st.none() | numbers,
        layers=st.none() | st.lists(st.builds(LayerCost, bytes_to_client=st.none() | numbers)).map(tuple),
        parts=st.none() | st.dictionaries(st.just("online"), st.dictionaries(st.just("relu"), part)),
        seconds=st.none() | st.lists(numbers).map(tuple),
    ),
    ring=st.builds(Difference, numbers),
    labels=st.lists(st.integers(0, 9)).map(tuple),
    logits=st.lists(st.lists(numbers).map(tuple)).map(tuple),
    max_error=numbers,
    agreement=numbers,
    truncation=st.sampled_from(("local", "exact")),
    queries=st.integers(1, 2000),
)


@given(rows, st.builds(RingAccuracy, *[numbers] * 5))
def test_json_and_back(row, ring):
    value = PrivateInference(ring, row, {"other": row})
    assert PrivateInference.from_json(json.loads(json.dumps(value.to_json()))) == value


@pytest.mark.parametrize("name", ["total", "network", "ring", "relus"])
def test_a_row_without_a_part_is_none(name):
    with pytest.raises((KeyError, TypeError)):
        Row.from_json({key: value for key, value in OF_DELPHI.items() if key != name})
