"""`latency`: what a site is measured to be worth, against networks that lack it; and more channels for what is left."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from methods_bench import SPEC, DryBench
from stand_in import StandIn

from parelu.masks.projection import worth
from parelu.methods.base import methods
from parelu.methods.latency import Weighed, widened_plan, widened_weights, wider
from parelu.methods.limits import parse_limits
from parelu.methods.unit import Priced, charges_of, without_relus
from parelu.network.candidate import Candidate
from parelu.network.count import skeleton
from parelu.network.instrument import network_of
from parelu.network.plan import Plan, SitePlan
from parelu.network.spec import spec_of
from parelu.training.callback import Step

WHOLE = Plan.of(skeleton(SPEC))
NETWORKS = ("resnet10 m=8", "vgg16 m=8 (16 classifier)", "wrn-10-2 m=4", "mobilenetv1 m=8")


def stepped(masks, network, teacher, number, progress):
    images, labels = torch.randn(16, *SPEC.input), torch.arange(16) % 10
    F.cross_entropy(network.train()(images), labels).backward()
    masks.after_step(Step(number, progress, images, labels, teacher))
    return images


def test_a_site_is_worth_what_the_loss_rises_in_a_network_without_it():
    torch.manual_seed(0)
    network, teacher = network_of(SPEC), network_of(SPEC).eval()
    twin = network_of(SPEC)
    masks = Weighed(100).build(network)
    twin.load_state_dict(masks.weights())
    images = stepped(masks, network, teacher, 0, 0.0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def loss(plan):
        plan.apply(twin)
        with torch.no_grad():
            logits, wanted = twin.train()(images).log_softmax(1), teacher(images).log_softmax(1)
        return float((wanted.exp() * (wanted - logits)).sum() / len(images))

    for name in WHOLE.sites:
        without = Plan({**WHOLE.sites, name: without_relus(WHOLE).sites[name]})
        assert float(masks.worth[name]) == pytest.approx(max(loss(without) - loss(WHOLE), 1e-6), rel=1e-3, abs=1e-5)
        assert float(masks.scores()[name].sum()) == pytest.approx(float(masks.worth[name]), rel=1e-4)
    stepped(masks, network, teacher, 1, 0.0)
    kept = ("running_mean", "running_var")
    moved = [n for n, t in network.state_dict().items() if n.endswith(kept) and not torch.equal(t, before[n])]
    assert moved, "the training's own pass moves them, once"
    assert network.training


def test_a_look_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    network, teacher = network_of(SPEC), network_of(SPEC).eval()
    masks = Weighed(100).build(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    masks._look(Step(0, 0.0, torch.randn(8, *SPEC.input), torch.arange(8), teacher))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_site_that_has_gone_does_not_come_back():
    torch.manual_seed(0)
    network, teacher = network_of(SPEC), network_of(SPEC).eval()
    unit = Priced.of(StandIn(round=1e-3, relu=1e-8), parse_limits("3ms"), SPEC, WHOLE)
    (budget,) = unit.limits
    masks = Weighed(budget, every=1, charges=unit.charges(SPEC, WHOLE, budget)).build(network)
    there = set(WHOLE.sites)
    for number in range(8):
        stepped(masks, network, teacher, number, number / 10)
        now = {name for name, mask in masks.target.items() if mask.any()}
        assert now <= there
        there = now
    assert 1 <= len(there) <= 3


def fused(plan, round=1e6, run=7e5, relu=900):
    """A price that is no sum: layers between two sites that are there cost as one, and each run of them as well."""
    there = [bool(site.relus) for site in plan.sites.values()]
    runs = sum(now and not before for before, now in zip([False, *there], there, strict=False))
    return int(4e5 + round * sum(there) + run * runs + relu * plan.relus)


@pytest.mark.parametrize("seed", range(6))
def test_sites_are_chosen_by_the_price_itself(seed):
    """Against all sets of sites: within the budget where any is, and worth nearly as much as the best."""
    torch.manual_seed(seed)
    unit = Priced.of(StandIn(round=1e-3), parse_limits("3ms"), SPEC, WHOLE)
    charges = charges_of(lambda spec, plan: fused(plan), SPEC, WHOLE)
    masks = Weighed(*unit.limits, charges=charges).build(network_of(SPEC))
    masks.spent = fused
    for name, score in masks.score.items():
        score.copy_(torch.rand_like(score))
        masks.worth[name].copy_(torch.rand(()))
    budget = int(fused(WHOLE) * (0.3 + 0.1 * seed))
    plan = masks.plan(budget)
    assert fused(plan) <= budget
    names, scores = list(masks.gates), masks.scores()
    found = {n: site.mask for n, site in plan.sites.items()}
    sets = itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(1, len(names) + 1))
    best = max(masks._fit(frozenset(some), scores, budget)[0] for some in sets)
    assert worth(scores, found, charges) >= 0.85 * best > 0


@pytest.mark.parametrize("factor", [1.25, 2.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_wider_network_computes_the_same(name, factor):
    torch.manual_seed(0)
    spec = spec_of(name, (3, 32, 32), 10)
    network = network_of(spec)
    sites = Plan.of(network).sites
    plan = Plan({n: SitePlan(torch.rand(s.mask.shape) < 0.5, s.coefficients) for n, s in sites.items()})
    plan.apply(network)
    images = torch.randn(4, *spec.input)
    network(images)  # statistics of their own
    found = Candidate(spec, plan, network.state_dict())
    wide = spec.scale_channels(factor)
    other = network_of(wide)
    other.load_state_dict(widened_weights(found, wide))
    widened_plan(plan, wide).apply(other)
    assert widened_plan(plan, wide).relus > plan.relus
    torch.testing.assert_close(other.eval()(images), network.eval()(images), rtol=1e-4, atol=1e-5)


def test_what_rounds_leave_goes_into_channels_until_one_part_more_would_be_too_many():
    price = StandIn(round=1e-3, relu=1e-8)
    unit = Priced.of(price, parse_limits("3.5ms"), SPEC, WHOLE)
    (budget,) = unit.limits
    few = Plan({n: s if i < 3 else without_relus(WHOLE).sites[n] for i, (n, s) in enumerate(WHOLE.sites.items())})
    spec = wider(SPEC, few, 8.0, unit, budget)
    parts = round(8 * spec.stem / SPEC.stem)
    more = SPEC.scale_channels((parts + 1) / 8)
    assert parts > 8 and unit.holds(budget, spec, widened_plan(few, spec))
    assert not unit.holds(budget, more, widened_plan(few, more))
    assert wider(SPEC, few, 1.0, unit, budget) == SPEC == wider(SPEC, WHOLE, 2.0, unit, budget)


@pytest.mark.parametrize("widest", [1.0, 2.0])
def test_a_wider_candidate_is_foretold_as_it_is(widest):
    price = StandIn(round=1e-3, relu=1e-8)
    unit = Priced.of(price, parse_limits("3.5ms"), SPEC, WHOLE)
    bench = DryBench(unit=unit)
    (candidate,) = methods()["latency"](widest=widest).reduce(bench, tuple(unit.limits))
    (job,) = bench.jobs
    assert (job.spec.stem > SPEC.stem) == (widest > 1) == bool(bench.kept)
    assert candidate.trained.foretold == price(job.spec, job.plan) and unit.holds(*unit.limits, job.spec, job.plan)
    assert dataclasses.replace(job.spec, stem=SPEC.stem) == SPEC
