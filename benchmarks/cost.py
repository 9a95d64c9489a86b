"""What is predicted of private inference beside what is measured: networks that no calibration has seen.

    python benchmarks/cost.py                                  what benchmarks/cost.csv does not have yet
    python benchmarks/cost.py --few                            one network a family, some minutes
    python benchmarks/cost.py --calibration one.json --out mine.csv runs/quickstart/candidates/snl-5000
    python benchmarks/cost.py --table                          of what stands there

Networks have fresh weights and random masks, or are candidates that are named: seconds need no training. A network is
measured by the same two processes, one after another; medians of some queries after one that warms up. CPU seconds tell
the model apart from the machine: what else runs there makes the client wait longer, and takes little CPU.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from parelu.network.spec import spec_of
from parelu.private.cost.calibrate import PARTIES, cost_of
from parelu.private.cost.calibration import Calibration, chosen, warning_of
from parelu.private.cost.predict import PHASES, predict
from parelu.private.engines.base import Options
from parelu.private.engines.delphi import Delphi
from parelu.private.engines.parties import Parties
from parelu.runs.workload import Workload, trained_workload, untrained_workload

HERE = Path(__file__).parent
ROWS = HERE / "cost.csv"
IMAGES = 3
KEY = ("network", "keep", "relu", "offline", "link", "batch")
COLUMNS = (
    *KEY,
    "phase",
    *(f"{what}_{of}" for of in ("seconds", "cpu_client", "cpu_server") for what in ("predicted", "measured")),
    "low",
    "high",
    "bytes",
    "rounds",
    "exact",
)

# name, input; a tenth and all of the ReLUs
NETWORKS: dict[str, tuple[int, int, int]] = {
    "resnet10 m=8": (1, 8, 8),
    "resnet20": (3, 32, 32),
    "vgg16 m=16 (64 classifier)": (3, 32, 32),
    "mobilenetv1 m=8": (3, 32, 32),
    "hrn-2x5x3x m=8": (3, 32, 32),
    "resnet18 m=16": (3, 32, 32),
}
FEW = ("resnet10 m=8", "resnet20")
SETTINGS = [
    *(Options(relu, "dealer", link) for relu in ("sign", "fss", "full") for link in ("loopback", "lan", "wan")),
    Options("sign", "hints"),
    Options("sign", "hints", "wan"),
    Options("sign", "seal"),
    Options("sign", "hints", "lan", batch=3),
]
Row = dict[str, Any]


def rows_of(
    parties: Parties, workload: Workload, key: Row, options: Options, calibration: Calibration
) -> Iterator[Row]:
    """Of both phases."""
    prediction = predict(workload.lowered.program, options, calibration, workload.lowered)
    costs = Delphi().measure(parties, workload.lowered, workload.images, options).costs
    for phase in PHASES:
        predicted, measured = getattr(prediction, phase), cost_of(costs, phase)
        row: Row = {**key, "phase": phase, "low": predicted.low, "high": predicted.high}
        row |= {"predicted_seconds": predicted.seconds, "measured_seconds": measured.seconds}
        for party in PARTIES:
            row[f"predicted_cpu_{party}"], row[f"measured_cpu_{party}"] = predicted.cpu[party], measured.cpu[party]
        row |= {"bytes": sum(predicted.sent.values()), "rounds": predicted.rounds}
        row["exact"] = (dict(measured.sent), measured.rounds) == (dict(predicted.sent), predicted.rounds)
        yield {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}


def workloads(names: Sequence[str], offline: str) -> Iterator[tuple[str, str, Workload]]:
    """(network, share of ReLUs kept, what is measured)."""
    for name in names:
        if (Path(name) / "candidate.json").exists():
            yield name, "", trained_workload(Path(name), IMAGES, offline)
            continue
        for keep in ("1.0", "0.1"):
            yield name, keep, untrained_workload(spec_of(name, NETWORKS[name], 10), float(keep), IMAGES, 0, offline)


def measure(names: Sequence[str], out: Path, calibration: Calibration) -> None:
    """Fill the file, which is written after each measurement."""
    done = {tuple(row[name] for name in KEY) for row in read(out)}
    with Parties() as parties:
        for offline, settings in itertools.groupby(SETTINGS, key=lambda options: options.offline):
            asked = list(settings)
            for name, keep, workload in workloads(names, offline):
                for options in asked:
                    key = dict(
                        zip(KEY, (name, keep, options.relu, offline, options.link, str(options.batch)), strict=True)
                    )
                    if tuple(key.values()) in done:
                        continue
                    found = list(rows_of(parties, workload, key, options, calibration))
                    append(out, found)
                    for row in found:
                        print(line(row), flush=True)


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
    """By phase and link: the median and the worst error of seconds, of CPU seconds, and what was exact."""
    lines = [
        "| phase | link | measurements | seconds, median error | worst | within the interval "
        "| CPU of the client | of the server | bytes and rounds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keyed = sorted(rows, key=lambda row: (row["phase"], row["link"]))
    for (phase, link), group in itertools.groupby(keyed, key=lambda row: (row["phase"], row["link"])):
        found = list(group)
        errors = {of: [_error(row, of) for row in found] for of in ("seconds", "cpu_client", "cpu_server")}
        inside = sum(float(r["low"]) <= float(r["measured_seconds"]) <= float(r["high"]) for r in found)
        exact = sum(row["exact"] == "True" for row in found)
        medians = {of: f"{statistics.median(values):.0%}" for of, values in errors.items()}
        lines.append(
            f"| {phase} | {link} | {len(found)} | {medians['seconds']} | {max(errors['seconds']):.0%} "
            f"| {inside} of {len(found)} | {medians['cpu_client']} | {medians['cpu_server']} "
            f"| {exact} of {len(found)} exact |"
        )
    return "\n".join(lines)


def _error(row: Row, of: str) -> float:
    return abs(float(row[f"predicted_{of}"]) / float(row[f"measured_{of}"]) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("candidates", nargs="*", help="folders of candidates, beside the networks that are named here")
    parser.add_argument("--few", action="store_true", help=f"of the networks {' and '.join(FEW)} alone")
    parser.add_argument("--calibration", type=Path, help="left out, this user's own, or the one that ships")
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        calibration = chosen(arguments.calibration)
        print(warning_of(calibration) or f"seconds of {calibration.machine}, {calibration.made}")
        measure([*arguments.candidates, *(FEW if arguments.few else NETWORKS)], arguments.out, calibration)
    print(table(read(arguments.out)))


if __name__ == "__main__":
    main()
