"""Claims of the papers at the small scale: each recipe with several seeds, and whether what it shows points their way.

    python benchmarks/tables.py run --seeds 0 1 2 --out runs/tables    a recipe a core; goes on
    python benchmarks/tables.py collect --out runs/tables              test accuracies into benchmarks/tables.csv
    python benchmarks/tables.py table                                  of benchmarks/tables.csv, a row a contrast
    python benchmarks/tables.py points                                 the same file, a row a network

A contrast is the difference between two curves of test accuracy over ReLUs, one network or method against another one,
on the same seeds: at each point of the first, the second's is taken on a line over the logarithm of the ReLUs, between
its own points. Over all such points, or the fewest or most ReLUs alone, the mean is a seed's difference. A claim is met
where all seeds' differences point its way and their mean is more than the noise of the test images, refuted where all
point the other way by as much, and else within the noise; that two are alike is met where the mean of the differences
is within one point.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import math
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import a_core_each

from parelu.runs.folder import Run

HERE = Path(__file__).parent
FILE = HERE / "tables.csv"
CLOSE = 0.03  # of ReLUs: budgets so near to the end of a curve are on it
NOISE = 0.3  # points: the standard deviation over 10,000 test images where one network alone is right on 9 % of them

Where = Literal["all", "fewest", "most"]


@dataclasses.dataclass(frozen=True)
class Contrast:
    """what: of both; better, worse: patterns of "network: entry"; at: which points of the better one's curve."""

    what: str
    better: str
    worse: str
    at: Where = "all"
    are_alike: bool = False


@dataclasses.dataclass(frozen=True)
class Claim:
    """A recipe, what of it is run, and what its paper says that it shows."""

    recipe: str
    says: str
    contrasts: tuple[Contrast, ...]
    networks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        networks = ["--networks", *self.networks] if self.networks else []
        return [self.recipe, "--scale", "small", *networks, *(["--methods", *self.methods] if self.methods else [])]


CLAIMS = (
    Claim(
        "deepreshape/table5",
        "thinning before SNL gains",
        (Contrast("thinned SNL − SNL", ": snl-thin-thin$", ": snl$"),),
        networks=("resnet18",),
    ),
    Claim(
        "deepreshape/table6",
        "DKD gains over KD, teacher ResNet18",
        tuple(
            Contrast(f"DKD, β = {beta} − KD", f": steps.*{label}$", ": steps.*-kd$")
            for beta, label in ((1, "-dkd"), (0.8, "-dkd-0.8"), (2, "-dkd-2"), (6, "-dkd-6"))
        ),
        networks=("hrn-2x5x3x m=8",),
    ),
    Claim(
        "autorep/figure8-cifar100",
        "quadratic over linear over SNL",
        (
            Contrast("quadratic − linear", "autorep.*-quadratic$", "autorep.*-linear$"),
            Contrast("quadratic − SNL", "autorep.*-quadratic$", ": snl"),
            Contrast("linear − SNL", "autorep.*-linear$", ": snl"),
        ),
    ),
    Claim(
        "autorep/figure9",
        "a threshold of 0.003 gains over 0, most at few ReLUs",
        (
            Contrast("t = 0.003 − 0", "-t0.003$", "-t0$"),
            Contrast("the same, fewest ReLUs", "-t0.003$", "-t0$", "fewest"),
            Contrast("t = 0.001 − 0", "-t0.001$", "-t0$"),
            Contrast("t = 0.01 − 0", "-t0.01$", "-t0$"),
        ),
    ),
    Claim(
        "autorep/figure10",
        "the penalty's weight hardly matters",
        tuple(Contrast(f"μ = {mu} − 40", f"-mu{mu}$", "-mu40$", are_alike=True) for mu in (20, 80, 200)),
    ),
    Claim(
        "shallow/pram",
        "the mismatch of maps (PRAM) is part of the loss; no network without it is shown",
        (Contrast("with PRAM − without", ": gated-pram$", ": gated-without$"),),
    ),
    Claim(
        "deepreshape/figure12",
        "at equal ReLUs StageCh over BaseCh; HybReNet as good with fewer ReLUs",
        (
            Contrast("StageCh 4x4x4x − BaseCh", "4x4x4x.*: teacher", r"^resnet18 m=\d+: teacher"),
            Contrast("HRN-5x5x3x − BaseCh", "hrn-5x5x3x.*: teacher", r"^resnet18 m=\d+: teacher"),
        ),
        networks=("hrn-5x5x3x m=16", "resnet18 m=16 4x4x4x", "resnet18 m=32", "resnet18 m=64"),
    ),
    Claim(
        "deepreshape/figure13",
        "ReLU-reuse over channel and map scaling, 1 to 3 points",
        (Contrast("ReLU-reuse − scaling", r"_reuse-\d+$", "_(channels|fmap)-0.5$"),),
        networks=("hrn-2x5x3x m=16",),
        methods=("steps",),
    ),
    Claim(
        "deepreshape/figure6",
        "capacity decides at many ReLUs (4x4x4x ahead), the share of stage 1 at few (2x2x2x ahead)",
        (
            Contrast("4x4x4x − 2x2x2x, most ReLUs", "4x4x4x.*: snl$", r"^resnet18 m=\d+: snl$", "most"),
            Contrast("2x2x2x − 4x4x4x, fewest ReLUs", r"^resnet18 m=\d+: snl$", "4x4x4x.*: snl$", "fewest"),
            Contrast("2x2x2x − 3x7x2x, fewest ReLUs", r"^resnet18 m=\d+: snl$", "3x7x2x.*: snl$", "fewest"),
        ),
        methods=("snl",),
    ),
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network of a run: a row of the file. entry: its name without the budget; accuracies in percent."""

    recipe: str
    network: str
    seed: int
    entry: str
    relus: int
    squares: int
    validation: float
    test: float


def run(arguments: argparse.Namespace) -> None:
    known = {claim.recipe: claim for claim in CLAIMS}
    out = Path(arguments.out)
    a_core_each.run(
        (
            f"{recipe}, seed {seed}",
            [
                *(sys.executable, "-m", "parelu", "recipe", *known[recipe].arguments),
                *("--seeds", str(seed), "--run", str(out / recipe)),
            ],
            out / "logs" / f"{recipe.replace('/', '-')}-{seed}.txt",
        )
        for seed in arguments.seeds
        for recipe in arguments.recipes
    )


def collect(arguments: argparse.Namespace) -> None:
    """Rows of runs that are there take the place of those in the file."""
    found = {_key(row): row for row in read()}
    for claim in CLAIMS:
        for path in sorted((Path(arguments.out) / claim.recipe).rglob("config.json")):
            found |= {_key(row): row for row in rows_of(Run.open(path.parent), claim.recipe)}
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Trained)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(found[key]) for key in sorted(found))


def rows_of(one: Run, recipe: str) -> Iterable[Trained]:
    for record in one.candidates():
        m = record.metrics
        entry = record.name.replace(f"-{m.budget}", "", 1) if m.budget else record.name
        accuracies = round(m.validation_accuracy, 2), round(m.test_accuracy, 2)
        yield Trained(recipe, one.network, m.seed, entry, m.relus_and_comparisons, m.squares, *accuracies)


def _key(row: Trained) -> tuple[str, str, str, int, int]:
    return row.recipe, row.network, row.entry, -row.relus, row.seed


def read() -> list[Trained]:
    if not FILE.exists():
        return []
    kinds = {"seed": int, "relus": int, "squares": int, "validation": float, "test": float}
    with FILE.open(newline="") as file:
        return [Trained(**{k: kinds.get(k, str)(v) for k, v in row.items()}) for row in csv.DictReader(file)]


Curve = Sequence[tuple[int, float]]  # (ReLUs, test accuracy), by rising ReLUs


def difference(better: Curve, worse: Curve, at: Where) -> float | None:
    """The mean over the points of the better curve that lie over the worse one; None where none does."""
    points = {"all": better, "fewest": better[:1], "most": better[-1:]}[at]
    found = [accuracy - value for relus, accuracy in points if (value := _on(worse, relus)) is not None]
    return statistics.mean(found) if found else None


def _on(curve: Curve, relus: int) -> float | None:
    """The curve's accuracy at so many ReLUs, on lines over their logarithm; None beyond its ends."""
    near = min(curve, key=lambda point: abs(point[0] - relus), default=None)
    if near is None or abs(near[0] - relus) <= CLOSE * relus:
        return near and near[1]
    for (low, below), (high, above) in itertools.pairwise(curve):
        if low < relus < high:
            return below + (above - below) * math.log(relus / low) / math.log(high / low)
    return None


def curve_of(rows: Iterable[Trained], pattern: str, seed: int) -> Curve:
    """The highest accuracy of each number of ReLUs."""
    found: dict[int, float] = {}
    for row in rows:
        if row.seed == seed and re.search(pattern, f"{row.network}: {row.entry}"):
            found[row.relus] = max(row.test, found.get(row.relus, 0.0))
    return sorted(found.items())


def verdict(differences: Sequence[float], *, are_alike: bool) -> str:
    if len(differences) < 2:
        return "one seed says nothing"
    if are_alike:
        return "yes" if abs(statistics.mean(differences)) <= 1 else "no"
    is_one_way = all(value > 0 for value in differences) or all(value < 0 for value in differences)
    mean = statistics.mean(differences)
    if not is_one_way or abs(mean) <= NOISE:
        return "within the noise"
    return "yes" if mean > 0 else "no"


def table(_: argparse.Namespace) -> None:
    rows = read()
    print(
        "| recipe | the paper says | contrast | points of test accuracy | seeds | agrees |\n|---|---|---|---|---|---|"
    )
    for claim in CLAIMS:
        ours = [row for row in rows if row.recipe == claim.recipe]
        seeds = sorted({row.seed for row in ours})
        for contrast in claim.contrasts:
            curves = [(curve_of(ours, contrast.better, s), curve_of(ours, contrast.worse, s)) for s in seeds]
            found = [d for pair in curves if (d := difference(*pair, contrast.at)) is not None]
            if found:
                agrees = verdict(found, are_alike=contrast.are_alike)
                each = ", ".join(f"{value:+.1f}" for value in found)
                print(
                    f"| `{claim.recipe}` | {claim.says} | {contrast.what} | {plus_minus(found, '+.1f')} | {each} "
                    f"| {agrees} |"
                )


def points(_: argparse.Namespace) -> None:
    """A row a network: mean and standard deviation over the seeds."""
    print("| recipe | network | entry | ReLUs | squares | test, % | seeds |\n|---|---|---|---|---|---|---|")
    grouped = itertools.groupby(sorted(read(), key=_key), key=lambda row: _key(row)[:4])
    for (recipe, network, entry, relus), group in grouped:
        same = list(group)
        squares = f"{same[0].squares:,}" if same[0].squares else ""
        test = plus_minus([row.test for row in same], ".1f")
        print(f"| `{recipe}` | {network} | {entry} | {-relus:,} | {squares} | {test} | {len(same)} |")


def plus_minus(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation."""
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [claim.recipe for claim in CLAIMS]
    parser.add_argument("action", choices=("run", "collect", "table", "points"))
    parser.add_argument("--out", default="runs/tables")
    parser.add_argument("--recipes", nargs="+", choices=known, default=known, metavar="RECIPE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    {"run": run, "collect": collect, "table": table, "points": points}[arguments.action](arguments)


if __name__ == "__main__":
    main()
