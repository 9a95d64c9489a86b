"""What a query will take, before anything runs: seconds by a calibration, bytes and rounds exactly."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence

from parelu.errors import UserError
from parelu.private.cost.calibration import Calibration, Point
from parelu.private.cost.carried import carried
from parelu.private.cost.fit import Fit
from parelu.private.cost.memory import memory
from parelu.private.cost.traffic import LayerTraffic, once, total, traffic
from parelu.private.cost.waiting import Busy, seconds
from parelu.private.cost.work import ALL, RELUS, Work, work
from parelu.private.engines.base import Options
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import Terms
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact
from parelu.private.transport.link import Link, link_of

PHASES = ("setup", "offline", "online")
SHARE = 0.9  # of queries that take what an interval says


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one query in one phase. seconds: that the client waits, from `low` to `high` with probability `SHARE`;
    cpu: party → seconds of its process; sent: party → bytes that it is sent."""

    seconds: float
    low: float
    high: float
    cpu: Mapping[str, float]
    sent: Mapping[str, float]
    rounds: float

    @property
    def bytes(self) -> float:
        """To both parties."""
        return sum(self.sent.values())


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of a query of `batch` images, and of what a client without anything kept has to get before its first. memory:
    party → bytes of its process at most, of a query at a time."""

    online: Estimate
    offline: Estimate
    setup: Estimate
    memory: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Of one network. by_link: link → what a query takes over it; why: where that cannot be said, in one line."""

    by_link: Mapping[str, Prediction] = dataclasses.field(default_factory=dict)
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Query:
    """What a query does and what it sends, with the connection before it, without a machine.

    how: phase → by what it differs what is hidden of a party's work, the offline mode or the ReLU protocol. kept: party
    → bytes of the network in its memory, at the most.
    """

    work: Sequence[Work]
    sent: Sequence[LayerTraffic]
    how: Mapping[str, str]
    link: Link
    kept: Mapping[str, float]


def averaged(predictions: Sequence[Prediction]) -> Prediction:
    """Of several queries, number by number."""
    if len(predictions) == 1:
        return predictions[0]

    def mean(of: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: statistics.mean(each[name] for each in of) for name in of[0]}

    def phase(of: Sequence[Estimate]) -> Estimate:
        numbers = mean([{n: getattr(each, n) for n in ("seconds", "low", "high", "rounds")} for each in of])
        return Estimate(**numbers, cpu=mean([each.cpu for each in of]), sent=mean([each.sent for each in of]))

    phases = {name: phase([getattr(each, name) for each in predictions]) for name in PHASES}
    return Prediction(**phases, memory=mean([each.memory for each in predictions]))


def query(program: Program, options: Options, lowered: Lowered | None = None) -> Query:
    """Of a program as measurements run it; raises UserError where the offline mode cannot.

    lowered: with it bytes are exact that depend on how large weights are.
    """
    mode, relu = modes()[options.offline], relus()[options.relu]
    mode.check_terms(program, relu)
    terms = Terms(program, relu, Exact(), options.truncation)
    try:
        connection = once(terms, mode, options.queries, lowered)
        sent = traffic(terms, mode, options.batch, options.queries, lowered)
        does = work(terms, mode, options.batch, options.queries)
    except ValueError as error:
        raise UserError(f"offline mode {options.offline} cannot run this network: {error}") from error
    coming = total(connection, "setup").to_client
    features = {f"{mode.name}: connection": 1, f"{mode.name}: received": coming, "op": len(program.ops)}
    setup = Work("setup", ALL, features, features)
    kept = memory(terms, mode, options.batch, options.queries)
    link = link_of(options.link)
    how = {
        "setup": options.offline,
        "offline": options.offline,
        "online": options.relu,
        RELUS: f"{mode.relus_by or mode.name}: {relu.name}",
    }
    all_sent = [*connection, *sent]
    return Query(carried([setup, *does], all_sent, link), all_sent, how, link, kept)


def predict(program: Program, options: Options, calibration: Calibration, lowered: Lowered | None = None) -> Prediction:
    """Raises UserError where the offline mode cannot run the program, or the calibration lacks what is asked for.

    lowered: as `query` takes it.
    """
    return prediction(query(program, options, lowered), calibration)


def prediction(asked: Query, calibration: Calibration) -> Prediction:
    """Raises UserError where the calibration lacks what is asked for."""
    estimates = {phase: estimate(phase, asked, calibration) for phase in PHASES}
    offline = asked.how["offline"]
    try:
        peak = {party: count + calibration.memory[offline, party] for party, count in asked.kept.items()}
    except KeyError as error:
        raise _lacking(KeyError(f"memory with {offline}")) from error
    return Prediction(**estimates, memory=peak)


def estimate(phase: str, asked: Query, calibration: Calibration) -> Estimate:
    layers, whole = busy(phase, asked, calibration.work), total(asked.sent, phase)
    waited = functools.partial(seconds, layers, asked.how, calibration.waiting[phase], asked.link, whole.waits)
    low, high = spread(calibration.points, phase)  # the link is as it is
    try:
        found, shortest, longest = waited(), waited(low), waited(high)
    except KeyError as error:
        raise _lacking(error) from error
    return Estimate(
        seconds=found,
        low=shortest,
        high=longest,
        cpu={"client": sum(each.client for each in layers), "server": sum(each.server for each in layers)},
        sent={"client": whole.to_client, "server": whole.to_server},
        rounds=whole.rounds,
    )


def busy(phase: str, asked: Query, fits: Mapping[tuple[str, str], Fit]) -> list[Busy]:
    """Each layer's CPU seconds and bytes."""
    layers = {layer.layer: layer for layer in asked.sent if layer.phase == phase}
    whole = total(asked.sent, phase)
    found = []
    for each in asked.work:
        if each.phase != phase:
            continue
        try:
            client, server = (fits[phase, party].seconds(getattr(each, party)) for party in ("client", "server"))
        except KeyError as error:
            raise _lacking(error) from error
        sent = whole if each.layer == ALL else layers.pop(each.layer, None)
        on_link = (sent.to_client, sent.to_server, sent.waits) if sent else (0, 0, 0)
        found.append(Busy(each, client, server, *on_link))
    return found


def spread(points: Sequence[Point], phase: str) -> tuple[float, float]:
    """(low, high): times what is fitted, between which work takes of a program that was not.

    Of n measurements and one more, each as likely to be the k-th longest, that one is between these (conformal
    prediction, Lei et al., Distribution-free predictive inference for regression, 2018, section 2.2, with folds in the
    place of one split). Fewer than 39 are all between them.
    """
    found = sorted(point.slower for point in points if point.phase == phase)
    outside = max(1, int((len(found) + 1) * (1 - SHARE) / 2))  # and the end itself, at each end
    return (min(1.0, found[outside - 1]), max(1.0, found[-outside])) if found else (1.0, 1.0)


def _lacking(error: KeyError) -> UserError:
    return UserError(f"the calibration has nothing of {error.args[0]!r}; `parelu calibrate` measures all that is there")
