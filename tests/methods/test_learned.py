"""Methods that learn their masks: their options reach the optimizer, the search and the finetuning."""

import dataclasses

import pytest
from methods_bench import DryBench

from parelu.methods.autorep import AutoReP, Indicators
from parelu.methods.base import methods
from parelu.methods.bcd import BCD, Blocks
from parelu.methods.delphi import Delphi
from parelu.methods.fisher import Fisher, Ranked
from parelu.methods.gated import Gated
from parelu.methods.learned import LearnedMasks, Polynomials
from parelu.methods.safenet import SAFENet
from parelu.methods.senet import SENet
from parelu.methods.snl import SNL, Slopes
from parelu.training.objectives import Distillation
from parelu.training.schedule import Training

LEARNED = {name: cls for name, cls in methods().items() if issubclass(cls, LearnedMasks)}
BUDGET = 333


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        (SNL(lam=0.3, slope_lr=0.2), Slopes(BUDGET, lam=0.3, lr=0.2)),
        (SNL(granularity="channel", schedule="paper"), Slopes(BUDGET, "channel", schedule="paper", lam=1e-5, lr=1e-3)),
        (
            AutoReP(degree=1, wide=2.0, mu=1.0, threshold=0.2, indicator_lr=0.3, spread=0.4, anneal=False),
            Indicators(BUDGET, "pixel", 1, 2.0, mu=1.0, threshold=0.2, lr=0.3, spread=0.4, anneal=False),
        ),
        (Fisher(), Ranked(BUDGET)),
        (Delphi(degree=1, wide=2.0), Ranked(BUDGET, "layer", 1, 2.0)),
        (SAFENet(degree=1, wide=2.0), Ranked(BUDGET, "channel", 1, 2.0)),
        (BCD(head_start=3.0, trials=5), Blocks(BUDGET, trials=5)),
    ],
)
def test_options_reach_the_optimizer(method, optimizer):
    bench = DryBench()
    method.reduce(bench, (BUDGET, 2 * BUDGET) if method.shares_search else (BUDGET,))
    (search,) = bench.searches
    assert search.optimizer == optimizer, "which aims at the smallest budget"


def test_layer_budgets_reach_the_optimizer():
    bench = DryBench()
    SENet().reduce(bench, (BUDGET,))
    (search,) = bench.searches
    assert search.optimizer.budget == sum(search.optimizer.layers.values()) == BUDGET
    assert bench.records["senet-333"]["budgets"] == search.optimizer.layers


@pytest.mark.parametrize("name", LEARNED)
def test_options_reach_the_search_and_the_finetuning(name):
    options = {"search_epochs": 7, "finetune_epochs": 9, "finetune_lr": 0.7, "temperature": 3.0, "kd_weight": 0.6}
    options |= {"weight_lr": 0.6}
    if issubclass(LEARNED[name], Polynomials):
        options |= {"tails": 0.2, "clip": 0.3}
    if name in ("senet", "gated"):
        options |= {"pram": 5.0, "pram_form": "literal", "search_kd_weight": 0.3}
    bench = DryBench()
    LEARNED[name](**options).reduce(bench, (97,))
    (search,), jobs = bench.searches, bench.jobs
    assert (search.training.epochs, search.training.lr, search.training.batch) == (7, 0.6, bench.training.batch)
    assert sum(job.training.epochs for job in jobs) == 9
    assert {(job.training.lr, job.training.schedule) for job in jobs} == {(0.7, bench.training.schedule)}
    objective = Distillation(3.0, 0.6, tails=options.get("tails", 0.0))
    assert search.objective == dataclasses.replace(objective, weight=options.get("search_kd_weight", 0.6))
    form = options.get("pram_form", objective.form)
    finetuning = dataclasses.replace(objective, mismatch=options.get("pram", 0.0), form=form)
    assert [job.objective for job in jobs] == [finetuning] * len(jobs)
    searched = "senet" if name == "gated" else name
    assert search.name == (searched if LEARNED[name].shares_search else f"{searched}-97")
    if "clip" in options:
        assert {one.training.clip for one in (search, *jobs)} == {0.3}


@pytest.mark.parametrize("given", [0.0, 2.0])
@pytest.mark.parametrize("name", LEARNED)
def test_finetuning_is_clipped_as_the_search_is_and_at_a_half_where_that_is_not(name, given):
    """A network of few ReLUs can be lost at the rate of fresh weights (docs/decisions.md)."""
    bench = DryBench()
    bench.training = dataclasses.replace(bench.training, clip=given)
    LEARNED[name]().reduce(bench, (97,))
    (search,) = bench.searches
    own = 0.5 if issubclass(LEARNED[name], Polynomials) else given
    assert search.training.clip == own
    assert {job.training.clip for job in bench.jobs} == {own or 0.5}


@pytest.mark.parametrize("name", [*LEARNED, "snip"])
def test_a_network_that_was_thinned_says_so(name):
    for thin, steps, label in ((False, "", name), (True, "thin all", f"{name}-thin")):
        if name == "gated" and thin:
            continue  # thinning leaves no main branch
        bench = DryBench()
        methods()[name](thin=thin).reduce(bench, (97,))
        (job,) = [job for job in bench.jobs if job.role == "candidate"]
        assert (job.tags.method, job.tags.steps, job.tags.budget) == (name, steps, 97)
        assert job.name == f"{label}-97"


def test_searches_train_at_a_constant_rate_but_senets():
    for name, cls in LEARNED.items():
        training = cls().search_training(Training(schedule="one-cycle"))
        assert training.schedule == ("cosine" if cls in (SENet, Gated) else "constant"), name


@pytest.mark.parametrize("name", [name for name, cls in LEARNED.items() if issubclass(cls, Polynomials)])
def test_only_squares_are_trained_against_tails(name):
    for degree, weight in ((0, 0.0), (1, 0.0), (2, 1.0)):
        assert LEARNED[name](degree=degree).objective(finetuning=False).tails == weight


@pytest.mark.parametrize(
    ("method", "note"),
    [
        (SNL(), ""),
        (SNL(thin=True, search_epochs=3, finetune_epochs=4), ""),
        (SNL(lam=0.5, finetune_lr=0.1), "finetune lr 0.1, lam 0.5"),
        (Gated(gate_epochs=2, d_th=0.1), "d th 0.1"),
    ],
)
def test_a_note_says_what_is_not_usual(method, note):
    bench = DryBench()
    method.reduce(bench, (97,))
    assert {job.tags.note for job in bench.jobs} == {note}
