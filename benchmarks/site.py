"""What masked sites and gates cost in training, against a plain ReLU network: one run, alternating, median of ratios.

    python benchmarks/site.py
    python benchmarks/site.py --model "resnet10 m=8"

Targets for the step of ResNet18 m=16 on 32×32, batch 128, one thread: 1.10 with fixed masks, 1.25 with gates, whose
slopes get a gradient, and 1.3 for the memory that the backward pass needs. The peer is the same network as a plain
module with nn.ReLU, never traced. All run in the environment of parelu's training processes, or with
--plain-environment in that of the shell. Without numba's loops, which --no-loops leaves out, gates are plain torch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from parelu.masks import gate as gate_module
from parelu.masks.optimizer import put_gates
from parelu.network.instrument import instrument
from parelu.network.plan import Plan, SitePlan
from parelu.network.sites import IDENTITY
from parelu.network.spec import spec_of
from parelu.runs.processes import ENVIRONMENT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--model", default="resnet18 m=16")
    parser.add_argument("--plain-environment", action="store_true")
    parser.add_argument("--no-loops", action="store_true")
    arguments = parser.parse_args()
    if not arguments.plain_environment and not ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    if arguments.no_loops:
        gate_module.loops = lambda: None
    torch.set_num_threads(1)
    spec = spec_of(arguments.model, (3, 32, 32), 10)
    variants = {
        "plain nn.ReLU": None,
        "all-one masks": (1.0, IDENTITY),
        "half ReLU, half identity": (0.5, IDENTITY),
        "half ReLU, half quadratic": (0.5, (0.28, 0.5, 0.14)),
        "all identity": (0.0, IDENTITY),
        "gates, identity": ("gates", 0),
        "gates, fitted quadratics": ("gates", 2),
    }
    built = {name: _step(spec, variant) for name, variant in variants.items()}
    steps, kept = ({name: pair[i] for name, pair in built.items()} for i in (0, 1))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.steps):
        for name, step in steps.items():
            times[name].append(step())
    plain = times["plain nn.ReLU"]
    print(f"{spec.input}, {arguments.model}, batch 128, 1 thread, median of {arguments.steps} alternating steps")
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, plain, strict=True))
        memory = f"{kept[name] / 2**20:8.1f} MiB   {kept[name] / kept['plain nn.ReLU']:.3f}"
        print(f"  {name:<28}{statistics.median(seconds) * 1e3:8.1f} ms   {ratio:.3f}{memory}")


def _step(spec, variant) -> tuple[Callable[[], float], int]:
    """A function that trains one step and returns its seconds; bytes that the forward pass keeps for the backward."""
    torch.manual_seed(0)
    module = spec.module()
    if variant is not None:
        share, coefficients = variant
        network = instrument(module, spec.input)
    if variant is not None and share == "gates":
        module = network
        for gate in put_gates(network).values():
            gate.open.data.uniform_(generator=torch.Generator().manual_seed(1))
            if coefficients:
                gate.follow_inputs(coefficients)
    elif variant is not None:
        generator = torch.Generator().manual_seed(1)
        c = torch.tensor(coefficients)[:, None]
        sites = {
            name: SitePlan(torch.rand(site.shape, generator=generator) < share, c.repeat(1, site.shape[0]))
            for name, site in network.sites.items()
        }
        Plan(sites).apply(network)
        module = network
    module.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(128, *spec.input).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, spec.classes, (128,))

    def step() -> float:
        started = time.perf_counter()
        loss = F.cross_entropy(module(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - started

    step()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(module(images), labels)
    loss.backward()
    return step, sum(kept.values())


if __name__ == "__main__":
    main()
