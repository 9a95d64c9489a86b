"""An experiment: one network, one data set, one seed, and the methods that reduce it, all in one run folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from parelu import data
from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.methods.base import Method
from parelu.methods.budget import charged
from parelu.methods.jobs import Job
from parelu.methods.limits import is_of_query
from parelu.methods.options import check_options
from parelu.models import external, libraries
from parelu.models.external import Reading
from parelu.models.graph import Graph
from parelu.models.weights import read_weights
from parelu.network.candidate import Candidate
from parelu.network.canonical import replacements
from parelu.network.count import shared_skeleton, skeleton
from parelu.network.instrument import network_of
from parelu.network.nodes import output_shape
from parelu.network.plan import Plan
from parelu.network.settings import settings
from parelu.network.spec import Spec, spec_of
from parelu.network.storage import digest as digest_of_json
from parelu.network.storage import tensors_digest
from parelu.network.weights import fit_weights
from parelu.private.engines.base import Options
from parelu.private.lowering.refusals import problems
from parelu.runs import pricing
from parelu.runs.budgets import Asked, budgets_of, with_matched
from parelu.runs.context import RunContext, in_run
from parelu.runs.data_source import IN_MEMORY, DataSource, InMemory, Named, digest, normalised
from parelu.runs.executor import Executor, InProcess, Watcher, Work
from parelu.runs.folder import PLACES, Run
from parelu.runs.jobs import ORIGINAL, adopt, borrow, full_job, is_finished, outside_job
from parelu.runs.obstacles import WayOut, grouped, way_out
from parelu.runs.processes import Processes
from parelu.training import ranks
from parelu.training.objectives import Distillation
from parelu.training.schedule import Training

GIVEN = "given"  # in a run, the weights that training goes on from
SEEDS = 2**32  # what all generators take
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")  # of a method's entry, in names of folders


@dataclasses.dataclass(frozen=True)
class Reduction:
    """One method of an experiment.

    Attributes:
        budgets: as on the command line ("50k", "0.1", "200ms+bytes:20MB").
        match: so many further budgets, taken from the ReLU counts of the experiment's methods before this one.
        label: ends the names of what it trains, so that a run holds a method several times, with other options.
        own_teacher: what it distils learns from the network's own full-ReLU version, whoever teaches the run's others.
    """

    method: Method
    budgets: tuple[str, ...] = ()
    match: int = 0
    label: str = ""
    own_teacher: bool = False

    def __post_init__(self) -> None:
        check_options(self.method)
        if self.match < 0:
            raise UserError(f"match is {self.match}; it should be a whole number, 0 or more")
        if self.label and not LABEL.fullmatch(self.label):
            raise UserError(
                f"label {self.label!r} is no part of a folder's name; give letters, digits, . and -, such as kd-0"
            )

    def config(self) -> dict[str, Any]:
        """As JSON values."""
        younger = {name: value for name in ("label", "own_teacher") if (value := getattr(self, name))}
        options, budgets = settings(self.method), list(self.budgets)
        return {"method": self.method.name, "options": options, "budgets": budgets, "match": self.match, **younger}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What to train.

    Attributes:
        model: a network's name, such as "resnet10 m=8" or "net.py:build", or its spec.
        data: name of a data set, or one in memory.
        input: (C, H, W) of the network, None for the data set's own.
        images: training images kept, None for all; data_folder: where its files are, None for the usual places: both
            of a data set's name.
        weights: of an already trained full-ReLU network: a candidate's folder, a safetensors file, a checkpoint of
            torch or a state dict.
        pretrained: whether the weights that the model's builder gives are those of the trained full-ReLU network.
        goes_on: whether the full-ReLU network is trained on from its weights, instead of taken as it is.
        mean, std: that the network's images are normalised with, instead of the data set's own.
        output: which of a network's several outputs is the logits.
        replace: what is to stand in the place of ops, such as "silu=relu,maxpool=avgpool"; a network with weights is
            then trained on, with itself as it was as the teacher.
        original: a trained network before its ops were replaced, where it was read before.
        teacher: another architecture that all distillation learns from, by name or as a spec; it is trained first, as
            the full-ReLU network is. None for the network's own full-ReLU version.
        paper: the published table that it is compared with, such as "AutoReP Table 3"; it changes nothing.
        query: how a query runs that budgets of seconds or bytes are about.
    """

    model: str | Spec
    data: str | Dataset
    reductions: tuple[Reduction, ...]
    training: Training
    seed: int = 0
    input: tuple[int, int, int] | None = None
    images: int | None = None
    data_folder: Path | None = None
    weights: Path | Mapping[str, Tensor] | None = None
    pretrained: bool = False
    goes_on: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    output: str | None = None
    replace: str = ""
    original: Reading | None = None
    teacher: str | Spec | None = None
    paper: str = ""
    query: Options | None = None

    def __post_init__(self) -> None:
        _check_labels(self.reductions)
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"seed is {self.seed}; it should be a whole number, 0 or more and below 2^32")
        if isinstance(self.data, Dataset) and (self.images is not None or self.data_folder):
            raise UserError("images and data folder are of a data set's name; this one is in memory: take part of it")

    def config(self) -> dict[str, Any]:
        """What decides the outcome, and what a run is compared with, as JSON values."""
        return {
            **_model_config(self.model),
            **{f"teacher{key.removeprefix('model')}": value for key, value in _model_config(self.teacher).items()},
            **self._data_config(),
            "data_folder": str(self.data_folder) if self.data_folder else None,
            "images": self.images,
            "input": list(self.input) if self.input else None,
            "training": settings(self.training),
            "seed": self.seed,
            **self._weights_config(),
            "reductions": [reduction.config() for reduction in self.reductions],
            **{name: list(value) for name, value in (("mean", self.mean), ("std", self.std)) if value},
            **{name: True for name in ("pretrained", "goes_on") if getattr(self, name)},
            **({"query": pricing.config(self.query)} if self.query and self.prices else {}),
            **{name: getattr(self, name) for name in ("output", "replace", "paper") if getattr(self, name)},
        }

    @property
    def prices(self) -> bool:
        """Whether a budget is of seconds or bytes."""
        return any(is_of_query(text) for reduction in self.reductions for text in reduction.budgets)

    def _data_config(self) -> dict[str, Any]:
        if isinstance(self.data, Dataset):
            return {"data": IN_MEMORY, "data_sha256": digest(self.data)}
        return {"data": self.data}

    def _weights_config(self) -> dict[str, Any]:
        if isinstance(self.weights, Mapping):
            return {"weights": IN_MEMORY, "weights_sha256": tensors_digest(self.weights)}
        return {"weights": str(self.weights) if self.weights else None}


def _model_config(model: str | Spec | None) -> dict[str, Any]:
    if model is None:
        return {}
    if isinstance(model, str):
        return {"model": model}
    return of_graph(model) or {"model": model.to_json()}


def _check_labels(reductions: Sequence[Reduction]) -> None:
    """Refuse two entries whose networks would have the same names."""
    known: dict[tuple[str, str], Reduction] = {}
    for one in reductions:
        if known.setdefault((one.method.name, one.label), one) != one:
            labelled = f" have the label {one.label!r} and" if one.label else ""
            raise UserError(
                f"two entries of {one.method.name}{labelled} differ; give each a label of its own, such as label: a"
            )


def run_experiment(
    experiment: Experiment,
    folder: Path,
    watcher: Watcher,
    executor: Executor | None = None,
    lenders: Sequence[Path] = (),
) -> Run:
    """Train all that an experiment asks for in a run folder; continues where the folder holds a part of it.

    Args:
        executor: `Processes` if left out; torchrun's ranks train one network after another, together.
        lenders: folders of other runs, whose full-ReLU networks and teachers are taken where they are the same.

    Raises:
        UserError: what is asked for cannot be done; found out before anything is trained wherever possible.
    """
    ranks.join()
    prepared = prepare(experiment)
    spec, budgets = prepared.spec, check(experiment, prepared)
    config = _deciding(experiment, prepared)
    whole = {**config, **_contents(prepared), **config}  # last, so that an option is named first
    ranks.agree({key: value for key, value in whole.items() if key not in PLACES}, "give all ranks the same")
    run = ranks.after_first(lambda: Run.start(folder, whole), folder / "config.json", lambda: Run.open(folder))
    work = Work(run, prepared.source, experiment.seed)
    executor = InProcess() if ranks.size() > 1 else executor or Processes()
    with in_run(work, experiment.training, watcher, executor) as context:
        _train_teachers(context, experiment, prepared, lenders)
        counts: list[int] = []
        for reduction, given in zip(experiment.reductions, budgets, strict=True):
            of_entry = context.labelled(reduction.label, own_teacher=reduction.own_teacher)
            for unit, wanted in with_matched(given, spread(counts, reduction.match), spec):
                found = reduction.method.reduce(of_entry.counting(unit), wanted)
                counts += [max(1, charged(candidate.spec, candidate.plan, spec)) for candidate in found]
    return run


def check(experiment: Experiment, prepared: Prepared) -> list[list[Asked]]:
    """The budgets of each of its reductions; refuses what can be seen before anything is trained."""
    spec = prepared.spec
    if prepared.weights is None:
        experiment.training.check_images(prepared.images)
    network = shared_skeleton(spec)
    if unsupported := problems(network):
        raise UserError("\n".join([*grouped(unsupported), *_advice(way_out(spec, experiment.replace))]))
    outputs = output_shape(network)
    if outputs != (spec.classes,):
        raise UserError(
            f"the network gives {outputs} outputs, the data set has {spec.classes} classes; build it for these"
        )
    for reduction in experiment.reductions:
        _check(reduction, spec, experiment.training)
    price = pricing.price_of(experiment.query or Options()) if experiment.prices else None
    budgets = [budgets_of(r.budgets, r.method, spec, price) for r in experiment.reductions]
    for reduction, groups in zip(experiment.reductions, budgets, strict=True):
        for asked in groups:
            reduction.method.check_budgets(spec, asked.unit, asked.budgets)
    if prepared.teacher:
        _check_teacher(experiment.reductions)
    if experiment.reductions and experiment.reductions[0].match:
        raise UserError("match takes the counts of the methods before its own, and there is none; give budgets")
    return budgets


def _deciding(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """The experiment's configuration, of what was read; without a teacher that is the network itself."""
    config = {**experiment.config(), **of_graph(prepared.spec)}
    if prepared.teacher is None:
        return {key: value for key, value in config.items() if not key.startswith("teacher")}
    sha256 = of_graph(prepared.teacher).get("model_sha256")
    return config | ({"teacher_sha256": sha256} if sha256 else {})


def _train_teachers(context: RunContext, experiment: Experiment, prepared: Prepared, lenders: Sequence[Path]) -> None:
    """The full-ReLU network, trained or taken as it is, and the architecture that teaches in its place."""
    run, weights, job = context.work.run, prepared.weights, full_job(prepared.spec, experiment.training)
    jobs = [outside_job(prepared.teacher, experiment.training)] if prepared.teacher else []
    for one in jobs if weights is not None else [job, *jobs]:
        borrow(run, one, lenders)
    if weights is None:
        jobs = [job, *jobs]
    elif experiment.goes_on or prepared.original:
        jobs = [_going_on(context, job, weights, prepared.original), *jobs]
    else:
        if not is_finished(run, job):
            adopt(run, job, context.work.dataset, experiment.seed, weights)
        context.watcher.queued(job, 0)
        context.watcher.finished(job.name, run.candidate(job.name), resumed=True)
    context.train(jobs)


def _check_teacher(reductions: Sequence[Reduction]) -> None:
    for method in (reduction.method for reduction in reductions if not reduction.own_teacher):
        if method.compares_maps:
            raise UserError(
                f"{method.name} compares the maps of a network with its own full-ReLU version's; another architecture "
                "has others: leave the teacher out"
            )


def _advice(way: WayOut | None) -> list[str]:
    """For all obstacles together, where there is more to replace than one line names."""
    return [f"for all that has a replacement: --replace {way.replace}"] if way and "," in way.replace else []


def _going_on(context: RunContext, job: Job, weights: Mapping[str, Tensor], original: Candidate | None) -> Job:
    """The full network's job from weights that it has, with a teacher where it was another network before."""
    job = dataclasses.replace(job, start=context.keep(GIVEN, Candidate(job.spec, job.plan, weights)))
    if original is None:
        return job
    context.keep(ORIGINAL, original)
    return dataclasses.replace(job, objective=Distillation())


def _check(reduction: Reduction, spec: Spec, training: Training) -> None:
    method = reduction.method
    if method.needs and find_spec(method.needs[0]) is None:
        raise UserError(f"{method.name} needs {method.needs[0]}; pip install 'parelu[{method.needs[1]}]'")
    if method.needs_budget and not reduction.budgets and not reduction.match:
        raise UserError(f"{method.name} needs a budget; give --budget, for example --budget 0.1")
    method.check(spec, training)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What an experiment starts from.

    Attributes:
        source: where the data comes from.
        spec: the architecture that fits it.
        weights: of the trained full-ReLU network; None where it is to be trained.
        original: a trained network before its ops were replaced; None where none was.
        teacher: the architecture that teaches in the full-ReLU network's place; None where that teaches.
        images: training images that there are.
    """

    source: DataSource
    spec: Spec
    weights: Mapping[str, Tensor] | None
    original: Candidate | None = None
    teacher: Spec | None = None
    images: int = 0


def prepare(experiment: Experiment) -> Prepared:
    """Read all that is asked for, once: whatever builds the network is not needed again."""
    given, model, moments = experiment.data, experiment.model, (experiment.mean, experiment.std)
    shape = experiment.input
    if shape is None and isinstance(model, str):
        shape = external.input_of(model, experiment.output, may_be_open=True)  # as large as the data set's then
    if isinstance(given, Dataset):
        dataset = normalised(given, *moments)
        source = InMemory(dataset)
    else:
        folder, images = experiment.data_folder, experiment.images
        dataset = normalised(data.load(given, folder=folder, images=images, input_shape=shape), *moments)
        source = Named(given, folder, images, dataset.input_shape, digest(dataset), *moments)
    shape, replace = shape or dataset.input_shape, replacements.parsed(experiment.replace)
    spec, weights, is_replaced = _network(experiment, shape, dataset.classes, replace)
    original = experiment.original
    if is_replaced and weights is not None:
        before = _network(experiment, shape, dataset.classes, {}, keeps_smooth=True)
        original = Reading(*before)  # pyright: ignore[reportArgumentType]
    if (spec.input[0], spec.classes) != (dataset.input_shape[0], dataset.classes):
        raise UserError(
            f"the network reads {spec.input[0]} channels and tells {spec.classes} classes apart, {dataset.name} has "
            f"{dataset.input_shape[0]} and {dataset.classes}; build it for these"
        )
    teacher = _teacher(experiment.teacher, spec, dataset.name)
    if original is None:
        return Prepared(source, spec, weights, None, teacher, len(dataset.train))
    plan = Plan.of(skeleton(original.spec))
    before = Candidate(original.spec, plan, original.weights)
    return Prepared(source, spec, weights, before, teacher, len(dataset.train))


def _teacher(given: str | Spec | None, spec: Spec, dataset: str) -> Spec | None:
    """The architecture that teaches a network; None where it is the network itself."""
    if given is None:
        return None
    try:
        found = spec_of(given, spec.input, spec.classes) if isinstance(given, str) else given
        network = shared_skeleton(found)
    except UserError as error:
        raise UserError(f"teacher: {error}") from error
    if (found.input[0], found.classes) != (spec.input[0], spec.classes) or output_shape(network) != (spec.classes,):
        raise UserError(
            f"the teacher reads {found.input[0]} channels and tells {found.classes} classes apart, {dataset} has "
            f"{spec.input[0]} and {spec.classes}; give one that is built for these"
        )
    return None if _ops(found) == _ops(spec) else found


def _ops(spec: Spec) -> Any:
    return spec.layers if isinstance(spec, Graph) else spec


def _network(
    experiment: Experiment,
    shape: tuple[int, int, int],
    classes: int,
    replace: Mapping[str, str],
    *,
    keeps_smooth: bool = False,
) -> tuple[Spec, Mapping[str, Tensor] | None, bool]:
    """The network, its weights where it is trained already, and whether it is replaced by another function."""
    model, trained = experiment.model, experiment.weights
    if isinstance(model, str) and external.is_external(model):
        if experiment.pretrained and trained is None:
            trained = libraries.trained_weights(model)
        found = external.read_name(
            model, shape, classes, trained, experiment.output, replace, keeps_smooth=keeps_smooth
        )
        has_weights = trained is not None or experiment.pretrained or external.is_trained(model)
        return found.spec, found.weights if has_weights else None, found.is_replaced
    if experiment.pretrained:
        raise UserError(f"{model} is a name that comes without weights; give --weights, or leave --pretrained out")
    spec = spec_of(model, shape, classes) if isinstance(model, str) else model
    if replace:
        name = model if isinstance(model, str) else spec.family
        found = external.read(spec.module(), shape, classes, name, trained, None, replace)
        return found.spec, None if trained is None else found.weights, found.is_replaced
    if trained is None:
        return spec, None, False
    return spec, fit_weights(network_of(spec), read_weights(trained))[0], False


def of_graph(spec: Spec) -> dict[str, Any]:
    """What a configuration says of a network that was read: its name, and a digest, since the name decides nothing."""
    if not isinstance(spec, Graph):
        return {}
    return {"model": spec.shown, "model_sha256": digest_of_json(spec.to_json())}


def _contents(prepared: Prepared) -> dict[str, str]:
    """Digests of what the configuration has the names and places of."""
    found = {"data_sha256": prepared.source.sha256} if isinstance(prepared.source, Named) else {}
    return found | ({"weights_sha256": tensors_digest(prepared.weights)} if prepared.weights is not None else {})


def spread(counts: Sequence[int], number: int) -> list[int]:
    """`number` of the distinct counts, evenly spread by rank, the largest first; all where there are fewer."""
    ranked = sorted(set(counts), reverse=True)
    number = min(number, len(ranked))
    if number < 2:
        return ranked[:number]
    return [ranked[round(i * (len(ranked) - 1) / (number - 1))] for i in range(number)]


def parse_input(text: str) -> tuple[int, int, int]:
    """(C, H, W) from "3x32x32"."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"input {text!r} is not channels x height x width; write 3x32x32")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width
