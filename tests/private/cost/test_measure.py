"""What a calibration measures again, and what it takes of it."""

import itertools
import os
from types import SimpleNamespace

import pytest

from parelu.network import machine
from parelu.private.cost import measure
from parelu.private.cost.measure import TRIES, Undisturbed, cases
from parelu.private.cost.programs import drawn
from parelu.private.engines.base import Options
from parelu.private.offline.mode import modes


@pytest.fixture
def measuring(monkeypatch):
    """Of a machine whose others take these shares of it, and whose pace is this, each time it is measured."""

    def of(others, paces):
        seconds, whole = itertools.count(), iter(itertools.accumulate([0, *(2 * n for o in others for n in (o, 0))]))
        monkeypatch.setattr(measure.time, "monotonic", lambda: float(next(seconds)))
        monkeypatch.setattr(machine, "cores", lambda: 2)
        monkeypatch.setattr(machine, "worked", lambda: next(whole))
        monkeypatch.setattr(machine, "worked_by", lambda processes: 0.0)
        twice = iter([1.0, *(pace for pace in paces for _ in range(2))])
        monkeypatch.setattr(machine, "pace", lambda: next(twice))
        count = itertools.count()
        stub = SimpleNamespace(measure=lambda *_: SimpleNamespace(costs=next(count)))
        monkeypatch.setattr(measure, "Delphi", lambda: stub)
        return Undisturbed(SimpleNamespace(ids=()))(None, None, Options())

    return of


def test_what_was_undisturbed_is_measured_once(measuring):
    found = measuring([0.05], [1.1])
    assert (found.costs, found.others, found.pace) == (0, pytest.approx(0.05), pytest.approx(1.1))


def test_what_was_disturbed_is_measured_again(measuring):
    """By other processes, or by what makes the processor slow."""
    again = measuring([0.5, 0.01], [1.0, 1.0])
    assert (again.costs, again.disturbed) == (1, (0,))
    assert measuring([0.0, 0.0], [1.5, 1.0]).costs == 1
    always = measuring([0.5, 0.3, 0.4], [1.0] * 3)
    assert (always.costs, TRIES) == (1, 3), "the least disturbed, where all were"
    assert sorted(always.disturbed) == [0, 2]


def test_a_drawn_network_has_no_more_than_asked_for():
    for seed in range(20):
        _, layers = drawn(seed, 2000, 12)
        assert sum(layer.relus for layer in layers) <= 2000 + len(layers)
        assert all(layer.bits <= 12 for layer in layers)


def test_the_machine_tells_what_was_worked():
    before, own = machine.worked(), machine.worked_by([os.getpid()])
    assert machine.pace() > 0
    assert machine.worked() >= before
    assert machine.worked_by([os.getpid()]) > own
    assert machine.worked_by([2**22 + 1]) == 0


def test_each_time_the_same_is_measured_in_another_order():
    once, twice = cases(), cases(times=2)
    count = len(once)
    alone = sum(case.alone for case in once)
    assert (alone, [case.options.offline for case in once[:alone]]) == (len(modes()), list(modes()))
    assert twice[:count] == once
    assert twice[count:] != once[alone:]
    assert sorted(case.name for case in twice[count:]) == sorted(case.name for case in once[alone:])
    assert len({case.name for case in once}) == count
