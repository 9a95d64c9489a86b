"""Projection by what positions and sites take of a budget, and what a network takes as a sum over its sites."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from methods_bench import SPEC
from stand_in import StandIn

from parelu.masks.charges import Charges, of_relus
from parelu.masks.projection import project, worth
from parelu.methods.unit import Priced, charges_of, in_units
from parelu.network.count import skeleton
from parelu.network.plan import Plan

scores = st.lists(st.lists(st.integers(-3, 5), min_size=12, max_size=12), min_size=1, max_size=4).map(
    lambda rows: {f"s{i}": torch.tensor(row, dtype=torch.float32).view(3, 2, 2) for i, row in enumerate(rows)}
)


@st.composite
def charged(draw, most=60):
    """Scores, and charges of their sites."""
    found = draw(scores)
    relu, site = ({name: draw(each) for name in found} for each in (st.integers(1, 9), st.integers(0, most)))
    return found, Charges(relu, dict.fromkeys(found, 0), site)


def relus(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


@given(scores=scores, budget=st.integers(0, 60), granularity=st.sampled_from(["pixel", "channel", "layer"]))
def test_charges_of_one_are_relus(scores, budget, granularity):
    budget = min(budget, sum(score.numel() for score in scores.values()))
    plain, priced = (project(scores, budget, granularity, charges) for charges in (None, of_relus(scores)))
    assert all(torch.equal(plain[name], priced[name]) for name in scores)


@given(of=charged(), budget=st.integers(0, 500), granularity=st.sampled_from(["pixel", "channel", "layer"]))
def test_what_is_kept_is_within_the_budget(of, budget, granularity):
    scores, charges = of
    masks = project(scores, budget, granularity, charges)
    assert charges.of(relus(masks)) <= budget
    for mask in masks.values():
        groups = {"pixel": mask.flatten()[:, None], "channel": mask.flatten(1), "layer": mask.flatten()[None]}[
            granularity
        ]
        assert bool((groups.all(1) == groups.any(1)).all())


@given(of=charged(), budget=st.integers(0, 500))
def test_what_is_kept_is_worth_what_the_longest_prefix_and_any_site_alone_are(of, budget):
    scores, charges = of
    found = worth(scores, project(scores, budget, charges=charges), charges)
    free = Charges(charges.relu, charges.square, dict.fromkeys(scores, 0))
    order = [(-float(s), number, at) for number, of in enumerate(scores.values()) for at, s in enumerate(of.flatten())]
    names, masks, left = list(scores), {name: torch.zeros(12, dtype=torch.bool) for name in scores}, budget
    for _, number, at in sorted(order):
        name = names[number]
        left -= charges.relu[name] + (0 if masks[name].any() else charges.site[name])
        if left < 0:
            break
        masks[name][at] = True
    prefix = {name: mask.view(3, 2, 2) for name, mask in masks.items()}
    assert found >= worth(scores, prefix, charges)
    for name in scores:
        alone = project({name: scores[name]}, budget - charges.site[name], charges=free)
        best = worth({name: scores[name]}, alone, charges)
        assert found >= best - 5 * charges.relu[name], "but for a part of a ReLU"


@given(of=charged(most=0), first=st.integers(0, 300), second=st.integers(0, 300))
def test_without_rounds_smaller_budgets_lie_inside_larger(of, first, second):
    scores, charges = of
    small, large = (project(scores, budget, charges=charges) for budget in sorted((first, second)))
    assert all(bool((large[name] | ~small[name]).all()) for name in scores)


def test_a_site_that_is_not_worth_its_round_gives_it_back():
    scores = {"rich": torch.full((4, 1, 1), 3.0), "poor": torch.tensor([9.0, 1, 1, 1]).view(4, 1, 1)}
    charges = Charges(dict.fromkeys(scores, 2), dict.fromkeys(scores, 0), dict.fromkeys(scores, 5))
    masks = project(scores, 13, charges=charges)
    assert relus(masks) == {"rich": 4, "poor": 0}
    assert relus(project(scores, 20, charges=charges)) == {"rich": 4, "poor": 1}


def test_what_a_linear_price_takes_is_found_by_differences():
    price, plan = StandIn(), Plan.of(skeleton(SPEC))
    unit = Priced(price, "online", {})

    def spent(spec, plan):
        return in_units("online", price(spec, plan)["online"])

    charges = charges_of(spent, SPEC, plan, squares=True)
    for number, name in enumerate(plan.sites):
        assert charges.relu[name] == 1000 * (1 + number % 3)
        assert abs(charges.site[name] - 1e6) <= 2 * plan.sites[name].relus
        assert abs(charges.square[name] - 200) <= 2
    assert abs(charges.fixed - 1e9 * (price(SPEC, plan)["online"]) + charges.of(sizes(plan))) <= 10
    assert unit.spent(SPEC, plan) == spent(SPEC, plan)
    squared = charges.over_squares({name: site.mask.numel() for name, site in plan.sites.items()})
    assert squared.of(sizes(plan)) + squared.fixed == charges.of(sizes(plan)) + charges.fixed


def sizes(plan):
    return {name: site.relus for name, site in plan.sites.items()}
