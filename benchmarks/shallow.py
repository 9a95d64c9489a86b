"""What shallow networks are worth: SENet against SENet with gated branching and an earlier exit, trained and measured.

    python benchmarks/shallow.py run --out runs/shallow                      hours; goes on where it was stopped
    python benchmarks/shallow.py measure --out runs/shallow --repeat 3       minutes; so does this
    python benchmarks/shallow.py table --out runs/shallow
    python benchmarks/shallow.py run --out runs/tiny --setting tiny --seeds 0   and so on: a try on digits, in minutes

OUT/seedN is a run folder of both methods at three budgets; they finetune the masks of the same searches. A repetition
of `measure` goes once through all networks, each as its layers are and fused, so that what is compared alternates; it
is kept in OUT/seedN/measured. The table has the effect that the paper reports, depth and multiply-adds, and what it is
worth in seconds: medians over seeds and repetitions, with their range.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

from lines import Lines
from rows import middle, path_of, rows_of

from parelu.fusion.fuse import nothing
from parelu.fusion.packing import seconds
from parelu.methods.gated import Gated
from parelu.methods.senet import SENet
from parelu.network import storage
from parelu.private.bench import bench
from parelu.private.engines.base import Options
from parelu.private.lowering.lower import Lowered, lower
from parelu.private.offline.mode import DEFAULT, modes, ring_for
from parelu.report.fusion import sizes
from parelu.runs import experiment, measurement
from parelu.runs.experiment import Experiment, Reduction
from parelu.runs.folder import Record, Run
from parelu.training.schedule import SHORT, Training

IMAGES = 10  # of the test set, in one measurement, after one that warms up
WAYS = {"as it is": nothing, "fused": seconds}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both methods are compared on; d_th is of Shallow-Again's Table 1."""

    model: str
    data: str
    input: tuple[int, int, int] | None
    images: int | None
    budgets: tuple[str, ...]
    search_epochs: int
    finetune_epochs: int
    training: Training
    d_th: float = 0.1

    def experiment(self, seed: int) -> Experiment:
        options: dict[str, Any] = {"search_epochs": self.search_epochs, "finetune_epochs": self.finetune_epochs}
        methods = SENet(**options), Gated(d_th=self.d_th, auxiliary=True, **options)
        reductions = tuple(Reduction(method, self.budgets) for method in methods)
        return Experiment(self.model, self.data, reductions, self.training, seed, self.input, self.images)


SETTINGS = {
    "fashion": Setting(
        "resnet18 m=8",
        "fashion-mnist",
        (1, 28, 28),
        20_000,
        ("0.2", "0.1", "0.05"),
        6,
        10,
        dataclasses.replace(SHORT, epochs=14),
    ),
    "tiny": Setting("resnet10 m=4", "digits", None, None, ("0.2", "0.1"), 2, 4, dataclasses.replace(SHORT, epochs=6)),
}


def networks(run: Run) -> list[Record]:
    """The full network and the candidates, by budget, then from the deep to the shallow."""
    found = [record for record in run.candidates() if record.metrics.role in ("teacher", "candidate")]
    return sorted(found, key=lambda r: (-(r.metrics.budget or 1 << 60), -r.metrics.depth))


def measure_all(run: Run, offline: str, network: str, repeat: int) -> None:
    """Measure what is not measured yet, one repetition after another through all networks."""
    records = networks(run)
    dataset = measurement.dataset_of(run.candidate(records[0].name))

    @functools.cache
    def lowered(name: str, way: str) -> Lowered:
        candidate = run.candidate(name)
        images = measurement.fit(candidate, dataset.train.images[: measurement.CALIBRATION])
        return lower(candidate.network(), images, candidate.preprocessing, cost=WAYS[way], ring=ring_for(offline))

    for number in range(repeat):
        for record, way in itertools.product(records, WAYS):
            path = path_of(run, f"{record.name} {way}", offline, network, number)
            if not path.exists():
                candidate = run.candidate(record.name)
                images = measurement.fit(candidate, dataset.test.images[:IMAGES])
                row = bench(
                    lowered(record.name, way), candidate, images, Options(offline=offline, link=network)
                ).to_json()
                storage.write_json(path, row)
                print(f"{path.stem}: {1000 * row['online']['seconds']:.1f} ms online", flush=True)
    for record in records:
        path = run.path / "measured" / f"{record.name} ring.json"
        if not path.exists():
            candidate = run.candidate(record.name)
            ring = measurement.ring_accuracy(lowered(record.name, "fused"), candidate, dataset.test)
            storage.write_json(path, dataclasses.asdict(ring))


def table(runs: list[Run], offline: str, network: str) -> str:
    """Markdown: a row for each network and, where fusion changes it, for what it becomes; seeds side by side."""
    heads = ("network", "way", "ReLUs", "test, %", "ring, %", "MACs", "depth", "HE products", "online", "offline")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    groups: dict[tuple[str, int], list[tuple[Run, Record]]] = {}
    for run in runs:
        for record in networks(run):
            groups.setdefault((_label(record), record.metrics.budget or 0), []).append((run, record))
    for (label, _), group in groups.items():
        for way, cells in _cells(group, offline, network).items():
            lines.append(f"| {' | '.join([label, way, *cells])} |")
    return "\n".join(lines)


def _label(record: Record) -> str:
    budget, name = record.metrics.budget, record.metrics.method
    ending = ", exit ahead of the last stage" if record.name.endswith("-auxiliary") else ""
    return f"{name} {budget:,}{ending}" if budget else "all ReLUs"


def _cells(group: list[tuple[Run, Record]], offline: str, network: str) -> dict[str, list[str]]:
    """Way → the cells of a network's row."""
    found, before = {}, None
    for way in WAYS:
        shapes = [
            sizes(candidate.spec, candidate.plan)[way]
            for candidate in (run.candidate(record.name) for run, record in group)
        ]
        if shapes == before:
            continue
        rows = [list(rows_of(run, f"{record.name} {way}", offline, network)) for run, record in group]
        rings = [path for run, record in group if (path := run.path / "measured" / f"{record.name} ring.json").exists()]
        online, behind = ([row[phase]["seconds"] for row in itertools.chain(*rows)] for phase in ("online", "offline"))
        found[way] = [
            middle([record.metrics.relus for _, record in group], ",.0f"),
            middle([record.metrics.test_accuracy for _, record in group], ".1f"),
            middle([json.loads(path.read_bytes())["accuracy"] for path in rings], ".1f"),
            middle([shape.macs / 1e6 for shape in shapes], ",.2f") + " M",
            middle([shape.depth for shape in shapes], ".0f"),
            middle([shape.products for shape in shapes], ",.0f"),
            middle([1000 * value for value in online], ",.1f") + " ms",
            middle([1000 * value for value in behind], ",.1f") + " ms",
        ]
        before = shapes
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "measure", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="fashion")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--offline", choices=list(modes()), default=DEFAULT)
    parser.add_argument("--link", choices=("loopback", "lan", "wan"), default="loopback")
    arguments = parser.parse_args()
    folders = [arguments.out / f"seed{seed}" for seed in arguments.seeds]
    if arguments.action == "run":
        for seed, folder in zip(arguments.seeds, folders, strict=True):
            experiment.run_experiment(SETTINGS[arguments.setting].experiment(seed), folder, Lines())
    elif arguments.action == "measure":
        for folder in folders:
            measure_all(Run.open(folder), arguments.offline, arguments.link, arguments.repeat)
    else:
        print(table([Run.open(folder) for folder in folders], arguments.offline, arguments.link))


if __name__ == "__main__":
    main()
