"""All methods on one network and one data set at equal budgets: accuracy on the test set, mean and spread over seeds.

    python benchmarks/methods.py run --out runs/methods                     hours; goes on where it was stopped
    python benchmarks/methods.py run --out runs/methods --only snl fisher --seeds 0
    python benchmarks/methods.py collect --out runs/methods                 into benchmarks/methods.csv
    python benchmarks/methods.py table --plot docs/methods.png              of what stands there
    python benchmarks/methods.py run --out runs/methods --only no-hysteresis mu-3 … --seeds 0      claims of the papers
    python benchmarks/methods.py run --out runs/fashion --setting fashion   and so collect and table

Each (method, seed) is a run folder of its own, OUT/seedN/METHOD, that starts from the seed's full-ReLU network.
Searches take 10 epochs and finetuning 4; methods without a search, and the full-ReLU network, train for 14. Two run at
a time, a core each.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from lines import Lines
from torch import Tensor

from parelu import data
from parelu.masks.optimizer import put_gates
from parelu.masks.projection import project
from parelu.methods.base import Context, Method, methods
from parelu.methods.budget import parse_budget
from parelu.methods.fixed import masked_jobs
from parelu.methods.jobs import FRESH, FROM_TEACHER, TEACHER, FromJob, Job
from parelu.methods.snl import SNL
from parelu.network.candidate import Candidate
from parelu.network.metrics import Metrics, Tags
from parelu.network.plan import Plan, SitePlan
from parelu.runs import experiment
from parelu.runs.environment import cores
from parelu.runs.experiment import Experiment, Reduction
from parelu.runs.folder import Run
from parelu.training.batches import fit
from parelu.training.objectives import Distillation
from parelu.training.schedule import SHORT, Training

SEARCH, FINETUNE = 10, 4
COLUMNS = ("setting", "method", "seed", "budget", "relus", "squares", "test_accuracy")
Row = dict[str, Any]
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

    def experiment(self, seed: int, reductions: tuple[Reduction, ...], weights: Path | None = None) -> Experiment:
        return Experiment(
            self.model, self.data, reductions, self.training, seed, self.input, self.images, weights=weights
        )


SETTINGS = {
    "colour": Setting("resnet10 m=8", "colour-fashion", None, 20_000, ("0.2", "0.05", "0.01")),
    "fashion": Setting("resnet18 m=8", "fashion-mnist", (1, 16, 16), None, ("0.05",)),
}


def variants() -> dict[str, Method]:
    """Label → method; identity and polynomials are two leaderboards."""
    known = methods()
    learned = {"search_epochs": SEARCH, "finetune_epochs": FINETUNE}
    names = ("snl", "fisher", "bcd", "senet", "autorep", "safenet", "delphi")
    found: dict[str, Method] = {name: known[name](**learned) for name in names}
    found["autorep-linear"] = known["autorep"](degree=1, finetune_lr=None, **learned)
    found["autorep-identity"] = known["autorep"](degree=0, finetune_lr=None, **learned)
    found["snip"] = known["snip"]()
    found["random"] = known["random"](from_teacher=True)
    found["uniform"] = known["uniform"](from_teacher=True)
    found["deepreduce"] = known["deepreduce"]()
    return found


def effects() -> dict[str, Method]:
    """Label → a method with one thing changed: what the papers claim of it."""
    known = methods()
    learned = {"search_epochs": SEARCH, "finetune_epochs": FINETUNE}
    identity = {"degree": 0, "finetune_lr": None, **learned}
    changed: dict[str, Method] = {"no-hysteresis": known["autorep"](threshold=0.0, **learned)}
    changed |= {"no-hysteresis-identity": known["autorep"](threshold=0.0, **identity)}
    changed |= {f"mu-{mu}": known["autorep"](mu=float(mu), **learned) for mu in (3, 30, 100)}
    changed |= {f"mu-{mu}-identity": known["autorep"](mu=float(mu), **identity) for mu in (30, 100)}
    changed |= {"snl-thin": known["snl"](thin=True, **learned)}
    changed |= {"snl-channel": known["snl"](granularity="channel", **learned)}
    paper = partial(known["snl"], schedule="paper")
    changed |= {"snl-paper": paper(search_epochs=400, finetune_epochs=FINETUNE)}
    changed |= {"snl-paper-finetune-14": paper(search_epochs=400, finetune_epochs=14)}
    changed |= {"snl-paper-1e-4": paper(search_epochs=119, finetune_epochs=14, lam=1e-4)}  # a third of the epochs
    changed |= {"snl-paper-1e-3": paper(search_epochs=200, finetune_epochs=FINETUNE, lam=1e-3)}
    changed |= {"snl-alone": Alone(**learned)}
    changed |= {f"snl-finetune-{n}": known["snl"](search_epochs=SEARCH, finetune_epochs=n) for n in (14, 40, 100)}
    changed |= {f"placed-{name}": Placed(name) for name in POLYNOMIALS}
    changed |= {f"wide-{wide}": known["autorep"](wide=float(wide), **learned) for wide in (1, 2)}
    changed |= {f"{name}-mask": Retrained(name) for name in ("snl", "fisher", "snl-paper")}
    changed |= {"snl-mask-fresh": Retrained("snl", start="")}
    return changed


@dataclasses.dataclass(frozen=True)
class Alone(SNL):
    """SNL with a search for each budget."""

    shares_search: ClassVar[bool] = False


POLYNOMIALS = {"identity": 0, "x2": (0.0, 0.0, 1.0), "x2+x": (0.0, 1.0, 1.0), "dapa-1": 1, "dapa-2": 2}


@dataclasses.dataclass(frozen=True)
class Placed(Method):
    """SNIP's masks with a polynomial in the place of each other ReLU, trained for 4 epochs."""

    name: ClassVar[str] = "placed"
    source: ClassVar[str] = "AutoReP, Fig. 6"
    exact: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = True

    polynomial: str = "dapa-2"

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        scores = {name: gradient.abs() for name, gradient in context.slope_gradients(1024).items()}
        coefficients = self._coefficients(context.teacher)
        training = dataclasses.replace(context.training, epochs=FINETUNE, lr=0.05, clip=0.5)
        jobs = []
        for budget in budgets:
            masks = project(scores, budget)
            plan = Plan({name: SitePlan(mask, coefficients[name]) for name, mask in masks.items()})
            tags = Tags(self.name, "", budget, self.polynomial)
            objective = Distillation(tails=1.0 if plan.squares else 0.0)
            name = f"{self.name}-{self.polynomial}-{budget}"
            jobs.append(Job(name, "candidate", context.teacher.spec, plan, training, objective, tags, FROM_TEACHER))
        return context.train(jobs)

    def _coefficients(self, teacher: Candidate) -> dict[str, Tensor]:
        """Of each site; fitted ones to the full network's inputs."""
        chosen = POLYNOMIALS[self.polynomial]
        if not isinstance(chosen, int):
            return {n: torch.tensor(chosen)[:, None].repeat(1, s.mask.shape[0]) for n, s in teacher.plan.sites.items()}
        network, p = teacher.network().train(), teacher.preprocessing
        gates = put_gates(network)
        for gate in gates.values():
            gate.follow_inputs(chosen)
        images = data.load(p["dataset"]).train.images[:2048]
        with torch.no_grad():
            for batch in images.split(256):
                network(fit(data.normalise(batch, tuple(p["mean"]), tuple(p["std"])), network))
        return {name: gate.coefficients.clone() for name, gate in gates.items()}


@dataclasses.dataclass(frozen=True)
class Retrained(Method):
    """Another method's masks, trained from the full network's weights for as long as a search and its finetuning.

    The run of that method, of the same seed, must be there. start: "" for fresh weights.
    """

    name: ClassVar[str] = "retrained"
    source: ClassVar[str] = "what a mask is worth apart from how its network was trained"
    exact: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = True

    label: str
    start: str = TEACHER
    folder: str = ""

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        run = Run.open(Path(self.folder))
        names = {r.metrics.budget: r.name for r in run.candidates() if r.metrics.role == "candidate"}
        plans = {budget: run.candidate(names[budget]).plan for budget in budgets}
        masks = {budget: {name: site.mask for name, site in plan.sites.items()} for budget, plan in plans.items()}
        start = FromJob(self.start) if self.start else FRESH
        return context.train(masked_jobs(f"{self.label}-mask", context, masks, Distillation(), start=start))


def run_one(out: Path, setting: Setting, label: str, seed: int) -> None:
    teacher = out / f"seed{seed}" / "teacher"
    experiment.run_experiment(setting.experiment(seed, ()), teacher, Lines())
    if label != "teacher":
        method = {**variants(), **effects()}[label]
        if isinstance(method, Retrained):
            method = dataclasses.replace(method, folder=str(out / f"seed{seed}" / method.label))
        budgets = () if label == "deepreduce" else setting.budgets
        weights = teacher / "candidates" / "teacher"
        one = setting.experiment(seed, (Reduction(method, budgets),), weights)
        experiment.run_experiment(one, out / f"seed{seed}" / label, Lines())


def run(out: Path, name: str, labels: list[str], seeds: list[int]) -> None:
    """Two processes at a time, each on a core of its own: the numbers of threads decide the last bits."""
    tasks = [("teacher", seed) for seed in seeds] + [(label, seed) for seed in seeds for label in labels]
    waiting, free, working = list(tasks), sorted(os.sched_getaffinity(0))[: min(2, cores())], {}
    while waiting or working:
        ready = [task for task in waiting if task[0] == "teacher" or not _busy(working, waiting, task[1])]
        while ready and free:
            task, core = ready.pop(0), free.pop(0)
            waiting.remove(task)
            command = [
                sys.executable,
                __file__,
                "one",
                "--out",
                str(out),
                "--setting",
                name,
                "--only",
                task[0],
                "--seeds",
                str(task[1]),
            ]
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


def collect(out: Path, name: str, path: Path) -> None:
    """Adds every finished network under `out` to the figures at `path`; a network that was measured again replaces."""
    known = {(row["setting"], row["method"], row["seed"], row["budget"]): row for row in figures(path)}
    for label, seed, budget, metrics in _measured(out, SETTINGS[name]):
        row = {"setting": name, "method": label, "seed": seed, "budget": budget}
        known[name, label, seed, budget] = row | {key: getattr(metrics, key) for key in COLUMNS[4:]}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(known[key] for key in sorted(known, key=lambda key: (key[0], key[1], -key[3], key[2])))


def figures(path: Path) -> list[Row]:
    """What `collect` has written."""
    if not path.exists():
        return []
    kinds = dict.fromkeys(COLUMNS, int) | {"setting": str, "method": str, "test_accuracy": float}
    with path.open(newline="") as file:
        return [{key: kinds[key](value) for key, value in row.items()} for row in csv.DictReader(file)]


def _measured(out: Path, setting: Setting) -> Iterator[tuple[str, int, int, Metrics]]:
    """(label, seed, budget, metrics) of every finished network; a full one's budget is its own ReLUs."""
    for folder in (config.parent for config in sorted(out.glob("seed*/*/config.json"))):
        found = [record.metrics for record in Run.open(folder).candidates()]
        label, seed = folder.name, int(folder.parent.name.removeprefix("seed"))
        if label == "teacher":
            yield from ((label, seed, metrics.relus, metrics) for metrics in found)
            continue
        found = [metrics for metrics in found if metrics.role == "candidate"]
        if label == "deepreduce":
            full = Run.open(folder.parent / "teacher").candidates()[0].metrics.relus
            for budget in (parse_budget(text, full) for text in setting.budgets):
                fitting = [metrics for metrics in found if metrics.relus <= budget]
                if fitting:  # the one that the validation split prefers
                    yield label, seed, budget, max(fitting, key=lambda metrics: metrics.validation_accuracy)
            continue
        yield from ((label, seed, metrics.budget or 0, metrics) for metrics in found)


def _cells(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, dict[int, list[Row]]]:
    """Label → budget → a row a seed; the labels by accuracy at the smallest budget."""
    cells: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        if row["method"] in labels:
            cells.setdefault(row["method"], {}).setdefault(row["budget"], []).append(row)
    return dict(sorted(cells.items(), key=lambda item: -_mean(item[1][min(item[1])])))


def _mean(rows: Sequence[Row]) -> float:
    return statistics.mean(row["test_accuracy"] for row in rows)


def table(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """Markdown: a row a method, a column a budget: mean ± standard deviation over seeds (number of seeds)."""
    cells = _cells(rows, labels)
    budgets = sorted({budget for row in cells.values() for budget in row}, reverse=True)
    lines = [
        f"| method | {' | '.join(f'{budget:,} ReLUs' for budget in budgets)} | squares at {budgets[-1]:,} |",
        "|---" * (len(budgets) + 2) + "|",
    ]
    for label, row in cells.items():
        texts = [_cell([metrics["test_accuracy"] for metrics in row.get(budget, [])]) for budget in budgets]
        squares = max((metrics["squares"] for metrics in row.get(budgets[-1], [])), default=0)
        lines.append(f"| `{label}` | {' | '.join(texts)} | {f'{squares:,}' if squares else '–'} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], labels: Sequence[str], path: Path) -> None:
    """Accuracy over ReLUs, a line a method; dashed where squares stand for ReLUs."""
    from matplotlib import pyplot

    cells = _cells(rows, labels)
    budgets = sorted({budget for row in cells.values() for budget in row})
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for number, (label, row) in enumerate(cells.items()):
        known = sorted(row)
        values = [[metrics["test_accuracy"] for metrics in row[budget]] for budget in known]
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
        style = "--" if any(metrics["squares"] for cell in row.values() for metrics in cell) else "-"
        marker, colour = "osv^D<>pXP*hd"[number % 13], pyplot.get_cmap("tab20")(number % 20)
        axes.errorbar(
            known,
            [statistics.mean(v) for v in values],
            spread,
            label=label,
            linestyle=style,
            marker=marker,
            color=colour,
            capsize=2,
        )
    full = [row for row in rows if row["method"] == "teacher"]
    if full:
        axes.axhline(_mean(full), color="grey", linewidth=0.8, label="all ReLUs")
    axes.set(xscale="log", xlabel="ReLUs an image", ylabel="test accuracy, %")
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.minorticks_off()
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "one", "collect", "table"))
    parser.add_argument("--out", type=Path, help="run folders; all actions but table need it")
    parser.add_argument("--figures", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--setting", choices=SETTINGS, default="colour")
    parser.add_argument("--only", nargs="+", choices=(*variants(), *effects(), "teacher"), default=list(variants()))
    parser.add_argument("--plot", type=Path, help="of the table's means, a picture")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.setting]
    if arguments.action != "table" and arguments.out is None:
        parser.error("--out is missing")
    if arguments.action == "one":
        run_one(arguments.out, setting, arguments.only[0], arguments.seeds[0])
    elif arguments.action == "run":
        run(arguments.out, arguments.setting, arguments.only, arguments.seeds)
    elif arguments.action == "collect":
        collect(arguments.out, arguments.setting, arguments.figures)
    else:
        rows = [row for row in figures(arguments.figures) if row["setting"] == arguments.setting]
        if not any(row["method"] in arguments.only for row in rows):
            parser.error(f"{arguments.figures} has none of these in setting {arguments.setting}; run and collect them")
        print(table(rows, arguments.only))
        if arguments.plot:
            plot(rows, arguments.only, arguments.plot)


if __name__ == "__main__":
    main()
