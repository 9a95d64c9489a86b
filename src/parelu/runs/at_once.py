"""Several experiments at once, where an executor has room for the tasks of all."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from parelu.methods.jobs import Task
from parelu.network.candidate import Candidate
from parelu.runs.cluster import OnRay, Stopped
from parelu.runs.executor import Watcher
from parelu.runs.experiment import Experiment, run_experiment
from parelu.runs.folder import Run
from parelu.training.loop import Progress


@dataclasses.dataclass(frozen=True)
class _Named:
    """A watcher of one of several runs, which have tasks of the same names."""

    run: str
    watcher: Watcher

    def queued(self, task: Task, cost: float) -> None:
        self.watcher.queued(dataclasses.replace(task, name=self._named(task.name)), cost)

    def moved(self, name: str, progress: Progress, where: str = "") -> None:
        self.watcher.moved(self._named(name), progress, where)

    def finished(self, name: str, candidate: Candidate, *, resumed: bool) -> None:
        self.watcher.finished(self._named(name), candidate, resumed=resumed)

    def _named(self, name: str) -> str:
        return f"{self.run}: {name}"


def run_at_once(
    experiments: Sequence[Experiment], folders: Sequence[Path], watcher: Watcher, executor: OnRay
) -> list[Run]:
    """Each in its folder, as `run_experiment`; those of one network, seed and data one after another, as later ones
    take the full-ReLU network of the first.

    Raises:
        UserError: the first of any; the others stop, and what was finished is kept.
    """
    found: dict[Path, Run] = {}

    def conduct(group: Sequence[tuple[Experiment, Path]]) -> None:
        for one, folder in group:
            name = "/".join(folder.parts[-2:])
            found[folder] = run_experiment(one, folder, _Named(name, watcher), executor, folders)

    groups: dict[Any, list[tuple[Experiment, Path]]] = {}
    for one, folder in zip(experiments, folders, strict=True):
        groups.setdefault((str(one.model), one.seed, str(one.data)), []).append((one, folder))
    executor.stop.clear()
    with ThreadPoolExecutor(len(groups)) as pool:
        futures = [pool.submit(conduct, group) for group in groups.values()]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            executor.stop.set()  # the others, after an error or an interrupt
    for future in futures:
        with contextlib.suppress(Stopped):
            future.result()
    return [found[folder] for folder in folders]
