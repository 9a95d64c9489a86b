"""A study: one network, one data set, one seed, and the methods that reduce it, all in one run folder.

A recipe is a YAML file that describes studies for several seeds; `parelu reduce` makes a study of one method.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from parelu import data
from parelu.count import count, skeleton
from parelu.errors import UserError
from parelu.methods.base import Method, methods, parse_budget
from parelu.models import Spec, spec_of
from parelu.plan import Candidate
from parelu.run import Run
from parelu.search import Bench, Source, Trainer, Watcher, adopt, full_job
from parelu.train import SHORT, Training

TRAININGS = {"paper": Training(), "short": SHORT}


@dataclasses.dataclass(frozen=True)
class Reduction:
    """One method of a study.

    Attributes:
        budgets: as on the command line ("50k", "0.1").
        match: so many further budgets, taken from the ReLU counts of the study's methods before this one.
    """

    method: Method
    budgets: tuple[str, ...] = ()
    match: int = 0

    def __post_init__(self) -> None:
        if self.match < 0:
            raise UserError(f"match is {self.match}; it should be a whole number, 0 or more")


@dataclasses.dataclass(frozen=True)
class Study:
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


def conduct(study: Study, folder: Path, watcher: Watcher) -> Run:
    """Train all that a study asks for in a run folder; continues where the folder holds a part of it.

    Raises:
        UserError: what is asked for cannot be done; found out before anything is trained wherever possible.
    """
    source, spec = prepare(study)
    full = count(skeleton(spec)).relus
    budgets = [[parse_budget(text, full) for text in r.budgets] for r in study.reductions]
    for reduction, given in zip(study.reductions, budgets, strict=True):
        needs = reduction.method.needs
        if needs and find_spec(needs[0]) is None:
            raise UserError(f"{reduction.method.name} needs {needs[0]}; pip install 'parelu[{needs[1]}]'")
        if reduction.method.needs_budget and not given and not reduction.match:
            raise UserError(f"{reduction.method.name} needs a budget; give --budget, for example --budget 0.1")
        reduction.method.check(spec, study.training)
    weights = _read_weights(study.weights) if study.weights else None
    run = Run.start(folder, study.config())
    with run.locked(), Trainer(run, source, study.seed, watcher) as trainer:
        job = full_job(spec, study.training, {"method": "train"})
        if weights is not None:
            teacher = adopt(run, source, job, weights, study.seed)
        else:
            (teacher,) = trainer.train([job])
        bench = Bench(trainer, teacher, study.training)
        counts: list[int] = []
        for reduction, given in zip(study.reductions, budgets, strict=True):
            wanted = list(dict.fromkeys([*given, *spread(counts, reduction.match)]))
            counts += [candidate.plan.relus for candidate in reduction.method.reduce(bench, wanted)]
    return run


def prepare(study: Study) -> tuple[Source, Spec]:
    """Where the data comes from and the architecture that fits it."""
    own = data.load(study.data, folder=study.data_folder, images=study.images, input_shape=study.input)
    spec = spec_of(study.model, own.input_shape, own.classes)
    return Source(study.data, study.data_folder, study.images, own.input_shape), spec


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


def recipes() -> dict[str, Path]:
    """Name → file of the recipes that come with parelu."""
    folder = Path(str(files("parelu"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """The keys of a recipe; a value is checked against its key's type, which an annotation puts in words."""

    title: str
    model: str
    data: str
    methods: Annotated[list[dict], "a list such as [{name: random, budgets: [50k]}]"]
    images: int | None = None
    input: Annotated[str, "channels x height x width, such as 3x32x32"] | None = None
    training: Annotated[dict, "a mapping such as {preset: short, epochs: 5}"] = dataclasses.field(default_factory=dict)
    seeds: Annotated[list[int], "a list of whole numbers such as [0, 1, 2]"] = dataclasses.field(
        default_factory=lambda: [0]
    )


@dataclasses.dataclass(frozen=True)
class _Preset:
    """The key of a recipe's training beside the fields of `Training`."""

    preset: Literal["paper", "short"] = "paper"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """The keys of a recipe's method beside its options."""

    name: str
    budgets: Annotated[list[str | int | float], "a list such as [50k, 0.1]"] = dataclasses.field(default_factory=list)
    match: int = 0


def read_recipe(name: str) -> tuple[str, list[Study]]:
    """Title and studies, one a seed, of a recipe: a file, or the name of one that comes with parelu."""
    path = recipes().get(name, Path(name))
    if not path.is_file():
        raise UserError(f"no recipe {name!r}; known are {', '.join(recipes())}, or give a YAML file")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a recipe, a mapping of keys; compare {recipes()['quickstart']}")
    try:
        recipe = _Recipe(**_checked(content, _Recipe))
        return recipe.title, _studies(recipe)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _studies(recipe: _Recipe) -> list[Study]:
    if not recipe.seeds:
        raise UserError("seeds is empty; it should have at least one, such as [0]")
    options = _checked(recipe.training, _Preset, Training, key="training.")
    training = dataclasses.replace(TRAININGS[options.pop("preset", "paper")], **options)
    reductions = tuple(map(_reduction, recipe.methods))
    shape = parse_input(recipe.input) if recipe.input is not None else None
    return [Study(recipe.model, recipe.data, reductions, training, seed, shape, recipe.images) for seed in recipe.seeds]


def _reduction(entry: dict[str, Any]) -> Reduction:
    known, name = methods(), entry.get("name")
    if not isinstance(name, str) or name not in known:
        raise UserError(f"unknown method {reprlib.repr(name)}; known are {', '.join(known)}")
    options = _checked(entry, _Entry, known[name], key=f"methods.{name}.")
    del options["name"]
    budgets, match = tuple(map(str, options.pop("budgets", ()))), options.pop("match", 0)
    return Reduction(known[name](**options), budgets, match)


def _checked(content: dict[str, Any], *kinds: type[Any], key: str = "") -> dict[str, Any]:
    """A copy of what a recipe says of the fields of these dataclasses; `UserError` unless it fits their types."""
    fields = {field.name: (field, kind) for kind in kinds for field in dataclasses.fields(kind)}
    hints = {name: get_type_hints(kind, include_extras=True)[name] for name, (_, kind) in fields.items()}
    for name, value in content.items():
        if name not in fields:
            raise UserError(f"unknown key {f'{key}{name}'!r}; known are {', '.join(fields)}")
        if not _fits(value, hints[name]):
            raise UserError(f"{key}{name} is {reprlib.repr(value)}; it should be {_words(hints[name])}")
    for name, (field, _) in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in content:
            raise UserError(f"{key}{name} is missing; it should be {_words(hints[name])}")
    return dict(content)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of a type: a class, a list or tuple of one type, a Literal, or a union of these."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, inner[0])
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) < math.inf  # NaN is not
    return type(value) is hint


def _words(hint: Any) -> str:
    """A type as a user calls it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return inner[1]
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in inner if one is not NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    named = {str: "text, in quotes", int: "a whole number", float: "a number such as 0.1", bool: "true or false"}
    return named.get(hint, str(hint))


def parse_input(text: str) -> tuple[int, int, int]:
    """(C, H, W) from "3x32x32"."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"input {text!r} is not channels x height x width; write 3x32x32")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width
