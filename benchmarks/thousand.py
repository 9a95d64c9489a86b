"""What opening a run of many candidates costs: CPU seconds and peak memory of each command that looks at it.

    python benchmarks/thousand.py make runs/thousand       # 1,000 candidates of 100 epochs, made up; minutes
    python benchmarks/thousand.py measure runs/thousand    # each command in a process of its own

The run is what `parelu reduce` leaves, plans and identities and all, but nobody trained it: weights are drawn, and
accuracies follow a formula. A command that goes on with it therefore finds everything done.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from parelu.methods.base import methods
from parelu.methods.jobs import Job, Task
from parelu.network.candidate import Candidate
from parelu.network.count import count, counts, skeleton
from parelu.network.instrument import network_of
from parelu.network.metrics import Metrics
from parelu.runs.executor import Do, Executor, Watcher, Work
from parelu.runs.experiment import Experiment, Reduction, run_experiment
from parelu.runs.folder import Run
from parelu.runs.jobs import identity
from parelu.runs.progress import TerminalProgress
from parelu.training.history import Epoch, write_history
from parelu.training.schedule import Training

METHODS = ("random", "snip", "uniform")
PENALTY = {"random": 3.0, "uniform": 5.0, "snip": 0.5}  # points of accuracy, made up


@dataclasses.dataclass(frozen=True)
class MadeUp(Executor):
    """Does no task: writes what a training would have left, with made-up figures.

    epochs: lines of the history of each.
    """

    epochs: int

    @contextmanager
    def at(self, work: Work, watcher: Watcher) -> Iterator[Do]:
        def do(tasks: Sequence[Task], of: int) -> None:
            for task in tasks:
                assert isinstance(task, Job), "a method that searches is not made up"
                candidate, history = self.outcome(work, task)
                write_history(work.run.folder(task.name), history)
                candidate.save(work.run.folder(task.name))
                watcher.finished(task.name, candidate, resumed=False)

        yield do

    def outcome(self, work: Work, job: Job) -> tuple[Candidate, list[Epoch]]:
        """Accuracy falls with the logarithm of the ReLUs that are gone."""
        network = skeleton(job.spec)
        job.plan.apply(network)
        counted, full = count(network), counts(job.spec)
        noise = random.Random(f"{job.name} {work.seed}")
        gone = math.log10(full.relus / max(1, counted.relus))
        accuracy = 92 - 3.2 * max(0, gone) ** 1.8 - PENALTY.get(job.tags.method, 0) + noise.gauss(0, 0.4)
        history = [
            Epoch(
                epoch,
                loss=2.3 * math.exp(-4 * epoch / self.epochs) + 0.02 * (100 - accuracy) + noise.gauss(0, 0.01),
                parts={"ce": 1.0, "kd": 0.5},
                lr=0.1,
                validation_accuracy=accuracy - 40 * math.exp(-6 * epoch / self.epochs) * (epoch < self.epochs),
                seconds=2.0,
            )
            for epoch in range(1, self.epochs + 1)
        ]
        metrics = Metrics.of(
            job.tags,
            counted,
            role=job.role,
            seed=work.seed,
            relus_full=full.relus,
            stages_full={name: stage.relus for name, stage in full.stages.items()},
            validation_accuracy=accuracy,
            test_accuracy=accuracy - 0.4 + noise.gauss(0, 0.2),
            epochs=self.epochs,
            seconds=2.0 * self.epochs,
            job=identity(job),
        )
        dataset = work.dataset
        image = {"image": list(dataset.input_shape), "mean": list(dataset.mean), "std": list(dataset.std)}
        torch.manual_seed(noise.getrandbits(32))
        weights = network_of(job.spec).state_dict()
        return Candidate(job.spec, job.plan, weights, metrics, {"dataset": dataset.name, **image}), history


def experiment(candidates: int, model: str, data: str) -> Experiment:
    """Methods with evenly spread budgets, so many networks in all beside the full-ReLU one."""
    each, more = divmod(candidates - 1, len(METHODS))
    reductions = tuple(
        Reduction(methods()[name](), tuple(f"{(i + 1) / (number + 1):.6f}" for i in range(number)))
        for name, number in ((name, each + (place < more)) for place, name in enumerate(METHODS))
    )
    return Experiment(model, data, reductions, Training(epochs=2, batch=128, lr=0.1, schedule="one-cycle"))


def made(folder: Path, candidates: int, epochs: int = 100, model: str = "resnet10 m=4", data: str = "digits") -> Run:
    """A run folder with so many made-up networks; one that is there is gone on with."""
    asked = experiment(candidates, model, data)
    with TerminalProgress(quiet=True) as progress:
        return run_experiment(asked, folder, progress, MadeUp(epochs))


def commands(folder: Path, candidates: int, model: str, data: str) -> dict[str, list[str]]:
    """Name → a Python process's arguments."""
    made = f"thousand.made(thousand.Path({str(folder)!r}), {candidates}, 100, {model!r}, {data!r})"
    return {
        "python and its imports": ["-c", "import parelu.api, parelu.report.page, parelu.cli.main"],
        "frontier": ["-m", "parelu", "frontier", str(folder)],
        "frontier --json": ["-m", "parelu", "frontier", str(folder), "--json"],
        "report": ["-m", "parelu", "report", str(folder)],
        "the same reduction again": ["-c", f"import thousand; {made}"],
    }


def measured(arguments: Sequence[str]) -> tuple[float, float, float]:
    """Wall and CPU seconds of a process, and its peak memory in MB."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])}
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--model", default="resnet10 m=4")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--only", nargs="+", help="of the commands")
    asked = parser.parse_args()
    if asked.what == "make":
        made(asked.folder, asked.candidates, asked.epochs, asked.model, asked.data)
        return
    print(f"{'':<28}{'wall s':>8}{'CPU s':>8}{'MB':>8}")
    for name, arguments in commands(asked.folder, asked.candidates, asked.model, asked.data).items():
        if not asked.only or name in asked.only:
            wall, cpu, peak = measured(arguments)
            print(f"{name:<28}{wall:>8.1f}{cpu:>8.1f}{peak:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
