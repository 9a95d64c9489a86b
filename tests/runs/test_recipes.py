"""The recipes that come with parelu: what they would train against what the papers print, and a few steps of each."""

import dataclasses
import functools
import re

import pytest
from conftest import Silent

from parelu import published
from parelu.data.dataset import ENTRIES
from parelu.errors import UserError
from parelu.methods.autorep import AutoReP
from parelu.methods.jobs import Job
from parelu.methods.steps import Steps
from parelu.network.spec import spec_of
from parelu.network.steps import apply_steps
from parelu.report.recipes import listed_text
from parelu.runs import dry_run, scale
from parelu.runs.dry_run import outlook
from parelu.runs.executor import InProcess
from parelu.runs.experiment import run_experiment
from parelu.runs.recipes import read_recipe, recipes

NAMES = list(recipes())
OF_PAPERS = [name for name in NAMES if "/" in name]
PAPERS = {"deepreduce": "DeepReDuce", "autorep": "AutoReP", "shallow": "Shallow-Again", "deepreshape": "DeepReShape"}
DATA = {"cifar10": "cifar10", "cifar100": "cifar100", "tinyimagenet": "tiny-imagenet", "imagenet": "imagenet"}


read = functools.cache(read_recipe)


def one_seed_of(recipe):
    """Its experiments of one seed."""
    return [one for one in recipe.experiments if one.seed == recipe.experiments[0].seed]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name):
    recipe = read(name)
    assert recipe.title and len(recipe.title) < 130
    assert len({(str(one.model), one.seed) for one in recipe.experiments}) == len(recipe.experiments) >= 1
    assert all(one.data in ENTRIES for one in recipe.experiments)
    if "/" in name:
        folder, _, table = name.partition("/")
        assert recipe.paper.startswith(PAPERS[folder])
        assert published.find(recipe.paper)
        if table.startswith("table"):
            assert recipe.paper.endswith(" Table " + re.sub(r"table(\d+).*", r"\1", table))


def test_the_list_has_every_recipe_by_paper():
    lines = listed_text().splitlines()
    assert [line.split()[0] for line in lines if line] == NAMES
    assert lines.count("") == len(PAPERS)


def printed_unit(row):
    """The last digit that a count is printed to, in ReLUs."""
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?K", row.printed)
    return 1 if match is None else 1000 // 10 ** len(match[2] or "")


def trained(name):
    """(network, steps, distillation) of what a recipe trains by steps; "none" is the network as it is."""
    found = set()
    for one in one_seed_of(read(name)):
        found.add((one.model, "none", "none"))
        for reduction in one.reductions:
            if isinstance(reduction.method, Steps):
                found |= {(one.model, steps, reduction.method.distillation) for steps in reduction.method.steps}
    return found


def counted(name):
    """The same of the dry run's networks → ReLUs."""
    found = {}
    for one in one_seed_of(read(name)):
        ahead = outlook(one)
        found[one.model, "none"] = ahead.full.relus
        for planned in ahead.planned:
            if isinstance(planned.task, Job) and planned.task.tags.method == "steps":
                found[one.model, planned.task.tags.steps] = planned.relus
    return found


def rows_of(name):
    """The published rows of a recipe's table on its data set that name a network and steps, and can be reproduced."""
    recipe = read(name)
    if not re.search(r" Table \d+$", recipe.paper):
        return []
    data = recipe.experiments[0].data
    return [
        row
        for row in published.find(recipe.paper)
        if DATA.get(row.dataset) == data and row.network and row.steps and row.relus is not None and not row.exception
    ]


@functools.cache
def can_be_applied(network, steps):
    try:
        apply_steps(spec_of(network, (3, 32, 32), 10), steps)
    except UserError:
        return False
    return True


def is_written(row):
    """Whether a row's steps are in our language; those of learned masks are words."""
    return can_be_applied(row.network, row.steps)


@pytest.mark.parametrize("name", [name for name in OF_PAPERS if "/table" in name])
def test_a_recipe_trains_every_row_of_its_table(name):
    """Counts of all rows are those of their network and steps by `tests/published`."""
    found = trained(name)
    for row in filter(is_written, rows_of(name)):
        kinds = ("none",) if row.steps == "none" else (row.distillation,) if row.distillation else ("none", "kd", "dkd")
        steps = re.sub(r" *\([^()]*\)", "", row.steps)  # what is in brackets is for readers
        assert any((row.network, steps, kind) in found for kind in kinds), row.row


@pytest.mark.parametrize("name", ["deepreduce/table4", "deepreshape/table6"])
def test_a_dry_run_has_the_tables_counts(name):
    found, rows = counted(name), [row for row in rows_of(name) if is_written(row)]
    assert len(rows) >= 3
    for row in rows:
        assert abs(found[row.network, row.steps] - row.relus) <= printed_unit(row), row.row


def test_budgets_of_learned_masks_are_the_tables():
    """Each of its rows with a budget has an entry with that budget for that network."""
    methods = {"autorep": "autorep", "snl": "snl", "senet": "senet", "thin+snl": "snl"}
    for name in OF_PAPERS:
        for row in published.find(read(name).paper) if "/table" in name else ():
            for one in one_seed_of(read(name)):
                if row.method in methods and row.relus and row.network == one.model and DATA[row.dataset] == one.data:
                    budgets = [b for r in one.reductions if r.method.name == methods[row.method] for b in r.budgets]
                    assert f"{row.relus / 1000:g}k" in budgets, (name, row.row)


@pytest.fixture
def few_steps(monkeypatch):
    """The small scale in two steps an epoch, of noise."""
    monkeypatch.setattr(scale, "FULL", scale.FULL.changed(epochs=2, batch=16))
    monkeypatch.setattr(scale, "SEARCH", 1)
    monkeypatch.setattr(scale, "FINETUNE", 2)
    monkeypatch.setattr(scale, "INPUT", (3, 8, 8))
    monkeypatch.setattr(scale, "MACS", 1e6)


def brief(one):
    """One step or budget of each entry, on 30 images."""
    noise = dry_run.blank_images("noise", one.input, 10, each=3)
    reductions = []
    for reduction in one.reductions:
        method = reduction.method
        if isinstance(method, Steps):
            method = dataclasses.replace(method, steps=method.steps[-1:])
        if isinstance(method, AutoReP):  # squares that saw two steps of noise grow without bound
            method = dataclasses.replace(method, degree=1)
        reductions.append(dataclasses.replace(reduction, method=method, budgets=reduction.budgets[:1]))
    return dataclasses.replace(one, data=noise, images=None, reductions=tuple(reductions))


def check_steps(name, folder):
    whole = one_seed_of(read(name))
    (first,) = scale.small(whole[:1], whole)
    one = brief(first)
    run = run_experiment(one, folder, Silent(), InProcess())  # pyright: ignore[reportArgumentType]
    planned = {p.task.name: p.relus for p in outlook(one).planned}
    for record in run.candidates():
        if record.metrics.method not in ("gated", "deepreduce"):  # their blocks and order hang on trained weights
            assert planned[record.name] == record.metrics.relus


# All but EfficientNet's, whose search blows up on two steps of noise; test_imagenet.py has such a network on images.
RUN = [name for name in OF_PAPERS if name != "autorep/table5"]


def cover():
    """Recipes that have, together, every method with every set of options that any recipe gives it."""
    kinds = {name: set().union(*map(kinds_of, one_seed_of(read(name)))) for name in RUN}
    left, chosen = set().union(*kinds.values()), []
    while left:
        best = max(
            kinds, key=lambda name: len(kinds[name] & left) / (1 + len(kinds[name]) + len(read(name).experiments))
        )
        chosen.append(best)
        left -= kinds[best]
    return chosen


def kinds_of(one):
    return {(r.method.name, tuple(given(r.method))) for r in one.reductions}


def given(method):
    """Options that are not at their default; steps are always given."""
    return [f.name for f in dataclasses.fields(method) if f.name != "steps" and getattr(method, f.name) != f.default]


SOME = cover()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_recipes_of_every_kind_run(name, few_steps, tmp_path):
    check_steps(name, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in RUN if name not in SOME])
def test_every_other_recipe_runs(name, few_steps, tmp_path):
    check_steps(name, tmp_path / "run")
