"""Projection onto a budget, the schedule of the kept share, and what each learner does to its gates."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from parelu import data
from parelu.masks.gate import Gate, gates_of, positions
from parelu.masks.projection import kept_share, project
from parelu.methods.autorep import Indicators
from parelu.methods.bcd import Blocks
from parelu.methods.fisher import Ranked
from parelu.methods.senet import Mismatch, allocate, sensitivities
from parelu.methods.snl import Slopes
from parelu.network.instrument import instrument
from parelu.network.sites import Network, Site
from parelu.network.spec import spec_of
from parelu.training.callback import Step


def network_with(learner) -> Network:
    torch.manual_seed(0)
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    network = instrument(spec.module(), spec.input)
    learner.prepare(network)
    return network.train()


def step(number: int, progress: float = 0.5, teacher: Network | None = None) -> Step:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    return Step(number, progress, images, torch.randint(10, (16,), generator=generator), teacher)


def one_gate(**attributes) -> Gate:
    gate = Gate(Site("site", (2, 2, 2)))
    for name, value in attributes.items():
        getattr(gate, name).data.copy_(torch.as_tensor(value, dtype=torch.float32))
    return gate


scores = st.lists(st.lists(st.integers(-3, 3), min_size=12, max_size=12), min_size=1, max_size=3).map(
    lambda rows: {f"s{i}": torch.tensor(row, dtype=torch.float32).view(3, 2, 2) for i, row in enumerate(rows)}
)


@given(scores=scores, share=st.floats(0, 1))
def test_projection_keeps_the_highest_exactly(scores, share):
    flat = torch.cat([score.flatten() for score in scores.values()])
    budget = round(share * len(flat))
    kept = torch.cat([mask.flatten() for mask in project(scores, budget).values()])
    assert int(kept.sum()) == budget
    if 0 < budget < len(flat):
        assert flat[kept].min() >= flat[~kept].max()
        ties = (flat == flat[kept].min()).nonzero()[:, 0]
        assert kept[ties].tolist() == sorted(kept[ties].tolist(), reverse=True), "of equal scores the first"


@given(scores=scores, first=st.integers(0, 12), second=st.integers(0, 12))
def test_smaller_budgets_lie_inside_larger(scores, first, second):
    small, large = (project(scores, budget) for budget in sorted((first, second)))
    assert all(bool((large[name] | ~small[name]).all()) for name in scores)


@given(scores=scores, budget=st.integers(0, 36), granularity=st.sampled_from(["channel", "layer"]))
def test_groups_stay_whole_and_fit(scores, budget, granularity):
    masks = project(scores, budget, granularity)
    assert sum(int(mask.sum()) for mask in masks.values()) <= budget
    for mask in masks.values():
        groups = mask.flatten(1) if granularity == "channel" else mask.flatten()[None]
        assert bool((groups.all(1) == groups.any(1)).all())


def test_a_position_without_a_relu_never_gets_one():
    score = torch.tensor([[[5.0, -math.inf], [1.0, 2.0]]])
    assert project({"a": score}, 2)["a"].tolist() == [[[True, False], [False, True]]]
    with pytest.raises(ValueError, match="4 ReLUs do not fit into 3 positions"):
        project({"a": score}, 4)
    assert project({"a": score}, 3, "channel")["a"].tolist() == [[[True, False], [True, True]]]
    assert not project({"a": score}, 2, "layer")["a"].any()


@given(target=st.floats(0, 1), first=st.floats(0, 1), second=st.floats(0, 1))
def test_the_kept_share_falls_to_its_target(target, first, second):
    early, late = sorted((first, second))
    assert kept_share(early, target) >= kept_share(late, target) >= target - 1e-9
    assert kept_share(0, target) == pytest.approx(1)
    assert kept_share(0.6, target) == kept_share(1, target) == pytest.approx(target)
    assert kept_share(0.3, 0.0) == pytest.approx(0.5**1.5)


def test_slopes_feel_lambda_and_stay_in_range():
    gates = {"site": one_gate()}
    learner = Slopes(lam=0.25)
    learner.equip(gates["site"])
    gates["site"].allowed[0, 0, 0] = False
    gates["site"].open.grad = torch.ones(2, 2, 2)
    learner.before_step(gates)
    assert gates["site"].open.grad.flatten().tolist() == [0.0] + [1.25] * 7


def test_channel_slopes_move_together():
    gates = {"site": one_gate()}
    learner = Slopes(lam=0.5, granularity="channel")
    learner.equip(gates["site"])
    gates["site"].open.grad = torch.arange(8.0).view(2, 2, 2)
    learner.before_step(gates)
    assert gates["site"].open.grad.flatten().tolist() == [2.0] * 4 + [6.0] * 4


def test_the_papers_lambda_creeps_when_no_fewer_relus_stand():
    gate = one_gate()
    learner = Slopes(lam=1.0)
    learner.equip(gate)
    found = []
    for epoch, dead in enumerate([0, 0, 0, 0, 0, 0, 1, 1, 2], start=1):
        gate.open.data.flatten()[:dead] = 0.0
        learner.after_epoch({"site": gate}, epoch)
        found.append(round(float(gate.get_buffer("lam")), 3))
    assert found == [1, 1, 1, 1, 1, 1.1, 1.1, 1.21, 1.21]
    assert learner.stops_at_budget
    assert not Slopes(target=0.1).stops_at_budget


def test_the_fast_schedules_lambda_follows_the_slopes():
    learner = Slopes(target=0.1, lam=1e-5)
    network = network_with(learner)
    gates = gates_of(network)
    for gate in gates.values():
        gate.get_buffer("lam").fill_(1e-3)
    learner.after_step(network, step(1, progress=0.5))  # all slopes stand: too many
    assert [float(gate.get_buffer("lam")) for gate in gates.values()] == pytest.approx([1.1e-3] * len(gates))
    for gate in gates.values():
        gate.open.data.fill_(0.01)
    learner.after_step(network, step(2, progress=0.5))
    assert [float(gate.get_buffer("lam")) for gate in gates.values()] == pytest.approx([1e-3] * len(gates))


@pytest.mark.parametrize("granularity", ["pixel", "channel"])
def test_the_fast_schedule_ends_with_the_budgets_relus(granularity):
    """Positions with a slope fall to the budget by equal factors; then they are ReLUs and the mask stands."""
    learner = Slopes(target=0.1, lam=1e-5, granularity=granularity)
    network = network_with(learner)
    gates = gates_of(network)
    for gate in gates.values():
        shape = gate.shape if granularity == "pixel" else (gate.shape[0], 1, 1)
        gate.open.data.copy_((0.02 + 0.9 * torch.rand(shape)).expand(gate.shape))
    allowed, masks = positions(gates), []
    budget = round(0.1 * allowed)
    for number, progress in enumerate((0.59, 0.7, 0.8, 0.9)):
        learner.after_step(network, step(number, progress))
        masks.append(torch.cat([(gate.open > 0).flatten() for gate in gates.values()]))
        for gate in gates.values():  # an optimizer's step
            gate.open.data.add_(0.01 * torch.randn(gate.shape[0], 1, 1).sign())
    found = [int(mask.sum()) for mask in masks]
    wanted = [allowed, round(math.sqrt(allowed * budget)), budget, budget]
    assert found == wanted if granularity == "pixel" else all(f <= w for f, w in zip(found, wanted, strict=True))
    assert all(bool((early | ~late).all()) for early, late in itertools.pairwise(masks))
    assert bool((masks[-1] == masks[-2]).all())
    learner.after_step(network, step(4, 1.0))
    assert {float(value) for gate in gates.values() for value in gate.open.detach().unique()} == {0.0, 1.0}
    assert learner.kept(gates) == found[-1]


@pytest.mark.parametrize(
    ("before", "m", "after"),
    [(1, -0.004, 0), (1, -0.003, 0), (1, -0.002, 1), (1, 0.5, 1), (0, 0.003, 0), (0, 0.0031, 1), (0, -1, 0), (0, 0, 0)],
)
def test_indicators_follow_the_hysteresis(before, m, after):  # AutoReP, eq. 10
    learner = Indicators(threshold=0.003)
    network = network_with(learner)
    for gate in gates_of(network).values():
        gate.open.data.fill_(before)
        gate.get_parameter("auxiliary").data.fill_(m)
    learner.after_step(network, step(0))
    gates = gates_of(network)
    assert {float(value) for gate in gates.values() for value in gate.open.detach().unique()} == {after}
    learner.after_step(network, step(1))
    assert learner.report(network)["flips"] == (positions(gates) if after != before else 0)


def test_the_indicators_gradient_is_straight_through_softplus():
    learner = Indicators(mu=8.0, threshold=0.003)
    gate = one_gate()
    learner.equip(gate)
    gate.get_parameter("auxiliary").data.copy_(torch.linspace(-1, 1, 8).view(2, 2, 2))
    for wanted, push in ((1.0, 0.0), (0.5, 1.0)):  # the penalty acts above the wanted density only
        gate.get_buffer("wanted").fill_(wanted)
        gate.open.grad = torch.full((2, 2, 2), 3.0)
        learner.before_step({"site": gate})
        m = gate.get_parameter("auxiliary")
        torch.testing.assert_close(m.grad, (3.0 + push) * F.softplus(m))


@pytest.mark.parametrize("degree", [0, 2])
def test_the_running_score_is_the_written_out_one(degree):
    learner = Ranked(degree=degree)
    network = network_with(learner)
    images, labels = step(0).images, step(0).labels
    name, gate = list(gates_of(network).items())[1]
    inputs = []
    handle = gate.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    output: list[torch.Tensor] = []
    gate.register_forward_hook(lambda module, args, y: (y.retain_grad(), output.append(y))[0])
    F.cross_entropy(network(images), labels).backward()
    handle.remove()
    z, g = inputs[0].detach(), output[0].grad * len(images)
    c0, c1, c2 = (c.view(-1, 1, 1) for c in gate.coefficients)
    d = z.relu() - (c0 + c1 * z + c2 * z**2)
    if degree:
        expected = (g * d).abs().mean(0) + 0.5 * (d**2).mean(0) * (g**2).mean(0)
    else:
        expected = (g * z).abs().mean(0) * (z < 0).float().mean(0) + 0.5 * (z**2).mean(0) * (g**2).mean(0)
    torch.testing.assert_close(learner.scores(gates_of(network))[name], expected)


def test_blocks_only_ever_go():
    learner = Blocks(target=0.1, every=1, trials=3)
    network = network_with(learner)
    gates = gates_of(network)
    standing = [{name: gate.open.clone() for name, gate in gates.items()}]
    for number in range(5):
        learner.after_step(network, step(number, progress=(number + 1) / 5))
        standing.append({name: gate.open.clone() for name, gate in gates.items()})
        wanted = round(positions(gates) * 0.1 ** min(1.0, (number + 1) / 5 / 0.8))
        assert learner.kept(gates) == wanted
    for before, after in itertools.pairwise(standing):
        assert all(bool((before[name] >= after[name]).all()) for name in before)


@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=9),
    values=st.lists(st.floats(0, 1), min_size=9, max_size=9),
    share=st.floats(0, 1),
)
def test_layer_budgets_sum_to_the_budget(sizes, values, share):
    named = {f"s{i}": size for i, size in enumerate(sizes)}
    budget = round(share * sum(sizes))
    split = allocate(dict(zip(named, values, strict=False)), named, budget)
    assert sum(split.values()) == budget
    assert all(0 <= split[name] <= named[name] for name in named)


def test_layer_budgets_follow_the_sensitivities():
    assert allocate({"a": 0.1, "b": 0.3}, {"a": 100, "b": 100}, 40) == {"a": 10, "b": 30}
    assert allocate({"a": 0.1, "b": 0.9}, {"a": 100, "b": 20}, 40) == {"a": 20, "b": 20}


def test_sensitivity_is_the_share_of_small_weights():
    torch.manual_seed(0)
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    network = instrument(spec.module(), spec.input)
    first = network.get_submodule("conv1")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.fill_(0.01)
        first.weight.fill_(1.0)
    layers = sum(
        m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)
    )
    found = sensitivities(network, density=first.weight.numel() / layers)
    assert list(found) == list(network.sites)
    assert found["relu"] == 0.0
    assert {value for name, value in found.items() if name != "relu"} == {1.0}


def test_mismatch_keeps_each_layers_budget_where_the_networks_differ():
    digits = data.load("digits")
    names = list(gates_of(network_with(Ranked())))
    budgets = {name: 5 + number for number, name in enumerate(names)}
    learner = Mismatch(budgets=budgets)
    network = network_with(learner)
    torch.manual_seed(1)
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    teacher = instrument(spec.module(), spec.input).eval()
    images = data.normalise(digits.train.images[:16], digits.mean, digits.std)
    learner.after_step(network, dataclasses.replace(step(0, teacher=teacher), images=images))
    gates = gates_of(network)
    assert {name: int(gate.open.sum()) for name, gate in gates.items()} == budgets
    for gate in gates.values():
        difference, stands = gate.get_buffer("difference"), gate.open.detach() > 0
        assert difference[stands].min() >= difference[~stands].max()
    assert network.training
