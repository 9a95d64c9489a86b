"""Where the tasks of a run are done: the contract of an executor, and the plainest, this process."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from parelu.data.dataset import Dataset
from parelu.methods.jobs import Search, Task
from parelu.network.candidate import Candidate
from parelu.runs import jobs, mask_search
from parelu.runs.data_source import DataSource
from parelu.runs.folder import Run
from parelu.training.loop import Progress


class Watcher(Protocol):
    """Told how the tasks go on, in the process that asked for them. where: the host, if it is another."""

    def queued(self, task: Task, cost: float) -> None: ...
    def moved(self, name: str, progress: Progress, where: str = "") -> None: ...
    def finished(self, name: str, candidate: Candidate, *, resumed: bool) -> None: ...


@dataclasses.dataclass(frozen=True)
class Work:
    """What all tasks of a run have in common. seed: of the order of the images and of fresh weights."""

    run: Run
    source: DataSource
    seed: int

    @functools.cached_property
    def dataset(self) -> Dataset:
        """Loaded once a process."""
        return self.source.load()

    def is_finished(self, task: Task) -> bool:
        """Raises `UserError` where the run folder holds the outcome of another task of this name."""
        finished = mask_search.is_finished if isinstance(task, Search) else jobs.is_finished
        return finished(self.run, task)  # pyright: ignore[reportArgumentType]

    def do(self, task: Task, watch: Callable[[Progress], None]) -> None:
        """Do a task in this process, from its checkpoint where there is one; the outcome goes to the run folder."""
        if isinstance(task, Search):
            mask_search.search(self.run, task, self.dataset, self.seed, jobs.teacher_of(self.run, task.teacher), watch)
        else:
            jobs.train_job(self.run, task, self.dataset, self.seed, watch)

    def outcome(self, task: Task) -> Candidate:
        """What a finished task left; of a search, for its smallest budget."""
        return mask_search.last(self.run, task) if isinstance(task, Search) else jobs.outcome(self.run, task)


# Do these tasks, which are the unfinished ones of so many; raises the first error, and keeps what others finished.
Do = Callable[[Sequence[Task], int], None]


class Executor(abc.ABC):
    """Does the tasks of a run, one after another or side by side, here or elsewhere.

    A subclass is a frozen dataclass of its options. Tasks meet in the run folder alone.
    """

    @abc.abstractmethod
    def at(self, work: Work, watcher: Watcher) -> AbstractContextManager[Do]:
        """Gives what does tasks; what it starts for that ends with the block.

        It tells the watcher how each moves and that it finished. Tasks of one call do not depend on each other.
        """


@dataclasses.dataclass(frozen=True)
class InProcess(Executor):
    """Does tasks in this process, one after another, with its threads; it leaves the random numbers as they were."""

    @contextmanager
    def at(self, work: Work, watcher: Watcher) -> Iterator[Do]:
        def do(tasks: Sequence[Task], of: int) -> None:
            for task in tasks:
                with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                    work.do(task, functools.partial(watcher.moved, task.name))
                watcher.finished(task.name, work.outcome(task), resumed=False)

        yield do
