"""Recipes: YAML files that describe experiments, one for each network and seed."""

from __future__ import annotations

import dataclasses
import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.network.mapping import checked
from parelu.published import find
from parelu.runs.budgets import query_of
from parelu.runs.experiment import Experiment, Reduction, parse_input
from parelu.runs.presets import method_of, training_of
from parelu.training import papers
from parelu.training.schedule import Training


def recipes() -> dict[str, Path]:
    """Name → file of the recipes that come with parelu; those of a paper's tables are PAPER/TABLE, and come last."""
    folder = Path(str(files("parelu"))) / "recipes"
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return dict(sorted(found.items(), key=lambda one: ("/" in one[0], _counting(one[0]))))


def _counting(name: str) -> list[str | int]:
    """For an order in which table 10 comes behind table 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a recipe asks for.

    Attributes:
        experiments: the seeds of the first network, then those of the next.
        paper: the table that it trains, such as "DeepReDuce Table 4"; "" for none.
        cost: in words, such as "40 GPU-hours on an H100"; "" where nothing is said.
        several: whether it is written for several networks, each with a folder of its own.
    """

    title: str
    experiments: list[Experiment]
    paper: str = ""
    cost: str = ""
    several: bool = False

    def only(self, networks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Recipe:
        """With these of its networks and methods alone, and these seeds; all, or its own, where none are given.

        Raises:
            UserError: it has no such network or method.
        """
        known = list(dict.fromkeys(str(one.model) for one in self.experiments))
        for name in networks:
            if name not in known:
                raise UserError(f"the recipe has no network {name!r}; it has {', '.join(map(repr, known))}")
        has = list(dict.fromkeys(r.method.name for one in self.experiments for r in one.reductions))
        for name in methods:
            if name not in has:
                raise UserError(f"the recipe has no method {name!r}; it has {', '.join(has) or 'none'}")
        kept = [one for one in self.experiments if not networks or one.model in networks]
        if methods:
            wanted = [tuple(r for r in one.reductions if r.method.name in methods) for one in kept]
            kept = [dataclasses.replace(one, reductions=those) for one, those in zip(kept, wanted, strict=True)]
        if seeds:
            first = [one for one in kept if one.seed == kept[0].seed]
            kept = [dataclasses.replace(one, seed=seed) for one in first for seed in dict.fromkeys(seeds)]
        return dataclasses.replace(self, experiments=kept)

    def folder(self, experiment: Experiment) -> str:
        """Of a run, below the recipe's: seed0, or NETWORK/seed0."""
        seed = f"seed{experiment.seed}"
        return f"{folder_name(str(experiment.model))}/{seed}" if self.several else seed


def folder_name(network: str) -> str:
    """A network's name as that of a folder."""
    return re.sub(r"[ /:]+", "-", network)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """The keys of a recipe; a value is checked against its key's type, which an annotation puts in words."""

    title: str
    data: str
    methods: Annotated[list[dict], "a list such as [{name: random, budgets: [50k]}]"]
    model: str | None = None
    networks: Annotated[list[str], 'a list such as ["resnet18 m=16", "resnet18 m=32"]'] | None = None
    teacher: str | None = None
    link: str | None = None
    relu: str | None = None
    offline: str | None = None
    pretrained: bool = False
    replace: str = ""
    paper: str = ""
    cost: str = ""
    images: int | None = None
    input: Annotated[str, "channels x height x width, such as 3x32x32"] | None = None
    training: Annotated[dict, "a mapping such as {preset: short, epochs: 5}"] = dataclasses.field(default_factory=dict)
    seeds: Annotated[list[int], "a list of whole numbers such as [0, 1, 2]"] = dataclasses.field(
        default_factory=lambda: [0]
    )


@dataclasses.dataclass(frozen=True)
class _Preset:
    """The key of a recipe's training beside the fields of `Training`."""

    preset: Literal[*papers.NAMES] = "paper"  # pyright: ignore[reportInvalidTypeForm]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """The keys of a recipe's method beside its options."""

    name: str
    budgets: Annotated[list[str | int | float], "a list such as [50k, 0.1]"] = dataclasses.field(default_factory=list)
    match: int = 0
    label: str = ""
    networks: Annotated[list[str], "a list of some of the recipe's networks"] | None = None
    teacher: Annotated[Literal["own"], "own, the network's full-ReLU version"] | None = None


def read_recipe(name: str) -> Recipe:
    """A recipe: a file, or the name of one that comes with parelu; raises `UserError` with the key that is wrong."""
    path = recipes().get(name, Path(name))
    if not path.is_file():
        near = "".join(f" {one}," for one in difflib.get_close_matches(name, recipes(), 3))
        raise UserError(
            f"no recipe {name!r};{near and f' there are{near}'} parelu recipe lists all; or give a YAML file"
        )
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a recipe, a mapping of keys; compare {recipes()['quickstart']}")
    try:
        recipe = _Recipe(**checked(content, _Recipe))
        if recipe.paper:
            find(recipe.paper)
        return Recipe(recipe.title, _experiments(recipe), recipe.paper, recipe.cost, recipe.networks is not None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _experiments(recipe: _Recipe) -> list[Experiment]:
    if not recipe.seeds:
        raise UserError("seeds is empty; it should have at least one, such as [0]")
    options = checked(recipe.training, _Preset, Training, key="training.")
    preset = options.pop("preset", "paper")
    first = str(recipe.methods[0].get("name")) if recipe.methods else ""
    training = training_of(preset, first).changed(**options)
    entries = [_reduction(entry, preset) for entry in recipe.methods]
    budgets = [text for entry in entries for text in entry.budgets]
    one = Experiment(
        model="",
        data=recipe.data,
        reductions=(),
        training=training,
        input=parse_input(recipe.input) if recipe.input is not None else None,
        images=recipe.images,
        teacher=recipe.teacher,
        pretrained=recipe.pretrained,
        paper=recipe.paper,
        replace=recipe.replace,
        query=query_of(budgets, recipe.link, recipe.relu, recipe.offline),
    )
    networks = _networks(recipe)
    chosen = [_entry_networks(entry, networks) for entry in recipe.methods]
    entered = list(zip(entries, chosen, strict=True))
    return [
        dataclasses.replace(one, model=name, seed=seed, reductions=tuple(r for r, of in entered if name in of))
        for name in networks
        for seed in recipe.seeds
    ]


def _networks(recipe: _Recipe) -> list[str]:
    if (recipe.model is None) == (recipe.networks is None):
        raise UserError("give one of model, a network's name, and networks, a list of them")
    names = [recipe.model] if recipe.model is not None else recipe.networks or []
    if not names:
        raise UserError("networks is empty; it should have at least one, such as [resnet18]")
    if len(set(names)) < len(names):
        raise UserError(f"networks has {max(names, key=names.count)!r} more than once; leave the others out")
    return names


def _entry_networks(entry: Mapping[str, Any], networks: list[str]) -> list[str]:
    """Those of the recipe's networks that a method's entry is for."""
    given = entry.get("networks")
    if given == []:
        raise UserError(f"methods.{entry['name']}.networks is empty; leave it out, or the method")
    for name in given or ():
        if name not in networks:
            raise UserError(f"methods.{entry['name']}.networks has {name!r}; the recipe's are {', '.join(networks)}")
    return networks if given is None else given


def _reduction(entry: dict[str, Any], preset: str) -> Reduction:
    known, name = methods(), entry.get("name")
    if not isinstance(name, str) or name not in known:
        raise UserError(f"unknown method {reprlib.repr(name)}; known are {', '.join(known)}")
    options = checked(entry, _Entry, known[name], key=f"methods.{name}.")
    del options["name"]
    options.pop("networks", None)
    budgets, match = tuple(map(str, options.pop("budgets", ()))), options.pop("match", 0)
    label, own_teacher = options.pop("label", ""), options.pop("teacher", None) == "own"
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return Reduction(method_of(known[name], preset, given), budgets, match, label, own_teacher)
