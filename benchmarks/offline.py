"""A whole inference, offline and online, by each offline mode and by SPU's engines, on one network.

    python benchmarks/offline.py --systems hints seal spu-semi2k spu-cheetah --repeat 5   # some 12 minutes
    python benchmarks/offline.py --keep 1.0

ResNet20 with fresh weights and a random mask, batch 1, two processes over loopback. The systems take turns; a ratio is
the median over the turns of that system's seconds by the first one's in the same turn, with its range. SPU's engines
have no offline phase: semi2k's client deals the randomness, so that it is no private system, and its seconds a floor.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from private import Case, network_case, ratios

from parelu.private.engines.base import engines
from parelu.private.offline.mode import modes

IMAGES = 1  # a turn, after the same one that warms up


def whole(row: dict[str, Any]) -> float:
    """Seconds of an inference with its offline phase."""
    return sum(row[phase]["seconds"] for phase in _phases(row))


def _phases(row: dict[str, Any]) -> tuple[str, ...]:
    return ("offline", "online") if "offline" in row else ("total",)


def case_of(system: str, network: Case) -> Case:
    """system: an offline mode of ours, or another engine."""
    settings = {"engine": system} if system in engines() else {"offline": system}
    return dataclasses.replace(network, images=network.images[:IMAGES], settings=settings)


def text(rows: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each system, and whom each trusts."""
    first = next(iter(rows))
    lines = [
        f"{'system':<14}{'seconds':>9}{'range':>14}{'offline':>9}{'online':>8}{'CPU c + s':>14}{'MB down/up':>14}"
        f"   ÷ {first}"
    ]
    for name, found in rows.items():
        seconds = sorted(map(whole, found))
        parts = {
            phase: f"{statistics.median(row[phase]['seconds'] for row in found):.3f}" if phase in found[0] else "–"
            for phase in ("offline", "online")
        }
        phases = _phases(found[0])
        totals = {
            what: statistics.median(sum(row[phase][what] for phase in phases) for row in found)
            for what in ("cpu_client", "cpu_server", "bytes_to_client", "bytes_to_server")
        }
        span, cpu = f"{seconds[0]:.3f}–{seconds[-1]:.3f}", f"{totals['cpu_client']:.2f} + {totals['cpu_server']:.2f}"
        size = f"{totals['bytes_to_client'] / 1e6:.1f}/{totals['bytes_to_server'] / 1e6:.1f}"
        lines.append(
            f"{name:<14}{statistics.median(seconds):>9.3f}{span:>14}{parts['offline']:>9}{parts['online']:>8}"
            f"{cpu:>14}{size:>14}   {ratios([*map(whole, found)], [*map(whole, rows[first])])}"
        )
    trust = [f"  {name}: {found[0]['threat_model']}" for name, found in rows.items()]
    return "\n".join([*lines, *trust])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*modes(), *(name for name in engines() if name.startswith("spu-"))]
    parser.add_argument(
        "--systems", nargs="+", default=[*modes()], choices=known, help="others are divided by the first"
    )
    parser.add_argument("--keep", type=float, default=0.1, help="the share of ReLUs that stays")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file for the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = network_case(arguments.keep)
    rows: dict[str, list[dict[str, Any]]] = {system: [] for system in arguments.systems}
    for turn in range(arguments.repeat):
        for system, found in rows.items():
            found.append(case_of(system, network).row())
            print(f"  {turn + 1}/{arguments.repeat} {system}: {whole(found[-1]):.3f} s", file=sys.stderr, flush=True)
    print(f"ResNet20 at 32×32, {next(iter(rows.values()))[0]['relus']:,} ReLUs, {os.cpu_count()} cores")
    print(text(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
