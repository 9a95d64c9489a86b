"""The papers' large networks without a third party: seconds, bytes and memory of a query, hints, and the wrap bound.

    python benchmarks/large.py                                 # all, some 40 minutes
    python benchmarks/large.py "resnet18, 50,000 ReLUs" --images 5

Fresh weights, two processes over loopback, a core each. Of a row the medians over the images, after one that warms up.
Networks that the zoo lacks are built here: ResNet50 (He et al. 2016) for 32×32, and ResNet18 for 224×224 with an
average pool in the stem where the paper has a max-pool.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.models.external import read
from parelu.network.count import skeleton
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.network.steps import apply_steps
from parelu.private.bench import bench
from parelu.private.crypto.ring import Ring
from parelu.private.fresh import fresh, noise
from parelu.private.lowering.lower import lower
from parelu.private.offline.mode import modes

CALIBRATION = 32  # images


class Block(nn.Module):
    """Two 3×3 convolutions, or with `narrow` 1×1, 3×3 and 1×1 (He et al. 2016, figure 5)."""

    def __init__(self, inputs: int, width: int, stride: int, *, narrow: bool) -> None:
        super().__init__()
        outputs = 4 * width if narrow else width
        shapes = (
            [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
            if narrow
            else [(inputs, width, 3, stride), (width, width, 3, 1)]
        )
        layers: list[nn.Module] = []
        for source, made, kernel, step in shapes:
            conv = nn.Conv2d(source, made, kernel, step, kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(made), nn.ReLU()]
        self.body, self.relu = nn.Sequential(*layers[:-1]), nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def resnet(depths: tuple[int, ...], classes: int, *, narrow: bool, large: bool) -> nn.Module:
    """large: the stem for 224×224."""
    if large:
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers.append(nn.AvgPool2d(3, 2, 1))
    else:
        layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for stage, depth in enumerate(depths):
        for block in range(depth):
            width = 64 << stage
            layers.append(Block(inputs, width, 2 if stage and not block else 1, narrow=narrow))
            inputs = 4 * width if narrow else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


@dataclasses.dataclass(frozen=True)
class Network:
    """make: a spec; steps: as `apply_steps` takes them; relus: that stay of the rest, at random; None for all."""

    make: Callable[[], Any]
    steps: str = "none"
    relus: int | None = None


def own(depths: tuple[int, ...], size: int, classes: int, *, narrow: bool, large: bool) -> Any:
    return read(resnet(depths, classes, narrow=narrow, large=large), (3, size, size), classes, "resnet").spec


NETWORKS = {
    "resnet18, 50,000 ReLUs": Network(lambda: spec_of("resnet18", (3, 32, 32), 10), relus=50_000),
    "wrn-22-8": Network(lambda: spec_of("wrn-22-8", (3, 32, 32), 100)),
    "resnet34, cull S1+S4; thin S2+S3": Network(
        lambda: spec_of("resnet34", (3, 32, 32), 100), steps="cull S1+S4; thin S2+S3"
    ),
    "resnet18, 64×64": Network(lambda: spec_of("resnet18", (3, 64, 64), 200)),
    "resnet18, 64×64, 200,000 ReLUs": Network(lambda: spec_of("resnet18", (3, 64, 64), 200), relus=200_000),
    "resnet50, 32×32": Network(lambda: own((3, 4, 6, 3), 32, 10, narrow=True, large=False)),
    "resnet18, 224×224": Network(lambda: own((2, 2, 2, 2), 224, 1000, narrow=False, large=True)),
}


def row(network: Network, images: int, offline: str, queries: int) -> dict[str, Any]:
    """What one network costs; the wrap bound is of the program's ring."""
    torch.manual_seed(0)
    reduced = apply_steps(network.make(), network.steps)
    plan = reduced.plan if network.relus is None else thinned(reduced.spec, reduced.plan, network.relus)
    candidate, shape = fresh(reduced.spec, plan), reduced.spec.input
    start = time.perf_counter()
    lowered = lower(
        candidate.network(),
        noise(CALIBRATION, shape, 1),
        candidate.preprocessing,
        ring=Ring(modes()[offline].ring_bits),
    )
    seconds = time.perf_counter() - start
    found = bench(lowered, candidate, noise(images, shape, 2), offline=offline, queries=queries)
    return {
        "relus": found.relus,
        "wrap_bound": lowered.wrap_bound,
        "ring": lowered.program.ring.bits,
        "lowering_seconds": seconds,
        **dataclasses.asdict(found.costs),
    }


def thinned(spec: Any, plan: Plan, relus: int) -> Plan:
    """So many of a plan's ReLUs, at random."""
    shapes = {name: site.shape for name, site in skeleton(spec).sites.items()}
    total = sum(shape.numel() for shape in map(torch.Size, shapes.values()))
    generator = torch.Generator().manual_seed(0)
    keep = torch.zeros(total, dtype=torch.bool)
    keep[torch.randperm(total, generator=generator)[:relus]] = True
    parts = keep.split([torch.Size(shape).numel() for shape in shapes.values()])
    return Plan.from_masks({name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)})


def text(name: str, found: dict[str, Any]) -> str:
    """One line."""
    offline, online, setup = found["offline"], found["online"], found["setup"]
    sent = {party: (offline["sent"][party] + online["sent"][party]) / 1e6 for party in ("client", "server")}
    cpu = {party: offline["cpu"][party] + online["cpu"][party] for party in ("client", "server")}
    peak = f"{found['peak_mb_client']:5.0f} + {found['peak_mb_server']:5.0f} MB"
    return (
        f"{name:<34}{found['relus']:>10,} ReLUs  offline {offline['seconds']:6.2f} s, online {online['seconds']:5.2f} s"
        f"  CPU {cpu['client']:.2f} + {cpu['server']:.2f} s  {sent['server']:6.1f} MB up {sent['client']:6.1f} MB down"
        f"  hints {setup['sent']['client'] / 1e6:6.1f} MB  peak {peak}"
        f"  wrap {found['wrap_bound']:.1e} of {found['ring']} bits"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=[*NETWORKS], help=", ".join(NETWORKS))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--offline", default="hints", choices=sorted(modes()))
    parser.add_argument("--queries", type=int, default=1000, help="that the client says it will ask for")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.networks:
        if name not in NETWORKS:
            parser.error(f"unknown network {name!r}; known are {', '.join(NETWORKS)}")
        try:
            rows[name] = row(NETWORKS[name], arguments.images, arguments.offline, arguments.queries)
        except UserError as error:
            print(f"{name:<34}{error}", flush=True)
            continue
        print(text(name, rows[name]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
