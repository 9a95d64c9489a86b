"""Budgets of seconds, and what networks take that are reduced to them: twenty, on two links.

    python benchmarks/budgets.py                 what benchmarks/budgets.csv does not have yet, some minutes
    python benchmarks/budgets.py --quick         two small networks, nothing is written
    python benchmarks/budgets.py --table         of what stands there

Five networks of as many families, whose ReLUs are thinned evenly until the predicted seconds online are within the
budget, which is a share of what the whole network takes; with fresh weights, since seconds need no training. Each is
measured as `benchmarks/cost.py` does, and a budget is met where the median query takes no more than 1.1 times as long.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from parelu.methods.limits import ONLINE, shown
from parelu.methods.uniform import Uniform
from parelu.network.count import shared_skeleton, skeleton
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.private.cost.calibration import chosen, warning_of
from parelu.private.cost.measure import Undisturbed
from parelu.private.engines.base import Options
from parelu.private.engines.parties import Parties
from parelu.private.fresh import fresh, noise
from parelu.private.lowering.lower import lower
from parelu.private.offline.mode import ring_for
from parelu.runs.budgets import budgets_of
from parelu.runs.pricing import Calibrated

ROWS = Path(__file__).parent / "budgets.csv"
IMAGES = {"lan": 5, "wan": 2}
SHARES = (0.5, 0.8)
NETWORKS: dict[str, tuple[int, int, int]] = {
    "resnet18 m=6": (3, 32, 32),
    "vgg16 m=6 (64 classifier)": (3, 32, 32),
    "mobilenetv1 m=6": (3, 32, 32),
    "wrn-10-2 m=6": (3, 32, 32),
    "hrn-2x5x3x m=4": (3, 32, 32),
}
QUICK: dict[str, tuple[int, int, int]] = {"resnet10 m=2": (1, 8, 8), "mobilenetv1 m=2": (3, 16, 16)}
WITHIN = 1.1


@dataclasses.dataclass(frozen=True)
class Row:
    """Seconds online. others, pace: as `private.cost.measure.Measured` has them."""

    network: str
    link: str
    share: float
    budget: float
    relus: int
    predicted: float
    measured: float
    others: float
    pace: float

    @property
    def is_met(self) -> bool:
        return self.measured <= WITHIN * self.budget


def budget_of(price: Calibrated, network: str, shape: tuple[int, int, int], share: float) -> tuple[float, Plan]:
    """Seconds online, and the evenly thinned plan that keeps to them."""
    spec = spec_of(network, shape, 10)
    whole = Plan.of(skeleton(spec))
    shapes = {name: site.shape for name, site in shared_skeleton(spec).sites.items()}
    seconds = share * price(spec, whole)[ONLINE]
    (asked,) = budgets_of([shown(ONLINE, seconds, 4)], Uniform(), spec, price)
    (budget,) = asked.budgets

    def plan_of(relus: int) -> Plan:
        return Plan.from_masks(Uniform().masks(shapes, relus, 0))

    return seconds, asked.unit.met("uniform", budget, spec, plan_of, whole.relus)


def measured(networks: dict[str, tuple[int, int, int]], done: Sequence[Row]) -> Iterator[Row]:
    calibration, known = chosen(), {(row.network, row.link, row.share) for row in done}
    with Parties() as parties:
        measuring = Undisturbed(parties)
        for network, share, link in itertools.product(networks, SHARES, IMAGES):
            if (network, link, share) in known:
                continue
            options, shape = Options(link=link), networks[network]
            price = Calibrated(options, calibration)
            budget, plan = budget_of(price, network, shape, share)
            spec = spec_of(network, shape, 10)
            candidate = fresh(spec, plan)
            ring = ring_for(options.offline)
            lowered = lower(candidate.network(), noise(4, shape, seed=1), candidate.preprocessing, ring=ring)
            found = measuring(lowered, noise(IMAGES[link], shape, seed=0), options)
            assert found.costs.online is not None, "the engine has all phases"
            seconds, foretold = found.costs.online.seconds, price(spec, plan)[ONLINE]
            yield Row(network, link, share, budget, plan.relus, foretold, seconds, found.others, found.pace)


def read() -> list[Row]:
    if not ROWS.exists():
        return []
    kinds = {"network": str, "link": str, "relus": int}
    with ROWS.open(newline="") as file:
        return [Row(**{k: kinds.get(k, float)(v) for k, v in row.items()}) for row in csv.DictReader(file)]


def append(row: Row) -> None:
    is_new = not ROWS.exists()
    with ROWS.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        if is_new:
            writer.writeheader()
        cells = {k: float(f"{v:.5g}") if type(v) is float else v for k, v in dataclasses.asdict(row).items()}
        writer.writerow(cells)


def table(rows: Sequence[Row]) -> str:
    lines = ["| network | link | budget, ms | ReLUs | predicted | measured | ÷ budget | met |", "|---" * 8 + "|"]
    for row in rows:
        seconds = (f"{1e3 * each:.1f}" for each in (row.budget, row.predicted, row.measured))
        budget, predicted, took = seconds
        lines.append(
            f"| {row.network} | {row.link} | {budget} | {row.relus:,} | {predicted} | {took} "
            f"| {row.measured / row.budget:.2f} | {'yes' if row.is_met else 'no'} |"
        )
    if rows:
        ratios = [row.measured / row.budget for row in rows]
        lines.append(
            f"\n{sum(row.is_met for row in rows)} of {len(rows)} are met within {WITHIN - 1:.0%}; measured over budget "
            f"{statistics.median(ratios):.2f} in the median, {min(ratios):.2f} to {max(ratios):.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small networks; nothing is written")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [] if arguments.quick else read()
    if not arguments.table:
        print(warning_of(chosen()) or f"seconds as measured {chosen().made}")
        for row in measured(QUICK if arguments.quick else NETWORKS, rows):
            rows.append(row)
            print(f"{row.network}, {row.link}: {row.measured / row.budget:.2f} of the budget", flush=True)
            if not arguments.quick:
                append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
