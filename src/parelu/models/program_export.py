"""A network as a program of `torch.export`, for whatever takes one: torch alone opens it, without parelu."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from parelu.network import nodes, ops
from parelu.network.sites import Network, Site


class _Plain(nn.Module):
    """What a site computes, in functions of torch alone: its own are made for training."""

    mask: Tensor
    coefficients: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.register_buffer("mask", site.mask.clone())
        wide = site.coefficients.view(3, -1, *[1] * (len(site.shape) - 1))
        self.register_buffer("coefficients", wide.clone())
        self.has_relus, self.is_whole = site.relus > 0, site.relus == site.mask.numel()
        self.is_identity_elsewhere = site.is_identity_elsewhere

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, …) → the same shape."""
        if self.is_whole:
            return F.relu(x)
        elsewhere = x
        if not self.is_identity_elsewhere:
            c0, c1, c2 = self.coefficients
            elsewhere = c0 + (c1 + c2 * x) * x
        return torch.where(self.mask, F.relu(x), elsewhere) if self.has_relus else elsewhere


def to_program(network: Network) -> ExportedProgram:
    """The program of a network as it stands: (batch, C, H, W), normalised → (batch, classes), of any batch.

    Masks and polynomials are buffers of it. Raises `UserError` for ops without a place in a private network.
    """
    ops.read_all(network)
    plain = network.copied().eval()
    for node, site in list(nodes.calls(plain, (Site,))):
        parent, _, name = str(node.target).rpartition(".")
        setattr(plain.get_submodule(parent), name, _Plain(site))
    images = torch.rand(nodes.BATCH, *network.input_shape)
    with torch.no_grad():
        return torch.export.export(plain, (images,), dynamic_shapes=({0: Dim("batch")},), strict=False)
