"""Which method is most accurate at equal predicted seconds: `latency` against all others that take such budgets.

    python benchmarks/latency.py plan                                    its cells, and about how long they take
    python benchmarks/latency.py run --out runs/latency                  a cell a core, one thread each; goes on
    python benchmarks/latency.py collect --out runs/latency              into benchmarks/latency.csv
    python benchmarks/latency.py table                                   of it: against the best other method
    python benchmarks/latency.py ablation                                of it: `latency` without one of its parts

A cell is a data set, a link and a seed: one network, taught by one full-ReLU network, and every method at the same
budgets, which are shares of what the whole network takes online. The calibration is the one that ships, so that the
budgets are the same everywhere. All methods, and `latency` without its parts, are in the cells of `WHOLE`; the others
have `FEW`, so that three seeds of six cells take about 140 minutes of a core.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import a_core_each
import torch

from parelu.methods.base import Method, methods
from parelu.methods.latency import Latency
from parelu.methods.learned import LearnedMasks
from parelu.methods.limits import ONLINE, shown
from parelu.network.count import skeleton
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.private.cost import calibration
from parelu.private.engines.base import Options
from parelu.runs import scale
from parelu.runs.executor import InProcess
from parelu.runs.experiment import Experiment, Reduction, run_experiment
from parelu.runs.folder import Run
from parelu.runs.pricing import Calibrated

HERE = Path(__file__).parent
FILE = HERE / "latency.csv"
MODEL = "resnet10 m=8"
INPUTS = {"colour-fashion": (3, 16, 16), "fashion-mnist": (1, 16, 16)}
LINKS = ("loopback", "lan", "wan")
SHARES = (0.3,)  # of what the whole network takes online
OTHERS = tuple(
    name
    for name, cls in methods().items()
    if name not in ("latency", "steps") and (cls.needs is None or find_spec(cls.needs[0]))
)
WHOLE = "colour-fashion", "wan"
FEW = ("latency", "fisher", "snip", "snl", "senet", "uniform")
IMAGES = 6000
# Of a core, for one budget with `IMAGES` on a machine of two busy cores; of the others as `USUAL`.
MINUTES = {"latency": 1.2, "fisher": 0.9, "snip": 0.5, "snl": 0.7, "senet": 1.9, "uniform": 0.4, "random": 0.4}
USUAL = 1.2
PARTS = {"no-sites": Latency(sites=False), "no-positions": Latency(positions=False),
         "no-widths": Latency(widest=1.0)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """A candidate. entry: method and label; share: of the whole network's seconds; online: predicted seconds; sites:
    that have ReLUs or squares; accuracies in percent."""

    data: str
    link: str
    seed: int
    entry: str
    share: float
    online: float
    relus: int
    sites: int
    validation: float
    test: float


class Silent:
    """A `Watcher`."""

    def queued(self, task, cost) -> None: ...

    def moved(self, name, progress, where="") -> None: ...

    def finished(self, name, candidate, *, resumed) -> None:
        if not resumed:
            print(f"  {name}", flush=True)


def budgets(link: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """As they are written → the share of the whole network's."""
    spec = spec_of(MODEL, shape, scale.CLASSES)
    whole = price(link)(spec, Plan.of(skeleton(spec)))[ONLINE]
    return {shown(ONLINE, share * whole, 4): share for share in SHARES}


def price(link: str) -> Calibrated:
    return Calibrated(Options(link=link), calibration.chosen())


def shortened(method: Method) -> Method:
    """With the epochs of the small scale."""
    if not isinstance(method, LearnedMasks):
        return method
    return dataclasses.replace(method, search_epochs=scale.SEARCH, finetune_epochs=scale.FINETUNE)


def reductions(name: str, texts: Sequence[str], parts: Sequence[str]) -> tuple[Reduction, ...]:
    """Of a method; `latency` also without some of its parts."""
    entries = {"": Latency(), **{part: PARTS[part] for part in parts}} if name == "latency" else {"": methods()[name]()}
    return tuple(Reduction(shortened(method), tuple(texts), label=label) for label, method in entries.items())


def cell(arguments: argparse.Namespace) -> None:
    """One cell, a run for each method: what one of them cannot reach stops no other."""
    (data,), (link,), (seed,) = arguments.data, arguments.links, arguments.seeds
    texts = [text for text, share in budgets(link, INPUTS[data]).items() if share in arguments.shares]
    folder = Path(arguments.out) / data / link / str(seed)
    torch.set_num_threads(1)
    for name in arguments.methods:
        experiment = Experiment(
            MODEL,
            data,
            reductions(name, texts, arguments.parts or ()),
            scale.FULL,
            seed=seed,
            input=INPUTS[data],
            images=arguments.images,
            query=Options(link=link),
        )
        lenders = sorted(path.parent for path in (Path(arguments.out) / data).glob(f"*/{seed}/*/config.json"))
        try:
            run_experiment(experiment, folder / name, Silent(), InProcess(), lenders)
        except Exception as error:  # one method of a cell of many: it is said, and asked for again
            print(f"  {name}: {type(error).__name__}: {error}", flush=True)


@dataclasses.dataclass(frozen=True)
class Cell:
    """methods, parts: what is run in it."""

    data: str
    link: str
    seed: int
    methods: tuple[str, ...]
    parts: tuple[str, ...]

    def minutes(self, arguments: argparse.Namespace) -> float:
        """Of one core."""
        one = sum(MINUTES.get(name, USUAL) for name in self.methods) + len(self.parts) * MINUTES["latency"]
        return one * len(arguments.shares) * arguments.images / IMAGES

    def command(self, arguments: argparse.Namespace) -> list[str]:
        one = ["--data", self.data, "--links", self.link, "--seeds", str(self.seed), "--out", arguments.out]
        rest = ["--images", str(arguments.images), "--methods", *self.methods]
        rest += ["--parts", *self.parts, "--shares", *map(str, arguments.shares)]
        return [sys.executable, __file__, "cell", *one, *rest]


def asked(arguments: argparse.Namespace) -> list[Cell]:
    """In an order in which each seed's are together: the first say something before the last are there."""
    found = []
    for seed, data, link in itertools.product(arguments.seeds, arguments.data, arguments.links):
        is_whole = (data, link) == WHOLE
        names = arguments.methods or (("latency", *OTHERS) if is_whole else FEW)
        parts = (PARTS if is_whole else ()) if arguments.parts is None else arguments.parts
        found.append(Cell(data, link, seed, tuple(names), tuple(parts) if "latency" in names else ()))
    return found


def plan(arguments: argparse.Namespace) -> None:
    cells_ = asked(arguments)
    for one in cells_:
        parts = f"; without {', '.join(one.parts)}" if one.parts else ""
        minutes = one.minutes(arguments)
        print(f"{one.data}, {one.link}, seed {one.seed}: {minutes:.0f} min: {', '.join(one.methods)}{parts}")
    print(f"{len(cells_)} cells, about {sum(one.minutes(arguments) for one in cells_):.0f} minutes of a core")


def run(arguments: argparse.Namespace) -> None:
    logs = Path(arguments.out) / "logs"
    a_core_each.run(
        (
            f"{one.data}, {one.link}, seed {one.seed}",
            one.command(arguments),
            logs / f"{one.data}-{one.link}-{one.seed}.txt",
        )
        for one in asked(arguments)
    )


def collect(arguments: argparse.Namespace) -> None:
    """Rows of runs that are there take the place of those in the file."""
    found = {_key(row): row for row in read()}
    for path in sorted(Path(arguments.out).glob("*/*/*/*/config.json")):
        found |= {_key(row): row for row in rows_of(path.parent)}
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(found[key]) for key in sorted(found))


def rows_of(folder: Path) -> Iterator[Row]:
    data, link, seed, _ = folder.parts[-4:]
    shares, run = budgets(link, INPUTS[data]), Run.open(folder)
    for record in run.candidates():
        metrics = record.metrics
        if metrics.role != "candidate" or metrics.limits not in shares or metrics.foretold is None:
            continue
        sites = run.candidate(record.name).plan.sites.values()
        yield Row(
            data,
            link,
            int(seed),
            record.name.replace(f"-{metrics.limits}", ""),
            shares[metrics.limits],
            round(metrics.foretold[ONLINE], 6),
            metrics.relus,
            sum(bool(site.relus or site.squares) for site in sites),
            round(metrics.validation_accuracy, 2),
            round(metrics.test_accuracy, 2),
        )


def _key(row: Row) -> tuple[str, str, float, str, int]:
    return row.data, row.link, row.share, row.entry, row.seed


def read() -> list[Row]:
    if not FILE.exists():
        return []
    kinds = {"seed": int, "relus": int, "sites": int, "data": str, "link": str, "entry": str}
    with FILE.open(newline="") as file:
        return [Row(**{k: kinds.get(k, float)(v) for k, v in row.items()}) for row in csv.DictReader(file)]


def table(_: argparse.Namespace) -> None:
    """The best other method is the one with the highest mean over the seeds, on the test set: no easier to beat."""
    print(
        "| data | link | budget | `latency` | best other | its test, % | points | seeds | ahead |\n" + "|---" * 9 + "|"
    )
    for (data, link, share), rows in cells(read()):
        ours = of_entry(rows, "latency")
        others = {row.entry for row in rows if not row.entry.startswith("latency")}
        if not ours or not others:
            continue
        best = max(others, key=lambda entry: statistics.mean(of_entry(rows, entry).values()))
        theirs = of_entry(rows, best)
        print(
            f"| {data} | {link} | {shown(ONLINE, taken(rows), 3)}, {share:g} of the whole | {spread(ours.values())} "
            f"| {best} | {spread(theirs.values())} | {compared(ours, theirs)} |"
        )


def ablation(_: argparse.Namespace) -> None:
    heads = ("data", "link", "share", "without", "points that the part gives", "seeds", "gains")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for (data, link, share), rows in cells(read()):
        ours = of_entry(rows, "latency")
        for label in PARTS:
            if ours and (without := of_entry(rows, f"latency-{label}")):
                print(f"| {data} | {link} | {share:g} | {label} | {compared(ours, without)} |")


def cells(rows: Iterable[Row]) -> Iterator[tuple[tuple[str, str, float], list[Row]]]:
    found: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row.data, row.link, row.share), []).append(row)
    yield from sorted(found.items())


def of_entry(rows: Iterable[Row], entry: str) -> dict[int, float]:
    """Seed → test accuracy."""
    return {row.seed: row.test for row in rows if row.entry == entry}


def taken(rows: Sequence[Row]) -> float:
    return max(row.online for row in rows)


def compared(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """The differences on the same seeds, and whether all point one way; of one seed there is none to say so."""
    found = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not found:
        return "| | "
    verdict = "within the noise"
    if len(found) > 1 and min(found) * max(found) > 0:
        verdict = "yes" if found[0] > 0 else "no"
    verdict = "one seed" if len(found) == 1 else verdict
    return f"{statistics.mean(found):+.1f} | {', '.join(f'{value:+.1f}' for value in found)} | {verdict}"


def spread(values: Iterable[float]) -> str:
    each = list(values)
    return f"{statistics.mean(each):.1f}" + (f" ± {statistics.stdev(each):.1f}" if len(each) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("plan", "run", "cell", "collect", "table", "ablation"))
    parser.add_argument("--out", default="runs/latency")
    parser.add_argument("--data", nargs="+", default=list(INPUTS))
    parser.add_argument("--links", nargs="+", default=list(LINKS))
    parser.add_argument("--methods", nargs="+", help="left out, all or a few, by the cell")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), help="of latency, without which it is run too")
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=IMAGES)
    arguments = parser.parse_args()
    actions = {"plan": plan, "run": run, "cell": cell, "collect": collect, "table": table, "ablation": ablation}
    actions[arguments.action](arguments)


if __name__ == "__main__":
    main()
