"""What every method promises, on a context that trains nothing."""

import dataclasses
import hashlib
import pickle
import re
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from method_networks import networks
from methods_bench import SPEC, DryBench

from parelu.cli.main import main
from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.methods.budget import charged
from parelu.methods.jobs import Search
from parelu.network.count import count, skeleton
from parelu.network.instrument import network_of
from parelu.network.spec import Spec, spec_of
from parelu.runs.jobs import identity
from parelu.training.callback import Step

FULL = count(skeleton(SPEC)).relus
RUNNABLE = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            cls.needs is not None and find_spec(cls.needs[0]) is None, reason=f"{cls.needs} is not installed"
        ),
    )
    for name, cls in methods().items()
]


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("budgets", [(FULL,), (FULL // 3, FULL // 7), (131,)])
def test_budgets_are_met(name, budgets):
    bench = DryBench()
    method = methods()[name]()
    try:
        candidates = method.reduce(bench, budgets)
    except UserError as error:  # whole channels or stages go only so far down
        assert not method.exact and re.search(r"reaches [\d,]+ ReLUs at the least", str(error)) and max(budgets) < 200
        return
    assert candidates
    counts = [candidate.plan.relus for candidate in candidates]
    if method.exact:
        assert counts == list(budgets)
    else:
        assert max(counts) <= max(budgets)


NETWORKS = networks()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", RUNNABLE)
def test_other_networks_are_reduced_or_refused(name, network):
    """Vectors, max-pools, rectifiers with slopes and caps, gates: a budget is met, or one line says why not."""
    reduced_or_refused(name, NETWORKS[network])


@pytest.mark.parametrize("name", ["senet", "delphi", "safenet"])
def test_a_vgg_with_a_hidden_layer_is_reduced(name):
    reduced_or_refused(name, spec_of("vgg16 m=2 (16 classifier)", (1, 32, 32), 10))


def reduced_or_refused(name: str, spec: Spec) -> None:
    method = methods()[name]()
    full, bench = count(skeleton(spec)), DryBench(spec=spec)
    budget = full.relus // 2
    try:
        method.check(spec, bench.training)
        candidates = method.reduce(bench, (budget,))
    except UserError as error:
        assert not method.exact and len(str(error).splitlines()) == 1
        return
    counts = [charged(candidate.spec, candidate.plan, spec) for candidate in candidates]
    assert counts == [budget] if method.exact else max(counts) <= budget
    for search in bench.searches:
        a_few_steps(search)


def a_few_steps(search: Search) -> None:
    """Of a search, on noise."""
    torch.manual_seed(0)
    network = network_of(search.spec)
    teacher = network_of(search.spec)
    search.plan.apply(network)
    options = search.optimizer
    masks = (dataclasses.replace(options, every=2) if hasattr(options, "every") else options).build(network)
    gates = {id(parameter) for parameter in masks.parameters()}
    weights = [parameter for parameter in network.parameters() if id(parameter) not in gates]
    optimizers = [torch.optim.SGD(weights, lr=0.01), *filter(None, [masks.optimizer()])]
    for number in range(3):
        images, labels = torch.randn(8, *search.spec.input), torch.arange(8) % search.spec.classes
        loss = F.cross_entropy(network.train()(images), labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        masks.before_step()
        for optimizer in optimizers:
            optimizer.step()
        masks.after_step(Step(number, (number + 1) / 3, images, labels, teacher))
        masks.after_epoch(number + 1)
    plan = masks.plan(min(search.budgets))
    assert plan.relus <= min(search.budgets)
    plan.apply(teacher)
    assert bool(teacher(torch.randn(2, *search.spec.input)).isfinite().all())


@pytest.mark.parametrize("name", RUNNABLE)
def test_jobs_can_be_built_and_told_apart(name):
    bench = DryBench()
    methods()[name]().reduce(bench, (FULL // 2, FULL // 5))
    names = [job.name for job in bench.jobs]
    assert len(set(names)) == len(names)
    for task in (*bench.jobs, *bench.searches):
        assert repr(pickle.loads(pickle.dumps(task))) == repr(task), "a worker process gets it as it is"
    assert all("/" not in job and not job.startswith(".") for job in names)
    for job in bench.jobs:
        network = skeleton(job.spec)
        job.plan.apply(network)
        assert job.tags.method == name or job.role == "criticality", "criticality is deepreduce's"
        assert job.tags.steps is not None


@pytest.mark.parametrize("name", RUNNABLE)
def test_same_seed_same_plans(name):
    first, second = DryBench(3), DryBench(3)
    methods()[name]().reduce(first, (FULL // 4,))
    methods()[name]().reduce(second, (FULL // 4,))
    assert [job.plan for job in first.jobs] == [job.plan for job in second.jobs]


# Of the jobs that a method makes of SPEC for a half and a fifth of its ReLUs: the first digits of a digest of theirs.
IDENTITIES = {
    "autorep": "d64b183b4e24",
    "bcd": "5bdcad5e32f9",
    "channels": "1c700660a88a",
    "deepreduce": "79748fd81ef7",
    "deepreshape": "e9aefc58f313",
    "delphi": "9211d413ef73",
    "fisher": "4f7bbf6787d7",
    "gated": "2df87d34e72f",
    "random": "7474241cccba",
    "safenet": "e133a3ee8fdd",
    "senet": "f2411110127d",
    "snip": "27c3356e8be7",
    "snl": "7e8945d11edc",
    "uniform": "82de5a9514c1",
}


@pytest.mark.parametrize("name", [case for case in RUNNABLE if case.values[0] in IDENTITIES])
def test_a_candidate_of_before_is_not_trained_again(name):
    """A run folder that was written before goes on: what decides a job's outcome has the digest that it had."""
    bench = DryBench()
    methods()[name]().reduce(bench, (FULL // 2, FULL // 5))
    found = hashlib.sha256("".join(map(identity, bench.jobs)).encode()).hexdigest()[:12]
    assert found == IDENTITIES[name]


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
        main(["reduce", name, "--help"])
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
