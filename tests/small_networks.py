"""Networks that learn the bundled digits in a moment, and how."""

import torch
from torch import nn

from parelu.network.instrument import network_of
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.network.spec import Spec, spec_of
from parelu.private.crypto.ring import WIDE, Ring
from parelu.private.fresh import fresh, noise
from parelu.private.lowering.lower import translated
from parelu.private.lowering.lowered import Lowered
from parelu.training.schedule import Training

SHORT = Training(epochs=3, batch=128, lr=0.1, schedule="one-cycle")


def network(seed: int = 0, name: str = "resnet10 m=2", classes: int = 10, side: int = 8) -> Network:
    torch.manual_seed(seed)
    spec = spec_of(name, (1, side, side), classes)
    return network_of(spec)


def program_of(spec: Spec, plan: Plan, ring: Ring = WIDE) -> Lowered:
    """Of fresh weights, with ranges of two images; not verified, which takes most of the time."""
    made = fresh(spec, plan)
    return translated(made.network(), noise(2, spec.input, seed=1), made.preprocessing, ring=ring).lowered


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def quadratic(network: Network) -> Network:
    """The network with a ReLU at every second position and a square at the others."""
    for site in network.sites.values():
        mask = torch.arange(site.mask.numel()).view(site.shape) % 2 == 0
        site.assign(mask, (0.1, 0.5, 0.2))
    return network
