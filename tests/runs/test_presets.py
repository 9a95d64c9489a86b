"""A training by name, from a recipe, the command line and the API: what is written goes before what it says."""

import dataclasses
from pathlib import Path

import pytest

from parelu import api
from parelu.cli import training as cli
from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.methods.random import Random
from parelu.methods.snl import SNL
from parelu.runs.presets import method_of, training_of, under
from parelu.runs.recipes import read_recipe
from parelu.training import papers
from parelu.training.schedule import SHORT


def test_paper_is_the_first_methods_and_deepreduces_without_one():
    assert training_of("paper") == papers.PAPERS["deepreduce"].full
    for name in methods():
        assert training_of("paper", name) == papers.named(papers.of_method(name)).full
        assert training_of("short", name) == SHORT
    with pytest.raises(UserError, match="no training 'snll'; known are paper, short, deepreduce"):
        training_of("snll", "snl")


@pytest.mark.parametrize("training", papers.NAMES)
@pytest.mark.parametrize("name", methods())
def test_every_method_can_be_had_under_every_training(name: str, training: str):
    """And twice is once: what a training says is then no default of the method's."""
    first = method_of(methods()[name], training, {})
    assert under(methods()[name](), training) == first == under(first, training)
    first.check(api.spec_of("resnet10 m=2", (1, 8, 8), 10), training_of(training, name))


def test_what_is_given_goes_before_the_training():
    given = under(SNL(kd_weight=0.5, search_epochs=7, finetune={"lr": 0.2}), "snl")
    said = papers.options_of("snl", "snl")
    assert given.kd_weight == 0.5 and given.lam == said["lam"] and given.schedule == "paper"
    search, finetune = given.searching(SHORT), given.finetuning(SHORT)
    assert (search.epochs, search.optimizer) == (7, said["search"]["optimizer"])
    assert finetune and (finetune.lr, finetune.epochs) == (0.2, said["finetune"]["epochs"])


RECIPE = """
title: x
model: resnet10 m=2
data: digits
training: {preset: snl, epochs: 9, milestones: [3, 6]}
methods: [{name: snl, kd_weight: 0.5, search_epochs: 7, finetune: {lr: 0.2}, budgets: [0.5]}]
"""


def test_recipes_and_the_command_line_say_the_same(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    (one,) = read_recipe(str(path)).experiments
    snl = SNL(kd_weight=0.5, search_epochs=7, finetune={"lr": 0.2})
    command = cli.Reduce("resnet10 m=2", "digits", training="snl", epochs=9, milestones=(3, 6), method=snl)
    assert command.experiment((api.Reduction(under(snl, "snl"), ("0.5",)),)) == one
    assert one.training.milestones == (3, 6) and one.training.batch == papers.PAPERS["snl"].full.batch


def test_the_command_line_changes_what_trains_from_fresh_weights():
    command = cli.Train("resnet10", training="deepreshape", lr=0.2, batch=32, lr_schedule="constant", weight_decay=0.0)
    given = command.experiment().training
    changes = {"lr": 0.2, "batch": 32, "schedule": "constant", "weight_decay": 0.0}
    assert given == dataclasses.replace(papers.PAPERS["deepreshape"].full, **changes)
    with pytest.raises(UserError, match="milestones end at 300, and there are 200 epochs"):
        cli.Train("resnet10", training="deepreshape", lr_schedule="step", milestones=(300,)).experiment()
    help = Path(cli.__file__).read_text()
    assert all(f"{name}," in help or f"{name};" in help for name in papers.PAPERS)


def test_a_run_of_the_api_has_the_method_under_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(api, "run_experiment", lambda one, *_: seen.append(one))
    for training in ("snl", "paper", SHORT):
        api.reduce("resnet10 m=2", "digits", method="snl", budget=0.5, run=tmp_path, training=training)
    by_name, paper, short = seen
    assert by_name == paper and by_name.reductions[0].method == under(SNL(), "snl")
    assert short.reductions[0].method == SNL() and short.training == SHORT
    api.reduce("resnet10 m=2", "digits", method=Random(), budget=0.5, run=tmp_path, training="autorep")
    assert seen[-1].training == papers.PAPERS["autorep"].full and seen[-1].reductions[0].method == Random()
