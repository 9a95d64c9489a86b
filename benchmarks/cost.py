"""What is predicted of private inference beside what is measured: forty candidates that no calibration has seen.

    python benchmarks/cost.py                                  what benchmarks/cost.csv does not have yet
    python benchmarks/cost.py --part 1/4                       every fourth candidate, some minutes
    python benchmarks/cost.py --calibration one.json --out mine.csv runs/quickstart/candidates/snl-5000
    python benchmarks/cost.py --predict                        predictions of what stands there anew, by a calibration
    python benchmarks/cost.py --table                          of what stands there
    python benchmarks/cost.py --memory                         peak memory of both parties, each in processes of its own

Five networks of as many families with fresh weights, each under eight masks of the shapes that the methods make, or
candidates that are named: seconds need no training. Each is measured on loopback, LAN and WAN by the same two
processes; medians of some queries after one that warms up. CPU seconds tell the model apart from the machine, `others`
is the share that other processes had of it meanwhile, `pace` how much slower it was than at its fastest.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parelu.network.count import shared_skeleton
from parelu.network.plan import Plan, SitePlan
from parelu.network.sites import IDENTITY
from parelu.network.spec import spec_of
from parelu.network.steps import apply_steps, stages_of
from parelu.private.cost.calibrate import PARTIES, cost_of
from parelu.private.cost.calibration import Calibration, chosen, warning_of
from parelu.private.cost.measure import Undisturbed
from parelu.private.cost.predict import PHASES, Estimate, predict
from parelu.private.engines.base import Options
from parelu.private.engines.delphi import Delphi
from parelu.private.engines.parties import Parties
from parelu.private.fresh import fresh, noise
from parelu.private.lowering.lower import lower
from parelu.private.lowering.lowered import Lowered
from parelu.private.offline.mode import ring_for
from parelu.runs.workload import trained_workload

HERE = Path(__file__).parent
ROWS = HERE / "cost.csv"
IMAGES = {"loopback": 7, "lan": 5, "wan": 2}
KEY = ("network", "mask", "relu", "offline", "link")
COLUMNS = (
    *KEY,
    "phase",
    *(f"{what}_{of}" for of in ("seconds", "cpu_client", "cpu_server") for what in ("predicted", "measured")),
    "low",
    "high",
    "bytes",
    "rounds",
    "exact",
    "others",
    "pace",
)

NETWORKS: dict[str, tuple[int, int, int]] = {
    "resnet18 m=6": (3, 32, 32),
    "vgg16 m=6 (64 classifier)": (3, 32, 32),
    "mobilenetv1 m=6": (3, 32, 32),
    "wrn-10-2 m=6": (3, 32, 32),
    "hrn-2x5x3x m=4": (3, 32, 32),
}
# ReLU protocol and offline mode, in turn; seven are prime to the masks and to the networks.
SETTINGS = (
    ("sign", "dealer"),
    ("full", "dealer"),
    ("fss", "dealer"),
    ("sign", "hints"),
    ("sign", "dealer"),
    ("full", "hints"),
    ("sign", "seal"),
)
MOST = {"full": 10_000, "seal": 10_000}  # ReLUs with which it is measured: with more, minutes on a WAN
Row = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


def _drawn(shapes: Shapes, share: Callable[[float], float]) -> dict[str, Tensor]:
    """share: of a site's ReLUs, by its depth from 0 to 1."""
    generator, last = torch.Generator().manual_seed(0), max(1, len(shapes) - 1)
    return {
        name: torch.rand(shape, generator=generator) < share(number / last)
        for number, (name, shape) in enumerate(shapes.items())
    }


def _whole(shapes: Shapes, kept: Callable[[int], bool]) -> dict[str, Tensor]:
    """Whole sites."""
    return {name: torch.full(shape, kept(number)) for number, (name, shape) in enumerate(shapes.items())}


def _channels(shapes: Shapes) -> dict[str, Tensor]:
    """Every third channel of each site."""
    return {
        name: (torch.arange(shape[0]) % 3 == 0).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
        for name, shape in shapes.items()
    }


def _every(shapes: Shapes, step: int) -> dict[str, Tensor]:
    """Every so-and-so-manyth position."""
    return {name: (torch.arange(torch.Size(s).numel()) % step == 0).reshape(s) for name, s in shapes.items()}


# What a method leaves of the ReLUs: its shape, not its accuracy.
MASKS: dict[str, Callable[[Shapes], dict[str, Tensor]]] = {
    "all": lambda shapes: _whole(shapes, lambda number: True),  # a teacher
    "random": lambda shapes: _drawn(shapes, lambda depth: 0.1),
    "uniform": lambda shapes: _every(shapes, 4),
    "late": lambda shapes: _drawn(shapes, lambda depth: 0.02 + 0.5 * depth**2),  # snl, fisher, bcd, snip
    "channels": _channels,  # channels, safenet
    "sites": lambda shapes: _whole(shapes, lambda number: number % 2 == 0),  # senet, gated
    "squares": lambda shapes: _drawn(shapes, lambda depth: 0.05),  # autorep, delphi: squares beside them
}
STAGES = "stages"  # deepreduce, deepreshape: by their steps


def candidates() -> Iterator[tuple[str, str, str, str]]:
    """(network, mask, ReLU protocol, offline mode)."""
    settings = itertools.cycle(SETTINGS)
    for name, mask in itertools.product(NETWORKS, (*MASKS, STAGES)):
        relus = plan_of(name, mask).relus
        relu, offline = next(s for s in settings if relus <= min(MOST.get(s[0], relus), MOST.get(s[1], relus)))
        yield name, mask, relu, offline


def plan_of(name: str, mask: str) -> Plan:
    spec = spec_of(name, NETWORKS[name], 10)
    if mask == STAGES:
        first, second, *_ = stages_of(shared_skeleton(spec))
        return apply_steps(spec, f"cull {first}; thin {second}").plan
    plan = Plan.from_masks(MASKS[mask]({n: site.shape for n, site in shared_skeleton(spec).sites.items()}))
    if mask != "squares":
        return plan
    square, identity = torch.tensor([0.1, 0.5, 0.1])[:, None], torch.tensor(IDENTITY)[:, None]
    sites = enumerate(plan.sites.items())
    return Plan(
        {n: SitePlan(s.mask, (identity if k % 3 else square).repeat(1, s.mask.shape[0])) for k, (n, s) in sites}
    )


def lowered_of(name: str, mask: str, offline: str) -> Lowered:
    candidate = fresh(spec_of(name, NETWORKS[name], 10), plan_of(name, mask))
    images = noise(4, NETWORKS[name], seed=1)
    return lower(candidate.network(), images, candidate.preprocessing, ring=ring_for(offline))


def rows_of(
    measuring: Undisturbed, lowered: Lowered, key: Row, options: Options, calibration: Calibration
) -> Iterator[Row]:
    """Of the phases."""
    prediction = predict(lowered.program, options, calibration, lowered)
    images = noise(IMAGES[options.link], lowered.program.input_shape, seed=0)
    found = measuring(lowered, images, options)
    for phase in PHASES:
        predicted, measured = getattr(prediction, phase), cost_of(found.costs, phase)
        row: Row = {**key, "phase": phase, **told(predicted), "measured_seconds": measured.seconds}
        row |= {"others": found.others, "pace": found.pace}
        row |= {f"measured_cpu_{party}": measured.cpu[party] for party in PARTIES}
        row |= {"bytes": sum(predicted.sent.values()), "rounds": predicted.rounds}
        row["exact"] = (dict(measured.sent), measured.rounds) == (dict(predicted.sent), predicted.rounds)
        yield rounded(row)


def told(predicted: Estimate) -> Row:
    """Of one phase, what a calibration says."""
    cpu = {f"predicted_cpu_{party}": predicted.cpu[party] for party in PARTIES}
    return {"predicted_seconds": predicted.seconds, "low": predicted.low, "high": predicted.high, **cpu}


def rounded(row: Row) -> Row:
    return {name: f"{value:.4g}" if type(value) is float else value for name, value in row.items()}


def predict_again(out: Path, calibration: Calibration) -> None:
    """The predictions in a file by this calibration; what was measured stays."""
    rows = read(out)
    for key, group in itertools.groupby(rows, key=lambda row: tuple(row[name] for name in KEY[:-1])):
        lowered = lowered_of(key[0], key[1], key[3])
        for row in group:
            options = Options(row["relu"], row["offline"], row["link"])
            prediction = predict(lowered.program, options, calibration, lowered)
            row |= rounded(told(getattr(prediction, row["phase"])))
    out.unlink()
    append(out, rows)


def asked(folders: Sequence[str], part: str) -> Iterator[tuple[Row, Lowered]]:
    """Folders of candidates, or that part of those that are named here, with their programs."""
    for folder in folders:
        for relu, offline in SETTINGS[:4]:
            key = dict(zip(KEY[:-1], (folder, "", relu, offline), strict=True))
            yield key, trained_workload(Path(folder), 1, offline).lowered
    number, of = map(int, part.split("/"))
    for name, mask, relu, offline in itertools.islice(() if folders else candidates(), number - 1, None, of):
        yield dict(zip(KEY[:-1], (name, mask, relu, offline), strict=True)), lowered_of(name, mask, offline)


def measure(found: Sequence[tuple[Row, Lowered]], out: Path, calibration: Calibration) -> None:
    """Fill the file, which is written after each measurement."""
    done = {tuple(row[name] for name in KEY) for row in read(out)}
    with Parties() as parties:
        measuring = Undisturbed(parties)
        for candidate, lowered in found:
            for link in IMAGES:
                key = {**candidate, "link": link}
                if tuple(key.values()) in done:
                    continue
                rows = list(rows_of(measuring, lowered, key, Options(key["relu"], key["offline"], link), calibration))
                append(out, rows)
                print(*map(line, rows), sep="\n", flush=True)


def line(row: Row) -> str:
    key = ", ".join(row[name] for name in KEY if row[name])
    pairs = ((f"predicted_{of}", f"measured_{of}") for of in ("seconds", "cpu_client", "cpu_server"))
    times = "  ".join(f"{1e3 * float(row[a]):.1f} for {1e3 * float(row[b]):.1f}" for a, b in pairs)
    return f"{key}, {row['phase']}: {times} ms, bytes and rounds {'exact' if row['exact'] in (True, 'True') else 'OFF'}"


def append(path: Path, rows: Sequence[Row]) -> None:
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Sequence[Row]) -> str:
    """By phase and link, and of all queries: the median and the worst error of seconds, of CPU seconds, what was within
    its interval, and what was exact."""
    lines = [
        "| phase | link | measurements | seconds, median error | worst | within the interval "
        "| CPU of the client | of the server | bytes and rounds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keyed = sorted(rows, key=lambda row: (row["phase"], row["link"]))
    for (phase, link), group in itertools.groupby(keyed, key=lambda row: (row["phase"], row["link"])):
        lines.append(_cells(phase, link, list(group)))
    queries = [row for row in rows if row["phase"] != PHASES[0]]
    return "\n".join([*lines, *([_cells("all but the setup", "all", queries)] if queries else [])])


def _cells(phase: str, link: str, found: Sequence[Row]) -> str:
    errors = {of: [_error(row, of) for row in found] for of in ("seconds", "cpu_client", "cpu_server")}
    inside = sum(float(r["low"]) <= float(r["measured_seconds"]) <= float(r["high"]) for r in found)
    exact = sum(row["exact"] == "True" for row in found)
    medians = {of: f"{statistics.median(values):.1%}" for of, values in errors.items()}
    return (
        f"| {phase} | {link} | {len(found)} | {medians['seconds']} | {max(errors['seconds']):.0%} "
        f"| {inside} of {len(found)} | {medians['cpu_client']} | {medians['cpu_server']} "
        f"| {exact} of {len(found)} exact |"
    )


def _error(row: Row, of: str) -> float:
    return abs(float(row[f"predicted_{of}"]) / float(row[f"measured_{of}"]) - 1)


def memory(found: Iterable[tuple[Row, Lowered]], calibration: Calibration) -> str:
    """Of each candidate by processes of its own, whose peak is then that of one network."""
    lines = ["| candidate | client, MiB predicted | measured | server, predicted | measured |", "|---|---|---|---|---|"]
    for key, lowered in found:
        options = Options(key["relu"], key["offline"])
        told = predict(lowered.program, options, calibration, lowered).memory
        costs = Delphi().run(lowered, noise(2, lowered.program.input_shape, seed=0), options).costs
        cells = (f"{told[party] / 2**20:.0f} | {getattr(costs, f'peak_mb_{party}'):.0f}" for party in PARTIES)
        lines.append(f"| {', '.join(map(str, key.values()))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("candidates", nargs="*", help="folders of candidates; left out, the forty that are named here")
    parser.add_argument("--part", default="1/1", help="K/N: every Nth of the forty, from the Kth")
    parser.add_argument("--calibration", type=Path, help="left out, this user's own, or the one that ships")
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table:
        calibration = chosen(arguments.calibration)
        print(warning_of(calibration) or f"seconds of {calibration.machine}, {calibration.made}")
        if arguments.predict:
            predict_again(arguments.out, calibration)
        elif arguments.memory:
            print(memory(asked(arguments.candidates, arguments.part), calibration))
            return
        else:
            measure(list(asked(arguments.candidates, arguments.part)), arguments.out, calibration)
    print(table(read(arguments.out)))


if __name__ == "__main__":
    main()
