"""A calibration's file: what comes back, what is refused, and whose seconds it holds."""

import dataclasses
import itertools
import json
import random

import pytest

from parelu.errors import UserError
from parelu.network.machine import cores, processor
from parelu.private.cost import calibration as calibrations
from parelu.private.cost.calibrate import calibrated, cost_of
from parelu.private.cost.calibration import Calibration, Point, chosen, own_file, this_machine, warning_of
from parelu.private.cost.carried import WOKEN, woken
from parelu.private.cost.measure import Case, Observation
from parelu.private.cost.predict import PHASES, busy, estimate, query, spread
from parelu.private.cost.programs import Layer, lowered
from parelu.private.cost.traffic import total
from parelu.private.cost.waiting import over, steps
from parelu.private.cost.work import ALL
from parelu.private.engines.base import Options
from parelu.private.offline.mode import ring_for
from parelu.private.rows import Cost, Costs, LayerCost

# Seconds of a made-up machine, by kind of work.
SECONDS = {"setup": 1e-6, "offline": 3e-6, "online": 2e-6}
PARTIES = ("client", "server")


def observed(layers: tuple[Layer, ...], link: str = "loopback") -> Observation:
    """What a machine would measure on which everything done takes the same, and on which nothing is hidden but what the
    server does while the client answers."""
    case = Case(f"{len(layers)} layers", (2, 8, 8), layers, 3, Options(link=link), alone=link == "loopback")
    ready = lowered(case.shape, layers, ring_for("hints"), 3)
    asked = query(ready.program, case.options, ready)

    def of(features, phase):
        return SECONDS[phase] * sum(features.values())

    costs = {}
    for phase in PHASES:
        cpu = {p: sum(of(getattr(w, p), phase) for w in asked.work if w.phase == phase) for p in PARTIES}
        costs[phase] = Cost(waited(asked, phase, of), {}, total(asked.sent, phase).rounds, cpu)
    rows = [
        LayerCost(w.phase, w.layer, cpu_client=of(w.client, w.phase), cpu_server=of(w.server, w.phase))
        for w in asked.work
        if w.phase == "online"
    ]
    whole = dataclasses.replace(costs["online"], seconds=sum(each.seconds for each in costs.values()))
    return Observation(case, asked, Costs(**costs, total=whole, layers=tuple(rows), peak_mb_client=3, peak_mb_server=4))


def waited(asked, phase, of):
    """Seconds of a phase, layer by layer."""
    on_link = {each.layer: each for each in asked.sent if each.phase == phase}
    seconds = 0.0
    for work in asked.work:
        if work.phase != phase or work.beside:
            continue
        meanwhile = sum(of(w.server, phase) for w in asked.work if w.phase == phase and w.beside == work.layer)
        layers = [*on_link.values()] if work.layer == ALL else [on_link.get(work.layer)]
        travel = sum(over(asked.link, each.to_client + each.to_server, each.waits) for each in layers if each)
        seconds += of(work.server, phase) + max(meanwhile, of(work.client, phase) + travel)
    return seconds


def some_layers(seed: int) -> tuple[Layer, ...]:
    """One to three layers on two channels, of any kind."""
    rng = random.Random(seed)
    return tuple(
        Layer(
            outputs=rng.choice((0, 1, 2, 3, 5)),
            kernel=rng.choice((1, 3)),
            singles=rng.random() < 0.3,
            relus=rng.choice((0, 3, 20, 60)),
            squares=rng.choice((0, 0, 1, 4)),
            bits=rng.randint(6, 16),
        )
        for _ in range(rng.randint(1, 3))
    )


LAYERS = [some_layers(seed) for seed in range(40)]


@pytest.fixture(scope="module")
def made() -> Calibration:
    return calibrated([observed(layers) for layers in LAYERS] + [observed(LAYERS[0], link) for link in ("lan", "wan")])


def test_a_machine_whose_seconds_are_known_is_predicted(made):
    """Also a program that it never saw, over a link that it never saw."""
    assert all(point.ratio == pytest.approx(1, rel=0.02) for point in made.points)
    for seed, phase in itertools.product(range(1000, 1010), PHASES):
        unseen = observed(some_layers(seed), "30Mb/s,7ms")
        found, expected = estimate(phase, unseen.query, made), getattr(unseen.costs, phase)
        assert found.cpu == pytest.approx(expected.cpu, rel=0.05)
        assert found.seconds == pytest.approx(expected.seconds, rel=0.05)


def test_nothing_on_the_link_is_lost(made):
    """The layers' bytes are those of the phase, but for the request's."""
    asked = observed(LAYERS[0], "wan").query
    layers = busy("online", asked, made.work)
    count = sum(each.to_client + each.to_server for each in layers)
    assert sum(over(asked.link, each.layer.bytes) for each in steps(layers, asked.how)) == pytest.approx(
        8 * count / 100e6
    )
    assert 0 <= sum(each.to_client + each.to_server for each in asked.sent if each.phase == "online") - count < 100


def test_it_comes_back_as_it_was_written(made, tmp_path):
    made.save(tmp_path / "one.json")
    assert Calibration.load(tmp_path / "one.json") == made


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[: len(text) // 2], "Expecting|Unterminated|delimiter"),
        (lambda text: text.replace('"cores": ', '"cores": 1', 1), "its digest does not match"),
        (
            lambda text: text.replace("parelu-calibration-3", "parelu-calibration-0"),
            "its format is 'parelu-calibration-0'",
        ),
        (lambda text: "[" * 100_000, "recursion"),
        (lambda text: "[]", "malformed"),
        (lambda text: "{}", "its format is 'None'"),
        (lambda text: "", "Expecting value"),
    ],
)
def test_what_is_no_calibration_is_one_line(made, tmp_path, change, reason):
    path = tmp_path / "one.json"
    made.save(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=reason) as found:
        Calibration.load(path)
    assert str(path) in str(found.value)
    assert len(str(found.value).splitlines()) == 1


def test_numbers_that_are_no_seconds_are_refused_though_the_digest_fits(made):
    for place, value in itertools.product(("work", "waiting"), (-1.0, float("inf"), "1", None, True)):
        content = json.loads(json.dumps(made.to_json()))
        del content["sha256"]
        next(iter(content[place].values()))["coefficients"]["message"] = value
        content["sha256"] = calibrations.storage.digest(content)
        with pytest.raises(ValueError, match="a coefficient is no number from zero"):
            Calibration.from_json(content)


def test_ones_own_comes_before_the_one_that_ships(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    shipped = chosen()
    assert {point.phase for point in shipped.points} == set(PHASES)
    own = dataclasses.replace(made, made="2001-01-01")
    own.save(own_file())
    assert chosen() == own
    shipped.save(tmp_path / "other.json")
    assert chosen(tmp_path / "other.json") == shipped
    with pytest.raises(UserError, match=r"none.json is not there; `parelu calibrate --out .*none.json` makes it$"):
        chosen(tmp_path / "none.json")


def test_another_machine_and_another_version_are_named(made):
    assert not warning_of(made)
    assert (this_machine().processor, this_machine().cores) == (processor(), cores())
    for changed in ({"version": "0.0.1"}, {"processor": "abacus"}, {"cores": 999}, {"kernels": "numpy"}):
        other = dataclasses.replace(made, machine=dataclasses.replace(made.machine, **changed))
        line = warning_of(other)
        assert str(other.machine) in line
        assert str(this_machine()) in line
        assert "`parelu calibrate`" in line


def slowed(costs: Costs, times: float) -> Costs:
    """The client waited so many times longer."""
    of = {phase: cost_of(costs, phase) for phase in PHASES}
    longer = {phase: dataclasses.replace(cost, seconds=times * cost.seconds) for phase, cost in of.items()}
    return dataclasses.replace(costs, **longer)


def test_each_is_predicted_without_its_program():
    """One that takes longer is so far off as it is, however often it was measured."""
    first, *others = [observed(layers) for layers in LAYERS]
    case = dataclasses.replace(first.case, name="odd")
    odd = dataclasses.replace(first, case=case, costs=slowed(first.costs, 9.0))
    found = [point for point in calibrated([*others, *[odd] * 60]).points if point.what == "odd"]
    assert [point.phase for point in found] == list(PHASES) * 60
    for point in found:
        assert point.predicted == pytest.approx(cost_of(first.costs, point.phase).seconds, rel=0.02)
        assert point.slower == pytest.approx(9.0, rel=0.02), "no link: all of it is work"


def test_what_was_disturbed_widens_the_interval_and_is_not_fitted():
    first, *others = [observed(layers) for layers in LAYERS]
    disturbed = dataclasses.replace(first, disturbed=(slowed(first.costs, 3.0),) * 5)
    quiet, both = calibrated([first, *others]), calibrated([disturbed, *others])
    assert (quiet.work, quiet.waiting) == (both.work, both.waiting)
    for phase in PHASES:
        assert spread(both.points, phase)[1] > 2 > spread(quiet.points, phase)[1]


def test_what_a_round_takes_after_a_sleep_is_found(made):
    """Milliseconds of seconds, over a link whose round trips are most of them."""
    late = 3e-3
    links = [observed(LAYERS[0], link) for link in ("lan", "wan", "50Mb/s,80ms")]
    waits = {phase: total(links[0].query.sent, phase).waits for phase in PHASES}
    for each in links:
        for phase in PHASES:
            cost = getattr(each.costs, phase)
            longer = cost.seconds + late * woken(each.query.link, waits[phase])
            object.__setattr__(each.costs, phase, dataclasses.replace(cost, seconds=longer))
    found = calibrated([*(observed(layers) for layers in LAYERS), *links])
    assert found.waiting["online"].coefficients[WOKEN] == pytest.approx(late, rel=0.05)
    assert made.waiting["online"].coefficients[WOKEN] < 1e-4


@pytest.mark.parametrize("count", [1, 7, 40, 99, 196])
def test_of_any_that_was_left_out_nine_of_ten_are_within_the_interval(count):
    points = [Point("", "online", 1.0, 1.0, 2 * k / count) for k in range(count)]
    assert spread(points, "offline") == (1, 1)
    inside = 0
    for each in points:
        low, high = spread([other for other in points if other is not each], "online")
        inside += low <= each.slower <= high
    assert inside <= 0.9 * count + 2
    assert inside >= 0.9 * count or count < 40, "fewer are all within, but for the two at the ends"
