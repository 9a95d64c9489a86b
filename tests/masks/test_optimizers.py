"""Projection onto a budget, the schedule of the kept share, and what each optimizer does to its gates."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from parelu import data
from parelu.masks.gate import Gate
from parelu.masks.optimizer import MaskOptimizer, MaskOptions
from parelu.masks.polynomials import dapa
from parelu.masks.projection import kept_share, project
from parelu.methods.autorep import Indicators
from parelu.methods.bcd import Blocks
from parelu.methods.fisher import Ranked
from parelu.methods.senet import Mismatch, allocate, sensitivities
from parelu.methods.snl import Slopes
from parelu.network.instrument import instrument, network_of
from parelu.network.sites import Network, observed
from parelu.network.spec import spec_of
from parelu.network.steps import apply_steps
from parelu.training.callback import Step


def resnet() -> Network:
    torch.manual_seed(0)
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    return network_of(spec).train()


FULL = sum(site.relus for site in resnet().sites.values())


def on_resnet(options: MaskOptions) -> MaskOptimizer:
    return options.build(resnet())


def on_one_site(options: MaskOptions) -> tuple[MaskOptimizer, Gate]:
    """Of a network with one site of 2×2×2."""
    optimizer = options.build(instrument(nn.Sequential(nn.ReLU()), (2, 2, 2)))
    (gate,) = optimizer.gates.values()
    return optimizer, gate


def step(number: int, progress: float = 0.5, teacher: Network | None = None) -> Step:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    return Step(number, progress, images, torch.randint(10, (16,), generator=generator), teacher)


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


@given(scores=scores, budget=st.integers(0, 36), granularity=st.sampled_from(["channel", "layer"]))
def test_groups_with_the_highest_mean_are_kept_first(scores, budget, granularity):
    """Of equal means the first; one that does not fit is passed over."""
    rows = [(name, channel) for name, score in scores.items() for channel in range(len(score))]
    layers = [[row for row in rows if row[0] == name] for name in scores]
    groups = [[row] for row in rows] if granularity == "channel" else layers
    means = [sum(float(scores[name][channel].sum()) for name, channel in group) / len(group) for group in groups]
    expected = {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    found = project(scores, budget, granularity)
    for _, number in sorted((-mean, number) for number, mean in enumerate(means)):
        if 4 * len(groups[number]) <= budget:
            budget -= 4 * len(groups[number])
            for name, channel in groups[number]:
                expected[name][channel] = True
    assert all(torch.equal(found[name], mask) and found[name].dtype == torch.bool for name, mask in expected.items())


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


LAYERS = dict.fromkeys(resnet().sites, 1)
EACH = [
    Slopes(FULL),
    Slopes(FULL, schedule="paper"),
    Indicators(FULL),
    Ranked(FULL),
    Blocks(FULL),
    Mismatch(len(LAYERS), layers=LAYERS),
]


@pytest.mark.parametrize("options", EACH, ids=lambda options: type(options).__name__)
def test_only_those_who_move_gates_by_gradients_get_one(options):
    optimizer = on_resnet(options)
    asks = isinstance(options, Slopes | Indicators)
    assert {gate.open.requires_grad for gate in optimizer.gates.values()} == {asks}
    assert (optimizer.optimizer() is not None) == asks
    assert optimizer.is_done() == (options == Slopes(FULL, schedule="paper")), "all others go through their epochs"


@pytest.mark.parametrize("options", EACH, ids=lambda options: type(options).__name__)
def test_polynomials_are_fitted_where_there_is_a_degree(options):
    assert (options.degree, options.wide) == (0, 1.0)
    optimizer = on_resnet(dataclasses.replace(options, degree=2, wide=3.0))
    optimizer.network(step(0).images)
    for gate in optimizer.gates.values():
        torch.testing.assert_close(gate.coefficients, dapa(gate.mean, 3 * gate.std, 2))
    optimizer = on_resnet(dataclasses.replace(options, degree=0))
    optimizer.network(step(0).images)
    for gate in optimizer.gates.values():
        assert gate.coefficients.T.tolist() == [[0, 1, 0]] * gate.shape[0]


@pytest.mark.parametrize("fit", ["paper", "public"])
def test_a_site_that_never_has_a_relu_gets_no_squares(fit):
    network, steps = resnet(), "stem linear"
    plan = apply_steps(spec_of("resnet10 m=2", (1, 8, 8), 10), steps).plan
    plan.apply(network)
    optimizer = Indicators(100, degree=2, fit=fit).build(network)
    optimizer.network(step(0).images)
    left = optimizer.plan(100)
    assert (left.relus, left.squares + left.relus) == (100, plan.relus if fit == "paper" else 100)
    assert optimizer.gates["relu"].polynomial().T.tolist() == [[0, 1, 0]] * 2


@pytest.mark.parametrize("granularity", ["pixel", "channel", "layer"])
def test_an_optimizer_projects_in_its_granularity_onto_what_is_allowed(granularity):
    optimizer = on_resnet(Ranked(FULL, granularity=granularity))
    draw = torch.Generator().manual_seed(0)
    scores = {}
    for name, gate in optimizer.gates.items():
        optimizer.score[name].copy_(torch.rand(gate.shape, generator=draw))
        gate.allowed.copy_(torch.rand(gate.shape, generator=draw) < 0.5)
        scores[name] = optimizer.score[name].where(gate.allowed, torch.tensor(-math.inf))
    expected, found = project(scores, 100, granularity), optimizer.project(100)
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    assert all(bool((gate.allowed | ~found[name]).all()) for name, gate in optimizer.gates.items())


def test_the_relus_that_stand_are_reported():
    ranked, draw = on_resnet(Ranked(FULL)), torch.Generator().manual_seed(0)
    counts: dict[str, int] = {}
    for gate in ranked.gates.values():
        gate.open.copy_(torch.rand(gate.shape, generator=draw) < 0.3)
        counts[gate.stage] = counts.get(gate.stage, 0) + round(float(gate.open.sum()))
    report = ranked.report()
    assert report == {"relus": ranked.kept(), "stages": counts}
    assert sum(counts.values()) == report["relus"] and set(counts) == {"stem", "S1", "S2", "S3", "S4"}


def test_slopes_feel_lambda_and_stay_in_range():
    slopes, gate = on_one_site(Slopes(4, lam=0.25))
    gate.allowed[0, 0, 0] = False
    gate.open.grad = torch.ones(2, 2, 2)
    slopes.before_step()
    assert gate.open.grad.flatten().tolist() == [0.0] + [1.25] * 7
    gate.open.data.copy_(torch.linspace(-1, 2, 8).view(2, 2, 2))
    slopes.after_step(step(0, 0.1))
    assert gate.open.flatten().tolist() == torch.linspace(-1, 2, 8).clamp(0, 1).tolist()


def test_channel_slopes_move_together():
    slopes, gate = on_one_site(Slopes(4, "channel", lam=0.5))
    gate.open.grad = torch.arange(8.0).view(2, 2, 2)
    slopes.before_step()
    assert gate.open.grad.flatten().tolist() == [2.0] * 4 + [6.0] * 4


def test_the_papers_lambda_creeps_when_no_fewer_relus_stand():
    slopes, gate = on_one_site(Slopes(6, schedule="paper", lam=1.0))
    found = []
    for epoch, dead in enumerate([0, 0, 0, 0, 0, 0, 1, 1, 2], start=1):
        gate.open.data.flatten()[:dead] = 0.0
        slopes.after_epoch(epoch)
        found.append(round(float(slopes.lam), 3))
        assert slopes.is_done() == (dead == 2), "at six of eight"
    assert found == [1, 1, 1, 1, 1, 1.1, 1.1, 1.21, 1.21]


def test_the_fast_schedules_lambda_follows_the_slopes():
    slopes = on_resnet(Slopes(round(0.1 * FULL), lam=1e-5))
    slopes.lam.fill_(1e-3)
    slopes.after_step(step(1, progress=0.5))  # all slopes stand: too many
    assert float(slopes.lam) == pytest.approx(1.1e-3)
    for gate in slopes.gates.values():
        gate.open.data.fill_(0.01)
    slopes.after_step(step(2, progress=0.5))
    assert float(slopes.lam) == pytest.approx(1e-3)
    slopes.lam.fill_(1.05e-5)
    slopes.after_step(step(3, progress=0.5))
    assert float(slopes.lam) == pytest.approx(1e-5), "never below its start"
    assert not slopes.is_done()


@pytest.mark.parametrize(
    ("slope", "factor"),
    [(0.24, 1.2**0.2), (0.2, 1.0), (0.16, 0.8**0.2), (1.0, 1.1), (0.01, 1 / 1.1)],
)
def test_lambda_moves_with_a_root_of_the_excess_a_tenth_at_most(slope, factor):
    """The fifth root of Σa over what the schedule has."""
    slopes = on_resnet(Slopes(round(0.2 * FULL), lam=1e-4))
    for gate in slopes.gates.values():
        gate.open.data.fill_(slope)
    slopes.lam.fill_(1e-2)
    slopes.after_step(step(1, progress=0.599999))
    assert float(slopes.lam) == pytest.approx(1e-2 * factor, rel=1e-3)


def test_slopes_are_kept_in_range_and_count_while_they_are_above_a_hundredth():
    slopes = on_resnet(Slopes(FULL, schedule="paper"))
    first, *rest = slopes.gates.values()
    for gate in rest:
        gate.open.data.fill_(-0.5)
    first.open.data.fill_(1.5)
    first.open.data.flatten()[:3] = torch.tensor([0.0, 0.01, 0.011])
    slopes.after_step(step(0))
    assert all(not gate.open.any() for gate in rest)
    assert first.open.flatten()[:4].tolist() == pytest.approx([0.0, 0.01, 0.011, 1.0])
    assert slopes.kept() == first.open.numel() - 2


@pytest.mark.parametrize("granularity", ["pixel", "channel"])
def test_the_fast_schedule_ends_with_the_budgets_relus(granularity):
    """Positions with a slope fall to the budget by equal factors; then they are ReLUs and the mask stands."""
    budget = round(0.1 * FULL)
    slopes = on_resnet(Slopes(budget, granularity, lam=1e-5))
    gates, masks = slopes.gates.values(), []
    for gate in gates:
        shape = gate.shape if granularity == "pixel" else (gate.shape[0], 1, 1)
        gate.open.data.copy_((0.02 + 0.9 * torch.rand(shape)).expand(gate.shape))
    for number, progress in enumerate((0.59, 0.7, 0.8, 0.9)):
        slopes.after_step(step(number, progress))
        masks.append(torch.cat([(gate.open > 0).flatten() for gate in gates]))
        for gate in gates:  # an optimizer's step
            gate.open.data.add_(0.01 * torch.randn(gate.shape[0], 1, 1).sign())
    found = [int(mask.sum()) for mask in masks]
    wanted = [FULL, round(math.sqrt(FULL * budget)), budget, budget]
    assert found == wanted if granularity == "pixel" else all(f <= w for f, w in zip(found, wanted, strict=True))
    assert all(bool((early | ~late).all()) for early, late in itertools.pairwise(masks))
    assert bool((masks[-1] == masks[-2]).all())
    slopes.after_step(step(4, 1.0))
    assert {float(value) for gate in gates for value in gate.open.detach().unique()} == {0.0, 1.0}
    assert slopes.kept() == found[-1]


@pytest.mark.parametrize(
    ("before", "m", "after"),
    [(1, -0.004, 0), (1, -0.003, 0), (1, -0.002, 1), (1, 0.5, 1), (0, 0.003, 0), (0, 0.0031, 1), (0, -1, 0), (0, 0, 0)],
)
def test_indicators_follow_the_hysteresis(before, m, after):  # AutoReP, eq. 10
    indicators = on_resnet(Indicators(0, threshold=0.003))
    for name, gate in indicators.gates.items():
        gate.open.data.fill_(before)
        indicators.auxiliary[name].data.fill_(m)
    indicators.after_step(step(0))
    gates = indicators.gates.values()
    assert {float(value) for gate in gates for value in gate.open.detach().unique()} == {after}
    indicators.after_step(step(1))
    assert indicators.report()["flips"] == (FULL if after != before else 0)


def test_the_indicators_gradient_is_straight_through_softplus():
    indicators, gate = on_one_site(Indicators(0, mu=8.0, threshold=0.003))
    (m,) = indicators.auxiliary.values()
    m.data.copy_(torch.linspace(-1, 1, 8).view(2, 2, 2))
    for wanted, push in ((1.0, 0.0), (0.5, 1.0)):  # the penalty acts above the wanted density only
        indicators.wanted.fill_(wanted)
        gate.open.grad = torch.full((2, 2, 2), 3.0)
        indicators.before_step()
        torch.testing.assert_close(m.grad, (3.0 + push) * F.softplus(m))


@pytest.mark.parametrize(("anneal", "wanted"), [(True, kept_share(0.5, 0.25, 0.8)), (False, 0.25)])
def test_the_wanted_density_falls_to_the_budgets(anneal, wanted):
    indicators, _ = on_one_site(Indicators(2, anneal=anneal))
    indicators.after_step(step(0, 0.5))
    assert float(indicators.wanted) == pytest.approx(wanted)
    indicators.after_step(step(1, 0.8))
    assert float(indicators.wanted) == 0.25


def test_indicators_start_where_spread_says():
    indicators = on_resnet(Indicators(FULL, spread=0.2))
    m = torch.cat([m.detach().flatten() for m in indicators.auxiliary.values()])
    assert 0 <= m.min() < 0.02 and 0.18 < m.max() <= 0.2


def test_indicators_that_stand_come_first_then_those_with_larger_parameters():
    indicators, gate = on_one_site(Indicators(4))
    (m,) = indicators.auxiliary.values()
    gate.open.data.copy_(torch.tensor([0.0, 1, 0, 1, 0, 0, 0, 0]).view(2, 2, 2))
    m.data.copy_(torch.tensor([0.5, -3, 0.4, -4, 6, 3, 2, 1]).view(2, 2, 2))
    masks = [indicators.project(budget)[gate.name] for budget in range(5)]
    assert [mask.flatten().nonzero()[:, 0].tolist() for mask in masks] == [[], [1], [1, 3], [1, 3, 4], [1, 3, 4, 5]]


def written_out_score(z: Tensor, g: Tensor, coefficients: Tensor, degree: int) -> Tensor:
    """z: inputs of a site, g: gradients of each image's loss at its output, (N, C, H, W)."""
    c0, c1, c2 = (c.view(-1, 1, 1) for c in coefficients)
    d = z.relu() - (c0 + c1 * z + c2 * z**2)
    if degree:
        return (g * d).abs().mean(0) + 0.5 * (d**2).mean(0) * (g**2).mean(0)
    return (g * z).abs().mean(0) * (z < 0).float().mean(0) + 0.5 * (z**2).mean(0) * (g**2).mean(0)


@pytest.mark.parametrize("degree", [0, 2])
def test_the_running_score_is_the_written_out_one(degree):
    """Of the first step and of each before a renewal; a new observation weighs `weight` after the first."""
    ranked = on_resnet(Ranked(FULL, degree=degree, every=2, weight=0.3))
    name, gate = list(ranked.gates.items())[1]
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    gate.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    gate.register_forward_hook(lambda module, args, y: (y.retain_grad(), outputs.append(y))[0])
    expected = torch.zeros(gate.shape)
    for number, weight in enumerate((1.0, 0.3, 0.0, 0.3)):
        batch = step(number)
        F.cross_entropy(ranked.network(batch.images), batch.labels).backward()
        felt = written_out_score(inputs[-1], outputs[-1].grad * 16, gate.coefficients, degree)
        expected = expected.lerp(felt, weight)
        torch.testing.assert_close(ranked.scores()[name], expected)
        ranked.after_step(batch)


def test_by_default_a_fifth_of_every_eighth_step_is_taken():
    ranked, gate = on_one_site(Ranked(8))
    gate.open.data.fill_(0.5)
    felt, found = {}, []
    for number in range(17):
        x = (number + 1) * torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
        y = ranked.network(x.requires_grad_())
        y.square().sum().backward()
        felt[number] = written_out_score(x.detach(), 4 * 2 * y.detach(), gate.coefficients, 0)
        found.append(ranked.scores()[gate.name].clone())
        ranked.steps.fill_(number + 1)
    second = 0.8 * felt[0] + 0.2 * felt[7]
    expected = [felt[0]] * 7 + [second] * 8 + [0.8 * second + 0.2 * felt[15]] * 2
    for mine, written_out in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, written_out)


def test_by_default_ranked_masks_are_renewed_every_eighth_step():
    ranked = on_resnet(Ranked(round(0.1 * FULL)))
    share = ranked.budget / FULL
    for number in range(24):
        before, progress = ranked.kept(), (number + 1) / 24
        ranked.after_step(step(number, progress))
        renewed = number in (7, 15, 23)
        assert ranked.kept() == (round(kept_share(progress, share) * FULL) if renewed else before)
    assert ranked.kept() == ranked.budget


def test_the_ranked_masks_follow_the_schedule():
    ranked = on_resnet(Ranked(50, every=2))
    for name, score in ranked.score.items():
        score.copy_(torch.rand(ranked.gates[name].shape))
    for number, progress in enumerate((0.1, 0.2, 0.3, 0.6)):
        ranked.after_step(step(number, progress))
        renewed = progress if number % 2 else (0.0, 0.2)[number // 2]
        assert ranked.kept() == round(FULL * kept_share(renewed, 50 / FULL))
    assert ranked.kept() == 50


def test_blocks_only_ever_go():
    blocks = on_resnet(Blocks(round(0.1 * FULL), every=1, trials=3))
    standing = [{name: gate.open.clone() for name, gate in blocks.gates.items()}]
    for number in range(5):
        blocks.after_step(step(number, progress=(number + 1) / 5))
        standing.append({name: gate.open.clone() for name, gate in blocks.gates.items()})
        share = blocks.budget / FULL
        assert blocks.kept() == round(FULL * share ** min(1.0, (number + 1) / 5 / 0.8))
    for before, after in itertools.pairwise(standing):
        assert all(bool((before[name] >= after[name]).all()) for name in before)


@pytest.mark.parametrize(
    ("right", "taken"),
    [
        ([897], 1),  # 0.3 of 100 points
        ([896, 897], 2),
        ([896, 950], 2),
        ([1, 890, 895, 880, 895, 0, 870, 894], 3),
    ],
)
def test_the_first_block_that_costs_little_goes_else_the_one_that_costs_least(right, taken):
    """By default: every 10 steps, 8 trials, 0.3 points of a batch's accuracy, which is 90 % before."""
    blocks, labels, seen = on_resnet(Blocks(FULL // 2)), torch.arange(1000) % 10, []

    def answer(module: nn.Module, images: object, logits: Tensor) -> Tensor:
        seen.append({name: gate.open.clone() for name, gate in blocks.gates.items()})
        wrong = torch.arange(1000) >= [900, *right][len(seen) - 1]
        return F.one_hot((labels + wrong) % 10, 10).float()

    blocks.network.register_forward_hook(answer)
    for number in range(10):
        assert blocks.kept() == FULL and not seen, "no block before the tenth step"
        blocks.after_step(Step(number, 0.1, torch.zeros(1000, 1, 8, 8), labels))
    assert int(blocks.draws) == len(right) == len(seen) - 1
    assert all(torch.equal(gate.open, seen[taken][name]) for name, gate in blocks.gates.items())
    assert len({tuple(torch.cat([o.flatten() for o in tried.values()]).tolist()) for tried in seen}) == len(seen)
    assert blocks.network.training


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
    network = network_of(spec)
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
    budgets = {name: 5 + number for number, name in enumerate(resnet().sites)}
    mismatch = on_resnet(Mismatch(sum(budgets.values()), layers=budgets))
    torch.manual_seed(1)
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    teacher = network_of(spec).eval()
    images = data.normalise(digits.train.images[:16], digits.mean, digits.std)
    mismatch.after_step(dataclasses.replace(step(0, teacher=teacher), images=images))
    assert {name: int(gate.open.sum()) for name, gate in mismatch.gates.items()} == budgets
    for name, gate in mismatch.gates.items():
        difference, stands = mismatch.difference[name], gate.open.detach() > 0
        assert difference[stands].min() >= difference[~stands].max()
    assert mismatch.network.training


def test_mismatches_add_up_over_every_fourth_step_and_choose_after_an_epoch():
    options = Mismatch(7 * len(LAYERS), layers=dict.fromkeys(LAYERS, 7))
    mismatch = on_resnet(options)
    gates = mismatch.gates
    torch.manual_seed(1)
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    teacher = network_of(spec).eval()
    total = {name: torch.zeros(gate.shape) for name, gate in gates.items()}
    stands = {name: torch.zeros(gate.shape) for name, gate in gates.items()}  # at the first look none does
    for number in range(10):
        now = step(number, teacher=teacher)
        mismatch.after_step(now)
        if number % 4 == 0:
            alone = on_resnet(options)
            for name, gate in alone.gates.items():
                gate.open.copy_(stands[name])
            alone.network.eval()
            with torch.no_grad(), observed(teacher.sites) as full, observed(alone.gates) as partial:
                teacher(now.images)
                alone.network(now.images)
            for name in total:
                total[name] += (full[name] - partial[name]).abs().mean(0)
        for name, gate in gates.items():
            torch.testing.assert_close(mismatch.difference[name], total[name])
            assert number == 0 or torch.equal(gate.open, stands[name]), "the mask stands until the epoch is over"
        stands = {name: gate.open.clone() for name, gate in gates.items()}
    mismatch.after_epoch(1)
    for name, gate in gates.items():
        assert torch.equal(gate.open > 0, project({name: total[name]}, 7)[name])


def test_what_a_search_leaves_is_the_network_with_its_plan():
    """Its weights and its plan make the network with gates, once each gate is open or closed."""
    network = resnet().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ranked = Ranked(70, degree=2).build(network)
    for name, gate in ranked.gates.items():
        ranked.score[name].copy_(torch.rand(gate.shape))
        gate.coefficients.copy_(torch.rand(3, gate.shape[0]) * torch.tensor([[0.1], [0.9], [0.01]]))
    plan, weights = ranked.plan(70), ranked.weights()
    assert list(weights) == list(before) and all(torch.equal(weights[name], before[name]) for name in before)
    for name, gate in ranked.gates.items():
        gate.open.data.copy_(plan.sites[name].mask)
    assert ranked.kept() == plan.relus == 70
    assert ranked.report()["relus"] == 70 == sum(ranked.report()["stages"].values())
    left = resnet()
    left.load_state_dict(weights)
    plan.apply(left)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(left.eval()(x), network.eval()(x))
