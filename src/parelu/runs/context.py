"""What a method gets from the run it works in; what the run folder holds already is read, not done again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from parelu.methods.jobs import OUTSIDE, TEACHER, FromKept, Job, Search, Task
from parelu.methods.unit import RELUS, Unit
from parelu.network import storage
from parelu.network.candidate import Candidate
from parelu.network.count import counts
from parelu.runs import mask_search
from parelu.runs.executor import Do, Executor, Watcher, Work
from parelu.runs.names import Names
from parelu.training import ranks
from parelu.training.evaluation import slope_gradients
from parelu.training.objectives import CrossEntropy
from parelu.training.schedule import Training

T = TypeVar("T", Job, Search)


@dataclasses.dataclass(frozen=True)
class RunContext:
    """The `Context` of a run.

    Attributes:
        training: of a candidate, as the experiment has it.
        do: does what the run folder does not hold.
        names: of what it asks the run for.
        unit: of the budgets that its method is given.
    """

    work: Work
    training: Training
    watcher: Watcher
    do: Do
    names: Names = dataclasses.field(default_factory=Names)
    unit: Unit = RELUS

    @property
    def teacher(self) -> Candidate:
        """The full-ReLU network; it must be there."""
        return self._teacher

    @functools.cached_property
    def _teacher(self) -> Candidate:
        return self.work.run.candidate(TEACHER)

    @property
    def seed(self) -> int:
        return self.work.seed

    def train(self, jobs: Sequence[Job]) -> list[Candidate]:
        """Train the jobs that the run folder does not hold finished; returns all their candidates, in order.

        Raises:
            UserError: the first that a training raised; what others finished is kept.
        """
        assert len({job.name for job in jobs}) == len(jobs), "a job's name is its folder"
        jobs = [self.names.of_job(self._taught(job)) for job in jobs]
        self._do_missing(jobs)
        return [self.work.outcome(job) for job in jobs]

    def search(self, searches: Sequence[Search]) -> list[dict[int, Candidate]]:
        """Do the searches that the run folder does not hold finished; for each: budget → candidate."""
        searches = [self.names.of_search(self._taught(one)) for one in searches]
        self._do_missing(searches)
        run = self.work.run
        return [{budget: mask_search.found(run, one, budget) for budget in one.budgets} for one in searches]

    def _taught(self, task: T) -> T:
        """By the architecture that teaches in the full-ReLU network's place, where the run has one."""
        if not self.names.teacher or isinstance(task.objective, CrossEntropy) or task.name in (TEACHER, OUTSIDE):
            return task
        return dataclasses.replace(task, teacher=OUTSIDE)

    def _do_missing(self, tasks: Sequence[Task]) -> None:
        missing = [task for task in tasks if not self.work.is_finished(task)]
        for task in tasks:
            self.watcher.queued(task, cost(task) if task in missing else 0)
            if task not in missing:
                self.watcher.finished(task.name, self.work.outcome(task), resumed=True)
        self.do(missing, len(tasks))

    def slope_gradients(self, images: int) -> dict[str, Tensor]:
        """Of the teacher; kept in the run folder: a resumed run must choose the same masks, whatever its threads."""
        name, folder = f"slope-gradients-{images}", self.work.run.path / "records"
        header = {"job": self.teacher.trained.job}
        if (folder / f"{name}.json").exists() and storage.read_header(folder, name).get("job") == header["job"]:
            kept = storage.read(folder, name)[1]
            return {site: kept[site] for site in self.teacher.plan.sites}
        gradients = slope_gradients(self.teacher.network(), self.work.dataset, images, self.seed)
        ranks.on_first(lambda: storage.write(folder, name, header, gradients))
        return gradients

    def keep(self, name: str, candidate: Candidate) -> FromKept:
        """A job's identity has the name alone: a method that is asked for the same must keep the same."""
        start = FromKept(self.names.of(name))
        ranks.on_first(lambda: candidate.save(start.folder(self.work.run.path)))
        return start

    def record(self, name: str, value: Any) -> None:
        ranks.on_first(lambda: self.work.run.record(self.names.of(name), value))

    def counting(self, unit: Unit) -> RunContext:
        """For budgets of this unit."""
        return dataclasses.replace(self, unit=unit)

    def labelled(self, label: str, *, own_teacher: bool = False) -> RunContext:
        """For another entry of the same run; own_teacher: taught by the full-ReLU network, whoever else is there."""
        names = self.names.labelled(label)
        return dataclasses.replace(self, names=dataclasses.replace(names, teacher="") if own_teacher else names)


@contextmanager
def in_run(work: Work, training: Training, watcher: Watcher, executor: Executor) -> Iterator[RunContext]:
    """Hold a run folder for this process, and give the context in which its tasks are done by an executor.

    Raises:
        UserError: another process works in the folder.
    """
    with work.run.locked(), executor.at(work, watcher) as do:
        yield RunContext(work, training, watcher, do, Names(teacher=work.run.outside_teacher))


def cost(task: Task) -> float:
    """Work of a training in arbitrary units, for the estimate of the time left."""
    found = counts(task.spec)
    return (task.training.epochs if task.training else 0) * (found.macs + 200 * found.relus)
