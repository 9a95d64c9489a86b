"""All methods on one network and one data set at equal budgets: accuracy on the test set, mean and spread over seeds.

    python benchmarks/methods.py run --out runs/methods                     hours; goes on where it was stopped
    python benchmarks/methods.py run --out runs/methods --only snl fisher --seeds 0
    python benchmarks/methods.py table --out runs/methods                   the table, and methods.png beside it
    python benchmarks/methods.py run --out runs/fashion --setting fashion

Each (method, seed) is a run folder of its own, OUT/seedN/METHOD, that starts from the seed's full-ReLU network.
Searches take 10 epochs and finetuning 4; methods without a search, and the full-ReLU network, train for 14. Two run at
a time, a core each.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from parelu import study
from parelu.methods import Method, methods
from parelu.run import Record, Run, cores
from parelu.study import Reduction, Study
from parelu.train import SHORT, Training

SEARCH, FINETUNE = 10, 4
TRAINING = dataclasses.replace(SHORT, epochs=SEARCH + FINETUNE)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all methods are compared on."""

    model: str
    data: str
    input: tuple[int, int, int] | None
    images: int | None
    budgets: tuple[str, ...]
    training: Training = TRAINING

    def study(self, seed: int, reductions: tuple[Reduction, ...], weights: Path | None = None) -> Study:
        return Study(self.model, self.data, reductions, self.training, seed, self.input, self.images, weights=weights)


SETTINGS = {
    "colour": Setting("resnet10 m=8", "colour-fashion", None, 20_000, ("0.2", "0.05", "0.01")),
    "fashion": Setting("resnet18 m=8", "fashion-mnist", (1, 16, 16), None, ("0.05",)),
}


def variants() -> dict[str, Method]:
    """Label → method; identity and polynomials are two leaderboards."""
    known = methods()
    learned = {"search_epochs": SEARCH, "finetune_epochs": FINETUNE}
    squares = {**learned, "finetune_lr": 0.05}
    found: dict[str, Method] = {name: known[name](**learned) for name in ("snl", "fisher", "bcd", "senet")}
    found |= {name: known[name](**squares) for name in ("autorep", "safenet", "delphi")}
    found["autorep-linear"] = known["autorep"](degree=1, **learned)
    found["autorep-identity"] = known["autorep"](degree=0, **learned)
    found["snip"] = known["snip"]()
    found["random"] = known["random"](from_teacher=True)
    found["uniform"] = known["uniform"](from_teacher=True)
    found["deepreduce"] = known["deepreduce"]()
    return found


class Silent:
    """A watcher that prints a line for each network."""

    def queued(self, task: object, cost: float) -> None: ...

    def moved(self, name: str, progress: object) -> None: ...

    def finished(self, name: str, candidate, *, resumed: bool) -> None:
        if not resumed:
            print(f"{time.strftime('%H:%M:%S')} {name}: {candidate.metrics['validation_accuracy']:.1f} %", flush=True)


def run_one(out: Path, setting: Setting, label: str, seed: int) -> None:
    teacher = out / f"seed{seed}" / "teacher"
    study.conduct(setting.study(seed, ()), teacher, Silent())
    if label != "teacher":
        method = variants()[label]
        budgets = () if label == "deepreduce" else setting.budgets
        weights = teacher / "candidates" / "teacher"
        one = setting.study(seed, (Reduction(method, budgets),), weights)
        study.conduct(one, out / f"seed{seed}" / label, Silent())


def run(out: Path, name: str, labels: list[str], seeds: list[int]) -> None:
    """Two processes at a time, each on a core of its own: the numbers of threads decide the last bits."""
    tasks = [("teacher", seed) for seed in seeds] + [(label, seed) for seed in seeds for label in labels]
    waiting, free, working = list(tasks), sorted(os.sched_getaffinity(0))[: min(2, cores())], {}
    while waiting or working:
        ready = [task for task in waiting if task[0] == "teacher" or not _busy(working, waiting, task[1])]
        while ready and free:
            task, core = ready.pop(0), free.pop(0)
            waiting.remove(task)
            command = [sys.executable, __file__, "one", "--out", str(out), "--setting", name, "--only", task[0],
                       "--seeds", str(task[1])]  # fmt: skip
            working[task] = (
                subprocess.Popen(command, preexec_fn=lambda core=core: os.sched_setaffinity(0, {core})),
                core,
            )
        time.sleep(0.5)
        for task, (process, core) in list(working.items()):
            if process.poll() is not None:
                print(f"{time.strftime('%H:%M:%S')} {task[0]} seed {task[1]}: exit {process.returncode}", flush=True)
                free.append(core)
                del working[task]


def _busy(working: dict, waiting: list[tuple[str, int]], seed: int) -> bool:
    return ("teacher", seed) in working or ("teacher", seed) in waiting


def records(out: Path) -> Iterator[tuple[str, int, Record]]:
    """(label, seed, record) of every finished candidate."""
    for config in sorted(out.glob("seed*/*/config.json")):
        folder = config.parent
        for record in Run.open(folder).candidates():
            if record.metrics["role"] == "candidate":
                yield folder.name, int(folder.parent.name.removeprefix("seed")), record


def table(out: Path, setting: Setting) -> str:
    """Markdown: a row a method, a column a budget: mean ± standard deviation over seeds (number of seeds)."""
    known, rows = variants(), {}
    full = Run.open(next(out.glob("seed*/teacher"))).candidates()[0].metrics["relus"]
    budgets = [study.parse_budget(text, full) for text in setting.budgets]
    for label, seed, record in records(out):
        budget = record.metrics["budget"]
        if label in known and budget in budgets:
            rows.setdefault(label, {}).setdefault(budget, {})[seed] = record.metrics
    lines = ["| method | " + " | ".join(f"{budget:,} ReLUs" for budget in budgets) + " | squares |",
             "|---" * (len(budgets) + 2) + "|"]  # fmt: skip

    def least_budget(label: str) -> float:
        found = rows[label].get(budgets[-1], {})
        return statistics.mean(m["test_accuracy"] for m in found.values()) if found else 0.0

    for label in sorted(rows, key=least_budget, reverse=True):
        cells = [_cell([m["test_accuracy"] for m in rows[label].get(budget, {}).values()]) for budget in budgets]
        squares = [m["squares"] for cell in rows[label].values() for m in cell.values()]
        lines.append(f"| `{label}` | {' | '.join(cells)} | {'–' if not max(squares) else f'{max(squares):,}'} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "one", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="colour")
    parser.add_argument("--only", nargs="+", choices=(*variants(), "teacher"), default=list(variants()))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.setting]
    if arguments.action == "one":
        run_one(arguments.out, setting, arguments.only[0], arguments.seeds[0])
    elif arguments.action == "run":
        run(arguments.out, arguments.setting, arguments.only, arguments.seeds)
    else:
        print(table(arguments.out, setting))


if __name__ == "__main__":
    main()
