"""What a budget is counted in: ReLUs, or the nanoseconds or bytes of a query, whose price comes from outside."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch

from parelu.errors import UserError
from parelu.masks.charges import Charges
from parelu.masks.projection import project, worthwhile
from parelu.methods.budget import charged
from parelu.methods.limits import BYTES, Limits, shown
from parelu.network.count import counts
from parelu.network.metrics import Tags
from parelu.network.plan import Plan, SitePlan
from parelu.network.sites import IDENTITY
from parelu.network.spec import Spec

NANO = 1e9  # a unit of time, of a second
TRIES = 24  # prices asked for one network
DIGITS = 4  # of amounts in messages


class Price(Protocol):
    """What a query of a network will take: name of a limit → seconds, or bytes. To a worker process it goes pickled."""

    def __call__(self, spec: Spec, plan: Plan, /) -> Mapping[str, float]: ...


class Unit(abc.ABC):
    """Of the budgets that a method is given at once: whole numbers, whatever they count."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """In the names of searches; "" for ReLUs."""

    @abc.abstractmethod
    def called(self, budget: int) -> str:
        """A budget in names of networks."""

    @abc.abstractmethod
    def said(self, amount: int) -> str:
        """In messages."""

    @abc.abstractmethod
    def spent(self, spec: Spec, plan: Plan) -> int:
        """What a network takes of a budget."""

    @abc.abstractmethod
    def holds(self, budget: int, spec: Spec, plan: Plan) -> bool:
        """Whether a network is within a budget."""

    @abc.abstractmethod
    def charges(self, spec: Spec, plan: Plan, budget: int | None = None, *, squares: bool = False) -> Charges | None:
        """What each site of a plan takes of a budget; None where each ReLU takes 1.

        budget: about which the sum is to be right; all of the plan's if left out. squares: whether to find theirs too.
        """

    @abc.abstractmethod
    def sizes(self, budget: int, spec: Spec, plan: Plan) -> tuple[int, int]:
        """A budget and what it is a share of: what the ReLUs of a plan take, both without what is fixed."""

    @abc.abstractmethod
    def tags(self, tags: Tags, budget: int, spec: Spec, plan: Plan) -> Tags:
        """With the budget that a network was made for."""

    def foretold(self, tags: Tags, spec: Spec, plan: Plan) -> Tags:
        """Of a network that a part was taken from."""
        return tags

    @abc.abstractmethod
    def met(self, name: str, budget: int, spec: Spec, plan_of: Callable[[int], Plan], most: int) -> Plan:
        """The plan that takes most of a budget, of those that `plan_of` makes of numbers, 0 to most.

        name: of the method; plan_of: a number → a plan that takes as much, by the charges.

        Raises:
            UserError: not even that of 0 is within the budget.
        """

    @abc.abstractmethod
    def check(self, name: str, spec: Spec, least: Sequence[Plan], budgets: Sequence[int]) -> None:
        """Refuse, with a `UserError`, budgets that none of the plans is within that a method makes at the least."""


@dataclasses.dataclass(frozen=True)
class Relus(Unit):
    """ReLUs, and comparisons of max-pools; budgets leave out those that the teacher makes.

    teacher: the full-ReLU network; None for one without max-pools.
    """

    teacher: Spec | None = None

    @property
    def name(self) -> str:
        return ""

    def called(self, budget: int) -> str:
        return str(budget)

    def said(self, amount: int) -> str:
        return f"{amount + self._compared:,} ReLUs"

    @property
    def _compared(self) -> int:
        return counts(self.teacher).comparisons if self.teacher else 0

    def spent(self, spec: Spec, plan: Plan) -> int:
        return charged(spec, plan, self.teacher) if self.teacher else plan.relus

    def holds(self, budget: int, spec: Spec, plan: Plan) -> bool:
        return self.spent(spec, plan) <= budget

    def charges(self, spec: Spec, plan: Plan, budget: int | None = None, *, squares: bool = False) -> Charges | None:
        return None

    def sizes(self, budget: int, spec: Spec, plan: Plan) -> tuple[int, int]:
        return budget, plan.relus

    def tags(self, tags: Tags, budget: int, spec: Spec, plan: Plan) -> Tags:
        return dataclasses.replace(tags, budget=budget)

    def met(self, name: str, budget: int, spec: Spec, plan_of: Callable[[int], Plan], most: int) -> Plan:
        return plan_of(budget)

    def check(self, name: str, spec: Spec, least: Sequence[Plan], budgets: Sequence[int]) -> None:
        """All are of 1 ReLU at least."""


RELUS = Relus()  # where no network has max-pools


@dataclasses.dataclass(frozen=True)
class Priced(Unit):
    """Nanoseconds, or bytes, of a query at the price of an engine on a link.

    Attributes:
        price: of a network.
        counted: the limit that budgets are numbers of.
        limits: budget → all that it limits, the counted one among them.
        known: charges that were asked for before, by what they are of.
    """

    price: Price
    counted: str
    limits: Mapping[int, Limits]
    known: dict[tuple[Any, ...], Charges] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, price: Price, limits: Limits, spec: Spec, plan: Plan) -> Priced:
        """One budget of several limits is counted by the one that leaves the network least of its price."""
        whole = price(spec, plan)
        counted = min(limits.most, key=lambda name: limits.most[name] / max(whole[name], 1e-12))
        return cls(price, counted, {in_units(counted, limits.most[counted]): limits})

    @property
    def name(self) -> str:
        """A budget of several limits has searches of its own."""
        return self.counted if all(len(each.most) == 1 for each in self.limits.values()) else self.called(*self.limits)

    def called(self, budget: int) -> str:
        return self.limits[budget].slug

    def said(self, amount: int) -> str:
        return shown(self.counted, amount if self.counted == BYTES else amount / NANO, DIGITS)

    def spent(self, spec: Spec, plan: Plan) -> int:
        return self._spent(self.counted)(spec, plan)

    def holds(self, budget: int, spec: Spec, plan: Plan) -> bool:
        return self.limits[budget].holds(self.price(spec, plan))

    def charges(self, spec: Spec, plan: Plan, budget: int | None = None, *, squares: bool = False) -> Charges:
        key = spec, plan.digest(), budget, squares
        if key not in self.known:
            self.known[key] = self._charges(spec, plan, budget, squares)
        return self.known[key]

    def _charges(self, spec: Spec, plan: Plan, budget: int | None, squares: bool) -> Charges:
        if budget is None:
            found = charges_of(self._spent(self.counted), spec, plan, squares=squares)
            return self._joined(found, spec, plan, squares)
        usual = self._usual(budget, spec, plan, self.charges(spec, plan, squares=squares))
        near = charges_of(self._spent(self.counted), spec, plan, _open(plan, usual), squares=squares)
        found = self._joined(near, spec, plan, squares)
        taken = found.of({name: site.relus for name, site in usual.sites.items()})
        return dataclasses.replace(found, fixed=max(0, self.spent(spec, usual) - taken))

    def _usual(self, budget: int, spec: Spec, plan: Plan, charges: Charges) -> Plan:
        """What positions that are all alike come to within a budget."""
        alike = {name: torch.where(site.mask, 1.0, -torch.inf) for name, site in plan.sites.items()}
        whole = charges.of({name: site.relus for name, site in plan.sites.items()})

        def plan_of(number: int) -> Plan:
            return Plan.from_masks(project(alike, number - charges.fixed, charges=charges))

        return self.met("any method", budget, spec, plan_of, charges.fixed + whole)

    def _joined(self, found: Charges, spec: Spec, plan: Plan, squares: bool) -> Charges:
        """Of one budget of several limits: in parts of what each leaves, the larger."""
        if len(self.limits) > 1:
            return found
        ((budget, limits),) = self.limits.items()
        for name, most in limits.most.items():
            if name != self.counted:
                other = charges_of(self._spent(name), spec, plan, squares=squares)
                left = max(1, in_units(name, most) - other.fixed)
                found = found.or_larger(other, max(1, budget - found.fixed) / left)
        return found

    def _spent(self, name: str) -> Callable[[Spec, Plan], int]:
        return lambda spec, plan: in_units(name, self.price(spec, plan)[name])

    def sizes(self, budget: int, spec: Spec, plan: Plan) -> tuple[int, int]:
        charges = self.charges(spec, plan, budget)
        whole = charges.of({name: site.relus for name, site in plan.sites.items()})
        return max(1, budget - charges.fixed), whole

    def tags(self, tags: Tags, budget: int, spec: Spec, plan: Plan) -> Tags:
        return self.foretold(dataclasses.replace(tags, limits=str(self.limits[budget])), spec, plan)

    def foretold(self, tags: Tags, spec: Spec, plan: Plan) -> Tags:
        return dataclasses.replace(tags, foretold=dict(self.price(spec, plan)))

    def met(self, name: str, budget: int, spec: Spec, plan_of: Callable[[int], Plan], most: int) -> Plan:
        """By the price itself, false position and halving in turn; the number that is tried first is the budget."""
        limits, low, high = self.limits[budget], 0, most + 1
        found = plan_of(low)
        if not limits.holds(self.price(spec, found)):
            raise self.refusal(name, budget, spec, found)
        number = min(budget, most)
        for tried in range(TRIES):
            plan = plan_of(number)
            price = self.price(spec, plan)
            room, fits = budget - in_units(self.counted, price[self.counted]), limits.holds(price)
            if fits:
                found, low = plan, number
            else:
                high = number
            if high - low <= 1 or (not fits and plan.relus <= found.relus + 1):
                break
            straight = tried % 3 < 2 and room != 0 and fits == (room > 0)
            number = min(max(number + room, low + 1), high - 1) if straight else (low + high) // 2
        return found

    def check(self, name: str, spec: Spec, least: Sequence[Plan], budgets: Sequence[int]) -> None:
        for budget in budgets:
            if not any(self.holds(budget, spec, plan) for plan in least):
                cheapest = min(least, key=lambda plan: self.spent(spec, plan))
                raise self.refusal(name, budget, spec, cheapest)

    def refusal(self, name: str, budget: int, spec: Spec, least: Plan) -> UserError:
        """Of a budget that not even the plan that takes least is within."""
        price, bare = self.price(spec, least), self.price(spec, without_relus(least))
        limits = self.limits[budget]
        over = [one for one, most in limits.most.items() if price[one] > most] or [self.counted]
        sites = sum(bool(site.relus or site.squares) for site in least.sites.values())
        words = [
            f"{shown(one, price[one], DIGITS)} {one}: {shown(one, bare[one], DIGITS)} of linear layers, and {sites} "
            f"{'round' if sites == 1 else 'rounds'} of activations"
            for one in over
        ]
        return UserError(
            f"budget {str(limits)!r} is too small: the cheapest that {name} reaches here is {', and '.join(words)}; "
            "give a larger budget, a faster --link, or a smaller network"
        )


def in_units(name: str, amount: float) -> int:
    """Nanoseconds of seconds, or bytes; rounded up."""
    return math.ceil(amount if name == BYTES else amount * NANO - 1e-3)


def charges_of(
    spent: Callable[[Spec, Plan], int],
    spec: Spec,
    plan: Plan,
    open: Collection[str] | None = None,
    *,
    squares: bool = False,
) -> Charges:
    """A network's cost as a sum over the sites of its plan, by differences: with a site as it is, with half of its
    ReLUs, with none, and if asked with squares in their places.

    open: the sites that are as in the plan, all if left out; in the others there is nothing. What fuses, and so what a
    site takes, hangs on its neighbours.
    """
    around = {name: one if open is None or name in open else _identity(one) for name, one in plan.sites.items()}
    relu, square, site = (dict.fromkeys(plan.sites, of) for of in (1, 0, 0))

    def of(name: str, changed: SitePlan) -> int:
        return spent(spec, Plan({**around, name: changed}))

    for name, one in plan.sites.items():
        if not one.relus:
            continue
        whole = of(name, one)
        fewer = one.mask & (torch.arange(one.mask.numel()).view(one.mask.shape) % 2 == 0)
        removed = one.relus - int(fewer.count_nonzero())
        none = whole - of(name, _identity(one))
        relu[name] = max(1, (whole - of(name, SitePlan(fewer, one.coefficients))) // removed if removed else none)
        site[name] = max(0, none - relu[name] * one.relus)
        if squares:
            square[name] = max(0, relu[name] - (whole - of(name, _squared(one))) // one.relus)
    charges = Charges(relu, square, site)
    fixed = spent(spec, Plan(around)) - charges.of({name: one.relus for name, one in around.items()})
    return dataclasses.replace(charges, fixed=max(0, fixed))


def _open(plan: Plan, usual: Plan) -> set[str]:
    """The sites of which something is left."""
    return {name for name in plan.sites if usual.sites[name].relus}


def _identity(site: SitePlan) -> SitePlan:
    identity = torch.tensor(IDENTITY)[:, None].repeat(1, site.mask.shape[0])
    return SitePlan(torch.zeros_like(site.mask), identity)


def _squared(site: SitePlan) -> SitePlan:
    """A polynomial of degree 2 everywhere."""
    return SitePlan(torch.zeros_like(site.mask), torch.full_like(site.coefficients, 0.25))


def without_relus(plan: Plan) -> Plan:
    return Plan({name: _identity(site) for name, site in plan.sites.items()})


def single_relus(plan: Plan, squares: bool = False) -> list[Plan]:
    """A plan for each site: its first ReLU alone; the others are the identity, or squares."""
    rest = {n: _squared(site) if squares and site.relus else _identity(site) for n, site in plan.sites.items()}
    found = []
    for name, site in plan.sites.items():
        if site.relus:
            first = torch.zeros_like(site.mask).flatten()
            first[site.mask.flatten().nonzero()[0, 0]] = True
            single = SitePlan(first.view(site.mask.shape), rest[name].coefficients)
            found.append(Plan({**rest, name: single}))
    return found


def affordable(charges: Charges | None, plan: Plan, budget: int) -> set[str]:
    """The sites that keep most ReLUs of a plan within a budget, wherever in them."""
    if charges is None:
        return set(plan.sites)
    alike = {name: torch.where(site.mask, 1.0, -torch.inf) for name, site in plan.sites.items()}
    return worthwhile(alike, budget - charges.fixed, charges)
