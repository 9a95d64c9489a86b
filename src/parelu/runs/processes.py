"""Tasks side by side: one process a core, each single-threaded where there are enough tasks."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event

import torch

from parelu.errors import UserError
from parelu.methods.jobs import Task
from parelu.network.machine import cores
from parelu.runs.data_source import DataSource
from parelu.runs.executor import Do, Executor, Watcher, Work
from parelu.runs.folder import Run
from parelu.training.loop import Progress

ENVIRONMENT = {  # of the workers
    # Threads that spin while they wait slow down each other and whatever else runs: 8× on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc keeps the memory of activations instead of giving it back each step: up to 15 % of a step's time.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
Events = SimpleQueue[tuple[str, Progress]]


@dataclasses.dataclass(frozen=True)
class Processes(Executor):
    """Worker processes on this machine.

    Attributes:
        workers: how many; if left out one a core, or one where there is a GPU.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers is {self.workers}; it should be a whole number, 1 or more")
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            sys.exit(1)  # a worker reads the script that starts it, which does so unconditionally: its parent says so

    @contextmanager
    def at(self, work: Work, watcher: Watcher) -> Iterator[Do]:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        context = multiprocessing.get_context("spawn")
        events: Events = context.SimpleQueue()
        started, stop = context.Event(), context.Event()
        number = self.workers or (1 if torch.cuda.is_available() else cores())
        start = (events, started, stop, work.run, work.source, work.seed)
        pool = ProcessPoolExecutor(number, context, _start_worker, start)  # starts none before a task

        def do(tasks: Sequence[Task], of: int) -> None:
            # Threads by the number of all, not of the missing ones: a resumed run must add floats in the same order.
            threads = max(1, cores() // min(number, of or 1))
            try:
                with _deaf_to_interrupts():  # the first call starts the workers
                    futures = {pool.submit(_do, task, threads): task for task in tasks}
                pending = set(futures)
                while pending:
                    done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    while not events.empty():
                        watcher.moved(*events.get())
                    for future in done:
                        future.result()
                        watcher.finished(futures[future].name, work.outcome(futures[future]), resumed=False)
            except BrokenProcessPool as error:
                if not started.is_set():
                    raise UserError(
                        "no training process could start: each imports the script anew; keep what it does under "
                        '`if __name__ == "__main__":`, in a file (or leave workers= out, for what is in memory)'
                    ) from error
                raise UserError(
                    "a training process was killed, perhaps for want of memory; run the same command again to go on"
                ) from error

        try:
            yield do
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C, and let the processes started meanwhile inherit that: the parent alone says when to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Stopped(Exception):
    """Raised inside a worker when the run was interrupted."""


_events: Events
_stop: Event
_work: Work


def _start_worker(events: Events, started: Event, stop: Event, run: Run, source: DataSource, seed: int) -> None:
    global _events, _stop, _work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _events, _stop, _work = events, stop, Work(run, source, seed)
    started.set()


def _end_with_parent() -> None:
    """A worker that waits for work does not notice that its parent was killed; this thread does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(task: Task, threads: int) -> None:
    torch.set_num_threads(threads)
    _work.do(task, _watch(task.name))


def _watch(name: str) -> Callable[[Progress], None]:
    def watch(progress: Progress) -> None:
        if _stop.is_set():
            raise _Stopped
        if progress.step % 8 == 0 or progress.step == progress.steps:
            _events.put((name, progress))

    return watch
