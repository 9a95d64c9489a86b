"""What every method promises of a budget in seconds or bytes: a network within the price, or one line that says how
little it reaches."""

import re
from importlib.util import find_spec

import pytest
from methods_bench import SPEC, DryBench
from stand_in import StandIn

from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.methods.limits import is_of_query, parse_limits, shown
from parelu.network.count import skeleton
from parelu.network.plan import Plan
from parelu.runs.budgets import budgets_of

RUNNABLE = [name for name, cls in methods().items() if cls.needs is None or find_spec(cls.needs[0])]
PRICES = {
    "{online}": StandIn(round=1e-5),
    "offline:{offline}+bytes:{bytes}": StandIn(round=4e-3, bent=0.5),
}
WHOLE = Plan.of(skeleton(SPEC))


def cheapest(price, plans):
    return min((price(SPEC, plan) for plan in plans), key=lambda found: found["online"])


@pytest.mark.parametrize("text", PRICES)
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_budget_of_a_query_is_met_or_refused_in_a_line(name, text):
    """Where ReLUs are most of the price, and where rounds are and it is no sum."""
    method, of = methods()[name](), PRICES[text]
    most, reached = of(SPEC, WHOLE), method.least(WHOLE)
    least = cheapest(of, reached) if reached else {limit: 0.8 * amount for limit, amount in most.items()}
    text = text.format(**{limit: shown(limit, (most[limit] + least[limit]) / 2) for limit in most})
    try:
        (asked,) = budgets_of([text], method, SPEC, of)
        bench = DryBench(unit=asked.unit)
        candidates = method.reduce(bench, asked.budgets)
    except UserError as error:
        said = r"reaches [\d.]+(us|ms|s|kB|MB|B) at the least|the cheapest that \w+ reaches here is"
        assert not method.exact and re.search(said, str(error)) and len(str(error).splitlines()) == 1
        return
    limits = parse_limits(text)
    for candidate, job in zip(candidates, bench.jobs[-len(candidates) :], strict=True):
        found = of(candidate.spec, candidate.plan)
        assert limits.holds(found)
        if method.exact:
            assert job.name == f"{name}-{limits.slug}" and candidate.trained.limits == str(limits)
            assert candidate.trained.foretold == found
            full = all(site.relus in (0, site.mask.numel()) for site in candidate.plan.sites.values())
            taken = max(found[name] / most for name, most in limits.most.items())
            assert candidate.plan.relus > 1 and (taken > 0.99 or (full and taken > 0.7))


@pytest.mark.parametrize("name", [name for name in RUNNABLE if methods()[name]().least(WHOLE)])
def test_a_budget_that_no_network_meets_says_the_cheapest(name):
    of = StandIn(round=4e-3)
    method = methods()[name]()
    least = cheapest(of, method.least(WHOLE))["online"]
    with pytest.raises(UserError, match=rf"the cheapest that {name} reaches here is .* online: .* of linear layers"):
        budgets_of([f"{least * 0.99e3:.6g}ms"], method, SPEC, of)


def test_budgets_of_a_kind_are_met_side_by_side():
    of, method = StandIn(round=4e-3), methods()["snl"]()
    texts = ["0.5", "40ms", "30ms", "bytes:100kB", "35ms+bytes:60kB"]
    assert [is_of_query(text) for text in texts] == [False, True, True, True, True]
    groups = budgets_of(texts, method, SPEC, of)
    assert [group.unit.name for group in groups] == ["", "online", "bytes", "35ms+bytes-60kB"]
    assert [len(group.budgets) for group in groups] == [1, 2, 1, 1]
    bench = DryBench(unit=groups[1].unit)
    method.reduce(bench, groups[1].budgets)
    assert [job.name for job in bench.jobs] == ["snl-40ms", "snl-30ms"]
    assert [search.name for search in bench.searches] == ["snl-online"]
