"""One job of a run: training its network, measuring it, and the identity by which it is found again."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.methods.jobs import OUTSIDE, TEACHER, FromKept, Job
from parelu.network import storage
from parelu.network.candidate import Candidate, StoredWeights, load_shared_weights, load_weights
from parelu.network.count import count, skeleton
from parelu.network.instrument import network_of
from parelu.network.metrics import Metrics, Tags, metrics_from_json
from parelu.network.plan import Plan
from parelu.network.settings import settings
from parelu.network.sites import Network
from parelu.network.spec import Spec
from parelu.network.weights import fit_weights
from parelu.runs.folder import Run
from parelu.training import ranks
from parelu.training.batches import device
from parelu.training.evaluation import accuracy, ranges, recalibrate, unbounded
from parelu.training.history import Epoch
from parelu.training.loop import Progress, train
from parelu.training.objectives import CrossEntropy
from parelu.training.schedule import Training
from parelu.training.teacher import Teacher

DATA = ("data", "data_sha256", "input", "mean", "std")  # of a run's configuration: what its images are
ORIGINAL = "original"  # in a run, the full-ReLU network before its ops were replaced


def full_job(spec: Spec, training: Training) -> Job:
    """The full-ReLU network of a spec, trained on the labels alone: the teacher of a run."""
    objective = CrossEntropy(training.label_smoothing)
    return Job(TEACHER, "teacher", spec, Plan.of(skeleton(spec)), training, objective, Tags("train"))


def outside_job(spec: Spec, training: Training) -> Job:
    """Another architecture that teaches in the full-ReLU network's place, trained as that is."""
    return dataclasses.replace(full_job(spec, training), name=OUTSIDE, role="outside")


def identity(job: Job) -> str:
    """A digest of all that decides a job's outcome; what came later is in it only where it is not the default."""
    objective = {type(job.objective).__name__: settings(job.objective)}
    training = settings(job.training) if job.training else None
    callback = [{type(job.callback).__name__: settings(job.callback)}] if job.callback else []
    teacher = [] if job.teacher == TEACHER else [{"teacher": job.teacher}]
    decides = [job.spec.to_json(), job.plan.digest(), training, objective, job.tags.to_json(), job.start.key]
    return storage.digest([*decides, *callback, *teacher])


def is_finished(run: Run, job: Job) -> bool:
    """Raises `UserError` where the job's folder holds a network of other settings."""
    folder = run.folder(job.name)
    if not (folder / "candidate.json").exists():
        return False
    if storage.read_header(folder, "candidate")["metrics"].get("job") != identity(job):
        raise UserError(f"{folder} holds a network of other settings; delete it or give another --run")
    return True


def outcome(run: Run, job: Job) -> Candidate:
    """What a finished job left. Its identity holds spec and plan, so these are the job's; weights are read when used.

    Raises:
        UserError: the job is not finished, or its folder is damaged.
    """
    folder = run.folder(job.name)
    header = storage.read_header(folder, "candidate")
    weights = StoredWeights(folder)
    return Candidate(job.spec, job.plan, weights, metrics_from_json(header["metrics"]), header["preprocessing"])


def train_job(run: Run, job: Job, dataset: Dataset, seed: int, watch: Callable[[Progress], None]) -> Candidate:
    """Train a job's network, unless it has no training, and write its candidate, then drop its checkpoint.

    seed: of the order of the images, and with `Job.drawn_as` of fresh weights.
    """
    folder = run.folder(job.name)
    teacher = None
    if job.training and not isinstance(job.objective, CrossEntropy):
        teacher = _original_of(run) if job.role == "teacher" else teacher_of(run, job.teacher)
    drawn_as = TEACHER if job.role == "outside" else job.drawn_as or job.name  # as a run of its own would train it
    torch.manual_seed(int(hashlib.sha256(f"{seed} {drawn_as}".encode()).hexdigest()[:15], 16))
    network = network_of(job.spec)
    job.plan.apply(network)
    network.to(device())
    if start := job.start.folder(run.path):
        first = Candidate.load(start)
        load = load_weights if first.spec == job.spec else load_shared_weights
        load(network, first.weights)
    history: list[Epoch] = []
    if job.training:
        if teacher and job.role == "teacher":  # norms of one image that became batch-norms have no statistics yet
            recalibrate(network, dataset, job.training, seed)
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
    full = None if job.role in ("teacher", "outside") else run.candidate(TEACHER).trained
    candidate = evaluated(network, job, dataset, seed, history, full)
    ranks.on_first(lambda: candidate.save(folder))
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return candidate


def teacher_of(run: Run, name: str = TEACHER) -> Teacher:
    """A trained network of the run, for others to learn from."""
    candidate = run.candidate(name)
    return Teacher(candidate.network(), run.path / "teacher-logits" / candidate.trained.job[:16])


def _original_of(run: Run) -> Teacher:
    """What the full-ReLU network was before its ops were replaced, which it learns to be again."""
    folder = FromKept(ORIGINAL).folder(run.path)
    return Teacher(Candidate.load(folder).network(), run.path / "teacher-logits" / ORIGINAL)


def adopt(run: Run, job: Job, dataset: Dataset, seed: int, weights: Mapping[str, Tensor]) -> None:
    """Take a network that was trained elsewhere as a finished job; raises `UserError` where the weights do not fit."""
    network = network_of(job.spec)
    network.load_state_dict(fit_weights(network, weights)[0])
    candidate = evaluated(network, job, dataset, seed, [], None)
    ranks.on_first(lambda: candidate.save(run.folder(job.name)))


def borrow(run: Run, job: Job, lenders: Sequence[Path]) -> None:
    """Take a full-ReLU network, unless it is there, from another run that trained it on the same data and seed.

    lenders: folders of runs, which need not exist.
    """
    ranks.on_first(lambda: _borrow(run, job, lenders))


def _borrow(run: Run, job: Job, lenders: Sequence[Path]) -> None:
    if (run.folder(job.name) / "candidate.json").exists():
        return
    for other in (Run.open(path) for path in lenders if path != run.path and (path / "config.json").exists()):
        if any(other.config.get(key) != run.config.get(key) for key in ("seed", "images", *DATA)):
            continue
        for folder in (other.folder(TEACHER), other.folder(OUTSIDE)):
            if (folder / "candidate.json").exists():
                found = Candidate.load(folder)
                if found.trained.job == identity(job):
                    metrics = dataclasses.replace(found.trained, role=job.role)
                    dataclasses.replace(found, metrics=metrics).save(run.folder(job.name))
                    return


def evaluated(
    network: Network,
    job: Job,
    dataset: Dataset,
    seed: int,
    history: Sequence[Epoch],
    full: Metrics | None,
) -> Candidate:
    """A trained network as a candidate: its counts, and the one reading of the test set.

    full: metrics of the full-ReLU network that it was made of; None where it is one.
    """
    counts = count(network)
    metrics = Metrics.of(
        job.tags,
        counts,
        role=job.role,
        seed=seed,
        relus_full=full.relus if full else counts.relus,
        stages_full=full.stages_full if full else {name: stage.relus for name, stage in counts.stages.items()},
        validation_accuracy=accuracy(network, dataset.validation, dataset),
        test_accuracy=accuracy(network, dataset.test, dataset),
        epochs=len(history),
        seconds=sum(epoch.seconds for epoch in history),
        job=identity(job),
        ranges=ranges(network, dataset.validation, dataset) if job.plan.squares else None,
        unbounded=(unbounded(network, dataset.validation, dataset) or None) if job.plan.squares else None,
    )
    preprocessing = {
        "dataset": dataset.name,
        "image": list(dataset.input_shape),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        **({"middle": dataset.middle} if dataset.middle else {}),
    }
    weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    return Candidate(job.spec, job.plan, weights, metrics, preprocessing)
