"""Training many networks side by side: one process a core, each single-threaded where there are enough networks."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from parelu import data
from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.methods.base import TEACHER, Job, Search
from parelu.models import external
from parelu.network import storage
from parelu.network.candidate import Candidate, load_shared_weights, load_weights
from parelu.network.count import count, skeleton
from parelu.network.instrument import instrument
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import Spec
from parelu.runs import mask_search
from parelu.runs.environment import cores
from parelu.runs.folder import Run
from parelu.training.evaluation import accuracy, ranges, recalibrate, slope_gradients
from parelu.training.loop import Progress, train
from parelu.training.objectives import CrossEntropy
from parelu.training.schedule import Training
from parelu.training.teacher import Teacher

WORKER_ENVIRONMENT = {
    # Threads that spin while they wait slow down each other and whatever else runs: 8× on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc keeps the memory of activations instead of giving it back each step: up to 15 % of a step's time.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Which data set a run reads, and at what shape; a worker loads it once."""

    name: str
    folder: Path | None
    images: int | None
    input: tuple[int, int, int]

    def load(self) -> Dataset:
        return data.load(self.name, folder=self.folder, images=self.images, input_shape=self.input)


class Watcher(Protocol):
    """Told how a training goes on, in the process that started it."""

    def queued(self, task: Job | Search, cost: float) -> None: ...
    def moved(self, name: str, progress: Progress) -> None: ...
    def finished(self, name: str, candidate: Candidate, *, resumed: bool) -> None: ...


@dataclasses.dataclass(frozen=True)
class Bench:
    """The workbench of a run: what methods train on. See `methods.base.Workbench`."""

    trainer: Trainer
    teacher: Candidate
    training: Training

    @property
    def seed(self) -> int:
        return self.trainer.seed

    def train(self, jobs: Sequence[Job]) -> list[Candidate]:
        return self.trainer.train(jobs)

    def search(self, searches: Sequence[Search]) -> list[dict[int, Candidate]]:
        return self.trainer.search(searches)

    def slope_gradients(self, images: int) -> dict[str, Tensor]:
        """Kept in the run folder: a resumed run must choose the same masks, whatever its threads."""
        return self.trainer.slope_gradients(self.teacher, images)

    def keep(self, name: str, candidate: Candidate) -> str:
        """A job's identity has the name alone: a method that is asked for the same must keep the same."""
        start = f"{name}/kept"
        candidate.save(self.trainer.run.path / "searches" / start)
        return start

    def record(self, name: str, value: Any) -> None:
        self.trainer.run.record(name, value)


def full_job(spec: Spec, training: Training, tags: Mapping[str, Any]) -> Job:
    """The full-ReLU network of a spec, trained on the labels alone: the teacher of a run."""
    objective = CrossEntropy(training.label_smoothing)
    return Job(TEACHER, TEACHER, spec, Plan.of(skeleton(spec)), training, objective, tags)


def adopt(run: Run, source: Source, job: Job, weights: Mapping[str, Tensor], seed: int) -> Candidate:
    """Take a network that was trained elsewhere as a finished job; raises `UserError` where the weights do not fit."""
    if _is_finished(run, job):
        return run.candidate(job.name)
    network = instrument(job.spec.module(), job.spec.input)
    load_weights(network, weights)
    candidate = measured(network, job, source.load(), seed, [], {})
    candidate.save(run.folder(job.name))
    return candidate


def _cost(job: Job | Search) -> float:
    """Work of a training in arbitrary units, for the estimate of the time left."""
    counts = count(skeleton(job.spec))
    return (job.training.epochs if job.training else 0) * (counts.macs + 200 * counts.relus)


def _identity(job: Job) -> str:
    """A digest of all that decides a job's outcome."""
    objective = {type(job.objective).__name__: dataclasses.asdict(job.objective)}
    training = dataclasses.asdict(job.training) if job.training else None
    callback = [{type(job.callback).__name__: dataclasses.asdict(job.callback)}] if job.callback else []
    return storage.digest(
        [job.spec.to_json(), job.plan.digest(), training, objective, dict(job.tags), job.start, *callback]
    )


def _is_finished(run: Run, job: Job) -> bool:
    folder = run.folder(job.name)
    if not (folder / "candidate.json").exists():
        return False
    header = storage.read_header(folder, "candidate")
    if header["metrics"].get("job") != _identity(job):
        raise UserError(f"{folder} holds a network of other settings; delete it or give another --run")
    return True


class _Stopped(Exception):
    """Raised inside a worker when the run was interrupted."""


class Trainer:
    """Trains the jobs of one run, side by side in worker processes that live as long as the `with` block.

    Args:
        seed: of the order of the images, and with a job's name of its fresh weights.
    """

    def __init__(self, run: Run, source: Source, seed: int, watcher: Watcher) -> None:
        self.run, self.source, self.seed, self.watcher = run, source, seed, watcher
        self._workers = 1 if torch.cuda.is_available() else cores()
        for name, value in WORKER_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        context = multiprocessing.get_context("spawn")
        self._events: SimpleQueue[tuple[str, Progress]] = context.SimpleQueue()
        self._stop = context.Event()
        start = (self._events, self._stop, external.permitted())
        self._executor = ProcessPoolExecutor(self._workers, context, _start_worker, start)  # starts none before a job

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def train(self, jobs: Sequence[Job]) -> list[Candidate]:
        """Train the jobs that the run folder does not hold finished; returns all their candidates, in order.

        Raises:
            UserError: the first that a training raised; what others finished is kept.
        """
        assert len({job.name for job in jobs}) == len(jobs), "a job's name is its folder"
        missing = [job for job in jobs if not _is_finished(self.run, job)]
        for job in jobs:
            self.watcher.queued(job, _cost(job) if job in missing else 0)
            if job not in missing:
                self.watcher.finished(job.name, self._outcome(job), resumed=True)
        self._work(_train_job, missing, len(jobs))
        return [self.run.candidate(job.name) for job in jobs]

    def search(self, searches: Sequence[Search]) -> list[dict[int, Candidate]]:
        """Conduct the searches that the run folder does not hold finished; for each: budget → candidate."""
        missing = [search for search in searches if not mask_search.is_finished(self.run, search)]
        for search in searches:
            self.watcher.queued(search, _cost(search) if search in missing else 0)
            if search not in missing:
                self.watcher.finished(search.name, self._outcome(search), resumed=True)
        self._work(_search_job, missing, len(searches))
        return [{b: mask_search.found(self.run, search, b) for b in search.budgets} for search in searches]

    def slope_gradients(self, teacher: Candidate, images: int) -> dict[str, Tensor]:
        """Of the teacher; computed in this process."""
        name, folder = f"slope-gradients-{images}", self.run.path / "records"
        header = {"job": teacher.metrics["job"]}
        if (folder / f"{name}.json").exists() and storage.read_header(folder, name).get("job") == header["job"]:
            kept = storage.read(folder, name)[1]
            return {site: kept[site] for site in teacher.plan.sites}
        dataset = self.source.load()
        gradients = slope_gradients(teacher.network(), dataset, images, self.seed)
        storage.write(folder, name, header, gradients)
        return gradients

    def _work(self, function: Callable[..., None], tasks: Sequence[Job | Search], of: int) -> None:
        """Call the function in the workers for each of these tasks, which are the unfinished ones of `of`."""
        # Threads by the number of all, not of the missing ones: a resumed run must add its floats in the same order.
        threads = max(1, cores() // min(self._workers, of or 1))
        try:
            submit = self._executor.submit
            with _deaf_to_interrupts():  # the first call starts the workers
                futures = {submit(function, self.run, self.source, self.seed, task, threads): task for task in tasks}
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                while not self._events.empty():
                    self.watcher.moved(*self._events.get())
                for future in done:
                    future.result()
                    self.watcher.finished(futures[future].name, self._outcome(futures[future]), resumed=False)
        except BrokenProcessPool as error:
            raise UserError(
                "a training process was killed, perhaps for want of memory; run the same command again to go on"
            ) from error

    def _outcome(self, task: Job | Search) -> Candidate:
        return mask_search.last(self.run, task) if isinstance(task, Search) else self.run.candidate(task.name)


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


_events: SimpleQueue[tuple[str, Progress]]
_stop: Event


def _start_worker(events: SimpleQueue[tuple[str, Progress]], stop: Event, permitted: frozenset[str]) -> None:
    global _events, _stop
    external.permit(permitted)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _events, _stop = events, stop


def _end_with_parent() -> None:
    """A worker that waits for work does not notice that its parent was killed; this thread does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train_job(run: Run, source: Source, seed: int, job: Job, threads: int) -> None:
    torch.set_num_threads(threads)
    teacher = None if isinstance(job.objective, CrossEntropy) or job.training is None else _teacher(run)
    save_trained(run, job, _dataset(source), seed, teacher, _watch(job.name))


def _search_job(run: Run, source: Source, seed: int, search: Search, threads: int) -> None:
    torch.set_num_threads(threads)
    mask_search.search(run, search, _dataset(source), seed, _teacher(run), _watch(search.name))


def _watch(name: str) -> Callable[[Progress], None]:
    def watch(progress: Progress) -> None:
        if _stop.is_set():
            raise _Stopped
        if progress.step % 8 == 0 or progress.step == progress.steps:
            _events.put((name, progress))

    return watch


def _teacher(run: Run) -> Teacher:
    full = run.candidate(TEACHER)
    return Teacher(full.network(), run.path / "teacher-logits" / full.metrics["job"][:16])


_loaded: dict[Source, Dataset] = {}


def _dataset(source: Source) -> Dataset:
    if source not in _loaded:
        _loaded.clear()
        _loaded[source] = source.load()
    return _loaded[source]


def save_trained(
    run: Run, job: Job, dataset: Dataset, seed: int, teacher: Teacher | None, watch: Callable[[Progress], None]
) -> Candidate:
    """Train a job's network, unless it has no training, and write its candidate, then drop its checkpoint."""
    folder = run.folder(job.name)
    torch.manual_seed(int(hashlib.sha256(f"{seed} {job.name}".encode()).hexdigest()[:15], 16))
    network = instrument(job.spec.module(), job.spec.input)
    job.plan.apply(network)
    full = run.candidate(TEACHER) if job.role != TEACHER else None
    if job.start:
        start = Candidate.load(run.path / "searches" / job.start) if "/" in job.start else run.candidate(job.start)
        load = load_weights if start.spec == job.spec else load_shared_weights
        load(network, start.weights)
    history: list[dict[str, Any]] = []
    if job.training:
        history = train(
            network,
            dataset,
            job.training,
            job.objective,
            seed=seed,
            folder=folder,
            teacher=teacher,
            watch=watch,
            callback=job.callback and job.callback.build(network),
        )
        if job.plan.squares:
            recalibrate(network, dataset, job.training, seed)
    candidate = measured(network, job, dataset, seed, history, full.metrics if full else {})
    candidate.save(folder)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return candidate


def measured(
    network: Network,
    job: Job,
    dataset: Dataset,
    seed: int,
    history: Sequence[Mapping[str, Any]],
    full: Mapping[str, Any],
) -> Candidate:
    """A trained network as a candidate: counts, the full network's beside them, and the one reading of the test set."""
    counts = count(network).to_json()
    metrics = {
        "method": "train",
        "steps": "",
        "budget": None,
        **job.tags,
        "role": job.role,
        "seed": seed,
        **counts,
        "relus_full": full.get("relus", counts["relus"]),
        "stages_full": full.get("stages_full") or {name: stage["relus"] for name, stage in counts["stages"].items()},
        "validation_accuracy": accuracy(network, dataset.validation, dataset),
        "test_accuracy": accuracy(network, dataset.test, dataset),
        "epochs": len(history),
        "seconds": sum(epoch["seconds"] for epoch in history),
        "job": _identity(job),
    }
    if job.plan.squares:
        metrics["ranges"] = ranges(network, dataset.validation, dataset)
    preprocessing = {
        "dataset": dataset.name,
        "image": list(dataset.input_shape),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }
    weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    return Candidate(job.spec, job.plan, weights, metrics, preprocessing)
