"""Networks made for private inference: what DeepReShape claims of them, on Fashion-MNIST at two widths.

    python benchmarks/networks.py run --out runs/networks                  hours; goes on where it was stopped
    python benchmarks/networks.py measure --out runs/networks         private inference of what was trained
    python benchmarks/networks.py table --out runs/networks
    python benchmarks/networks.py run --out runs/try --setting tiny --seeds 0     minutes: whether all of it works

Three comparisons, each paired by seed:
  networks       ResNet18 and HybReNets at equal ReLUs, by `fisher`: accuracy, MACs, seconds of private inference
  distillation   decoupled (several β) against plain, for the candidates of Algorithm 2
  reuse          ReLU-reuse against fewer channels or smaller maps at equal ReLUs, on a thinned network
A network trains at the learning rate that its full-ReLU network prefers, by the validation split. Run folders are
OUT/seedN/NETWORK/LABEL, and teacher-RATE for full-ReLU networks.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lines import Lines
from rows import middle, path_of, rows_of

from parelu import data
from parelu.methods.base import Context, Method, methods, stepped_job
from parelu.network import storage
from parelu.network.candidate import Candidate
from parelu.private.bench import bench
from parelu.private.engines.base import Options
from parelu.private.lowering.lowered import Lowered
from parelu.private.offline.mode import DEFAULT, modes, ring_for
from parelu.runs import experiment, measurement
from parelu.runs.experiment import Experiment, Reduction
from parelu.runs.folder import Run
from parelu.training.objectives import Distillation
from parelu.training.schedule import SHORT, Training

ORDER = "S3>S2>S4>S1"  # DeepReShape, Table 10; without it criticality is measured for each network
BETAS = (1.0, 6.0)  # Appendix J goes from 0.8 to 6


@dataclasses.dataclass(frozen=True)
class Setting:
    """widths: label → the networks that are compared at this width; budgets: ReLUs; reshaped: network of the other two
    comparisons; rates: learning rates to choose from; steps: what leaves it thinned."""

    data: str
    input: tuple[int, int, int]
    images: int | None
    widths: dict[str, tuple[str, ...]]
    budgets: tuple[str, ...]
    reshaped: str
    training: Training
    rates: tuple[float, ...] = (0.1, 0.3)
    search: int = 8
    steps: str = "cull S1; thin S2+S3+S4"

    def full(self, network: str, seed: int, rate: float) -> Experiment:
        training = dataclasses.replace(self.training, lr=rate)
        return Experiment(network, self.data, (), training, seed, self.input, self.images)


SETTINGS = {
    "fashion": Setting(
        "fashion-mnist",
        (1, 16, 16),
        10_000,
        {"narrow": ("resnet18 m=8", "hrn-5x5x3x m=4", "hrn-2x5x3x m=8"), "wide": ("resnet18 m=16", "hrn-2x5x3x m=16")},
        ("4000", "2000", "1000", "500"),
        "hrn-2x5x3x m=8",
        dataclasses.replace(SHORT, epochs=12),
    ),
    "tiny": Setting(
        "digits",
        (1, 16, 16),
        384,
        {"narrow": ("resnet10 m=2", "resnet10 5x5x3x m=1"), "wide": ("resnet10 m=4",)},
        ("300", "100"),
        "resnet10 2x4x2x m=8",
        Training(epochs=1, batch=128, lr=0.05),
        search=1,
    ),
}


@dataclasses.dataclass(frozen=True)
class Reshaped(Method):
    """The thinned network, with ReLU-reuse or scaled to the same ReLUs; plain distillation for all."""

    name: ClassVar[str] = "reshaped"
    source: ClassVar[str] = "DeepReShape, Figures 13 and 23"
    exact: ClassVar[bool] = False
    needs_budget: ClassVar[bool] = False

    steps: str = ""

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        endings = ("", "reuse 4", "channels 0.25", "fmap 0.5", "reuse 8", "channels 0.125")
        texts = [f"{self.steps}; {ending}" if ending else self.steps for ending in endings]
        jobs = [stepped_job(self.name, context, text, Distillation(), prefix="reshaped-") for text in texts]
        return context.train(jobs)


def labels(setting: Setting) -> Iterator[tuple[str, str, Method, tuple[str, ...]]]:
    """Network, label of a run folder, method, budgets."""
    for networks in setting.widths.values():
        for network in networks:
            fisher = methods()["fisher"](search_epochs=setting.search, finetune_epochs=max(1, setting.search // 2))
            yield network, "fisher", fisher, setting.budgets
    reshape = methods()["deepreshape"]
    yield setting.reshaped, "kd", reshape(order=ORDER, distillation="kd"), ()
    for beta in BETAS:
        yield setting.reshaped, f"dkd-{beta:g}", reshape(order=ORDER, beta=beta), ()
    yield setting.reshaped, "reuse", Reshaped(setting.steps), ()


def folder_of(out: Path, network: str, label: str, seed: int) -> Path:
    return out / f"seed{seed}" / network.replace(" ", "-") / label


def run(out: Path, setting: Setting, seeds: Sequence[int], only: Sequence[str]) -> None:
    for seed in seeds:
        for network, label, method, budgets in labels(setting):
            if only and not {network, label} & set(only):
                continue
            full, weights, relus = preferred(out, setting, network, seed)
            within = tuple(budget for budget in budgets if int(budget) <= relus)
            one = dataclasses.replace(full, reductions=(Reduction(method, within),), weights=weights)
            experiment.run_experiment(one, folder_of(out, network, label, seed), Lines())


def preferred(out: Path, setting: Setting, network: str, seed: int) -> tuple[Experiment, Path, int]:
    """The full-ReLU network's experiment at the rate where it validates best, its weights, its ReLUs."""
    found = []
    for rate in setting.rates:
        full, folder = setting.full(network, seed, rate), folder_of(out, network, f"teacher-{rate:g}", seed)
        experiment.run_experiment(full, folder, Lines())
        (record,) = Run.open(folder).candidates()
        found.append((record.metrics.validation_accuracy, full, folder / "candidates" / record.name, record))
    _, full, weights, record = max(found, key=lambda entry: entry[0])
    return full, weights, record.metrics.relus


def measure_all(out: Path, setting: Setting, seeds: Sequence[int], offline: str, network: str, repeat: int) -> None:
    """Private inference of the candidates of the first comparison, one repetition after another through all."""
    dataset = data.load(setting.data, images=setting.images, input_shape=setting.input)

    @functools.cache
    def lowered(folder: Path) -> tuple[Lowered, Candidate]:
        candidate = Candidate.load(folder)
        return measurement.lowered(folder, candidate, ring_for(offline), dataset), candidate

    folders = [
        folder_of(out, name, label, seed) for seed in seeds for name, label, *_ in labels(setting) if label == "fisher"
    ]
    for number, folder in itertools.product(range(repeat), folders):
        one = Run.open(folder)
        for record in one.candidates():
            path = path_of(one, record.name, offline, network, number)
            if record.metrics.role == "candidate" and not path.exists():
                program, candidate = lowered(one.folder(record.name))
                images = measurement.fit(candidate, dataset.test.images[: measurement.IMAGES])
                row = bench(program, candidate, images, Options(offline=offline, link=network)).to_json()
                storage.write_json(path, row)
                print(f"{folder} {path.stem}: {1000 * row['online']['seconds']:.1f} ms online", flush=True)


def found(out: Path, network: str, label: str, key: str, seeds: Sequence[int]) -> dict[Any, list[Any]]:
    """A metric (budget, steps) → the records of the seeds that have it."""
    records: dict[Any, list[Any]] = {}
    for seed in seeds:
        folder = folder_of(out, network, label, seed)
        if (folder / "config.json").exists():
            for record in Run.open(folder).candidates():
                if record.metrics.role == "candidate":
                    records.setdefault(getattr(record.metrics, key), []).append(record)
    return records


def _mean(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def compared(out: Path, setting: Setting, seeds: Sequence[int], offline: str, network: str) -> list[str]:
    """Markdown lines of the first comparison; seconds are medians over repetitions, with their range."""
    lines = ["| width | network | ReLUs | MACs | accuracy | offline, s | MB | online, ms | MB |", "|---" * 9 + "|"]
    for width, name in ((width, name) for width, networks in setting.widths.items() for name in networks):
        folders = [folder_of(out, name, "fisher", seed) for seed in seeds]
        runs = [Run.open(folder) for folder in folders if (folder / "config.json").exists()]
        for budget, records in found(out, name, "fisher", "budget", seeds).items():
            rows = [row for run in runs for row in rows_of(run, f"fisher-{budget}", offline, network)]
            costs = [*_costs(rows, "offline", 1), *_costs(rows, "online", 1000)]
            accuracy = _mean([record.metrics.test_accuracy for record in records])
            macs = f"{records[0].metrics.macs / 1e6:.1f} M"
            lines.append(f"| {' | '.join([width, name, f'{budget:,}', macs, accuracy, *costs])} |")
    return lines


def _costs(rows: Sequence[dict[str, Any]], phase: str, unit: int) -> tuple[str, str]:
    """Time, of which `unit` are a second, and MB both ways."""
    both = [row[phase]["bytes_to_client"] + row[phase]["bytes_to_server"] for row in rows]
    return middle([unit * row[phase]["seconds"] for row in rows], ".1f"), middle([size / 1e6 for size in both], ".2f")


def distilled(out: Path, setting: Setting, seeds: Sequence[int]) -> list[str]:
    """Markdown lines of the second comparison."""
    names = ["kd", *(f"dkd-{beta:g}" for beta in BETAS)]
    lines = [f"| {setting.reshaped} | ReLUs | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    columns = {name: found(out, setting.reshaped, name, "steps", seeds) for name in names}
    for steps, records in columns["kd"].items():
        cells = [_mean([r.metrics.test_accuracy for r in columns[name].get(steps, [])]) for name in names]
        lines.append(f"| {steps} | {records[0].metrics.relus:,} | {' | '.join(cells)} |")
    return lines


def reused(out: Path, setting: Setting, seeds: Sequence[int]) -> list[str]:
    """Markdown lines of the third comparison."""
    lines = [f"| {setting.reshaped} | ReLUs | MACs | accuracy |", "|---|---|---|---|"]
    for steps, records in found(out, setting.reshaped, "reuse", "steps", seeds).items():
        first, accuracy = records[0].metrics, _mean([record.metrics.test_accuracy for record in records])
        lines.append(f"| {steps} | {first.relus:,} | {first.macs / 1e6:.2f} M | {accuracy} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "measure", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="fashion")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], metavar="NETWORK|LABEL", help="train these alone")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--offline", choices=modes(), default=DEFAULT)
    parser.add_argument("--link", default="loopback", help="loopback, lan or wan")
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.setting]
    offline, network = arguments.offline, arguments.link
    if arguments.action == "run":
        run(arguments.out, setting, arguments.seeds, arguments.only)
    elif arguments.action == "measure":
        measure_all(arguments.out, setting, arguments.seeds, offline, network, arguments.repeat)
    else:
        tables = (
            compared(arguments.out, setting, arguments.seeds, offline, network),
            distilled(arguments.out, setting, arguments.seeds),
            reused(arguments.out, setting, arguments.seeds),
        )
        print("\n\n".join("\n".join(lines) for lines in tables))


if __name__ == "__main__":
    main()
