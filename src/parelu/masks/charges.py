"""What ReLUs take of a budget that is not counted in ReLUs, as integers of its unit: nanoseconds, or bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Charges:
    """A network's cost as a sum over its sites.

    Attributes:
        relu: site → of a ReLU there, 1 or more; square: site → of a square there.
        site: site → once, unless it has neither: its round.
        fixed: of all else, such as the linear layers.
    """

    relu: Mapping[str, int]
    square: Mapping[str, int]
    site: Mapping[str, int]
    fixed: int = 0

    def of(self, relus: Mapping[str, int]) -> int:
        """What sites with so many ReLUs and no squares take, without what is fixed."""
        return sum(number * self.relu[name] + self.site[name] for name, number in relus.items() if number)

    def each(self, positions: Mapping[str, int]) -> dict[str, float]:
        """Site → of a ReLU, with its part of the round, where all positions share that; positions: site → 1 or more."""
        return {name: self.relu[name] + self.site[name] / number for name, number in positions.items()}

    def or_larger(self, other: Charges, unit: float) -> Charges:
        """What takes more, site by site; other: of another budget, a unit of which is `unit` of this one's."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("relu", "square", "site"))
        larger = ({n: max(charge, round(unit * theirs[n])) for n, charge in own.items()} for own, theirs in pairs)
        return Charges(*larger, fixed=self.fixed)

    def over_squares(self, positions: Mapping[str, int]) -> Charges:
        """What a ReLU takes beyond the square that stands in its place; positions: site → squares without a ReLU."""
        squared = {name: number * self.square[name] + self.site[name] for name, number in positions.items() if number}
        return Charges(
            relu={name: max(1, charge - self.square[name] * (name in squared)) for name, charge in self.relu.items()},
            square=dict.fromkeys(self.square, 0),
            site={name: 0 if name in squared else charge for name, charge in self.site.items()},
            fixed=self.fixed + sum(squared.values()),
        )


def of_relus(sites: Mapping[str, object]) -> Charges:
    """Of a budget of ReLUs."""
    return Charges(relu=dict.fromkeys(sites, 1), square=dict.fromkeys(sites, 0), site=dict.fromkeys(sites, 0))
