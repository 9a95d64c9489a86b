"""Equalisation: channels of a fused network scaled so that those that matter have like ranges.

A value of the ring has one unit for all its channels, a layer's weights have another. Where channels differ by orders
of magnitude, as those of depthwise convolutions can, the small ones drown in rounding although what reads them makes
them large again. For a factor s > 0, relu(s·x) = s·relu(x): the layer that writes a channel takes the factor, and the
layers that read it its inverse (Nagel et al. 2019, section 4.1). Factors are powers of two, so that nothing is rounded.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import torch
from torch import Tensor, fx, nn

from parelu.fusion.factors import uniform
from parelu.network import functions, ops
from parelu.network.nodes import called_module
from parelu.network.sites import Network, Site

Layer = nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d | functions.Affine
LIKE = 2  # channels whose factors would differ by less than 2^LIKE stay as they are
LARGEST = 24  # of a factor's exponent


def equalise(network: Network, x: Tensor) -> Network:
    """A copy that computes the same, of a fused network.

    x: float (N, *network.input_shape), a few normalised images, that the channels' ranges are taken of.
    """
    scaled = network.copied().eval()
    groups = _Groups(scaled)
    ranges = _Ranges(scaled).of(x)
    for group in reversed(groups.scalable):  # the factors of what a layer writes decide how much it reads of each
        factors = group.factors([ranges[node] for node in group.values])
        if factors is not None:
            group.apply(factors)
    return scaled


@dataclasses.dataclass(eq=False)
class _Group:
    """Values whose channels have the same factors: from the layers that write them to those that read them.

    is_fixed: something reads or writes them that takes no factors. readers: with how many positions of a vector a
    channel has become there.
    """

    channels: int
    is_fixed: bool = False
    values: list[fx.Node] = dataclasses.field(default_factory=list)
    writers: list[Layer] = dataclasses.field(default_factory=list)
    readers: list[tuple[Layer, int]] = dataclasses.field(default_factory=list)
    sites: list[Site] = dataclasses.field(default_factory=list)

    def factors(self, ranges: list[Tensor]) -> Tensor | None:
        """2^e a channel, (channels,); None where all are 1.

        Rounding a channel of range r costs c/s, where what reads it has a weight of c for it, and rounding that weight
        costs r·s: the sum is least at s = √(c/r). The channel of the largest range keeps its own.
        """
        largest = torch.stack([each.view(self.channels, -1).amax(1) for each in ranges]).amax(0)
        weights = [_columns(layer, repeated) for layer, repeated in self.readers]
        read = torch.stack([w / w.max().clamp(min=torch.finfo(w.dtype).tiny) for w in weights]).amax(0)
        counts = (largest > 0) & (read > 0)
        if counts.sum() < 2:
            return None
        exponent = torch.where(counts, (read / largest.where(counts, torch.ones(()))).log2() / 2, torch.nan)
        exponent = (exponent - exponent[largest.argmax()]).nan_to_num(0)
        exponent = exponent.where(exponent.abs() >= LIKE, torch.zeros(())).clamp(-LARGEST, LARGEST).round()
        room = (largest.max() / largest.where(counts, largest.max())).log2().floor()
        exponent = torch.minimum(exponent, room)
        return exponent.exp2() if bool(exponent.any()) else None

    def apply(self, factors: Tensor) -> None:
        with torch.no_grad():
            for layer in self.writers:
                _scale_outputs(layer, factors)
            for layer, repeated in self.readers:
                _scale_inputs(layer, 1 / factors.repeat_interleave(repeated))
            for site in self.sites:
                c = site.coefficients.clone()
                c[0] *= factors.repeat_interleave(c.shape[1] // self.channels).to(c.dtype)
                site.assign(site.mask, c)


class _Groups:
    """The groups of a network, by walking its graph."""

    def __init__(self, network: Network) -> None:
        self._of: dict[fx.Node, tuple[_Group, int]] = {}  # the group of a node's value, and positions a channel
        self._uses = Counter(id(getattr(called_module(node), "weight", None)) for node in network.graph.nodes)
        for node in network.graph.nodes:
            if node.op == "output" or ("shape" in node.meta and node.op != "get_attr"):  # which is a number
                self._read(node, ops.read(node))
        found = dict.fromkeys(group for group, _ in self._of.values())
        self.scalable = [g for g in found if not g.is_fixed and g.writers and g.readers]

    def _read(self, node: fx.Node, op: ops.Op) -> None:
        sources = [n for n in node.all_input_nodes if n in self._of]
        match op:
            case ops.Convolution(nn.Conv2d() as layer) if self._is_own(layer):
                self._layer(node, layer, sources[0])
            case ops.Linear(layer) if self._is_own(layer) and len(node.meta["shape"]) == 1:
                self._layer(node, layer, sources[0])
            case ops.BatchNorm(layer) if self._is_own(layer) and layer.running_mean is not None:
                self._layer(node, layer, sources[0])
            case ops.Affine(layer) if self._is_own(layer) and _is_of_channels(node, op):
                self._layer(node, layer, sources[0])
            case ops.Activation(site) if site.relus == site.mask.numel() or not site.coefficients[2].any():
                self._joined(node, sources).sites.append(site)
            case ops.Addition(fx.Node(), fx.Node()):
                self._joined(node, sources)
            case ops.Identity() | ops.Pool() | ops.MaxPool() | ops.Scaling():
                self._joined(node, sources)
            case ops.Reshape(shape):
                self._reshaped(node, sources[0], shape)
            case ops.Permute((0, *_)) | ops.Select((None, *_)):
                self._joined(node, sources)
            case ops.Concat() if op.axis > 0:
                self._joined(node, sources)
            case ops.Resample(layer) if layer.axis > 0:
                self._joined(node, sources)
            case _:
                for source in sources:
                    self._of[source][0].is_fixed = True
                if node.op != "output":
                    self._start(node).is_fixed = True

    def _is_own(self, layer: Layer) -> bool:
        """Whether it has weights that nothing else uses, nor itself a second time."""
        return layer.weight is not None and self._uses[id(layer.weight)] == 1

    def _start(self, node: fx.Node) -> _Group:
        group = _Group(node.meta["shape"][0])
        group.values.append(node)
        self._of[node] = group, 1
        return group

    def _layer(self, node: fx.Node, layer: Layer, source: fx.Node) -> None:
        group, repeated = self._of[source]
        if isinstance(layer, (nn.Linear, nn.Conv2d)) or repeated == 1:
            group.readers.append((layer, repeated))
        else:
            group.is_fixed = True
        self._start(node).writers.append(layer)

    def _joined(self, node: fx.Node, sources: list[fx.Node]) -> _Group:
        """The value has the factors of its sources, which become one group."""
        (group, repeated), *others = [self._of[source] for source in sources]
        for other, times in others:
            if other is group:
                continue
            group.is_fixed |= other.is_fixed or (other.channels, times) != (group.channels, repeated)
            for name in ("values", "writers", "readers", "sites"):
                getattr(group, name).extend(getattr(other, name))
            self._of |= {value: (group, self._of[value][1]) for value in other.values}
        group.values.append(node)
        self._of[node] = group, repeated
        group.is_fixed |= node.meta["shape"][0] != group.channels * repeated
        return group

    def _reshaped(self, node: fx.Node, source: fx.Node, shape: tuple[int, ...]) -> None:
        """Channels that stay, or a map that becomes a vector."""
        group, repeated = self._of[source]
        before = source.meta["shape"]
        if shape[0] == before[0]:
            self._joined(node, [source])
        elif len(shape) == 1:
            group.values.append(node)
            self._of[node] = group, repeated * math.prod(before[1:])
        else:
            group.is_fixed = True
            self._start(node).is_fixed = True


def _is_of_channels(node: fx.Node, op: ops.Affine) -> bool:
    """Whether it has a factor a channel; one without factors is to stay without."""
    return op.layer.weight.shape[0] == node.meta["shape"][0] and uniform(op) is None


def _columns(layer: Layer, repeated: int) -> Tensor:
    """The largest |weight| that a layer has for each channel it reads, (channels,)."""
    weight = layer.weight.detach().double().abs()
    match layer:
        case nn.Conv2d(groups=groups):
            return weight.view(groups, len(weight) // groups, weight.shape[1], -1).amax((1, 3)).flatten()
        case nn.Linear():
            return weight.amax(0).view(-1, repeated).amax(1)
        case _:
            return weight.reshape(len(weight), -1).amax(1)


def _scale_inputs(layer: Layer, factors: Tensor) -> None:
    """Multiply what a layer makes of each channel."""
    weight = layer.weight
    match layer:
        case nn.Conv2d(groups=groups):
            parts = weight.view(groups, len(weight) // groups, weight.shape[1], -1)
            parts *= factors.view(groups, 1, -1, 1).to(weight.dtype)
        case nn.Linear():
            weight *= factors.to(weight.dtype)
        case functions.Affine():
            weight *= _over(factors, weight)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            assert layer.running_mean is not None
            layer.running_mean /= factors.to(weight.dtype)
            weight *= factors.to(weight.dtype)


def _scale_outputs(layer: Layer, factors: Tensor) -> None:
    layer.weight.mul_(_over(factors, layer.weight))
    if layer.bias is not None:
        layer.bias.mul_(_over(factors, layer.bias))


def _over(factors: Tensor, tensor: Tensor) -> Tensor:
    """One a channel, (channels,), to be multiplied with a tensor of channels."""
    return factors.view(-1, *[1] * (tensor.dim() - 1)).to(tensor.dtype)


class _Ranges(fx.Interpreter):
    """The largest |x| of each channel of each value; (channels,)."""

    def of(self, x: Tensor) -> dict[fx.Node, Tensor]:
        self.found: dict[fx.Node, Tensor] = {}
        with torch.no_grad():
            self.run(x)
        return self.found

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.dim() > 1:
            self.found[n] = result.detach().abs().amax((0, *range(2, result.dim()))).double()
        return result
