"""benchmarks/train.py with a network and a number of steps that take no time."""

import json
import sys

import pytest
from scripts import script

from parelu import data
from parelu.network.spec import spec_of

train = script("benchmarks/train.py")


def test_speeds_stand_beside_the_plain_networks(monkeypatch, capsys):
    monkeypatch.setattr(train, "matrix_rate", lambda: 1e12)
    found = train.speed(spec_of("resnet10 m=2", (1, 8, 8), 10), data.load("digits"), 64, steps=1, blocks=1)
    rows = {name: row for name, row in found.items() if isinstance(row, dict)}
    assert list(rows) == ["plain", "sites", "snl", "autorep", "fisher"]
    assert rows["plain"]["ratio"] == 1
    for row in rows.values():
        assert row["images_a_second"] == pytest.approx(64 / row["seconds"])
        assert 0 < row["share_of_matrix_rate"] < 1
    train.print_speed({"speed": found, "device": "cpu", "model": "resnet10 m=2", "batch": 64})
    assert capsys.readouterr().out.count("of plain") == 5


@pytest.mark.long
def test_searches_are_as_long_as_the_minutes(monkeypatch, tmp_path):
    small = ["--model", "resnet10 m=4", "--data", "digits", "--input", "1x8x8", "--batch", "32", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["train.py", *small, "--minutes", "0.2", "--out", str(tmp_path)])
    train.main()
    found = json.loads((tmp_path / "summary.json").read_text())["candidates"]
    assert len(found) == 1 + 3 * 3
    assert all(row["curve"] and row["seconds"] > 0 for row in found.values())
