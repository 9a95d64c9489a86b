"""Which networks can be counted and run as private inference: torchvision's and timm's, and ours, as Markdown.

    pip install --no-deps torchvision timm
    python benchmarks/zoo.py                         what benchmarks/zoo.csv does not have yet, a process a network
    python benchmarks/zoo.py --again --only resnet   the rows whose name has "resnet" in it, once more
    python benchmarks/zoo.py --ring                  ring against float as well, of the networks that run
    python benchmarks/zoo.py --write docs/zoo.md     the libraries' tables between the page's markers

The rows of our networks are written by `make docs`. The libraries' networks are counted at 3×224×224 on the meta
device, against the ops that torch dispatches (benchmarks/aten.py); nothing is trained. Their list is in
benchmarks/zoo_list.py, what is done with one in benchmarks/zoo_try.py.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import zoo_list

from parelu.errors import UserError
from parelu.network.count import count, skeleton
from parelu.network.sites import Network
from parelu.network.spec import families, spec_of
from parelu.private.lowering.refusals import problems
from parelu.registry import is_own

HERE = Path(__file__).parent
ROWS = HERE / "zoo.csv"
OURS = (3, 32, 32)
COUNTED = ("relus", "comparisons", "macs", "counted", "smooth", "in_the_way", "replaced")
RING = ("side", "images", "agreement", "error", "seconds", "ring")
FIELDS = ("name", *COUNTED, *RING)
BEFORE = (
    "Before max-pools, gates and calls of functions were read, 14 of 150 such networks (9 %) ran and 8 were counted."
)
Row = dict[str, str]


def row(name: str, network: Callable[[], Network]) -> str:
    """A row of ours: name, whether it runs as private inference, ReLUs, comparisons, MACs, what is in the way."""
    try:
        found = network()
    except UserError as error:
        return f"| `{name}` | no | – | – | – | {_cell(str(error))} |"
    obstacles = collections.Counter(problem.op for problem in problems(found))
    way = ", ".join(f"{op} × {number}" if number > 1 else op for op, number in obstacles.items())
    counts = count(found, skips=True)
    cells = f"{counts.relus:,} | {counts.comparisons:,} | {counts.macs / 1e6:,.1f} M"
    return f"| `{name}` | {'no' if obstacles else 'yes'} | {cells} | {_cell(way)} |"


def _cell(text: str) -> str:
    return text.splitlines()[0].replace("|", "/")[:160] if text else ""


def head(shape: tuple[int, int, int]) -> list[str]:
    side = "×".join(map(str, shape))
    return [
        f"| network, {side} | private inference | ReLUs | comparisons | MACs | in the way |",
        "|---|---|---|---|---|---|",
    ]


def ours() -> list[str]:
    """The rows of our families' examples."""
    known = [cls for cls in families().values() if is_own(cls) and cls.family != "external"]
    names = [name for cls in known for name in cls.examples]
    return [row(name, lambda name=name: skeleton(spec_of(name, OURS, 100))) for name in names]


def read() -> dict[str, Row]:
    """Name → its row, of benchmarks/zoo.csv."""
    if not ROWS.exists():
        return {}
    with ROWS.open(newline="") as file:
        return {found["name"]: found for found in csv.DictReader(file)}


def write(rows: dict[str, Row]) -> None:
    order = [name for name, _ in zoo_list.builders()]
    with ROWS.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        table.writeheader()
        table.writerows({field: rows[name].get(field, "") for field in FIELDS} for name in order if name in rows)


def tried(name: str, seconds: int, *options: str) -> Row:
    """What a process of its own says of one network."""
    command = [sys.executable, str(HERE / "zoo_try.py"), name, *options]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"ring" if options else "counted": f"not done in {seconds} seconds"}
    if result.returncode:
        last = "".join(result.stderr.splitlines()[-1:])
        return {"ring" if options else "counted": f"exit code {result.returncode}: {last}"}
    return {key: str(value) for key, value in json.loads(result.stdout).items()}


def measure(only: str, again: bool, ring: bool, seconds: int) -> None:
    """Fill benchmarks/zoo.csv, which is written after each network."""
    rows = read()
    for name in [name for name, _ in zoo_list.builders() if only in name]:
        known = rows.setdefault(name, {"name": name})
        if again or not known.get("relus"):
            known.update(dict.fromkeys(COUNTED, "") | tried(name, seconds))
        if ring and runs(known) and (again or not known.get("side")):
            side = "32" if known.get("smooth") else "64"  # in pieces a map has 17 to 29 times as many numbers
            known.update(dict.fromkeys(RING, "") | tried(name, seconds, "--ring", "--side", side))
        write(rows)
        print(name, *(known.get(field, "")[:100] for field in FIELDS[1:]), sep=" | ", flush=True)


def is_exact(found: Row) -> bool:
    return bool(found.get("relus")) and not found.get("counted")


def runs(found: Row) -> bool:
    """As it is, or with piecewise linear functions for its smooth activations."""
    return bool(found.get("relus")) and not found.get("in_the_way")


def runs_exactly(found: Row) -> bool:
    """Without these, but for sigmoids."""
    return runs(found) and not found.get("smooth")


def runs_replaced(found: Row) -> bool:
    return bool(found.get("relus")) and not (found.get("in_the_way") and found.get("replaced"))


def summary(rows: Sequence[Row]) -> list[str]:
    lines = ["| | torchvision | timm | all |", "|---|---|---|---|"]
    libraries = [[found for found in rows if found["name"].startswith(name)] for name in ("torchvision", "timm", "")]
    lines.append("| networks | " + " | ".join(str(len(part)) for part in libraries) + " |")
    shown = [
        ("counted exactly", is_exact),
        ("run exactly as they are", runs_exactly),
        ("run without training, in pieces or exactly", runs),
        ("run after `--replace all` and training", runs_replaced),
    ]
    for label, holds in shown:
        shares = [(sum(map(holds, part)), len(part)) for part in libraries]
        lines.append(f"| {label} | " + " | ".join(f"{n} ({100 * n / max(of, 1):.3g} %)" for n, of in shares) + " |")
    return [*lines, "", BEFORE]


def table(rows: Iterable[Row]) -> list[str]:
    lines = [
        "| network, 3×224×224 | counted | runs | replaced | ReLUs | comparisons | MACs | ring | smooth; in the way |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in rows:
        relus, comparisons, macs = (int(found[key] or 0) for key in ("relus", "comparisons", "macs"))
        way = re.sub(r" \(.*?: .*?\)(?=;|$)", "", found["in_the_way"])
        cells = [
            f"`{found['name']}`",
            "yes" if is_exact(found) else "no",
            "yes" if runs_exactly(found) else "pieces" if runs(found) else "no",
            "yes" if runs_replaced(found) else "no",
            f"{relus:,} | {comparisons:,} | {macs / 1e6:,.1f} M",
            _ring(found),
            _cell("; ".join(filter(None, (found["smooth"], way or found["counted"])))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ring(found: Row) -> str:
    if not found["agreement"]:
        return _cell(found["ring"]) or "–"
    return f"{found['side']}, {found['agreement']} of {found['images']}, {float(found['error']):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--again", action="store_true", help="also what benchmarks/zoo.csv has")
    parser.add_argument("--ring", action="store_true", help="ring against float, of the networks that run")
    parser.add_argument("--limit", type=int, default=600, help="seconds for one network (default: 600)")
    parser.add_argument("--write", type=Path, help="the page with the markers")
    arguments = parser.parse_args()
    if arguments.write is None:
        measure(arguments.only, arguments.again, arguments.ring, arguments.limit)
        return
    rows = [{**dict.fromkeys(FIELDS, ""), **found} for found in read().values()]
    lines = "\n".join([*summary(rows), "", *table(rows)])
    text, changed = re.subn(
        r"(<!-- theirs -->\n).*?(\n<!-- /theirs -->)",
        lambda match: match[1] + lines + match[2],
        arguments.write.read_text(),
        flags=re.DOTALL,
    )
    if not changed:
        raise SystemExit(f"{arguments.write} has no <!-- theirs --> … <!-- /theirs -->")
    arguments.write.write_text(text)


if __name__ == "__main__":
    main()
