"""What exact truncation costs: ReLU protocols that have it, against local truncation of the same network.

    python benchmarks/truncation.py --repeat 5

Two processes on one machine over loopback, a core each. Both truncations of a network run in turn, so that a ratio is
of neighbours; it is the median over the repetitions, with its range. Networks have fresh weights: a speed needs no
training. Errors are of a logit, from the ring reference, which rounds to the nearest.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence

from private import Case, alternate

from parelu.network.spec import spec_of
from parelu.private.fresh import noise, untrained
from parelu.private.lowering.lower import lower
from parelu.private.offline.mode import DEFAULT, ring_for
from parelu.private.protocol.delphi import TRUNCATIONS
from parelu.private.protocol.relu import relus
from parelu.private.rows import Cost, Row

NETWORKS = {"resnet20": ((3, 32, 32), 0.1), "resnet10 m=4": ((1, 28, 28), 1.0)}  # input, share of ReLUs


def case(name: str, images: int, offline: str, **settings: str) -> Case:
    """The network as `bench` takes it, with fresh weights and a random mask."""
    shape, keep = NETWORKS[name]
    candidate = untrained(spec_of(name, shape, 10), keep, seed=0)
    inputs = noise(images, shape, seed=1)
    lowered = lower(candidate.network(), inputs, candidate.preprocessing, ring=ring_for(offline))
    return Case(lowered, candidate, inputs, settings)


def ratios(values: Sequence[float]) -> str:
    """Median and range."""
    return f"×{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def compared(phase: str, local: Sequence[Cost], exact: Sequence[Cost]) -> str:
    """A phase's line."""
    pairs = list(zip(local, exact, strict=True))
    seconds = ratios([e.seconds / o.seconds for o, e in pairs])
    cpu = ratios([sum(e.cpu.values()) / sum(o.cpu.values()) for o, e in pairs])
    wall = [statistics.median(c.seconds for c in costs) for costs in (local, exact)]
    megabytes = [costs[0].bytes / 1e6 for costs in (local, exact)]
    return (
        f"  {phase:<8} {wall[0]:.3f} s → {wall[1]:.3f} s, {seconds}; CPU {cpu}; "
        f"{megabytes[0]:.3f} MB → {megabytes[1]:.3f} MB, ×{megabytes[1] / megabytes[0]:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--images", type=int, default=2, help="an inference of one is timed, after one to warm up")
    parser.add_argument("--offline", default=DEFAULT)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--relus", nargs="*", default=[name for name, relu in relus().items() if relu.truncates])
    chosen = parser.parse_args()
    for name in chosen.networks:
        ready = case(name, chosen.images, chosen.offline)
        for relu in chosen.relus:
            settings = {how: {"offline": chosen.offline, "relu": relu, "truncation": how} for how in TRUNCATIONS}
            found = alternate({h: dataclasses.replace(ready, settings=s) for h, s in settings.items()}, chosen.repeat)
            local, exact = ([Row.from_json(row) for row in found[how]] for how in TRUNCATIONS)
            print(f"{name}, {local[0].relus:,} ReLUs, {relu}, {chosen.offline}")
            for phase in ("offline", "online"):
                print(compared(phase, *([getattr(row.costs, phase) for row in rows] for rows in (local, exact))))
            errors = [max(row.ring.largest for row in rows) for rows in (local, exact)]
            print(f"  largest error {errors[0]:.1e} → {errors[1]:.1e}", flush=True)


if __name__ == "__main__":
    main()
