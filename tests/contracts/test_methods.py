"""What every method promises, on a workbench that trains nothing."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from parelu import cli
from parelu.count import count, skeleton
from parelu.errors import UserError
from parelu.gates import gates_of
from parelu.methods import Job, Search, methods
from parelu.models import spec_of
from parelu.plan import Candidate, Plan
from parelu.sites import instrument
from parelu.train import SHORT

SPEC = spec_of("resnet10 m=2", (1, 8, 8), 10)
FULL = count(skeleton(SPEC)).relus


class DryBench:
    """Returns each job as a candidate with a made-up accuracy that rises with the ReLUs."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(0)
        network = instrument(SPEC.module(), SPEC.input)
        self.teacher = Candidate(SPEC, Plan.of(network), network.state_dict())
        self.training, self.seed = SHORT, seed
        self.jobs: list[Job] = []
        self.searches: list[Search] = []
        self.records: dict[str, object] = {}

    def train(self, jobs: Sequence[Job]) -> list[Candidate]:
        self.jobs += jobs
        return [Candidate(job.spec, job.plan, {}, {"validation_accuracy": 50 + job.plan.relus / 100}) for job in jobs]

    def search(self, searches: Sequence[Search]) -> list[dict[int, Candidate]]:
        """As if a search had ended before its first step."""
        self.searches += searches
        return [{budget: self._left(search, budget) for budget in search.budgets} for search in searches]

    def _left(self, search: Search, budget: int) -> Candidate:
        torch.manual_seed(self.seed)
        network = instrument(search.spec.module(), search.spec.input)
        search.plan.apply(network)
        search.learner.prepare(network)
        masks = search.learner.project(gates_of(network), budget)
        metrics = {"epochs": 0, "seconds": 0.0, "validation_accuracy": 10.0}
        return Candidate(search.spec, Plan.from_masks(masks), {}, metrics)

    def slope_gradients(self, images: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        sites = self.teacher.plan.sites.items()
        return {name: torch.randn(site.mask.shape, generator=generator) for name, site in sites}

    def record(self, name: str, value: object) -> None:
        self.records[name] = value


@pytest.mark.parametrize("name", methods())
@pytest.mark.parametrize("budgets", [(FULL,), (FULL // 3, FULL // 7), (97,)])
def test_budgets_are_met(name, budgets):
    bench = DryBench()
    method = methods()[name]()
    candidates = method.reduce(bench, budgets)
    assert candidates
    counts = [candidate.plan.relus for candidate in candidates]
    if method.exact:
        assert counts == list(budgets)
    else:
        assert max(counts) <= max(budgets)


@pytest.mark.parametrize("name", methods())
def test_jobs_can_be_built_and_told_apart(name):
    bench = DryBench()
    methods()[name]().reduce(bench, (FULL // 2, FULL // 5))
    names = [job.name for job in bench.jobs]
    assert len(set(names)) == len(names)
    assert all("/" not in job and not job.startswith(".") for job in names)
    for job in bench.jobs:
        network = skeleton(job.spec)
        job.plan.apply(network)
        assert job.tags["method"] == name
        assert {"steps", "budget"} <= set(job.tags)


@pytest.mark.parametrize("name", methods())
def test_same_seed_same_plans(name):
    first, second = DryBench(3), DryBench(3)
    methods()[name]().reduce(first, (FULL // 4,))
    methods()[name]().reduce(second, (FULL // 4,))
    assert [job.plan for job in first.jobs] == [job.plan for job in second.jobs]


@pytest.mark.parametrize("name", methods())
def test_options_have_defaults_and_sources(name):
    cls = methods()[name]
    assert cls.source
    assert cls.__doc__
    assert cls.__doc__.count("\n") > 0 or cls.__doc__.endswith(".")
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(cls))


@pytest.mark.parametrize("name", methods())
def test_the_command_line_has_the_method(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["reduce", name, "--help"])
    assert stop.value.code == 0
    assert f"parelu reduce {name}" in capsys.readouterr().out


def test_deepreduce_without_a_budget_makes_all_its_candidates():
    bench = DryBench()
    candidates = methods()["deepreduce"]().reduce(bench, ())
    assert len(candidates) == 5 * (4 - 1)
    assert [job.role for job in bench.jobs] == ["criticality"] * 4 + ["candidate"] * 15
    assert set(bench.records) == {"criticality"}


def test_deepreduce_says_how_low_it_goes():
    with pytest.raises(UserError, match=r"deepreduce reaches [\d,]+ ReLUs at the least"):
        methods()["deepreduce"]().reduce(DryBench(), (1,))
