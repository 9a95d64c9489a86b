"""Ray beside processes of this machine: what is left when things die, and what an executor itself takes.

    python benchmarks/cluster.py deaths --times 20     kills a worker, a node or the driver, each at a random moment
    python benchmarks/cluster.py overhead --jobs 200   tiny trainings by processes and by Ray, beside their work alone

`deaths` runs a small experiment on a cluster of two nodes, both on this machine, again and again until so many things
were killed; each run must then hold the candidates of a run without a cluster, each once, with equal weights.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lines import Lines

from parelu import data
from parelu.methods.jobs import Job
from parelu.methods.random import Random
from parelu.network.candidate import Candidate
from parelu.network.count import skeleton
from parelu.network.machine import cores
from parelu.network.metrics import Tags
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.runs.cluster import OnRay
from parelu.runs.data_source import Named, digest
from parelu.runs.executor import Executor, InProcess, Work
from parelu.runs.experiment import Experiment, Reduction, run_experiment
from parelu.runs.folder import Run
from parelu.runs.processes import Processes
from parelu.training.objectives import CrossEntropy
from parelu.training.schedule import Training

TINY = Training(epochs=3, batch=128, lr=0.1, schedule="one-cycle")
BUDGETS = tuple(str(budget) for budget in range(50, 600, 60))


def experiment() -> Experiment:
    return Experiment("resnet10 m=2", "digits", (Reduction(Random(), BUDGETS),), TINY)


def deaths(times: int, seed: int) -> None:
    torch.set_num_threads(1)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        expected = _weights(run_experiment(experiment(), Path(place) / "here", Lines(), InProcess()))
        killed: Counter[str] = Counter()
        runs = 0
        while killed.total() < times:
            killed += _one(Path(place) / f"run{runs}", draw, expected)
            runs += 1
            print(f"{runs} runs, killed so far: {dict(killed)}; all candidates there, weights equal", flush=True)


def _one(folder: Path, draw: random.Random, expected: dict[str, Any]) -> Counter[str]:
    """A run to its end, during which things die; what died."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    killed: Counter[str] = Counter()
    try:
        while True:
            driver = subprocess.Popen([sys.executable, __file__, "drive", "--at", nodes.address, "--run", str(folder)])
            while driver.poll() is None:
                try:
                    driver.wait(draw.uniform(2, 20))
                except subprocess.TimeoutExpired:
                    what = draw.choice(("worker", "node", "driver"))
                    if what == "worker" and (workers := _workers()):
                        os.kill(draw.choice(workers), signal.SIGKILL)
                    elif what == "node":
                        nodes.remove_node(second, allow_graceful=False)
                        second = nodes.add_node(num_cpus=1)
                    elif what == "driver":
                        driver.kill()
                    else:
                        continue
                    killed[what] += 1
            if driver.wait() == 0:
                break
            assert driver.returncode == -signal.SIGKILL, f"the driver ended with {driver.returncode}"
    finally:
        nodes.shutdown()
    found = _weights(Run.open(folder))
    assert list(found) == list(expected), f"{sorted(set(expected) ^ set(found))} differ"
    for name, weights in expected.items():
        assert all(torch.equal(weights[key], found[name][key]) for key in weights), f"{name} has other weights"
    return killed


def _workers() -> list[int]:
    """Processes of Ray that do a task now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_do"):
                found.append(int(path.parent.name))
        except OSError:  # it ended
            continue
    return found


def _weights(run: Run) -> dict[str, Any]:
    return {record.name: Candidate.load(run.folder(record.name)).weights for record in run.candidates()}


def drive(address: str, folder: Path) -> None:
    run_experiment(experiment(), folder, Lines(), OnRay(address))


def overhead(count: int) -> None:
    """Jobs that train for an epoch of two steps; alone: their own seconds, one after another, over the cores."""
    torch.set_num_threads(1)
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    training = Training(epochs=1, batch=128, lr=0.1, schedule="constant")
    plan = Plan.of(skeleton(spec))
    jobs = [Job(f"job{n}", "outside", spec, plan, training, CrossEntropy(0.0), Tags("train")) for n in range(count)]
    with tempfile.TemporaryDirectory() as place:
        alone = _seconds(InProcess(), jobs[: max(1, count // 10)], Path(place) / "alone") * len(jobs)
        alone /= max(1, count // 10)
        print(f"| executor | {count} jobs, s | beyond the work alone on {cores()} cores, ms a job |\n|---|---|---|")
        print(f"| their work alone, on one core | {alone:.1f} | |")
        for name, executor in (("processes", Processes()), ("ray", OnRay())):
            seconds = _seconds(executor, jobs, Path(place) / name)
            print(f"| {name} | {seconds:.1f} | {(seconds - alone / cores()) / count * 1e3:.0f} |", flush=True)


def _seconds(executor: Executor, jobs: Sequence[Job], folder: Path) -> float:
    """Until all are done, what starts workers included."""
    digits = data.load("digits", images=300)
    source = Named("digits", None, 300, digits.input_shape, digest(digits))
    work = Work(Run.start(folder, {}), source, 0)
    started = time.perf_counter()
    with executor.at(work, Lines()) as do:
        do(jobs, len(jobs))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("deaths", "overhead", "drive"))
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--at", default="auto", help="of drive: the cluster's address")
    parser.add_argument("--run", type=Path, help="of drive: the run folder")
    given = parser.parse_args()
    actions: dict[str, Callable[[], None]] = {
        "deaths": lambda: deaths(given.times, given.seed),
        "overhead": lambda: overhead(given.jobs),
        "drive": lambda: drive(given.at, given.run),
    }
    actions[given.action]()


if __name__ == "__main__":
    main()
