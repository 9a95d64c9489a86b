"""Fusion: batch-norms folded, and linear layers with nothing between them made one, where that costs less.

A chain of linear ops is cut into groups so that the sum of their costs is least; a group becomes one convolution, one
matrix, or stays. What is made is the same function, at the border too, unless `padded` asks for another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parelu.fusion.chains import Sum, Unit, Units, chains, end, nodes, shape, source
from parelu.fusion.composition import Convolution
from parelu.fusion.factors import calls, factors, fold_factors, pass_factors, uniform
from parelu.fusion.packing import seconds
from parelu.fusion.weights import compose, fitted
from parelu.network import ops
from parelu.network.sites import Network

Cost = Callable[[Convolution], float]


def nothing(layer: Convolution) -> float:
    """The cost at which no merging pays: batch-norms are folded and identities dropped, and that is all."""
    return 0.0


def fuse(network: Network, *, cost: Cost = seconds, padded: bool = False, apart: Collection[str] = ()) -> Network:
    """A copy in evaluation mode that computes the same with fewer layers.

    Args:
        network: follows its plan and has its weights; on meta tensors only shapes come out.
        cost: of a layer, where a matrix is a convolution of a 1×1 map; layers are merged where this makes the sum less.
        padded: merge as if all padding were at the first layer, so that only shapes decide: another function near the
            border, to be finetuned.
        apart: names of sites at which nothing is merged.

    Raises:
        UserError: the network has ops without a place in a private network; one line each.
    """
    ops.read_all(network)
    fused = network.copied().eval().double()
    fold_factors(fused)
    _drop_what_passes(fused, apart)
    pass_factors(fused)
    merging = _Merging(fused, cost, padded)
    for chain in chains(fused):
        merging.merge(chain)
    fused.graph.lint()
    fused.recompile()
    fused.delete_all_unused_submodules()
    return fused.float()


def layers(network: Network) -> list[Convolution]:
    """The layers with secret numbers, in order of execution; a matrix is a convolution of a 1×1 map."""
    return [_alone(node) for node in network.graph.nodes if _is_secret(ops.read(node))]


def _is_secret(op: ops.Op) -> bool:
    """Whether it has secret numbers as a linear map; a site has where a polynomial of degree 1 is not the identity."""
    match op:
        case ops.Convolution() | ops.Linear() | ops.BatchNorm() | ops.Affine():
            return uniform(op) is None
        case ops.Activation(site):
            lines = (site.coefficients[:2] != torch.tensor([[0.0], [1.0]])).any(0) & (site.coefficients[2] == 0)
            return site.relus < site.mask.numel() and bool(lines.any())
        case _:
            return False


def _drop_what_passes(network: Network, apart: Collection[str]) -> None:
    """Take away what returns its input: sites that are an identity everywhere, dropout."""
    for node in list(network.graph.nodes):
        match ops.read(node):
            case ops.Identity():
                passes = True
            case ops.Activation(site):
                passes = site.is_identity_elsewhere and not site.relus and node.target not in apart
            case _:
                passes = False
        if passes:
            node.replace_all_uses_with(node.all_input_nodes[0])
            network.graph.erase_node(node)


class MapConv2d(nn.Conv2d):
    """A convolution whose bias is a map, (outputs, rows, columns).

    A constant that enters a composed convolution before its last layer ends at the border, where padding begins.

    Args:
        layer: kernel, stride, padding and groups.
    """

    def __init__(self, layer: Convolution, weight: Tensor, bias: Tensor) -> None:
        super().__init__(
            layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.padding, 1, layer.groups, device="meta"
        )
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, input: Tensor) -> Tensor:
        """input: (batch, inputs, rows, columns)."""
        assert self.bias is not None
        return self._conv_forward(input, self.weight, None) + self.bias


Numbers = tuple[Tensor, Tensor]  # weight, and bias (outputs,)


@dataclasses.dataclass(frozen=True, eq=False)
class _Merged:
    """The convolution that could stand for some units; its numbers are computed once it is chosen."""

    layer: Convolution
    numbers: Callable[[], Numbers]

    def then(self, second: _Merged) -> _Merged:
        def numbers() -> Numbers:
            (weight, bias), (after, last) = self.numbers(), second.numbers()
            whole = F.conv2d(bias.view(1, -1, 1, 1), after.sum((2, 3), keepdim=True), groups=second.layer.groups)
            return compose(self.layer, weight, second.layer, after), whole.flatten() + last

        return _Merged(self.layer.before(second.layer), numbers).trimmed()

    def beside(self, other: _Merged) -> _Merged | None:
        layer = self.layer.beside(other.layer)

        def numbers() -> Numbers:
            assert layer is not None
            (weight, bias), (another, more) = self.numbers(), other.numbers()
            return fitted(self.layer, weight, layer) + fitted(other.layer, another, layer), bias + more

        return _Merged(layer, numbers).trimmed() if layer else None

    def trimmed(self) -> _Merged:
        layer = self.layer.trimmed()

        def numbers() -> Numbers:
            weight, bias = self.numbers()
            return fitted(self.layer, weight, layer), bias

        return _Merged(layer, numbers) if layer != self.layer else self


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """Units that become one layer: the convolution `merged`, or else a matrix; a single unit may stay."""

    units: Units
    merged: _Merged | None = None
    stays: bool = False


class _Merging:
    """Cuts the chains of one network into the cheapest groups, and puts the merged layers in their places."""

    def __init__(self, network: Network, cost: Cost, padded: bool) -> None:
        self.network, self.cost, self.padded = network, cost, padded
        device = next((parameter.device for parameter in network.parameters()), None)
        self.zeros = partial(torch.zeros, dtype=torch.float64, device=device)

    def merge(self, units: Units) -> None:
        for group in self._cut(units)[1]:
            if not group.stays:
                self._replace(group)
            elif isinstance(unit := group.units[0], Sum):
                self.merge(unit.left)
                self.merge(unit.right)

    def _cut(self, units: Units) -> tuple[float, list[_Group]]:
        """The cheapest way to make groups of these units, of equal ones that of the smaller groups; and its cost."""
        best: list[tuple[float, list[_Group]]] = [(0.0, []), *((math.inf, []) for _ in units)]
        for start in range(len(units)):
            for group, cost in self._groups(units[start:]):
                last, whole = start + len(group.units), best[start][0] + cost
                if whole <= best[last][0] * (1 + 1e-9):  # later ones are smaller
                    best[last] = whole, [*best[start][1], group]
        return best[-1]

    def _groups(self, units: Units) -> Iterator[tuple[_Group, float]]:
        """All groups that begin with the first of these units, with their costs; last the unit as it stands."""
        merged: _Merged | None = None
        for count in range(1, len(units) + 1):
            part, last = units[:count], self._merged(units[count - 1])
            merged = last if count == 1 else self._joined(merged, last)
            if merged:
                yield _Group(part, merged), self.cost(merged.layer)
            if len(shape(end(part))) == 1:
                yield _Group(part), self.cost(_matrix(part))
        yield _Group(units[:1], stays=True), self._cost(units[0])

    def _cost(self, unit: Unit) -> float:
        """Of a unit as it stands."""
        if isinstance(unit, Sum):
            return self._cut(unit.left)[0] + self._cut(unit.right)[0]
        op = ops.read(unit)
        is_free = isinstance(op, ops.Pool | ops.Reshape | ops.Scaling) or uniform(op) is not None
        return 0.0 if is_free else self.cost(_alone(unit))

    def _joined(self, first: _Merged | None, second: _Merged | None) -> _Merged | None:
        if first and second and (self.padded or first.layer.is_exact_before(second.layer)):
            return first.then(second)
        return None

    def _merged(self, unit: Unit) -> _Merged | None:
        if isinstance(unit, Sum):
            left, right = self._branch(unit.left, unit), self._branch(unit.right, unit)
            return left.beside(right) if left and right else None
        layer = _layer(unit)
        return _Merged(layer, lambda: self._numbers(unit, layer)).trimmed() if layer else None

    def _branch(self, units: Units, unit: Sum) -> _Merged | None:
        if not units:
            return self._shortcut(shape(unit.node))
        merged = self._merged(units[0])
        for following in units[1:]:
            merged = self._joined(merged, self._merged(following))
        return merged

    def _shortcut(self, of: tuple[int, ...]) -> _Merged | None:
        if len(of) != 3:
            return None
        layer = Convolution(of[0], of[0], (of[1], of[2]), groups=of[0])
        return _Merged(layer, lambda: (self.zeros(*layer.weight_shape) + 1, self.zeros(of[0])))

    def _numbers(self, node: fx.Node, layer: Convolution) -> Numbers:
        """Weight and bias of a node as a convolution."""
        match ops.read(node):
            case ops.Convolution(own):
                return own.weight.detach(), self.zeros(layer.outputs) if own.bias is None else own.bias.detach()
            case ops.Activation(site):
                shift, factor, _ = site.coefficients.to(self.zeros(0).device)
                return factor.view(-1, 1, 1, 1), shift
            case ops.BatchNorm() | ops.Affine() as op:
                numbers = factors(op, shape(node), 0)
                assert numbers is not None
                return numbers[0].view(-1, 1, 1, 1), numbers[1]
            case ops.Scaling(number):
                return self.zeros(*layer.weight_shape) + number, self.zeros(layer.outputs)
            case ops.Pool():
                return self.zeros(*layer.weight_shape) + 1 / math.prod(layer.kernel), self.zeros(layer.outputs)
            case op:
                raise AssertionError(f"{op} is no convolution")

    def _replace(self, group: _Group) -> None:
        last, read, name = end(group.units), source(group.units), self._name(group.units)
        module = self._convolution(group.units, group.merged) if group.merged else self._matrix(group.units)
        self.network.add_submodule(name, module)
        with self.network.graph.inserting_before(last):
            if not group.merged and len(shape(read)) == 3:
                read = self.network.graph.call_function(torch.flatten, (read, 1))
                read.meta["shape"] = (math.prod(shape(source(group.units))),)
            node = self.network.graph.call_module(name, (read,))
        node.meta["shape"] = shape(last)
        last.replace_all_uses_with(node)
        for old in reversed(nodes(group.units)):
            self.network.graph.erase_node(old)

    def _name(self, units: Units) -> str:
        """That of the last matrix or else the last of the largest kernels; another where that is called elsewhere."""

        def rank(node: fx.Node) -> float:
            match ops.read(node):
                case ops.Linear():
                    return math.inf
                case ops.Convolution(layer):
                    return math.prod(layer.kernel_size)
                case _:
                    return 0

        modules = [node for node in nodes(units) if node.op == "call_module"]
        name = str(max(reversed(modules), key=rank).target)
        return name if calls(self.network, name) == 1 else f"{name}_merged_{len(self.network.graph.nodes)}"

    def _convolution(self, units: Units, merged: _Merged) -> nn.Conv2d:
        layer, (weight, bias) = merged.layer, merged.numbers()
        at_zero = self._run(units, self.zeros(1, *shape(source(units))))[0].detach()
        is_even = self.padded or at_zero.is_meta or torch.allclose(at_zero, bias[:, None, None], 1e-9, 1e-12)
        if not is_even:
            return MapConv2d(layer, weight, at_zero)
        module = nn.Conv2d(
            layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.padding, 1, layer.groups, device="meta"
        )
        module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
        return module

    def _matrix(self, units: Units) -> nn.Linear:
        zero = self.zeros(1, *shape(source(units)))
        bias = self._run(units, zero)[0].detach()
        if bias.is_meta:
            weight = self.zeros(len(bias), zero.numel())
        else:
            weight = torch.autograd.functional.jacobian(lambda x: self._run(units, x)[0], zero).flatten(1)  # pyright: ignore
        module = nn.Linear(zero.numel(), len(bias), device="meta")
        module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
        return module

    def _run(self, units: Units, x: Tensor) -> Tensor:
        """What the units make of x, (1, …)."""
        interpreter = fx.Interpreter(self.network)
        interpreter.env[source(units)] = x
        for node in nodes(units):
            interpreter.env[node] = interpreter.run_node(node)
        return interpreter.env[end(units)]


def _matrix(units: Units) -> Convolution:
    """The shape of the matrix that could stand for these units."""
    return Convolution(math.prod(shape(source(units))), shape(end(units))[0], (1, 1))


def _alone(node: fx.Node) -> Convolution:
    """The shape of a layer with secret numbers, as it stands."""
    if isinstance(ops.read(node), ops.Linear):
        return _matrix((node,))
    channels = shape(node)[0]
    return _layer(node) or Convolution(channels, channels, (1, 1), groups=channels)


def _layer(node: fx.Node) -> Convolution | None:
    """The shape of a linear node as a convolution; None where it makes or reads a vector."""
    before = shape(node.all_input_nodes[0])
    if len(shape(node)) != 3 or len(before) != 3:
        return None
    channels, rows, columns = before
    match ops.read(node):
        case ops.Convolution(layer) as op:
            return Convolution(
                channels, layer.out_channels, (rows, columns), *op.window, layer.groups, ops.two(layer.dilation)
            )
        case ops.Pool(kernel, stride, padding):
            return Convolution(channels, channels, (rows, columns), kernel, stride, padding, channels)
        case ops.Activation() | ops.BatchNorm() | ops.Affine() | ops.Scaling():
            return Convolution(channels, channels, (rows, columns), groups=channels)
        case op:
            raise AssertionError(f"{op} is no convolution")
