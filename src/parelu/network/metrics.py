"""What was measured of a candidate; its JSON is the `metrics` of candidate.json."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from parelu.errors import UserError
from parelu.network.count import Counts, StageCount

# "teacher": the full-ReLU network, whoever teaches; "outside": another architecture that teaches in its place;
# "criticality": trained only to be measured; "baseline": searches start from it; "scaffold": candidates are cut out of
# it.
Role = Literal["teacher", "outside", "criticality", "baseline", "scaffold", "candidate"]
ROLES: tuple[Role, ...] = get_args(Role)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Searched:
    """What a search had cost as it passed a budget, and its validation accuracy in percent then."""

    epochs: int
    seconds: float
    validation_accuracy: float


@dataclasses.dataclass(frozen=True)
class Tags:
    """Where a network comes from.

    Attributes:
        steps: in the grammar of `network.steps`; None for the full-ReLU network, "" for one without.
        budget: ReLUs that were asked for; limits: or, as "200ms+bytes:20MB", what a query may take, and what it was
            foretold to take, limit → seconds or bytes.
        note: what tells it from another of its method; None where there is nothing to tell.
        searched: of the search that found its masks.
    """

    method: str
    steps: str | None = None
    budget: int | None = None
    note: str | None = None
    searched: Searched | None = None
    limits: str | None = None
    foretold: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what is not there: a job's identity is a digest of this."""
        steps = {} if self.steps is None else {"steps": self.steps, "budget": self.budget}
        return {"method": self.method, **steps, **_optional(self)}


@dataclasses.dataclass(frozen=True)
class SearchMetrics:
    """Of what a search left for a budget."""

    epochs: int
    seconds: float
    relus: int
    squares: int
    validation_accuracy: float

    @property
    def searched(self) -> Searched:
        return Searched(self.epochs, self.seconds, self.validation_accuracy)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """Of a network that a run trained.

    Attributes:
        method, steps, budget, note, searched, limits, foretold: see `Tags`; the full-ReLU network's method is "train".
        relus, …, sites: of an image, see `Counts`; a file of before has no comparisons.
        relus_full, stages_full: ReLUs of the run's full network, and stage → its ReLUs there.
        validation_accuracy, test_accuracy: in percent; the test set is read this once.
        epochs, seconds: of its training.
        job: digest of all that decides the outcome.
        ranges: site with squares → least and greatest input over the validation images; None without squares.
        unbounded: validation images in percent on which squares grow until the logits are not finite; None for none.
    """

    method: str = "train"
    steps: str = ""
    budget: int | None = None
    note: str | None = None
    searched: Searched | None = None
    limits: str | None = None
    foretold: Mapping[str, float] | None = None
    role: Role
    seed: int
    relus: int
    relus_without_stem: int
    squares: int
    macs: int
    flops: int
    params: int
    depth: int
    stages: Mapping[str, StageCount]
    sites: Mapping[str, int]
    comparisons: int = 0
    relus_full: int
    stages_full: Mapping[str, int]
    validation_accuracy: float
    test_accuracy: float
    epochs: int
    seconds: float
    job: str
    ranges: Mapping[str, tuple[float, float]] | None = None
    unbounded: float | None = None

    @classmethod
    def of(cls, tags: Tags, counts: Counts, **others: Any) -> Metrics:
        """others: the fields that neither has."""
        tagged = {**vars(tags), "steps": tags.steps or ""}
        return cls(**tagged, **vars(counts), **others)

    @property
    def relus_and_comparisons(self) -> int:
        """What runs by the ReLU protocol: what a budget bounds."""
        return self.relus + self.comparisons

    @property
    def is_mask(self) -> bool:
        """Whether the places of its ReLUs were chosen for a budget."""
        return self.budget is not None or self.limits is not None

    @property
    def tags(self) -> Tags:
        return Tags(*(getattr(self, field.name) for field in dataclasses.fields(Tags)))

    def to_json(self) -> dict[str, Any]:
        needed = {name: value for name, value in vars(self).items() if name not in _OPTIONAL}
        stages = {name: vars(stage) for name, stage in self.stages.items()}
        origin = {name: needed.pop(name) for name in ("method", "steps", "budget")}
        squares = {name: value for name in _OF_SQUARES if (value := getattr(self, name)) is not None}
        return {**origin, **_optional(self), **needed, "stages": stages, **squares}


_OF_SQUARES = ("ranges", "unbounded")
_OPTIONAL = ("note", "searched", "limits", "foretold", *_OF_SQUARES)


def _optional(of: Tags | Metrics) -> dict[str, Any]:
    plain = {name: getattr(of, name) for name in ("note", "limits", "foretold")}
    searched = {} if of.searched is None else {"searched": vars(of.searched)}
    return {name: value for name, value in plain.items() if value is not None} | searched


def metrics_from_json(json: Mapping[str, Any]) -> Metrics | SearchMetrics | None:
    """The inverse of `to_json`; None for {}, of a network that nothing was measured of.

    Raises:
        UserError: a figure is missing, or is none.
    """
    if not json:
        return None
    return _read(Metrics if "test_accuracy" in json else SearchMetrics, json)


def _read(cls: type[T], json: Mapping[str, Any]) -> T:
    """A dataclass from its JSON; what it does not know stays behind."""
    values = {}
    for name, hint, is_needed in _fields(cls):
        if name in json:
            values[name] = _value(json[name], hint, name)
        elif is_needed:
            raise UserError(f"the metrics lack {name}; they are not of a network that parelu trained")
    return cls(**values)


@functools.cache
def _fields(cls: type[Any]) -> list[tuple[str, Any, bool]]:
    """Name and type of each field of a dataclass, and whether it has no default."""
    hints = get_type_hints(cls)
    return [(one.name, hints[one.name], one.default is dataclasses.MISSING) for one in dataclasses.fields(cls)]


def _value(value: Any, hint: Any, name: str) -> Any:
    """A JSON value as a field's type: a number, text, a mapping, a pair or a dataclass."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return None if value is None and NoneType in inner else _value(value, inner[0], name)
    if origin is Mapping and isinstance(value, dict):
        return {key: _value(one, inner[1], f"{name}.{key}") for key, one in value.items()}
    if origin is tuple and isinstance(value, list) and len(value) == len(inner):
        return tuple(_value(one, kind, name) for one, kind in zip(value, inner, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _read(hint, value)  # pyright: ignore[reportArgumentType]
    if value in inner if origin is Literal else type(value) in ((int, float) if hint is float else (hint,)):
        return value
    raise UserError(f"the metrics' {name} is {str(value)[:40]!r}, which is not of its kind")
