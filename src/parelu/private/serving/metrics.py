"""What a server counts, for Prometheus: each process its own, and all of them added up where they are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from parelu.private.serving.watcher import ENDS, PROBE, SERVED, Standing, Traffics, Watcher

Snapshot = list[list[Any]]  # [name, documentation, type, [[sample's name, labels, value], …]] of each metric
Values = Mapping[tuple[tuple[str, str], ...], float]  # labels → value
ONLINE = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds
OFFLINE = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics(Watcher):
    """Of one process; standing: how it is when it is asked."""

    def __init__(self, standing: Callable[[], Standing]) -> None:
        self._registry, self._standing = CollectorRegistry(auto_describe=False), standing
        one = {"registry": self._registry, "namespace": "parelu"}
        self._connections = Counter("connections", "Connections that ended as they should, probes too.", **one)
        self._errors = Counter("errors", "Connections that ended otherwise, by kind.", ["kind"], **one)
        self._inferences = Counter("inferences", "Inferences answered.", ["model"], **one)
        self._phases = Counter("offline_phases", "Offline phases of one inference that are done.", ["model"], **one)
        self._bytes = Counter("bytes", "Bytes of messages, headers included.", ["direction", "phase"], **one)
        self._online = Histogram(
            "online_seconds", "Of a query, from its command to its last message.", ["model"], buckets=ONLINE, **one
        )
        self._offline = Histogram(
            "offline_seconds", "Of the offline phase of an inference.", ["model"], buckets=OFFLINE, **one
        )
        self._clients = Gauge("clients", "Clients that are served now.", **one)
        self._waiting = Gauge("waiting_clients", "Clients that wait for their turn.", **one)
        self._material = Gauge("session_material", "Inferences prepared in sessions, not used yet.", **one)
        self._prepared = Gauge("prepared", "Inferences made ahead in memory.", ["model"], **one)
        for kind in ENDS:
            if kind not in (SERVED, PROBE):
                self._errors.labels(kind)

    def ended(self, how: str) -> None:
        if how in (SERVED, PROBE):
            self._connections.inc()
        else:
            self._errors.labels(how).inc()

    def prepared(self, model: str, seconds: float) -> None:
        self._phases.labels(model).inc()
        self._offline.labels(model).observe(seconds)

    def inferred(self, model: str, count: int, seconds: float) -> None:
        self._inferences.labels(model).inc(count)
        self._online.labels(model).observe(seconds)

    def passed(self, model: str, traffic: Traffics) -> None:
        for (phase, _), passed in traffic.items():
            self._bytes.labels("to_client", phase).inc(passed.sent)
            self._bytes.labels("to_server", phase).inc(passed.received)

    def snapshot(self) -> Snapshot:
        """All of it as JSON may have it."""
        now = self._standing()
        self._clients.set(now.clients)
        self._waiting.set(now.waiting)
        self._material.set(now.material)
        for model, count in now.prepared.items():
            self._prepared.labels(model).set(count)
        return [
            [
                metric.name,
                metric.documentation,
                metric.type,
                [[s.name, dict(s.labels), s.value] for s in metric.samples if not s.name.endswith("_created")],
            ]
            for metric in self._registry.collect()
        ]


def without_gauges(snapshot: Snapshot) -> Snapshot:
    """What stays true of a process that is no more."""
    return [metric for metric in snapshot if metric[2] != "gauge"]


def added(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Those of several processes as one."""
    sums: defaultdict[tuple[str, str, str], defaultdict[tuple[str, tuple[tuple[str, str], ...]], float]]
    sums = defaultdict(lambda: defaultdict(float))
    for snapshot in snapshots:
        for name, documentation, kind, samples in snapshot:
            for sample, labels, value in samples:
                sums[name, documentation, kind][sample, tuple(labels.items())] += value
    return [
        [*head, [[sample, dict(labels), value] for (sample, labels), value in samples.items()]]
        for head, samples in sums.items()
    ]


class _Given(Collector):
    """A snapshot as a registry takes it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        for name, documentation, kind, samples in self._snapshot:
            metric = Metric(name, documentation, kind)
            for sample, labels, value in samples:
                metric.add_sample(sample, labels, value)
            yield metric


def text(snapshots: Sequence[Snapshot]) -> bytes:
    """Those of several processes added up, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(added(snapshots)))
    return generate_latest(registry)


def gauges(values: Mapping[str, tuple[str, Values]]) -> Snapshot:
    """Name → (documentation, labels → value), of what one process knows for all."""
    return [
        [f"parelu_{name}", documentation, "gauge", [[f"parelu_{name}", dict(labels), v] for labels, v in found.items()]]
        for name, (documentation, found) in values.items()
    ]
