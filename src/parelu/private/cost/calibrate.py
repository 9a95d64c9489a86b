"""From measurements to a calibration."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from parelu.private.cost.calibration import Calibration, Point, this_machine
from parelu.private.cost.carried import WOKEN
from parelu.private.cost.fit import Fit, fitted
from parelu.private.cost.measure import Observation
from parelu.private.cost.predict import PHASES, busy
from parelu.private.cost.traffic import total
from parelu.private.cost.waiting import WAITED, over, parts, seconds, steps, summed
from parelu.private.cost.work import ALL
from parelu.private.offline.mode import Features
from parelu.private.rows import Cost, Costs
from parelu.private.transport.link import Link

PARTIES = ("client", "server")
FOLDS = 10
SLOWEST = 100.0  # times that work may take of what is fitted
Rows = list[tuple[Features, float]]


@dataclasses.dataclass(frozen=True)
class _Fits:
    """A `Calibration`'s."""

    work: Mapping[tuple[str, str], Fit]
    waiting: Mapping[str, Fit]

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> _Fits:
        work = {(phase, party): fitted(_cpu_rows(observations, phase, party)) for phase in PHASES for party in PARTIES}
        return cls(work, {phase: _waiting(observations, phase, work) for phase in PHASES})

    def without(self, observations: Sequence[Observation]) -> _Fits:
        """Of others alone; kinds of work that none of these has stay as they are."""
        others = _Fits.of(observations)
        work = {of: _over(fit, others.work[of]) for of, fit in self.work.items()}
        return _Fits(work, {phase: _over(fit, others.waiting[phase]) for phase, fit in self.waiting.items()})


def _over(whole: Fit, fit: Fit) -> Fit:
    return Fit({**whole.coefficients, **fit.coefficients}, {**whole.errors, **fit.errors})


def calibrated(observations: Sequence[Observation]) -> Calibration:
    """Fits of all; each measurement beside what is predicted of it by a fit without its program, `FOLDS` times."""
    fits, names = _Fits.of(observations), sorted({each.case.name for each in observations})
    points: list[Point] = []
    for fold in range(min(FOLDS, len(names))):
        left_out = set(names[fold::FOLDS])
        kept = [each for each in observations if each.case.name not in left_out]
        others = fits.without(kept) if kept else fits
        points += (p for each in observations if each.case.name in left_out for p in _points(each, others))
    made = datetime.date.today().isoformat()
    return Calibration(this_machine(), made, fits.work, fits.waiting, _memory(observations), tuple(points))


def _points(observation: Observation, fits: _Fits) -> Iterator[Point]:
    """Of the measurement that was taken and of those that were disturbed, in each phase."""
    asked = observation.query
    for phase in PHASES:
        layers, waits = busy(phase, asked, fits.work), total(asked.sent, phase).waits
        waited = functools.partial(seconds, layers, asked.how, fits.waiting[phase], asked.link, waits)
        for costs in (observation.costs, *observation.disturbed):
            measured = cost_of(costs, phase).seconds
            yield Point(observation.case.name, phase, measured, waited(), _slower(waited, measured))


def _slower(waited: Callable[[float], float], measured: float) -> float:
    """Times longer that all work would have to take, for what is waited to be what was measured; 0 where the link alone
    takes longer."""
    from scipy.optimize import brentq  # takes a second to import

    if not waited(0.0) < measured < waited(SLOWEST):
        return 0.0 if measured <= waited(0.0) else SLOWEST
    found = brentq(lambda slower: waited(slower) - measured, 0.0, SLOWEST, xtol=1e-4)
    assert isinstance(found, float), "it is asked for no more than the root"
    return found


def _memory(observations: Sequence[Observation]) -> dict[tuple[str, str], float]:
    """(Offline mode, party) → bytes of its process beside what is counted of a network."""
    found = {}
    for each in observations:
        if each.case.alone:
            peaks = {"client": each.costs.peak_mb_client or 0.0, "server": each.costs.peak_mb_server or 0.0}
            for party in PARTIES:
                beside = 2.0**20 * peaks[party] - each.query.kept[party]
                found[each.case.options.offline, party] = max(0.0, beside)
    return found


def cost_of(costs: Costs, phase: str) -> Cost:
    found = {"setup": costs.setup, "offline": costs.offline, "online": costs.online}[phase]
    assert found is not None, "the engine has all phases"
    return found


def _cpu_rows(observations: Sequence[Observation], phase: str, party: str) -> Rows:
    """What a party did in a layer, or offline in all of the phase, and its CPU seconds."""
    return [row for each in observations for row in _of_observation(each, phase, party)]


def _of_observation(observation: Observation, phase: str, party: str) -> Iterator[tuple[Features, float]]:
    does: dict[str, list[Features]] = {}
    for each in observation.query.work:
        if each.phase == phase:
            does.setdefault(each.layer, []).append(getattr(each, party))
    if ALL in does:
        yield summed([*itertools.chain(*does.values())]), cost_of(observation.costs, phase).cpu[party]
        return
    for layer in observation.costs.layers or ():
        measured = getattr(layer, f"cpu_{party}")
        if layer.phase == phase and measured is not None and layer.layer in does:
            yield summed(does[layer.layer]), measured


def _waiting(observations: Sequence[Observation], phase: str, work: Mapping[tuple[str, str], Fit]) -> Fit:
    """By what was measured without a link; then, over links, the share of the shorter that is not hidden, and what a
    round takes that a party has slept through."""
    rows: Rows = []
    for each in observations:
        if each.query.link == Link():
            layers = busy(phase, each.query, work)
            features = summed([step.at_once for step in steps(layers, each.query.how)])
            rows.append((features, cost_of(each.costs, phase).seconds))
    fit = fitted(rows, known=WAITED)
    fit = Fit({**fit.coefficients, WAITED: 1.0}, {**fit.errors, WAITED: 0.0})
    seen = [_beside(each, phase, work, fit) for each in observations if each.query.link != Link()]
    beside = fitted(seen, known=WAITED) if seen else Fit({}, {})
    share = {name: each if name == WOKEN else min(1.0, each) for name, each in beside.coefficients.items()}
    return Fit({**fit.coefficients, **share}, {**fit.errors, **beside.errors})


def _beside(
    observation: Observation, phase: str, work: Mapping[tuple[str, str], Fit], fit: Fit
) -> tuple[Features, float]:
    """Of a query over a link, but for its round trips: beside these, all that could be wrong were too little to count.

    fit: of what is waited for without a link.
    """
    asked, waits = observation.query, total(observation.query.sent, phase).waits
    longer, shorter = parts(busy(phase, asked, work), asked.how, fit, asked.link, waits)
    trips = over(asked.link, 0, waits)
    return {WAITED: longer - trips, **shorter}, cost_of(observation.costs, phase).seconds - trips
