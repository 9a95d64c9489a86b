"""The budgets of an entry, by what they are counted in, and the query that those in seconds or bytes are about."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from parelu.errors import UserError
from parelu.methods.base import Method
from parelu.methods.budget import parse_budget
from parelu.methods.limits import Limits, is_of_query, parse_limits, shown
from parelu.methods.unit import DIGITS, Price, Priced, Relus, Unit, in_units
from parelu.network.count import counts, skeleton
from parelu.network.plan import Plan
from parelu.network.spec import Spec
from parelu.private.engines.base import Options, chosen


@dataclasses.dataclass(frozen=True)
class Asked:
    """Budgets that a method is given at once."""

    unit: Unit
    budgets: tuple[int, ...]


def query_of(
    budgets: Sequence[str], link: str | None = None, relu: str | None = None, offline: str | None = None
) -> Options | None:
    """How a query runs that budgets are about; None where all are numbers of ReLUs.

    Raises:
        UserError: a link, ReLU protocol or offline mode is unknown, or is given where no budget is about a query.
    """
    given = {name: value for name, value in (("link", link), ("relu", relu), ("offline", offline)) if value is not None}
    if any(map(is_of_query, budgets)):
        options = dataclasses.replace(Options(), **given)  # pyright: ignore[reportArgumentType]
        chosen(["delphi"], options)
        return options
    if given:
        words = " and ".join(f"--{name}" for name in given)
        raise UserError(f"{words}: no budget is of seconds or bytes; give one, such as --budget 200ms, or leave it out")
    return None


def budgets_of(texts: Sequence[str], method: Method, spec: Spec, price: Price | None) -> list[Asked]:
    """In groups of one unit, those of ReLUs first, which is there also without any; refuses what no network can meet.

    price: of a query, where a budget is of seconds or bytes.

    Raises:
        UserError: a budget is none, is more than the full-ReLU network takes, or less than the method can reach.
    """
    full, plan = counts(spec), Plan.of(skeleton(spec))
    relus = [parse_budget(text, full.relus, full.comparisons) for text in texts if not is_of_query(text)]
    limits = [parse_limits(text) for text in texts if is_of_query(text)]
    groups = [Asked(Relus(spec), tuple(relus))] if relus or not limits else []
    if limits:
        assert price is not None, "query_of says how they are priced"
        groups += _priced(limits, price, spec, plan)
        least = method.least(plan)
        for group in groups if least else ():
            group.unit.check(method.name, spec, least, group.budgets)
    return groups


def with_matched(groups: Sequence[Asked], matched: Sequence[int], spec: Spec) -> Iterator[tuple[Unit, list[int]]]:
    """Unit and budgets of each group; further ones of ReLUs go to those of ReLUs."""
    if matched and not any(isinstance(group.unit, Relus) for group in groups):
        groups = [Asked(Relus(spec), ()), *groups]
    for group in groups:
        more = matched if isinstance(group.unit, Relus) else ()
        yield group.unit, list(dict.fromkeys([*group.budgets, *more]))


def _priced(limits: Sequence[Limits], price: Price, spec: Spec, plan: Plan) -> list[Asked]:
    """Budgets of one limit go together with others of the same; one of several limits is alone."""
    whole = price(spec, plan)
    found: dict[str, Asked] = {}
    for one in limits:
        if all(whole[name] <= most for name, most in one.most.items()):
            takes = ", ".join(f"{shown(name, whole[name], DIGITS)} {name}" for name in one.most)
            raise UserError(
                f"budget {str(one)!r} is kept by the whole network, which takes {takes}; give a smaller one"
            )
        name = next(iter(one.most)) if len(one.most) == 1 else str(one)
        if name not in found:
            unit = Priced.of(price, one, spec, plan)
        else:
            unit = found[name].unit
            assert isinstance(unit, Priced)
            unit = dataclasses.replace(unit, known={}, limits={**unit.limits, in_units(name, one.most[name]): one})
        found[name] = Asked(unit, tuple(unit.limits))
    return list(found.values())
