"""What every mask optimizer promises: from its state dict a search goes on to the same bits."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods_bench import DryBench
from torch import Tensor

from parelu.masks.optimizer import MaskOptimizer, MaskOptions
from parelu.methods.base import methods
from parelu.methods.learned import LearnedMasks
from parelu.network.instrument import network_of
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import spec_of
from parelu.training.callback import Step

SPEC = spec_of("resnet10 m=2", (1, 8, 8), 10)
STEPS, CUT = 12, 8  # two thirds: all schedules are on their way there
LEARNED = [name for name, cls in methods().items() if issubclass(cls, LearnedMasks)]
OPTIONS = [(name, {}) for name in LEARNED] + [
    ("snl", {"granularity": "channel"}),
    ("snl", {"schedule": "paper", "slope_lr": 0.1}),
    ("autorep", {"degree": 0, "anneal": False}),
]


def searched(name: str, options: Mapping[str, Any]) -> tuple[MaskOptions, Plan]:
    """A method's mask optimizer, moving every second step, and where it may place ReLUs."""
    method, bench = methods()[name](**options), DryBench(spec=SPEC)
    assert isinstance(method, LearnedMasks)
    plan = method.start(bench, bench.teacher.plan, (60,))
    chosen = method.optimizer(bench, plan, (60,))
    assert chosen.budget == 60
    return dataclasses.replace(chosen, **({"every": 2} if hasattr(chosen, "every") else {})), plan


class Search:
    """A few steps of a search written out; each step is an epoch."""

    def __init__(self, options: MaskOptions, plan: Plan, seed: int) -> None:
        torch.manual_seed(seed)
        self.network = network_of(SPEC)
        plan.apply(self.network)
        self.masks = options.build(self.network)
        own = {id(parameter) for parameter in self.masks.parameters()}
        weights = [parameter for parameter in self.network.parameters() if id(parameter) not in own]
        self.optimizers = [torch.optim.SGD(weights, lr=0.05, momentum=0.9)]
        self.optimizers += [optimizer] if (optimizer := self.masks.optimizer()) else []

    def go(self, first: int, last: int, teacher: Network) -> None:
        for number in range(first, last):
            generator = torch.Generator().manual_seed(number)
            images, labels = torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 10
            loss = F.cross_entropy(self.network.train()(images), labels)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            self.masks.before_step()
            for optimizer in self.optimizers:
                optimizer.step()
            self.masks.after_step(Step(number, (number + 1) / STEPS, images, labels, teacher))
            self.masks.after_epoch(number + 1)

    def saved(self) -> tuple[Any, ...]:
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return copy.deepcopy((self.network.state_dict(), self.masks.state_dict(), optimizers))

    def load(self, state: tuple[Any, ...]) -> None:
        network, masks, optimizers = copy.deepcopy(state)
        self.network.load_state_dict(network)
        self.masks.load_state_dict(masks)
        for optimizer, one in zip(self.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(one)

    def outcome(self) -> dict[str, Tensor]:
        return {**self.network.state_dict(), **self.masks.state_dict(), **self.masks.project(self.masks.budget)}


def same(one: Search, other: Search) -> bool:
    a, b = one.outcome(), other.outcome()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def tensors(optimizer: MaskOptimizer) -> Iterator[Tensor]:
    for value in vars(optimizer).values():
        found = value.values() if isinstance(value, Mapping) else [value]
        yield from (tensor for tensor in found if isinstance(tensor, Tensor))


def plain(optimizer: MaskOptimizer) -> dict[str, Any]:
    """Copies of its attributes that are not tensors, gates or the network."""
    kinds = (int, float, str, list, tuple, set, MaskOptions)
    return copy.deepcopy({name: value for name, value in vars(optimizer).items() if isinstance(value, kinds)})


@pytest.fixture(scope="module")
def teacher() -> Network:
    torch.manual_seed(7)
    return network_of(SPEC).eval()


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_the_state_dict_is_all_that_a_search_goes_on_from(name, options, teacher):
    chosen, plan = searched(name, options)
    whole = Search(chosen, plan, seed=0)
    whole.go(0, CUT, teacher)
    middle = whole.saved()
    whole.go(CUT, STEPS, teacher)

    def resumed(forgotten: str = "") -> Search:
        """From the middle; an entry that is forgotten is as it was before the first step."""
        search = Search(chosen, plan, seed=1)
        fresh = search.masks.state_dict()
        network, masks, optimizers = middle
        kept = {key: fresh[key] if key.split("/")[0] == forgotten else tensor for key, tensor in masks.items()}
        search.load((network, kept, optimizers))
        search.go(CUT, STEPS, teacher)
        return search

    assert same(whole, resumed())
    assert whole.masks.report() == resumed().masks.report()
    for entry in {key.split("/")[0] for key in middle[1]}:
        assert not same(whole, resumed(entry)), f"{entry} is not needed, or this test cannot see that it is"


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_nothing_else_of_an_optimizer_moves(name, options, teacher):
    search = Search(*searched(name, options), seed=0)
    before = plain(search.masks)
    search.go(0, STEPS, teacher)
    assert plain(search.masks) == before
    state = search.masks.state_dict().values()
    assert {id(tensor) for tensor in tensors(search.masks)} == {id(tensor) for tensor in state}


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_a_state_that_does_not_fit_is_refused(name, options):
    masks = searched(name, options)[0].build(network_of(SPEC))
    state = dict(masks.state_dict())
    first = min(state)
    with pytest.raises(ValueError, match="the state has an unknown zeal"):
        masks.load_state_dict({**state, "zeal": torch.tensor(1)})
    with pytest.raises(ValueError, match=rf"the state's {first} is \(7,\), not"):
        masks.load_state_dict({**state, first: torch.zeros(7)})
    del state[first]
    with pytest.raises(ValueError, match=f"the state lacks {first}"):
        masks.load_state_dict(state)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_a_search_ends_with_its_budgets_relus_where_relus_may_stand(name, options, teacher):
    chosen, plan = searched(name, options)
    search = Search(chosen, plan, seed=0)
    search.go(0, STEPS, teacher)
    found = search.masks.plan(60)
    assert found.relus == 60 if chosen.granularity == "pixel" else found.relus <= 60
    assert all(bool((plan.sites[site].mask | ~found.sites[site].mask).all()) for site in plan.sites)
    weights = search.masks.weights()
    network = network_of(SPEC)
    assert list(weights) == list(network.state_dict())
