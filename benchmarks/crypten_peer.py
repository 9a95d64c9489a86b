"""What CrypTen needs for private inference of a ResNet20: wall seconds and bytes, two processes on this machine.

    python benchmarks/crypten_peer.py --keep 1.0 0.1 --repeat 3 --json crypten.json

The network is a CIFAR ResNet20 with random weights (a speed needs no training), batch norms folded, one 32×32 image;
`--keep` is the share of its 188,416 ReLUs that stays, at random positions, identity elsewhere. Rank 0 is the client and
owns the image, rank 1 the server and owns the weights; both stay secret. Seconds are the client's, warm, from its image
to its logits.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import network

from parelu.private.engines import environment

HERE = Path(__file__).parent
GROUPS = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["dependency-groups"]
RECIPE = environment.Recipe(
    "crypten",
    ("3.11",),
    (tuple(GROUPS["crypten"]), ("--no-deps", "crypten==0.4.1")),
    "import importlib.util, omegaconf, torch; assert importlib.util.find_spec('crypten')",
)
LABELS = {
    "engine": "crypten",
    "offline_mode": "dealer: rank 0",
    "threat_model": "semi-honest; rank 0, the client, deals the correlated randomness: no privacy against it",
    "network": "resnet20, 32×32, batch 1",
}


def rows(keep: Sequence[float], repeat: int) -> list[dict[str, Any]]:
    """A row for each share of ReLUs, of so many warm runs."""
    python = environment.interpreter(RECIPE)
    return [{**LABELS, "keep": share, "relus": network.relus(share), **_run(python, share, repeat)} for share in keep]


def _run(python: Path, keep: float, repeat: int) -> dict[str, Any]:
    """Start both parties, wait for them, and read what rank 0 measured."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "case.json", Path(folder) / "row.json"
        threads = max(1, (os.cpu_count() or 1) // 2)
        path.write_text(json.dumps({"keep": keep, "repeat": repeat, "threads": threads, "port": port, "out": str(out)}))
        script = HERE / "peers" / "crypten_party.py"
        environment.run({f"rank {rank}": (python, script, str(rank), path) for rank in (0, 1)}, {})
        return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", nargs="+", type=float, default=[1.0, 0.1], help="shares of the ReLUs to keep, 0 to 1")
    parser.add_argument("--repeat", type=int, default=3, help="warm runs")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    arguments = parser.parse_args()
    found = rows(arguments.keep, arguments.repeat)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    for row in found:
        size = (row["bytes_to_client"] + row["bytes_to_server"]) / 1e6
        print(
            f"{row['relus']:>9,} ReLUs  {row['median']:.2f} s ({min(row['seconds']):.2f}–{max(row['seconds']):.2f})  "
            f"{size:.1f} MB  largest error {row['max_error']:.1e}"
        )
    print(f"crypten: {LABELS['threat_model']}")


if __name__ == "__main__":
    main()
