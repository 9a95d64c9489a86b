"""Seconds before anything runs: on a made-up machine, on links, and for all that there is to choose."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from hand_programs import Hand
from two_parties import MODES, NARROW, WIDE

from parelu.errors import UserError
from parelu.private.cost.calibration import Calibration, Machine, Point
from parelu.private.cost.fit import Fit
from parelu.private.cost.measure import cases
from parelu.private.cost.predict import PHASES, busy, predict, query
from parelu.private.cost.programs import Layer, lowered
from parelu.private.cost.traffic import total
from parelu.private.cost.waiting import LINK, WAITED, over, steps
from parelu.private.engines.base import Options
from parelu.private.offline.mode import modes, ring_for
from parelu.private.protocol.relu import relus
from parelu.private.transport.link import link_of

PARTIES = ("client", "server")
TRUNCATIONS = [(name, "local") for name in relus()] + [(n, "exact") for n, relu in relus().items() if relu.truncates]


class Every(dict):
    """The same seconds for each kind of work."""

    def __missing__(self, name):
        return 1e-6


def calibration(beside=1.0, ratios=(1.0,)):
    fit = Fit(Every(), {})
    points = tuple(Point("a case", phase, ratio, 1.0, ratio) for phase in PHASES for ratio in ratios)
    work = dict.fromkeys(itertools.product(PHASES, PARTIES), fit)
    shares = {f"{LINK}, {how}": beside for how in (*relus(), *modes())}
    waiting = dict.fromkeys(PHASES, Fit(Every({WAITED: 1.0, **shares}), {}))
    memory = dict.fromkeys(itertools.product(modes(), PARTIES), 100.0)
    return Calibration(Machine("a", 2, "numba", "1"), "2026", work, waiting, memory, points)


def everything(ring=NARROW):
    """A program with each op, and a sparse activation before a convolution."""
    hand = Hand((2, 8, 8), ring)
    x = hand.activation(hand.truncate(hand.conv(0, 4)), 0.7, 0.2)
    y = hand.activation(hand.truncate(hand.multiply(x)), 0.1)
    y = hand.shift(hand.pool(hand.add(hand.truncate(hand.conv(y, 4)), x)))
    hand.linear(hand.activation(hand.truncate(hand.linear(y, 12))), 3)
    return hand.lowered().program


def with_bits(program, bits):
    ops = tuple(dataclasses.replace(op, bits=bits) if op.kind == "activation" else op for op in program.ops)
    return dataclasses.replace(program, ops=ops)


def test_a_calibration_measures_all_that_can_be_asked_for():
    """Every ReLU protocol, offline mode and truncation: no kind of work of a program is missing in its cases."""
    seen, made = {of: set() for of in itertools.product(PHASES, PARTIES)}, functools.cache(lowered)
    for case in cases():
        program = made(case.shape, case.layers, ring_for(case.options.offline), case.classes).program
        for each, party in itertools.product(query(program, case.options).work, PARTIES):
            seen[each.phase, party] |= {name for name, amount in getattr(each, party).items() if amount}
    for (relu, truncation), offline in itertools.product(TRUNCATIONS, modes()):
        options = Options(relu, offline, truncation=truncation)
        for each, party in itertools.product(query(everything(), options).work, PARTIES):
            missing = {name for name, amount in getattr(each, party).items() if amount} - seen[each.phase, party]
            assert not missing, (options, each.layer, party)


@pytest.mark.parametrize("relu", sorted(relus()))
@pytest.mark.parametrize("offline", sorted(modes()))
def test_what_costs_more_is_predicted_to_take_longer(offline, relu):
    """More images, wider inputs, more ReLUs, a slower link; bytes and rounds are those of the traffic."""
    program = everything(ring_for(offline))
    options = Options(relu, offline)

    def of(changed=program, **changes):
        found = predict(changed, dataclasses.replace(options, **changes), calibration())
        return found.online.seconds, found.offline.seconds, found.setup.seconds

    base, twice = of()[:2], of(batch=2)[:2]
    assert all(a < b < 2.0001 * a for a, b in zip(base, twice, strict=True)), "a batch shares its rounds"
    narrow, wide = (of(with_bits(program, bits))[:2] for bits in (6, 12))
    assert all(a <= b for a, b in zip(narrow, wide, strict=True))
    same = [relus()[relu].material_bytes(9, bits, 0, program.ring) for bits in (6, 12)]
    assert (narrow == wide) == (same[0] == same[1]), "a circuit over the ring's bits takes the same"
    links = [of(link=link) for link in ("loopback", "10Gb/s,1us", "lan", "wan", "1Mb/s,40ms", "1Mb/s,400ms")]
    assert all(a < b for slow, fast in itertools.pairwise(reversed(links)) for a, b in zip(fast, slow, strict=True))
    found = predict(program, options, calibration())
    asked = query(program, options)
    for phase in PHASES:
        estimate, sent = getattr(found, phase), total(asked.sent, phase)
        assert (estimate.sent, estimate.rounds) == ({"client": sent.to_client, "server": sent.to_server}, sent.rounds)
        in_layers = busy(phase, asked, calibration().work)
        assert sum(each.to_client for each in in_layers) <= sent.to_client
        assert estimate.cpu["server"] == pytest.approx(sum(each.server for each in in_layers))


def test_a_convolution_beside_a_sparse_activation_is_not_waited_for_twice():
    """All that the parties do is in one step or another; the server's follower is at work while the client answers."""
    asked = query(everything(), Options())
    layers = busy("online", asked, calibration().work)
    beside = [each for each in layers if each.work.beside]
    assert len(beside) == 1
    found = steps(layers, asked.how)
    assert len(found) == len(layers) - 1
    step = next(each for each in found if each.layer.work.layer == beside[0].work.beside)
    assert step.before == {"step": 1.0, "server, sign": step.layer.server}
    assert (step.during, step.beside) == ({WAITED: step.layer.client}, beside[0].server)
    longer = max(step.layer.client, beside[0].server)
    assert step.at_once == {**step.before, WAITED: longer}


def test_a_round_trip_hides_what_the_server_does_meanwhile():
    """A follower that is slow is waited for on loopback, and not over a link of 40 ms."""

    def slowed(factor, link):
        made = calibration()
        slow = Every(dict.fromkeys(("sparse multiply-add", "multiply-add", "column"), factor * 1e-06))
        work = {**made.work, ("online", "server"): Fit(slow, {})}
        return predict(everything(), Options(link=link), dataclasses.replace(made, work=work)).online.seconds

    loopback, wan = (slowed(2, link) - slowed(1, link) for link in ("loopback", "wan"))
    assert 0 < wan < loopback - 1e-3


def test_the_shorter_of_work_and_link_is_hidden_as_measured():
    options = Options(link="lan")
    program = everything()
    hidden, half, none = (predict(program, options, calibration(beside)).online.seconds for beside in (0.0, 0.5, 1.0))
    assert hidden < none
    assert half == pytest.approx((hidden + none) / 2)


def test_the_interval_is_that_of_the_calibrations_own_errors():
    ratios = np.linspace(0.8, 1.3, 101)
    online = predict(everything(), Options(), calibration(ratios=ratios)).online
    assert (online.low / online.seconds, online.high / online.seconds) == pytest.approx((0.82, 1.28))


@pytest.mark.parametrize("link", ["lan", "wan", "1Mb/s,400ms"])
def test_a_link_takes_what_it_takes(link):
    """What is not known of a query is its work: however fast that is, the rounds and the bytes stay."""

    def of(*ratios):
        found = predict(everything(), Options(link=link), calibration(ratios=ratios))
        return [(each.low, each.seconds, each.high) for each in (found.online, found.offline, found.setup)]

    sent = query(everything(), Options(link=link)).sent
    alone = [over(link_of(link), 0, total(sent, phase).waits) for phase in ("online", "offline", "setup")]
    for (low, seconds, high), trips in zip(of(0.0, 3.0), alone, strict=True):
        assert trips <= low < seconds < high
    for (low, seconds, high), (least, same, most) in zip(of(0.9, 1.1), of(0.5, 2.0), strict=True):
        assert least < low < seconds == same < high < most
    if link == "1Mb/s,400ms":
        online = of(0.0, 3.0)[0]
        assert online[2] - online[0] < 0.1 * online[1]


def test_what_cannot_be_predicted_is_one_line():
    lacking = calibration()
    lacking = dataclasses.replace(lacking, work={**lacking.work, ("online", "client"): Fit({"message": 1.0}, {})})
    with pytest.raises(UserError, match=r"^the calibration has nothing of 'input'; `parelu calibrate` measures all"):
        predict(everything(), Options(), lacking)
    bare = dataclasses.replace(calibration(), memory={})
    with pytest.raises(UserError, match=r"^the calibration has nothing of 'memory with hints'; `parelu calibrate`"):
        predict(everything(), Options(), bare)
    with pytest.raises(UserError, match="offline mode seal computes in at most 59"):
        predict(everything(WIDE), Options(offline="seal"), calibration())
    with pytest.raises(UserError, match="no number above zero"):
        predict(everything(), Options(link="0Mb/s,40ms"), calibration())


@pytest.mark.parametrize(("name", "ring"), MODES)
def test_the_programs_of_a_calibration_are_programs(name, ring):
    """They are read back as they were written, in every ring that a mode computes in."""
    layers = (Layer(4, relus=50), Layer(groups=2, outputs=4, singles=True, relus=3, squares=5))
    made = lowered((2, 6, 6), layers, ring)
    assert type(made.program).from_bytes(made.program.to_bytes()).digest == made.program.digest
    assert (made.program.relus, made.program.squares) == (53, 5)
