"""From measurements to a calibration."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator, Mapping, Sequence

from parelu.private.cost.calibration import Calibration, Point, this_machine
from parelu.private.cost.fit import Fit, fitted
from parelu.private.cost.measure import Observation
from parelu.private.cost.predict import PHASES, busy, estimate
from parelu.private.cost.traffic import total
from parelu.private.cost.waiting import WAITED, parts, steps, summed
from parelu.private.cost.work import ALL
from parelu.private.offline.mode import Features
from parelu.private.rows import Cost, Costs
from parelu.private.transport.link import Link

PARTIES = ("client", "server")
Rows = list[tuple[Features, float]]


def calibrated(observations: Sequence[Observation]) -> Calibration:
    work = {(phase, party): fitted(_cpu_rows(observations, phase, party)) for phase in PHASES for party in PARTIES}
    waiting = {phase: _waiting(observations, phase, work) for phase in PHASES}
    made, memory = datetime.date.today().isoformat(), _memory(observations)
    calibration = Calibration(this_machine(), made, work, waiting, memory, ())
    points = tuple(
        Point(each.case.name, phase, cost_of(each.costs, phase).seconds, _predicted(each, phase, calibration))
        for each in observations
        for phase in PHASES
    )
    return Calibration(this_machine(), made, work, waiting, memory, points)


def _memory(observations: Sequence[Observation]) -> dict[str, float]:
    """Party → bytes of a process beside a network, by the first: its peak grows from one measurement to the next."""
    first = observations[0]
    peaks = {"client": first.costs.peak_mb_client or 0.0, "server": first.costs.peak_mb_server or 0.0}
    return {party: max(0.0, 2.0**20 * peaks[party] - first.query.kept[party]) for party in PARTIES}


def cost_of(costs: Costs, phase: str) -> Cost:
    found = {"setup": costs.setup, "offline": costs.offline, "online": costs.online}[phase]
    assert found is not None, "the engine has all phases"
    return found


def _predicted(observation: Observation, phase: str, calibration: Calibration) -> float:
    return estimate(phase, observation.query, calibration).seconds


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
    """By what was measured without a link; then, over links, the share of the shorter that is not hidden."""
    rows: Rows = []
    for each in observations:
        if each.query.link == Link():
            layers = busy(phase, each.query, work)
            features = summed([step.at_once for step in steps(layers, each.query.how)])
            rows.append((features, cost_of(each.costs, phase).seconds))
    fit = fitted(rows, known=WAITED)
    fit = Fit({**fit.coefficients, WAITED: 1.0}, {**fit.errors, WAITED: 0.0})
    seen: Rows = []
    for each in observations:
        if each.query.link != Link():
            layers, waits = busy(phase, each.query, work), total(each.query.sent, phase).waits
            longer, shorter = parts(layers, each.query.how, fit, each.query.link, waits)
            seen.append(({WAITED: longer, **shorter}, cost_of(each.costs, phase).seconds))
    beside = fitted(seen, known=WAITED) if seen else Fit({}, {})
    share = {name: min(1.0, each) for name, each in beside.coefficients.items()}
    return Fit({**fit.coefficients, **share}, {**fit.errors, **beside.errors})
