"""An experiment: one network, one data set, one seed, and the methods that reduce it, all in one run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from parelu import data
from parelu.errors import UserError
from parelu.methods.base import Method
from parelu.methods.budget import parse_budget
from parelu.network.candidate import Candidate
from parelu.network.count import count, skeleton
from parelu.network.spec import Spec, spec_of
from parelu.runs.executor import DataSource, RunContext, Trainer, Watcher, adopt, full_job
from parelu.runs.folder import Run
from parelu.training.schedule import SHORT, Training

TRAININGS = {"paper": Training(), "short": SHORT}


@dataclasses.dataclass(frozen=True)
class Reduction:
    """One method of an experiment.

    Attributes:
        budgets: as on the command line ("50k", "0.1").
        match: so many further budgets, taken from the ReLU counts of the experiment's methods before this one.
    """

    method: Method
    budgets: tuple[str, ...] = ()
    match: int = 0

    def __post_init__(self) -> None:
        if self.match < 0:
            raise UserError(f"match is {self.match}; it should be a whole number, 0 or more")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What to train.

    Attributes:
        model: a network's name, such as "resnet10 m=8".
        data: name of a data set; data_folder: where its files are, None for the usual places.
        input: (C, H, W) of the network, None for the data set's own.
        images: training images kept, None for all.
        weights: of an already trained full-ReLU network: a candidate's folder or a safetensors state dict.
    """

    model: str
    data: str
    reductions: tuple[Reduction, ...]
    training: Training
    seed: int = 0
    input: tuple[int, int, int] | None = None
    images: int | None = None
    data_folder: Path | None = None
    weights: Path | None = None

    def config(self) -> dict[str, Any]:
        """What decides the outcome, as JSON values."""
        reductions = [
            {
                "method": r.method.name,
                "options": dataclasses.asdict(r.method),
                "budgets": list(r.budgets),
                "match": r.match,
            }
            for r in self.reductions
        ]
        return {
            "model": self.model,
            "data": self.data,
            "data_folder": str(self.data_folder) if self.data_folder else None,
            "images": self.images,
            "input": list(self.input) if self.input else None,
            "training": dataclasses.asdict(self.training),
            "seed": self.seed,
            "weights": str(self.weights) if self.weights else None,
            "reductions": reductions,
        }


def run_experiment(experiment: Experiment, folder: Path, watcher: Watcher) -> Run:
    """Train all that an experiment asks for in a run folder; continues where the folder holds a part of it.

    Raises:
        UserError: what is asked for cannot be done; found out before anything is trained wherever possible.
    """
    source, spec = prepare(experiment)
    full = count(skeleton(spec)).relus
    budgets = [[parse_budget(text, full) for text in r.budgets] for r in experiment.reductions]
    for reduction, given in zip(experiment.reductions, budgets, strict=True):
        needs = reduction.method.needs
        if needs and find_spec(needs[0]) is None:
            raise UserError(f"{reduction.method.name} needs {needs[0]}; pip install 'parelu[{needs[1]}]'")
        if reduction.method.needs_budget and not given and not reduction.match:
            raise UserError(f"{reduction.method.name} needs a budget; give --budget, for example --budget 0.1")
        reduction.method.check(spec, experiment.training)
    weights = _read_weights(experiment.weights) if experiment.weights else None
    run = Run.start(folder, experiment.config())
    with run.locked(), Trainer(run, source, experiment.seed, watcher) as trainer:
        job = full_job(spec, experiment.training, {"method": "train"})
        if weights is not None:
            teacher = adopt(run, source, job, weights, experiment.seed)
        else:
            (teacher,) = trainer.train([job])
        context = RunContext(trainer, teacher, experiment.training)
        counts: list[int] = []
        for reduction, given in zip(experiment.reductions, budgets, strict=True):
            wanted = list(dict.fromkeys([*given, *spread(counts, reduction.match)]))
            counts += [candidate.plan.relus for candidate in reduction.method.reduce(context, wanted)]
    return run


def prepare(experiment: Experiment) -> tuple[DataSource, Spec]:
    """Where the data comes from and the architecture that fits it."""
    own = data.load(
        experiment.data, folder=experiment.data_folder, images=experiment.images, input_shape=experiment.input
    )
    spec = spec_of(experiment.model, own.input_shape, own.classes)
    return DataSource(experiment.data, experiment.data_folder, experiment.images, own.input_shape), spec


def spread(counts: Sequence[int], number: int) -> list[int]:
    """`number` of the distinct counts, evenly spread by rank, the largest first; all where there are fewer."""
    ranked = sorted(set(counts), reverse=True)
    number = min(number, len(ranked))
    if number < 2:
        return ranked[:number]
    return [ranked[round(i * (len(ranked) - 1) / (number - 1))] for i in range(number)]


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    """A state dict from a candidate's folder or a safetensors file."""
    if path.is_dir():
        return Candidate.load(path).weights
    if not path.is_file():
        raise UserError(f"--weights {path} does not exist; give a candidate's folder or a .safetensors state dict")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"--weights {path} is not a safetensors file ({error}); write one with "
            "safetensors.torch.save_file(model.state_dict(), path): pickled checkpoints are not read"
        ) from error


def parse_input(text: str) -> tuple[int, int, int]:
    """(C, H, W) from "3x32x32"."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"input {text!r} is not channels x height x width; write 3x32x32")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width
