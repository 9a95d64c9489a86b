"""Methods that learn their masks: their options reach the optimizer, the search and the finetuning."""

import dataclasses

import pytest
from methods_bench import SPEC, DryBench

from parelu.errors import UserError
from parelu.methods.autorep import AutoReP, Indicators
from parelu.methods.base import methods
from parelu.methods.bcd import BCD, Blocks
from parelu.methods.delphi import Delphi
from parelu.methods.fisher import Fisher, Ranked
from parelu.methods.gated import Gated
from parelu.methods.jobs import FROM_TEACHER, FromJob
from parelu.methods.learned import LearnedMasks, Polynomials
from parelu.methods.safenet import SAFENet
from parelu.methods.senet import SENet
from parelu.methods.snl import SNL, Slopes
from parelu.network.spec import spec_of
from parelu.network.steps import apply_steps
from parelu.runs import mask_search
from parelu.training import papers
from parelu.training.objectives import CrossEntropy, Distillation
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
    options |= {"ce_weight": 0.8, "weight_lr": 0.6}
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
    objective = Distillation(3.0, 0.6, tails=options.get("tails", 0.0), ce_weight=0.8)
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


WHOLE = {
    "epochs": 11,
    "batch": 64,
    "lr": 0.3,
    "schedule": "step",
    "momentum": 0.5,
    "weight_decay": 0.0,
    "label_smoothing": 0.2,
    "optimizer": "adam",
    "clip": 0.0,
    "milestones": [4, 8],
}


@pytest.mark.parametrize("name", LEARNED)
def test_every_field_of_both_trainings_can_be_given(name):
    """Before what the method and its short options have there."""
    options = {"search_epochs": 7, "finetune_epochs": 9, "finetune_lr": 0.7, "weight_lr": 0.6}
    bench = DryBench()
    LEARNED[name](**options, search=WHOLE, finetune={**WHOLE, "epochs": 13}).reduce(bench, (97,))
    (search,), jobs = bench.searches, bench.jobs
    expected = Training(**{**WHOLE, "milestones": (4, 8)})
    assert search.training == expected
    whole = [dataclasses.replace(job.training, epochs=13, begin=0.0, end=1.0) for job in jobs]
    assert whole == [dataclasses.replace(expected, epochs=13)] * len(jobs)
    assert sum(job.training.epochs for job in jobs) == 13


def test_a_finetuning_of_no_epochs_is_none():
    bench = DryBench()
    SNL(finetune={"epochs": 0}).reduce(bench, (97,))
    assert [(job.training, job.start) for job in bench.jobs] == [(None, bench.searches[0].start_of(97))]
    with pytest.raises(UserError, match=r"^gated moves γ in the finetuning, and finetune has epochs 0; give more$"):
        Gated(finetune={"epochs": 0}).check(SPEC, Training())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"search": {"rate": 1}}, "search has no 'rate'; known are epochs, batch, lr, .*milestones$"),
        ({"finetune": {"begin": 0.5}}, "finetune has no 'begin'; known are "),
        ({"search": {"epochs": 0}}, "search: epochs is 0; it should be a whole number, 1 or more$"),
        ({"finetune": {"lr": -1.0}}, "finetune: lr is -1.0; it should be a number above 0$"),
        ({"finetune": {"milestones": [3, 120]}}, "finetune: milestones end at 120, and there are 120 epochs; "),
        ({"search": {"milestones": [3]}}, "search: milestones are of the schedule step, and this one is "),
        ({"baseline": "thin none"}, "unknown stage 'none'; "),
        ({"baseline": "thin all; channels 0.5"}, "baseline 'thin all; channels 0.5' makes another architecture; "),
        ({"baseline": "cull S1", "thin": True}, "thin is short for the baseline 'thin all', and 'cull S1' is given"),
    ],
)
@pytest.mark.parametrize("name", LEARNED)
def test_what_a_search_or_a_finetuning_cannot_have_is_refused_before_anything_is_trained(name, options, said):
    with pytest.raises(UserError, match=f"^{said}"):
        LEARNED[name](**options).check(SPEC, Training())


@pytest.mark.parametrize("name", [name for name in LEARNED if name != "gated"])
def test_a_search_starts_from_a_baseline_that_was_trained(name):
    bench = DryBench()
    LEARNED[name](baseline="stem linear").reduce(bench, (97, 200))
    baseline, (search, *_) = bench.jobs[0], bench.searches
    plan = apply_steps(SPEC, "stem linear").plan
    assert (baseline.name, baseline.plan, baseline.training) == ("baseline-stem-linear", plan, bench.training)
    assert baseline.objective == CrossEntropy(bench.training.label_smoothing)
    assert {search.start for search in bench.searches} == {FromJob("baseline-stem-linear")}
    assert not any(site.relus for n, site in search.plan.sites.items() if not plan.sites[n].relus)
    assert {job.tags.steps for job in bench.jobs} == {"stem linear"}
    assert [job.name for job in bench.jobs[1:]] == [f"{name}-stem-linear-{budget}" for budget in (97, 200)]


def test_a_baseline_that_drops_nothing_is_the_full_network():
    """AutoReP's paper has no ReLU after the stem; a wide ResNet has none there."""
    bench = DryBench(spec=spec_of("wrn-16-1 m=4", (1, 8, 8), 10))
    AutoReP(baseline="stem linear").reduce(bench, (97,))
    assert [job.role for job in bench.jobs] == ["candidate"]
    assert bench.searches[0].start == FROM_TEACHER


def test_the_penaltys_weight_may_go_by_the_budget():
    """As a share of the positions or a number; a budget between two has that of the nearer, by the ratio."""
    bench, relus = DryBench(), DryBench().teacher.plan.relus
    method = AutoReP(mu={0.1: 40.0, 60: 200.0, 240.0: 80.0})
    assert [method.weight(budget, relus) for budget in (10, 60, 119, 121, 240)] == [200, 200, 200, 80, 80]
    assert method.weight(relus // 2, relus) == 40
    method.reduce(bench, (60, 240))
    assert [(s.name, s.budgets, s.optimizer.mu) for s in bench.searches] == [
        ("autorep-240", (240,), 80.0),
        ("autorep-60", (60,), 200.0),
    ]
    for bad in ({}, {-1.0: 3.0}, {0.0: 2.0}):
        with pytest.raises(UserError, match=r"^mu has .* each key should be a budget above 0"):
            AutoReP(mu=bad)


PAPERS_OWN = {"snl": SNL, "autorep": AutoReP}


@pytest.mark.parametrize("name", PAPERS_OWN)
def test_a_papers_options_make_its_search_and_finetuning(name):
    """Section 4 of SNL, section 4.1 of AutoReP, and their public loops."""
    given = papers.options_of("paper", name)
    bench = DryBench()
    bench.training = papers.named(name).full
    PAPERS_OWN[name](**given).reduce(bench, (97,))
    (search,), job = bench.searches, bench.jobs[-1]
    assert search.objective == job.objective == Distillation(4.0, 1.0, ce_weight=1.0)
    if name == "snl":
        expected = Training(epochs=2000, lr=1e-3, optimizer="adam", schedule="constant", weight_decay=0.0)
        assert search.optimizer == Slopes(97, schedule="paper", lam=1e-5, lr=1e-3)
        assert job.training == Training(epochs=100, lr=1e-3, schedule="cosine", weight_decay=5e-4)
    else:
        expected = Training(epochs=150, lr=1e-4, optimizer="adam", schedule="cosine", weight_decay=0.0)
        # 97 of 1,920 is 5.05 %; 25K of ResNet18's 491.52K is 5.09 %, 15K 3.05 %.
        assert search.optimizer == Indicators(97, degree=2, mu=40.0, threshold=0.003, lr=1e-3, anneal=False)
        assert job.training is None and search.start == FromJob("baseline-stem-linear")
    assert search.training == expected


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
        (AutoReP(mu={0.1: 5.0}, search={"epochs": 3}, baseline="stem linear", ce_weight=1.0), "ce weight 1.0"),
    ],
)
def test_a_note_says_what_is_not_usual(method, note):
    bench = DryBench()
    method.reduce(bench, (97,))
    assert {job.tags.note for job in bench.jobs if job.role == "candidate"} == {note}


def test_searches_from_before_the_papers_trainings_are_found_again():
    """By their identities of then; DryBench's network, 97 and 200 ReLUs."""
    known = {
        "snl": "4500ac70a2d33c4d",
        "fisher": "9d40471aafaa4ae6",
        "autorep": "7c0590e1ef6c63fb",
        "delphi": "797edeb7f2993b39",
        "safenet": "1f5c6ea8b2c59d75",
    }
    for name, first in known.items():
        bench = DryBench()
        LEARNED[name]().reduce(bench, (97, 200))
        assert [mask_search.identity(search)[:16] for search in bench.searches] == [first]
