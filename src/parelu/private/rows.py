"""Rows of measured private inference: what a query took, whom it trusts, how right it was. Files hold them as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

TO, CPU = "bytes_to_", "cpu_"
QUERIES = 1000  # a row is of a client that stays


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a query, or a part of it; medians over several.

    seconds: the client's wall time; sent: party → bytes that it was sent; rounds: messages there and back; cpu: party →
    seconds of its process.
    """

    seconds: float
    sent: Mapping[str, float]
    rounds: float
    cpu: Mapping[str, float]

    @property
    def bytes(self) -> float:
        """To all parties."""
        return sum(self.sent.values())

    def to_json(self) -> dict[str, float]:
        return {"seconds": self.seconds, **_named(TO, self.sent), "rounds": self.rounds, **_named(CPU, self.cpu)}

    @classmethod
    def from_json(cls, value: Mapping[str, float]) -> Cost:
        return cls(value["seconds"], _unnamed(TO, value), value["rounds"], _unnamed(CPU, value))


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Of one layer in one phase, medians over the queries; None where a party has nothing to do there."""

    phase: str
    layer: str
    cpu_client: float | None = None
    seconds_client: float | None = None
    bytes_to_client: float | None = None
    bytes_to_server: float | None = None
    cpu_server: float | None = None
    seconds_server: float | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """Of a phase, what its linear layers or its activations took; medians over the queries. sent: as in `Cost`."""

    seconds: float
    sent: Mapping[str, float]

    @property
    def bytes(self) -> float:
        """To both parties."""
        return sum(self.sent.values())

    def to_json(self) -> dict[str, float]:
        return {"seconds": self.seconds, **_named(TO, self.sent)}

    @classmethod
    def from_json(cls, value: Mapping[str, float]) -> Part:
        return cls(value["seconds"], _unnamed(TO, value))


LINEAR, RELU = "linear", "relu"  # the parts of a phase


@dataclasses.dataclass(frozen=True)
class Costs:
    """All that an engine measured of a query.

    total: the whole; offline, online: its parts, where it has them; setup: of the connection, once. hints_bytes: of the
    setup, what a client that expects many queries keeps for all further connections.
    peak_mb: of resident memory, MiB, of both parties and of each; layers: of the two phases. parts: phase → `LINEAR`
    and `RELU`, which is all of the activations, squares among them; without a phase that makes both at once.
    seconds, cold_seconds, compile_seconds: of each query, of the first, and of making the engine's own program.
    """

    offline: Cost | None = None
    online: Cost | None = None
    total: Cost = dataclasses.field(kw_only=True)
    setup: Cost | None = None
    hints_bytes: float | None = None
    peak_mb: float | None = None
    peak_mb_client: float | None = None
    peak_mb_server: float | None = None
    layers: tuple[LayerCost, ...] | None = None
    parts: Mapping[str, Mapping[str, Part]] | None = None
    seconds: tuple[float, ...] | None = None
    cold_seconds: float | None = None
    compile_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what is None."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        value |= {name: each.to_json() for name, each in value.items() if isinstance(each, Cost)}
        if self.layers is not None:
            value["layers"] = [_present(dataclasses.asdict(layer)) for layer in self.layers]
        if self.parts is not None:
            value["parts"] = {
                phase: {name: part.to_json() for name, part in parts.items()} for phase, parts in self.parts.items()
            }
        return _present(value)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Costs:
        """Of a row: what else it has is left aside."""
        own = {field.name: value[field.name] for field in dataclasses.fields(cls) if field.name in value}
        own |= {name: Cost.from_json(own[name]) for name in ("offline", "online", "total", "setup") if name in own}
        if "parts" in own:
            own["parts"] = {
                phase: {name: Part.from_json(part) for name, part in parts.items()}
                for phase, parts in own["parts"].items()
            }
        if "layers" in own:
            own["layers"] = tuple(LayerCost(**layer) for layer in own["layers"])
        if "seconds" in own:
            own["seconds"] = tuple(own["seconds"])
        return cls(**own)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far several logits of the same images are apart.

    largest: difference of a logit between any two; clear: images whose margin, between the first's two largest
    logits, exceeds that; same: those among them to which all give one label; same_of_all: of all images.
    """

    largest: float
    clear: int
    same: int
    same_of_all: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One engine's private inference of one network, `batch` images a query.

    max_error, agreement: of the logits and of the top-1 against the float network's; ring: against the ring reference.
    labels, logits: of each image. truncation: local, or exact at the ReLUs. queries: that the client said it would
    ask for, for what comes once.
    """

    engine: str
    relu: str
    offline_mode: str
    threat_model: str
    link: str
    relus: int
    squares: int
    images: int
    batch: int
    costs: Costs
    max_error: float
    agreement: float
    ring: Difference
    labels: tuple[int, ...]
    logits: tuple[tuple[float, ...], ...]
    truncation: str = "local"
    queries: int = QUERIES

    @property
    def relu_setting(self) -> str:
        """The ReLU protocol, and the truncation where it is not local."""
        return self.relu if self.truncation == "local" else f"{self.relu} with {self.truncation} truncation"

    @property
    def setting(self) -> str:
        """Engine, protocols and link."""
        queries = (
            "" if self.queries == QUERIES else f" for {self.queries:,} {'query' if self.queries == 1 else 'queries'}"
        )
        return f"{self.engine}, ReLU {self.relu_setting}, offline {self.offline_mode}{queries}, link {self.link}"

    def to_json(self) -> dict[str, Any]:
        """Without truncation and queries where they are as in the rows of versions that had no other."""
        value: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            each = getattr(self, field.name)
            match field.name:
                case "costs":
                    value |= self.costs.to_json()
                case "link":
                    value["network"] = each
                case "ring":
                    value["ring"] = dataclasses.asdict(each)
                case "logits":
                    value["logits"] = [list(logits) for logits in each]
                case "truncation" | "queries" if each in ("local", QUERIES):
                    pass
                case name:
                    value[name] = list(each) if isinstance(each, tuple) else each
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Row:
        """The inverse; raises KeyError or TypeError for what is no such row."""
        made = {
            "costs": Costs.from_json(value),
            "link": value["network"],
            "ring": Difference(**value["ring"]),
            "labels": tuple(value["labels"]),
            "logits": tuple(map(tuple, value["logits"])),
            "truncation": value.get("truncation", "local"),
            "queries": value.get("queries", QUERIES),
        }
        plain = (field.name for field in dataclasses.fields(cls) if field.name not in made)
        return cls(**made, **{name: value[name] for name in plain})


@dataclasses.dataclass(frozen=True)
class RingAccuracy:
    """Over a whole test set. accuracy, float_accuracy, agreement: percent; overflow_rate: of ReLU inputs."""

    accuracy: float
    float_accuracy: float
    agreement: float
    max_error: float
    overflow_rate: float
    images: int


@dataclasses.dataclass(frozen=True)
class PrivateInference:
    """What was measured of a network of a run. row: of `delphi`; others: engine → its row."""

    ring: RingAccuracy
    row: Row
    others: Mapping[str, Row] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> tuple[Row, ...]:
        return (self.row, *self.others.values())

    def to_json(self) -> dict[str, Any]:
        others = {name: row.to_json() for name, row in self.others.items()}
        return {"ring": dataclasses.asdict(self.ring), "row": self.row.to_json(), "others": others}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PrivateInference:
        """The inverse; raises KeyError or TypeError for what is no such value."""
        others = {name: Row.from_json(row) for name, row in value.get("others", {}).items()}
        return cls(RingAccuracy(**value["ring"]), Row.from_json(value["row"]), others)


def _named(what: str, by_party: Mapping[str, float]) -> dict[str, float]:
    return {f"{what}{party}": each for party, each in by_party.items()}


def _unnamed(what: str, value: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(what): each for name, each in value.items() if name.startswith(what)}


def _present(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(each) if isinstance(each, tuple) else each for name, each in value.items() if each is not None}
