"""A dry run: what an experiment would train, as its methods ask for it in a run that trains nothing."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from parelu import data
from parelu.data.augmentation import Augmentation
from parelu.data.dataset import Dataset
from parelu.data.readers.base import Split
from parelu.methods.budget import charged
from parelu.methods.jobs import TEACHER, FromKept, Job, Search, Task
from parelu.methods.unit import RELUS, Unit
from parelu.network.candidate import Candidate
from parelu.network.count import Counts, counts
from parelu.network.instrument import network_of
from parelu.network.metrics import Metrics, SearchMetrics
from parelu.network.plan import Plan
from parelu.network.spec import Spec
from parelu.runs.budgets import with_matched
from parelu.runs.experiment import Experiment, check, prepare, spread
from parelu.runs.jobs import full_job, outside_job
from parelu.runs.names import Names
from parelu.training.objectives import CrossEntropy
from parelu.training.schedule import Training


@dataclasses.dataclass(frozen=True)
class Stated:
    """What is known of a data set without its files: (C, H, W), classes, and training images, held-out ones apart."""

    shape: tuple[int, int, int]
    classes: int
    images: int


STATED = {  # AutoReP, Table 2; of CIFAR and TinyImageNet `data.load` holds 5,000 out
    "cifar10": Stated((3, 32, 32), 10, 45_000),
    "cifar100": Stated((3, 32, 32), 100, 45_000),
    "tiny-imagenet": Stated((3, 64, 64), 200, 95_000),
    "imagenet": Stated((3, 224, 224), 1000, 1_276_167),
    "fashion-mnist": Stated((1, 28, 28), 10, 55_000),
    "colour-fashion": Stated((3, 28, 28), 10, 55_000),
}


@dataclasses.dataclass(frozen=True)
class Planned:
    """One training that a run would do.

    Attributes:
        counts: of its architecture with all ReLUs.
        relus: of the network at its end; of a search, for its smallest budget.
        work: multiply-adds: images × epochs × those of an image, three times where gradients are taken (forwards, and
            backwards for the layers' inputs and weights), and once more the teacher's where one teaches.
    """

    task: Task
    counts: Counts
    relus: int
    work: float


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What an experiment would train. full: the full-ReLU network's counts; images: that each epoch sees."""

    name: str
    spec: Spec
    full: Counts
    images: int
    planned: tuple[Planned, ...]

    @property
    def work(self) -> float:
        return sum(one.work for one in self.planned)


def outlook(experiment: Experiment) -> Outlook:
    """Ask an experiment's methods for their trainings; the data set need not be there.

    An order of stages that a method measures (DeepReDuce's criticality) is as if all stages were alike.

    Raises:
        UserError: a method refuses, as it would in a run.
    """
    blank, images = _without_images(experiment)
    prepared = prepare(dataclasses.replace(blank, pretrained=False))  # whose file may not be there
    budgets = check(experiment, dataclasses.replace(prepared, images=images))
    spec, training = prepared.spec, experiment.training
    context = DryContext(spec, training, experiment.seed, images, prepared.teacher)
    context.train([full_job(spec, training)])
    if prepared.teacher:
        context.train([outside_job(prepared.teacher, training)])
    relus: list[int] = []
    for one, given in zip(experiment.reductions, budgets, strict=True):
        of_entry = context.labelled(one.label, own_teacher=one.own_teacher)
        for unit, wanted in with_matched(given, spread(relus, one.match), spec):
            found = one.method.reduce(of_entry.counting(unit), wanted)
            relus += [max(1, charged(candidate.spec, candidate.plan, spec)) for candidate in found]
    name = experiment.model if isinstance(experiment.model, str) else spec.family
    return Outlook(name, spec, context.full, images, tuple(context.planned.values()))


class DryContext:
    """A method's context in which every training is noted and none is done.

    What was not trained has fresh weights and an accuracy of 0; what a search would have left is the projection of
    its optimizer as it starts.

    Attributes:
        planned: the trainings in the order in which they were asked for, each by whether it is a search, and its name
            in the run.
    """

    def __init__(self, spec: Spec, training: Training, seed: int, images: int, outside: Spec | None) -> None:
        self.training, self.seed, self.images = training, seed, images
        self.full, self._weights = counts(spec), FreshWeights(spec)
        self.unit: Unit = RELUS
        self._teacher_macs = counts(outside or spec).macs
        self._names = Names()
        self.planned: dict[tuple[bool, str], Planned] = {}
        self.teacher = self._candidate(full_job(spec, training))

    def labelled(self, label: str, *, own_teacher: bool = False) -> DryContext:
        """For an entry of the run with this label; own_teacher: taught by the full-ReLU network."""
        other = copy.copy(self)
        other._names = self._names.labelled(label)
        if own_teacher:
            other._teacher_macs = self.full.macs
        return other

    def counting(self, unit: Unit) -> DryContext:
        """For budgets of this unit."""
        other = copy.copy(self)
        other.unit = unit
        return other

    def train(self, jobs: Sequence[Job]) -> list[Candidate]:
        found = [self._candidate(job) for job in jobs]
        for job, candidate in zip(jobs, found, strict=True):
            self._plan(self._names.of_job(job), candidate.plan)
        return found

    def search(self, searches: Sequence[Search]) -> list[dict[int, Candidate]]:
        return [self._search(one) for one in searches]

    def slope_gradients(self, images: int) -> dict[str, Tensor]:
        return {name: torch.zeros(site.mask.shape) for name, site in self.teacher.plan.sites.items()}

    def keep(self, name: str, candidate: Candidate) -> FromKept:
        return FromKept(name)

    def record(self, name: str, value: Any) -> None:
        pass

    def _candidate(self, job: Job) -> Candidate:
        metrics = Metrics.of(
            job.tags,
            dataclasses.replace(counts(job.spec), relus=job.plan.relus, squares=job.plan.squares),
            role=job.role,
            seed=self.seed,
            relus_full=self.full.relus,
            stages_full={name: stage.relus for name, stage in self.full.stages.items()},
            validation_accuracy=0.0,
            test_accuracy=0.0,
            epochs=0,
            seconds=0.0,
            job="",
        )
        return Candidate(job.spec, job.plan, self._weights if job.name == TEACHER else {}, metrics)

    def _search(self, search: Search) -> dict[int, Candidate]:
        network = network_of(search.spec)
        search.plan.apply(network)
        optimizer = search.build(network)
        plans = {budget: search.left(optimizer, budget) for budget in search.budgets}
        self._plan(self._names.of_search(search), plans[search.budgets[-1]])
        return {
            budget: Candidate(search.spec, plan, {}, SearchMetrics(0, 0.0, plan.relus, plan.squares, 0.0))
            for budget, plan in plans.items()
        }

    def _plan(self, task: Task, plan: Plan) -> None:
        found, taught = counts(task.spec), not isinstance(task.objective, CrossEntropy)
        passes = 3 * found.macs + (self._teacher_macs if taught else 0)
        epochs = task.training.epochs if task.training else 0
        if task.training:
            task.training.check_images(self.images)
        self.planned[isinstance(task, Search), task.name] = Planned(
            task, found, plan.relus, float(epochs * self.images * passes)
        )


class FreshWeights(Mapping[str, Tensor]):
    """The state dict of a network with fresh weights, made when it is first read: most methods never do."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    @functools.cached_property
    def _state(self) -> dict[str, Tensor]:
        return network_of(self._spec).state_dict()

    def __getitem__(self, name: str) -> Tensor:
        return self._state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def stated(experiment: Experiment) -> tuple[tuple[int, int, int], int]:
    """(C, H, W) and classes of the images of an experiment, without reading them where they are known."""
    blank, _ = _without_images(experiment)
    assert isinstance(blank.data, Dataset)
    return experiment.input or blank.data.input_shape, blank.data.classes


def _without_images(experiment: Experiment) -> tuple[Experiment, int]:
    """The experiment on blank images of its data set's shape, and how many training images that has."""
    given = experiment.data
    if isinstance(given, Dataset):
        return experiment, len(given.train)
    if given not in STATED or experiment.data_folder:
        kept = data.load(given, folder=experiment.data_folder, images=experiment.images, input_shape=experiment.input)
        return dataclasses.replace(experiment, data=kept, images=None, data_folder=None), len(kept.train)
    stated = STATED[given]
    blank = blank_images(given, experiment.input or stated.shape, stated.classes)
    return dataclasses.replace(experiment, data=blank, images=None), experiment.images or stated.images


def blank_images(name: str, shape: tuple[int, int, int], classes: int, each: int = 1) -> Dataset:
    """A data set of noise, `each` images a class in each of its parts. shape: (C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat(each)
    images = torch.randint(0, 256, (len(labels), *shape), dtype=torch.uint8, generator=generator)
    split, moments = Split(images, labels), (0.5,) * shape[0]
    return Dataset(name, split, split, split, classes, moments, moments, Augmentation())
