"""Searches conducted on the bundled digits: exact budgets, the same bits after an interruption, what is refused."""

import dataclasses
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import TINY

from parelu import data
from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.methods.jobs import Job, Search
from parelu.methods.learned import LearnedMasks
from parelu.methods.unit import Relus
from parelu.network.candidate import Candidate
from parelu.network.instrument import network_of
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.runs import mask_search
from parelu.runs.folder import Run
from parelu.training.evaluation import accuracy
from parelu.training.history import read_history
from parelu.training.loop import Progress
from parelu.training.meter import Meter
from parelu.training.schedule import Training
from parelu.training.teacher import Teacher

# `gated` searches as `senet` does, and has files of its own for the rest.
LEARNED = sorted(name for name, cls in methods().items() if issubclass(cls, LearnedMasks) and name != "gated")
NETWORKS = ("resnet10 m=2", "resnet9 m=2", "resnet10 m=2 2x3x1x")
SHORT = dataclasses.replace(TINY, epochs=1, batch=16)


class SearchContext:
    """A context that conducts searches in this process and trains nothing behind them."""

    def __init__(self, path: Path, model: str, training: Training = SHORT, images: int = 64) -> None:
        whole = data.load("digits", images=images)
        self.dataset = dataclasses.replace(whole, validation=whole.validation.take(20))
        self.training, self.seed, self.searches, self.unit = training, 0, [], Relus()
        spec = spec_of(model, self.dataset.input_shape, 10)
        torch.manual_seed(0)
        network = network_of(spec)
        self.run = Run.start(path, {"model": model})
        self.teacher = Candidate(spec, Plan.of(network), network.state_dict())
        self.teacher.save(self.run.folder("teacher"))

    def search(self, searches: Sequence[Search], watch=lambda progress: None) -> list[dict[int, Candidate]]:
        self.searches += searches
        for search in searches:
            teacher = Teacher(self.teacher.network(), self.run.path / "logits")
            mask_search.search(self.run, search, self.dataset, self.seed, teacher, watch)
        return [{b: mask_search.found(self.run, search, b) for b in search.budgets} for search in searches]

    def train(self, jobs: Sequence[Job]) -> list[Candidate]:
        """Each keeps the full network's weights."""
        found = [Candidate(job.spec, job.plan, self.teacher.weights) for job in jobs]
        for job, candidate in zip(jobs, found, strict=True):
            if job.role == "baseline":
                candidate.save(self.run.folder(job.name))
        return found

    def slope_gradients(self, images: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        return {n: torch.randn(s.mask.shape, generator=generator) for n, s in self.teacher.plan.sites.items()}

    def record(self, name: str, value: object) -> None: ...


@pytest.mark.slow
def test_random_budgets_are_met(tmp_path):
    """By each method from all ReLUs and from those that thinning leaves."""
    draw = random.Random(0)
    for number, (name, thin) in enumerate(itertools.product(LEARNED, (False, True))):
        model = NETWORKS[number % len(NETWORKS)]
        bench = SearchContext(tmp_path / str(number), model, images=32)
        options = {"search_epochs": 1, "thin": thin}
        method = methods()[name](**options)
        full = 200 if thin else bench.teacher.plan.relus
        budgets = [draw.randint(1, full) for _ in range(draw.randint(4, 8))]
        budgets = list(dict.fromkeys(budgets))
        candidates = method.reduce(bench, budgets)
        for budget, candidate in zip(budgets, candidates, strict=True):
            found = candidate.plan.relus
            assert found == budget if method.exact else found <= budget, f"{model} {name} {options} {budget}"


def interrupted_at(last: int):
    def watch(progress: Progress) -> None:
        if progress.step == last:
            raise KeyboardInterrupt

    return watch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in LEARNED]
    + [
        ("snl", {"schedule": "paper", "slope_lr": 0.3}),
        ("autorep", {"fit": "public", "search": {"optimizer": "adam"}}),
    ],
)
def test_an_interrupted_search_ends_in_the_same_bits(name, options, tmp_path):
    method = methods()[name](search_epochs=3, **options)
    found = []
    for folder, stop in (("whole", None), ("interrupted", 7)):  # in the second of three epochs of 4 steps
        bench = SearchContext(tmp_path / folder, "resnet10 m=2")
        if stop:
            search = bench.search
            bench.search = lambda searches: search(searches, interrupted_at(stop))  # noqa: B023
            with pytest.raises(KeyboardInterrupt):
                method.reduce(bench, (200, 60))
            bench.search = search
        method.reduce(bench, (200, 60))
        name_of = {search.name: search for search in bench.searches}
        found.append([mask_search.found(bench.run, s, b) for s in name_of.values() for b in s.budgets])
    for whole, again in zip(*found, strict=True):
        assert whole.plan == again.plan
        assert all(torch.equal(whole.weights[key], again.weights[key]) for key in whole.weights)
        assert whole.metrics.validation_accuracy == again.metrics.validation_accuracy


def test_senets_search_leaves_its_best_epoch(tmp_path):
    """Masks and weights of the epoch that validated best, at the cost of the whole search."""
    bench = SearchContext(tmp_path / "run", "resnet10 m=2")
    kept = []
    after = mask_search.Candidate.save

    def save(candidate, folder):
        kept.append(candidate.metrics)
        after(candidate, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_search.Candidate, "save", save)
        methods()["senet"](search_epochs=3).reduce(bench, (200,))
    (search,) = bench.searches
    history = read_history(mask_search.folder_of(bench.run, search))
    accuracies = [epoch.validation_accuracy for epoch in history]
    best = [n for n, a in enumerate(accuracies, start=1) if a > max(accuracies[: n - 1], default=-1)]
    assert [metrics.epochs for metrics in kept] == [*best, 3]
    found = mask_search.found(bench.run, search, 200)
    assert found.metrics.validation_accuracy == max(accuracies)
    assert accuracy(found.network(), bench.dataset.validation, bench.dataset) == max(accuracies)
    assert found.plan.relus == 200 and found.metrics.seconds == sum(epoch.seconds for epoch in history)


def test_a_search_starts_from_the_baselines_weights(tmp_path):
    """Those of its own training; the full network's, where nothing is dropped before."""
    for thin, added in ((False, 0.0), (True, 7.0)):
        bench = SearchContext(tmp_path / str(thin), "resnet10 m=2", images=32)
        full, bias = bench.teacher.weights, bench.teacher.weights["fc.bias"]
        bench.teacher = dataclasses.replace(bench.teacher, weights={**full, "fc.bias": bias + 7.0})  # `train` gives it
        methods()["fisher"](thin=thin, search_epochs=1, search={"lr": 1e-9}).reduce(bench, (50,))
        (search,) = bench.searches
        left = mask_search.found(bench.run, search, 50).weights["fc.bias"]
        torch.testing.assert_close(left, bias + added)


def test_larger_budgets_are_passed_on_the_way(tmp_path):
    bench = SearchContext(tmp_path / "run", "resnet10 m=2")
    methods()["fisher"](search_epochs=4).reduce(bench, (50, 400))
    (search,) = bench.searches
    assert search.budgets == (400, 50)
    first, last = (mask_search.found(bench.run, search, budget).metrics.epochs for budget in search.budgets)
    assert first < last == 4
    lines = (mask_search.folder_of(bench.run, search) / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert not (mask_search.folder_of(bench.run, search) / "checkpoint").exists()


def test_nothing_is_kept_after_a_step_whose_loss_was_not_finite(tmp_path, monkeypatch):
    """As on a device, where nobody has looked at the losses before."""

    def check(self):
        raise UserError("the loss became nan")

    monkeypatch.setattr(Meter, "add", lambda self, terms: None)
    monkeypatch.setattr(Meter, "means", lambda self: {"loss": 0.0})
    monkeypatch.setattr(Meter, "check", check)
    bench = SearchContext(tmp_path / "run", "resnet10 m=2")
    with pytest.raises(UserError, match="the loss became nan"):
        methods()["fisher"](search_epochs=4).reduce(bench, (50, 400))
    assert not list((tmp_path / "run/searches").rglob("candidate.json"))


def test_a_finished_search_is_not_repeated_and_another_is_refused(tmp_path):
    bench = SearchContext(tmp_path / "run", "resnet10 m=2")
    methods()["fisher"](search_epochs=1).reduce(bench, (100,))
    (search,) = bench.searches
    assert mask_search.is_finished(bench.run, search)
    with pytest.raises(UserError, match="holds a search of other settings or of an earlier version; delete it"):
        mask_search.is_finished(bench.run, dataclasses.replace(search, budgets=(99,)))


def test_the_papers_search_ends_at_its_budget_or_with_its_epochs(tmp_path):
    """It leaves what stood as each budget was passed, and stops at the last."""
    for lr, epochs, ends in ((0.3, 8, True), (1e-3, 1, False)):
        bench = SearchContext(tmp_path / str(lr), "resnet10 m=2")
        steps: list[Progress] = []
        search = bench.search
        bench.search = lambda searches: search(searches, steps.append)  # noqa: B023
        methods()["snl"](schedule="paper", slope_lr=lr, lam=10.0, search_epochs=epochs).reduce(bench, (400, 100))
        assert (steps[-1].step < steps[-1].steps) == ends
        (one,) = bench.searches
        assert [mask_search.found(bench.run, one, budget).plan.relus for budget in one.budgets] == [400, 100]
        assert mask_search.is_finished(bench.run, one)
        assert not (mask_search.folder_of(bench.run, one) / "checkpoint").exists()


def test_a_search_of_its_own_starts_from_its_own_budget(tmp_path):
    bench = SearchContext(tmp_path / "run", "resnet10 m=2")
    methods()["bcd"](search_epochs=1, head_start=3.0).reduce(bench, (40, 10, 100))
    assert [search.plan.relus for search in bench.searches] == [300, 120, 30]


def test_each_schedule_of_snl_has_its_own_rates(tmp_path):
    bench = SearchContext(tmp_path / "run", "resnet10 m=2")
    for schedule, optimizer, rates in (("fast", "sgd", (0.01, 0.1)), ("paper", "adam", (0.001, 0.001))):
        for slope_lr, weight_lr in ((None, None), (0.2, 0.3)):
            method = methods()["snl"](schedule=schedule, slope_lr=slope_lr, weight_lr=weight_lr)
            training = method.search_training(bench.training)
            options = method.optimizer(bench, bench.teacher.plan, (100,))
            assert training.optimizer == optimizer
            assert (options.lr, training.lr) == ((slope_lr, weight_lr) if slope_lr else rates)


@pytest.mark.parametrize("method", [methods()["snl"](search_epochs=1, thin=True), methods()["snip"](thin=True)])
def test_thinning_goes_before_the_search(method, tmp_path):
    bench = SearchContext(tmp_path / "run", "resnet10 m=2")
    (candidate,) = method.reduce(bench, (80,))
    kept = {name for name, site in candidate.plan.sites.items() if site.relus}
    assert not any("relu1" in name or name == "relu" for name in kept)
    assert candidate.plan.relus == 80
    with pytest.raises(
        UserError, match=r"a budget of 600 ReLUs is more than the 240 ReLUs that 'thin all' leaves; give a"
    ):
        method.reduce(bench, (600,))


def test_options_out_of_range_are_named():
    with pytest.raises(UserError, match="search_epochs is 0"):
        methods()["snl"](search_epochs=0)
    with pytest.raises(UserError, match="wide is 0; it should be a number above 0"):
        methods()["autorep"](wide=0.0)
