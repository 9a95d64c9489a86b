"""Networks with fresh weights and images of noise: enough to measure what private inference takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from parelu.errors import UserError
from parelu.network.candidate import Candidate
from parelu.network.count import shared_skeleton
from parelu.network.instrument import network_of
from parelu.network.plan import Plan
from parelu.network.preprocessing import normalise
from parelu.network.spec import Spec
from parelu.private.crypto.ring import WIDE, Ring
from parelu.private.lowering.lower import Lowered, lower

NOISE, LEAST_NOISE = 16, 4  # images; of large ones fewer do, which have more places
PIXELS = 1 << 18  # of all images


def untrained(spec: Spec, keep: float, seed: int) -> Candidate:
    """A network with fresh weights and a random mask: enough to measure seconds and bytes, not accuracy."""
    if not (math.isfinite(keep) and 0 <= keep <= 1):
        raise UserError(f"--keep {keep:g} is not a fraction from 0 to 1")
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: site.shape for name, site in shared_skeleton(spec).sites.items()}
    masks = {name: torch.rand(shape, generator=generator) < keep for name, shape in shapes.items()}
    return fresh(spec, Plan.from_masks(masks), seed)


def fresh(spec: Spec, plan: Plan, seed: int = 0) -> Candidate:
    """A candidate with fresh weights. Its batch-norms are set by noise, so that activations have the range that
    training gives them."""
    torch.manual_seed(seed)
    network = network_of(spec)
    plan.apply(network)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.momentum = None  # the mean over all batches
    network.train()
    mean, std = (0.5,) * spec.input[0], (0.25,) * spec.input[0]
    with torch.no_grad():
        network(normalise(noise(_count(spec.input), spec.input, seed), mean, std))
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return Candidate(spec, plan, weights, None, {"mean": list(mean), "std": list(std)})


def sketch(spec: Spec, plan: Plan, ring: Ring = WIDE) -> Lowered:
    """The program that a network with fresh weights would have."""
    candidate = fresh(spec, plan)
    return lower(candidate.network(), noise(_count(spec.input), spec.input, seed=1), candidate.preprocessing, ring=ring)


def _count(shape: tuple[int, int, int]) -> int:
    return min(NOISE, max(LEAST_NOISE, PIXELS // (shape[1] * shape[2])))


def noise(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """uint8 (count, *shape), uniform."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
