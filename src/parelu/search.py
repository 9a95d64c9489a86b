"""Training many networks side by side: one process a core, each single-threaded where there are enough networks."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from parelu import data, store
from parelu.count import count, skeleton
from parelu.data import Dataset
from parelu.distill import CrossEntropy, Distillation
from parelu.errors import UserError
from parelu.methods.base import TEACHER, Job
from parelu.models import Spec, external
from parelu.plan import Candidate, Plan, load_weights
from parelu.run import Run, cores
from parelu.sites import Network, instrument
from parelu.train import Progress, Teacher, Training, accuracy, train


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

    def queued(self, job: Job, cost: float) -> None: ...
    def moved(self, name: str, progress: Progress) -> None: ...
    def finished(self, name: str, candidate: Candidate, *, resumed: bool) -> None: ...


@dataclasses.dataclass(frozen=True)
class Bench:
    """The workbench of a run: what methods train on. See `methods.base.Workbench`."""

    run: Run
    source: Source
    teacher: Candidate
    training: Training
    seed: int
    watcher: Watcher

    def train(self, jobs: Sequence[Job]) -> list[Candidate]:
        return train_all(self.run, self.source, jobs, self.seed, self.watcher)

    def record(self, name: str, value: Any) -> None:
        self.run.record(name, value)


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


def train_all(run: Run, source: Source, jobs: Sequence[Job], seed: int, watcher: Watcher) -> list[Candidate]:
    """Train the jobs that the run folder does not hold finished; returns all their candidates, in order.

    Raises:
        UserError: the first that a training raised; what others finished is kept.
    """
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names), "a job's name is its folder"
    missing = [job for job in jobs if not _is_finished(run, job)]
    for job in jobs:
        watcher.queued(job, 0 if job not in missing else _cost(job))
    for job in jobs:
        if job not in missing:
            watcher.finished(job.name, run.candidate(job.name), resumed=True)
    if missing:
        workers = 1 if torch.cuda.is_available() else min(cores(), len(jobs))
        # By the number of all jobs, not of the missing ones: a resumed run must add its floats in the same order.
        threads = max(1, cores() // workers)
        _Pool(run, source, seed, workers, threads, watcher).train(missing)
    return [run.candidate(name) for name in names]


def _cost(job: Job) -> float:
    """Work of a training in arbitrary units, for the estimate of the time left."""
    counts = count(skeleton(job.spec))
    return job.training.epochs * (counts.macs + 200 * counts.relus)


def _identity(job: Job) -> str:
    """A digest of all that decides a job's outcome."""
    masks = hashlib.sha256()
    for site in job.plan.sites.values():
        masks.update(site.mask.numpy().tobytes() + site.coefficients.numpy().tobytes())
    objective = {type(job.objective).__name__: dataclasses.asdict(job.objective)}
    training = dataclasses.asdict(job.training)
    return store.digest([job.spec.to_json(), masks.hexdigest(), training, objective, dict(job.tags)])


def _is_finished(run: Run, job: Job) -> bool:
    folder = run.folder(job.name)
    if not (folder / "candidate.json").exists():
        return False
    header = store.read_header(folder, "candidate")
    if header["metrics"].get("job") != _identity(job):
        raise UserError(f"{folder} holds a network of other settings; delete it or give another --run")
    return True


class _Stopped(Exception):
    """Raised inside a worker when the run was interrupted."""


class _Pool:
    """Worker processes of one call of `train_all`."""

    def __init__(self, run: Run, source: Source, seed: int, workers: int, threads: int, watcher: Watcher) -> None:
        context = multiprocessing.get_context("spawn")
        self.events: SimpleQueue[tuple[str, Progress]] = context.SimpleQueue()
        self.stop = context.Event()
        self.run, self.source, self.seed, self.watcher = run, source, seed, watcher
        start = (threads, self.events, self.stop, external.permitted())
        self.executor = ProcessPoolExecutor(workers, context, _start_worker, start)

    def train(self, jobs: Sequence[Job]) -> None:
        futures: dict[Future[None], Job] = {}
        try:
            for job in jobs:
                futures[self.executor.submit(_train_job, self.run, self.source, self.seed, job)] = job
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                while not self.events.empty():
                    self.watcher.moved(*self.events.get())
                for future in done:
                    future.result()
                    job = futures[future]
                    self.watcher.finished(job.name, self.run.candidate(job.name), resumed=False)
        except BrokenProcessPool as error:
            raise UserError(
                "a training process was killed, perhaps for want of memory; run the same command again to go on"
            ) from error
        finally:
            self.stop.set()
            self.executor.shutdown(wait=True, cancel_futures=True)


_events: SimpleQueue[tuple[str, Progress]]
_stop: Event


def _start_worker(
    threads: int, events: SimpleQueue[tuple[str, Progress]], stop: Event, permitted: frozenset[str]
) -> None:
    global _events, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    torch.set_num_threads(threads)
    external.permit(permitted)
    _events, _stop = events, stop


def _train_job(run: Run, source: Source, seed: int, job: Job) -> None:
    parent = multiprocessing.parent_process()

    def watch(progress: Progress) -> None:
        if _stop.is_set() or (parent is not None and not parent.is_alive()):
            raise _Stopped
        if progress.step % 8 == 0 or progress.step == progress.steps:
            _events.put((job.name, progress))

    dataset = _dataset(source)
    teacher = None
    if isinstance(job.objective, Distillation):
        full = run.candidate(TEACHER)
        teacher = Teacher(full.network(), run.path / "teacher-logits" / full.metrics["job"][:16])
    save_trained(run, job, dataset, seed, teacher, watch)


_loaded: dict[Source, Dataset] = {}


def _dataset(source: Source) -> Dataset:
    if source not in _loaded:
        _loaded.clear()
        _loaded[source] = source.load()
    return _loaded[source]


def save_trained(
    run: Run, job: Job, dataset: Dataset, seed: int, teacher: Teacher | None, watch: Callable[[Progress], None]
) -> Candidate:
    """Train a job's network and write its candidate, then drop its checkpoint."""
    folder = run.folder(job.name)
    torch.manual_seed(int(hashlib.sha256(f"{seed} {job.name}".encode()).hexdigest()[:15], 16))
    network = instrument(job.spec.module(), job.spec.input)
    job.plan.apply(network)
    history = train(
        network, dataset, job.training, job.objective, seed=seed, folder=folder, teacher=teacher, watch=watch
    )
    full = run.candidate(TEACHER).metrics if job.role != TEACHER else {}
    candidate = measured(network, job, dataset, seed, history, full)
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
    preprocessing = {"dataset": dataset.name, "mean": list(dataset.mean), "std": list(dataset.std)}
    weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    return Candidate(job.spec, job.plan, weights, metrics, preprocessing)
