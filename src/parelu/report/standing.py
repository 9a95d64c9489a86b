"""Which of our networks stands for which row of a paper.

By what was done to it: the same steps, or the same method at the same number of ReLUs, of the same network or of one
that is narrower by the factor by which all are; then the share of the ReLUs takes the place of their number.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from parelu.errors import UserError
from parelu.network import storage
from parelu.network.spec import Spec, spec_from_json, spec_of
from parelu.published import Published
from parelu.published.counts import INPUTS, full_relus
from parelu.runs.folder import Record, Run

CLOSE = 0.03  # of ReLUs: 49.9K and 50K are one budget
CLOSE_SHARE = 0.1  # of shares: a narrower network has its own baseline, and budgets are rounded
LOOSE = {"gated-branching": 0.35, "gated-branching+akd": 0.35}  # which ReLUs gating leaves is not asked for
FACTORS = tuple(2.0**-halvings for halvings in range(8))
KIND_OF_ROLE = {"teacher": "baseline", "baseline": "baseline", "criticality": "only-stage"}
KINDS = {"gated": "gated-branching", "deepreshape": "hybrenet"}  # our methods' names in the rows, where they differ


@dataclasses.dataclass(frozen=True)
class Point:
    """A network of a paper or of ours.

    Attributes:
        relus: of an image; None where the paper does not give them; squares: of ours.
        share: of the full network's ReLUs; None likewise.
        accuracy: in percent; of ours on the test set, the mean over the seeds, whose standard deviation is `spread`.
        baseline: accuracy of the full-ReLU network; None where it is not given.
        change_spread: standard deviation of the changes from the baseline of the same seed; 0 for one seed.
    """

    network: str
    relus: int | None
    share: float | None
    accuracy: float
    baseline: float | None
    squares: int = 0
    spread: float = 0.0
    change_spread: float = 0.0
    seeds: int = 1

    @property
    def change(self) -> float | None:
        """Points of accuracy from the baseline."""
        return None if self.baseline is None else self.accuracy - self.baseline

    @property
    def per_kilorelu(self) -> float | None:
        """Percent of accuracy for each thousand ReLUs."""
        return 1000 * self.accuracy / self.relus if self.relus else None


@dataclasses.dataclass(frozen=True)
class Ours:
    """A network of runs that differ in their seeds alone.

    Attributes:
        kind: its method, as the papers' rows name it; note: what tells it from others of its method.
        steps: "" of a mask alone; distillation: "none", "kd" or "dkd".
    """

    kind: str
    steps: str
    distillation: str
    note: str
    point: Point


def ours_of(runs: Sequence[Run]) -> tuple[dict[str, Spec], list[Ours]]:
    """Network → spec, and all that is trained, of runs of one or several networks and seeds."""
    by_model: dict[str, list[Run]] = {}
    for run in runs:
        by_model.setdefault(str(run.config.get("model")), []).append(run)
    specs: dict[str, Spec] = {}
    found: list[Ours] = []
    for of_model in by_model.values():
        records = [record for run in of_model for record in run.candidates()]
        full = next((record for record in records if record.metrics.role == "teacher"), None)
        if full is None:
            raise UserError(f"{of_model[0].path} has no full-ReLU network yet; run the same command again to go on")
        spec = spec_from_json(storage.read_header(of_model[0].folder(full.name), "candidate")["spec"])
        name = of_model[0].network
        specs[name] = spec
        found += _grouped(name, records, of_model[0].config.get("reductions", []))
    return specs, found


def _grouped(network: str, records: Sequence[Record], entries: Sequence[Mapping[str, Any]]) -> list[Ours]:
    """Records of one name in several seeds are one network."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.metrics.role in KIND_OF_ROLE or record.metrics.role == "candidate":
            groups.setdefault(record.name, []).append(record)
    of_full = [r.metrics for r in records if r.metrics.role in ("teacher", "baseline")]
    baselines = {(m.steps, m.seed): m.test_accuracy for m in of_full}
    return [_one(network, group, _entry(group[0], entries), baselines) for group in groups.values()]


def _entry(record: Record, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Options of the entry of a run that asked for a network: of its method, and with the longest label that fits."""
    of_method = [entry for entry in entries if entry.get("method") == record.metrics.method]
    fitting = [one for one in of_method if not one.get("label") or record.name.endswith(f"-{one['label']}")]
    return max(fitting, key=lambda entry: len(entry.get("label", "")), default={}).get("options", {})


def _one(
    network: str, group: Sequence[Record], options: Mapping[str, Any], baselines: Mapping[tuple[str, int], float]
) -> Ours:
    """baselines: steps, "" for none, and seed → accuracy of the network that a search started from."""
    m, is_full = group[0].metrics, group[0].metrics.role in ("teacher", "baseline")
    accuracies = [record.metrics.test_accuracy for record in group]
    start = m.steps if _is_mask(group[0]) and (m.steps, m.seed) in baselines else ""
    known = [(r.metrics.test_accuracy, baselines.get((start, r.metrics.seed))) for r in group]
    of_seeds = [(accuracy, baseline) for accuracy, baseline in known if baseline is not None]
    point = Point(
        network,
        m.relus_and_comparisons,
        m.relus_and_comparisons / m.relus_full,
        statistics.mean(accuracies),
        statistics.mean(baseline for _, baseline in of_seeds) if of_seeds else None,
        m.squares,
        _deviation(accuracies),
        _deviation([accuracy - baseline for accuracy, baseline in of_seeds]),
        len({record.metrics.seed for record in group}),
    )
    distillation = options.get("distillation") or ("none" if is_full or options.get("kd_weight") == 0 else "kd")
    steps = "" if _is_mask(group[0]) else m.steps or "none"
    return Ours(_kind(group[0], options), steps, str(distillation), m.note or "", point)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _kind(record: Record, options: Mapping[str, Any]) -> str:
    m = record.metrics
    if m.role != "candidate":
        return KIND_OF_ROLE[m.role]
    if m.method == "autorep":
        return "autorep" if m.squares else "autorep-linear"
    if options.get("auxiliary"):
        return f"{KINDS.get(m.method, m.method)}+akd"
    return f"thin+{m.method}" if m.steps == "thin all" and _is_mask(record) else KINDS.get(m.method, m.method)


def _is_mask(record: Record) -> bool:
    """Whether places were chosen within a budget; its steps are then those of the network that it started from."""
    return record.metrics.role == "candidate" and record.metrics.is_mask


def spec_in(row: Published) -> Spec | None:
    """The network of a row; None where the paper does not say which it is."""
    try:
        return spec_of(row.network, *INPUTS[row.dataset])
    except UserError:
        return None


def standing(specs: Mapping[str, Spec], rows: Sequence[Published]) -> dict[str, str]:
    """Network of a paper → the one of ours that stands for it: itself, or narrower by the same factor as all."""
    published = {row.network: spec for row in rows if (spec := spec_in(row))}
    best: dict[str, str] = {}
    for factor in FACTORS:
        found = {
            name: own
            for name, spec in published.items()
            for own in specs
            if _narrowed(spec, factor) == _like(specs[own])
        }
        best = found if len(found) > len(best) else best
    if not best and len(published) == len(specs) == 1:
        return dict(zip(published, specs, strict=True))
    return best


def _narrowed(spec: Spec, factor: float) -> tuple[Any, ...] | None:
    try:
        return _like(spec.scale_channels(factor))
    except UserError:
        return None


def _like(spec: Spec) -> tuple[Any, ...]:
    """What is alike in two networks on other images; of a wide ResNet the width of its stages counts, not its stem."""
    fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name not in ("input", "classes")}
    if "widen" in fields:
        fields["widen"] *= fields.pop("stem")
    return (type(spec), *sorted(fields.items()))


def paper_point(row: Published, baseline: float | None) -> Point | None:
    """Of a row; None where it has no accuracy. baseline: accuracy of its network with all ReLUs."""
    if row.accuracy is None:
        return None
    share, relus = None, row.relus
    if "relu_reduction" in row.stated:
        share = 1 / float(row.stated["relu_reduction"])
    elif relus is not None and spec_in(row):
        share = relus / full_relus(row)
    return Point(row.network, relus, share, row.accuracy, baseline)


def match(row: Published, point: Point, own: str, candidates: Sequence[Ours], *, by_share: bool) -> Ours | None:
    """The network of ours, of these of network `own`, that a row is about; None where there is none.

    by_share: compare shares of the ReLUs, not their numbers.
    """
    there = [one for one in candidates if one.point.network == own]
    by_steps = [one for one in there if one.steps and one.steps.split() == row.steps.split()]
    by_steps = [one for one in by_steps if row.distillation in ("", one.distillation)]
    if by_steps:
        return min(by_steps, key=lambda one: (one.kind != row.method, len(one.note), one.note))  # the plainest
    of_kind = [one for one in there if one.kind == row.method and ("exit" not in one.note or _same_exit(one.note, row))]
    near = [(gap, one) for one in of_kind if (gap := _gap(point, one.point, by_share)) is not None]
    gap, found = min(near, key=lambda pair: (pair[0], pair[1].note), default=(math.inf, None))
    return found if gap <= LOOSE.get(row.method, CLOSE_SHARE if by_share else CLOSE) else None


def _same_exit(note: str, row: Published) -> bool:
    """Shallow-Again, Table 2: the output of the last classifier, or of the auxiliary one."""
    return ("auxiliary exit" in note) == ("auxiliary output" in row.steps)


def _gap(paper: Point, ours: Point, by_share: bool) -> float | None:
    """How far apart two are in ReLUs, as a share of them."""
    a, b = (paper.share, ours.share) if by_share else (paper.relus, ours.relus)
    return abs(math.log(b / a)) if a and b else None
