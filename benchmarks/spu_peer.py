"""What other engines need for private inference of a ResNet20: wall seconds and bytes, two processes on this machine.

    python benchmarks/spu_peer.py --protocols semi2k cheetah --keep 1.0 0.1 --repeat 3 --json peers.json

Each engine gets a virtual environment of its own in the cache folder, made at the first call. The network is a CIFAR
ResNet20 with random weights (a speed needs no training), batch norms folded, one 32×32 image; `--keep` is the share
of its 188,416 ReLUs that stays, at random positions, identity elsewhere. Rank 0 is the client and owns the image, rank
1 the server and owns the weights; both stay secret. Seconds are the client's, warm, from its image to its logits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import environment, network

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Engine:
    """A peer: what runs it, and what a reader must know of its figures."""

    name: str
    recipe: environment.Recipe
    script: str
    offline_mode: str
    threat_model: str


ENGINES = {
    "semi2k": Engine(
        "spu-semi2k",
        environment.SPU,
        "spu_party.py",
        "dealer: rank 0",
        "semi-honest; rank 0, the client, deals the correlated randomness: no privacy against it",
    ),
    "cheetah": Engine("spu-cheetah", environment.SPU, "spu_party.py", "none", "semi-honest; no third party"),
    "crypten": Engine(
        "crypten",
        environment.CRYPTEN,
        "crypten_party.py",
        "dealer: rank 0",
        "semi-honest; rank 0, the client, deals the correlated randomness: no privacy against it",
    ),
}


class CaseProblem(Exception):
    """Why a case has no row, in one line."""


def main() -> None:
    arguments = _arguments()
    rows, problems = [], 0
    for protocol in arguments.protocols:
        try:
            python = environment.interpreter(ENGINES[protocol].recipe, arguments.cache.expanduser())
            for keep in arguments.keep:
                rows.append(_row(protocol, keep, python, arguments))
                print(json.dumps(rows[-1]), flush=True)
        except (environment.EnvironmentProblem, CaseProblem) as problem:
            print(f"{protocol}: {problem}", file=sys.stderr)
            problems += 1
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    if rows:
        print(_table(rows))
    sys.exit(1 if problems else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocols", nargs="+", choices=list(ENGINES), default=["semi2k", "cheetah"])
    parser.add_argument("--keep", nargs="+", type=_share, default=[1.0, 0.1], help="shares of the ReLUs to keep")
    parser.add_argument("--repeat", type=_positive, default=3, help="warm runs")
    parser.add_argument(
        "--colocated",
        choices=["auto", "on", "off"],
        default="auto",
        help="SPU's experimental_enable_colocated_optimization; auto measures both and reports the faster",
    )
    parser.add_argument("--timeout", type=_positive, default=900, help="seconds a case may take")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/parelu"), help="where environments are kept")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    return parser.parse_args()


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share from 0 to 1")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _row(protocol: str, keep: float, python: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case's row: what was measured, and how to read it."""
    engine = ENGINES[protocol]
    case = {
        "protocol": protocol,
        "keep": keep,
        "repeat": arguments.repeat,
        "colocated": arguments.colocated,
        "timeout": arguments.timeout,
        "threads": max(1, (os.cpu_count() or 1) // 2),
        "ports": _free_ports(2),
    }
    labels = {
        "engine": engine.name,
        "relu": "native",
        "offline_mode": engine.offline_mode,
        "threat_model": engine.threat_model,
        "network": "resnet20, 32×32, batch 1",
        "keep": keep,
        "relus": network.relus(keep),
        "cores": os.cpu_count(),
    }
    return labels | _run(python, HERE / "peers" / engine.script, case)


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _run(python: Path, script: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Start both parties, wait for them, and read what rank 0 measured."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "case.json", Path(folder) / "row.json"
        path.write_text(json.dumps(case | {"out": str(out)}))
        errors = [Path(folder) / f"errors.{rank}" for rank in (0, 1)]
        parties = []
        try:
            for rank, error in enumerate(errors):
                with error.open("w") as stream:
                    command = [str(python), str(script), str(rank), str(path)]
                    parties.append(subprocess.Popen(command, env=environment.clean(), stdout=stream, stderr=stream))
            _wait(parties, errors, case["timeout"])
        finally:
            for party in parties:
                party.kill()
                party.wait()
        return json.loads(out.read_text())


def _wait(parties: Sequence[subprocess.Popen], errors: list[Path], timeout: float) -> None:
    """Until both have ended well; a problem as soon as one has not."""
    deadline = time.monotonic() + timeout
    while any(party.poll() is None for party in parties):
        _check(parties, errors)
        if time.monotonic() > deadline:
            raise CaseProblem(f"not finished after {timeout} seconds (--timeout)")
        time.sleep(0.1)
    _check(parties, errors)


def _check(parties: Sequence[subprocess.Popen], errors: list[Path]) -> None:
    for rank, party in enumerate(parties):
        if party.poll():
            message = environment.last_line(errors[rank].read_text(errors="replace"), "error")
            raise CaseProblem(f"party {rank} ended with status {party.returncode}: {message}")


def _table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of text."""
    head = ("engine", "ReLUs", "median s", "min–max s", "MB to client", "to server", "cold s", "compile s", "max error")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    notes = {f"{row['engine']}: offline {row['offline_mode']}; {row['threat_model']}" for row in rows}
    settings = [f"{row['engine']}, {row['relus']} ReLUs: {_setting(row)}" for row in rows]
    return "\n".join([*lines, "", *sorted(notes), *settings])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["engine"],
        f"{row['relus']:,}",
        f"{row['median']:.2f}",
        f"{min(row['seconds']):.2f}–{max(row['seconds']):.2f}",
        f"{row['bytes_to_client'] / 1e6:.1f}",
        f"{row['bytes_to_server'] / 1e6:.1f}",
        f"{row['cold_seconds']:.1f}",
        f"{row['compile_seconds']:.1f}",
        f"{row['max_error']:.1e}",
    )


def _setting(row: dict[str, Any]) -> str:
    """The setting whose figures these are, with the medians of all that were tried."""
    medians = ", ".join(f"{setting} {seconds:.2f} s" for setting, seconds in row["medians"].items())
    return f"{row['setting']} (medians: {medians})"


if __name__ == "__main__":
    main()
