"""The command that measures this machine: what it keeps and draws, and what it refuses before it starts."""

import json

import pytest
from commands import refused, run

from parelu import api
from parelu.network import machine
from parelu.private.cost import measure
from parelu.private.cost.calibration import Calibration, own_file
from parelu.private.cost.measure import Case
from parelu.private.cost.predict import PHASES
from parelu.private.cost.programs import Layer
from parelu.private.engines.base import Options
from parelu.runs.pricing import price_of


def _case(relus, link):
    options = Options("sign", "dealer", link)
    return Case(f"{relus} ReLUs, {link}", (1, 4, 4), (Layer(2, relus=relus),), 2, options, alone=relus == 3)


@pytest.fixture
def few(monkeypatch, parties_as_threads):
    """Tiny programs, by both parties in this process."""

    def cases(links, times):
        found = ((3, "loopback"), (30, "loopback"), *((9, link) for link in links))
        return times * [_case(count, link) for count, link in found]

    monkeypatch.setattr(api, "cases", cases)
    monkeypatch.setattr(measure, "TRIES", 1)  # or what else runs here were measured with it


def test_calibrate_keeps_what_it_measured_and_draws_it(capsys, few, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(machine, "load", lambda: 0.0)
    picture = tmp_path / "fit.svg"
    assert run("calibrate", "--link", "1Gb/s,1ms", "--picture", str(picture)) == 0
    told = capsys.readouterr()
    assert f"calibration: {own_file()}" in told.err
    assert "busy" not in told.err
    kept = Calibration.load(own_file())
    assert {point.what for point in kept.points} == {"3 ReLUs, loopback", "30 ReLUs, loopback", "9 ReLUs, 1Gb/s,1ms"}
    assert all(f"{phase}: 3 measurements" in told.out for phase in PHASES)
    assert str(kept.machine) in told.out
    assert picture.read_text().count("<svg") == 1
    assert api.calibration() == kept


@pytest.mark.filterwarnings("default:this machine is busy")
def test_calibrate_on_a_busy_machine_says_so(capsys, few, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "load", lambda: 99.0)
    assert run("calibrate", "--out", str(tmp_path / "one.json"), "--json", "--times", "2") == 0
    told = capsys.readouterr()
    assert len(json.loads(told.out)["points"]) == 2 * len(PHASES) * 4
    assert "this machine is busy (load 99.0 on" in told.err
    assert json.loads(told.out) == json.loads((tmp_path / "one.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--link", "0Mb/s,40ms"), "link '0Mb/s,40ms': '0Mb/s' is no number above zero"),
        (("--link", "loopback"), "loopback is measured anyway: give the link of two machines, or leave it out"),
        (("--times", "0"), "a calibration of 0 times has no measurements; it should be 1 or more"),
        (("--link", "dialup"), "link 'dialup': it is no known one"),
        (("--picture", "fit.jpg"), "fit.jpg is neither .png nor .svg"),
    ],
)
def test_calibrate_refuses_before_it_measures(capsys, monkeypatch, arguments, reason):
    monkeypatch.setattr(api, "observe", None)
    assert refused(capsys, "calibrate", *arguments).startswith(reason)


def test_a_calibration_of_another_machine_is_used_with_a_warning(tmp_path, few, monkeypatch):
    monkeypatch.setattr(machine, "load", lambda: 0.0)
    assert run("calibrate", "--out", str(tmp_path / "one.json")) == 0
    monkeypatch.setattr("parelu.private.cost.calibration.cores", lambda: 1000)
    with pytest.warns(UserWarning, match=r"^seconds are those of .*; this is .* with 1000 cores, .*`parelu calibrate`"):
        api.calibration(tmp_path / "one.json")
    with pytest.warns(UserWarning, match="seconds are those of"):  # and where budgets are priced
        price_of(api.Options())
