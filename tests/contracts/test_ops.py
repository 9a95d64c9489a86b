"""What every op of the vocabulary promises: counted, fused and lowered rightly, or refused with path and remedy."""

import dataclasses
import inspect
import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from two_parties import images_of, lowered_of, preprocessing_of, ready

from parelu.errors import UserError
from parelu.fusion.fuse import fuse, nothing
from parelu.fusion.packing import seconds
from parelu.models.graph import graph_of, weights_of
from parelu.network import ops, trace
from parelu.network.candidate import Candidate
from parelu.network.count import count
from parelu.network.plan import Plan
from parelu.network.preprocessing import normalise
from parelu.private.lowering import reference
from parelu.private.lowering.refusals import problems

INPUT = (1, 6, 6)
CHANNELS = 4


class Calling(nn.Module):
    """The function of a map, with a module and a parameter at its hand."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(modules)
        self.factor = nn.Parameter(torch.rand(1, CHANNELS, *INPUT[1:]))

    def forward(self, x: Tensor) -> Tensor:
        named = {"factor": self.factor} if "factor" in inspect.signature(self.function).parameters else {}
        return self.function(x, *self.inner, **named)


class Around(nn.Module):
    """A small classifier around an op."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.conv, self.op = nn.Conv2d(1, CHANNELS, 3, padding=1), op
        with torch.no_grad():
            shape = op.eval()(torch.zeros(1, CHANNELS, *INPUT[1:])).shape
        self.is_map = len(shape) == 4
        self.fc = nn.Linear(shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.op(self.conv(x))
        return self.fc(x.mean((2, 3)) if self.is_map else x)


@dataclasses.dataclass(frozen=True)
class Case:
    """kind: what the op is read as; remedy: of its refusal, where it has no lowering."""

    kind: type[ops.Op]
    op: nn.Module | Callable[..., Tensor]
    modules: tuple[nn.Module, ...] = ()
    remedy: str = ""
    is_written: bool | None = None  # by a merged network; where it differs from what is lowered

    def network(self):
        torch.manual_seed(0)
        op = self.op if isinstance(self.op, nn.Module) else Calling(self.op, *self.modules)
        return ready(Around(op), INPUT, lambda u: u < 0.7)


def excited(sigmoid: Callable[[Tensor], Tensor], times: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x: times(x, sigmoid(F.adaptive_avg_pool2d(x, 1)))


AVERAGES = "average over windows of one size"
GENERAL = "write it with convolutions, additions of two maps"
SQUEEZE = "leave squeeze-and-excitation out"
BIAS = "put it into the bias of the layer before"
PAD = "use the padding of the convolution"
ROWS = "join channels, dimension 1"
NORMS = ops.BatchNorm
CASES = {
    "relu": Case(ops.Activation, nn.ReLU()),
    "relu6": Case(ops.Activation, nn.ReLU6()),
    "F.relu": Case(ops.Activation, lambda x: F.relu(x)),
    "F.relu in place": Case(ops.Activation, lambda x: F.relu(x, inplace=True)),
    "F.relu6": Case(ops.Activation, lambda x: F.relu6(x)),
    "torch.relu": Case(ops.Activation, lambda x: torch.relu(x)),
    "torch.relu_": Case(ops.Activation, lambda x: torch.relu_(x)),
    ".relu": Case(ops.Activation, lambda x: x.relu()),
    ".relu_": Case(ops.Activation, lambda x: x.relu_()),
    "conv": Case(ops.Convolution, nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), groups=2)),
    "dilated": Case(ops.Convolution, nn.Conv2d(4, 4, 3, dilation=2), remedy="dilation 1"),
    "conv1d": Case(ops.Convolution, lambda x, f: f(x.flatten(2)).unsqueeze(3), (nn.Conv1d(4, 4, 3),), GENERAL),
    "linear": Case(ops.Linear, lambda x, f: f(x.mean((2, 3))), (nn.Linear(4, 5),)),
    "linear on a map": Case(ops.Linear, nn.Linear(6, 5), remedy="flatten the map first", is_written=True),
    "norm": Case(ops.BatchNorm, lambda x, f: f(F.relu(x)), (nn.BatchNorm2d(4),)),
    "norm1d": Case(NORMS, lambda x, f: f(F.relu(x.mean((2, 3)))), (nn.BatchNorm1d(4),), is_written=False),
    "norm without statistics": Case(
        NORMS, nn.BatchNorm2d(4, track_running_stats=False), remedy="track_running_stats=True"
    ),
    "pool": Case(ops.Pool, nn.AvgPool2d(3, 2, 1)),
    "F.avg_pool2d": Case(ops.Pool, lambda x: F.avg_pool2d(x, 2)),
    "adaptive": Case(ops.Pool, nn.AdaptiveAvgPool2d(2)),
    "F.adaptive": Case(ops.Pool, lambda x: F.adaptive_avg_pool2d(x, 3)),
    ".mean": Case(ops.Pool, lambda x: x.mean((2, 3))),
    "torch.mean": Case(ops.Pool, lambda x: torch.mean(x, (2, 3), keepdim=True)),
    "ceil mode": Case(ops.UnevenPool, nn.AvgPool2d(2, ceil_mode=True), remedy=AVERAGES),
    "uneven": Case(ops.UnevenPool, nn.AdaptiveAvgPool2d(4), remedy=AVERAGES),
    "channel mean": Case(ops.UnevenPool, lambda x: x.mean(1, keepdim=True), remedy=AVERAGES),
    "flatten": Case(ops.Reshape, nn.Flatten()),
    "torch.flatten": Case(ops.Reshape, lambda x: torch.flatten(x, 1)),
    ".flatten": Case(ops.Reshape, lambda x: x.flatten(1)),
    ".view": Case(ops.Reshape, lambda x: x.view(x.size(0), -1)),
    ".reshape": Case(ops.Reshape, lambda x: x.reshape(x.shape[0] // 1, -1)),
    "a view of rows": Case(ops.Free, lambda x: x.view(x.size(0), 24, 6).view(x.size(0), -1), remedy=GENERAL),
    "identity": Case(ops.Identity, nn.Identity()),
    "dropout": Case(ops.Identity, nn.Dropout()),
    "dropout2d": Case(ops.Identity, nn.Dropout2d()),
    "+": Case(ops.Addition, lambda x, f: x + f(x), (nn.Conv2d(4, 4, 1),)),
    "+=": Case(ops.Addition, lambda x, f: operator.iadd(f(x), x), (nn.Conv2d(4, 4, 1),)),
    "torch.add": Case(ops.Addition, lambda x, f: torch.add(x, other=f(x)), (nn.Conv2d(4, 4, 1),)),
    ".add": Case(ops.Addition, lambda x, f: f(x).add(x), (nn.Conv2d(4, 4, 1),)),
    ".add_": Case(ops.Addition, lambda x, f: f(x).add_(x), (nn.Conv2d(4, 4, 1),)),
    "twice": Case(ops.Addition, lambda x: x + x),
    "+ 1": Case(ops.Addition, lambda x: x + 1.0, remedy=BIAS),
    "+ parameter": Case(ops.Addition, lambda x, factor: x + factor, remedy=BIAS),
    "broadcast": Case(
        ops.Addition, lambda x: x + x.mean((2, 3), keepdim=True), remedy="give both terms one shape", is_written=True
    ),
    "with a factor": Case(ops.Free, lambda x, f: torch.add(x, f(x), alpha=2), (nn.Conv2d(4, 4, 1),), GENERAL),
    "cat": Case(ops.Concat, lambda x, f: torch.cat([f(x), x], -3), (nn.Conv2d(4, 2, 1),)),
    "cat of rows": Case(ops.Concat, lambda x, f: torch.cat([f(x), x], 2), (nn.Conv2d(4, 4, 1),), ROWS),
    "cat of a parameter": Case(
        ops.Concat, lambda x, factor: torch.cat([x[:1], factor], 1), remedy="weights and biases"
    ),
    "slice": Case(ops.Select, lambda x: x[:, 1:3]),
    "every second": Case(ops.Free, lambda x: x[:, ::2], remedy=GENERAL),
    "pad": Case(ops.Select, nn.ConstantPad2d(1, 0.5), remedy=PAD),
    "zero pad": Case(ops.Select, nn.ZeroPad2d(1), remedy=PAD),
    "F.pad": Case(ops.Select, lambda x: F.pad(x, (1, 1, 1, 1)), remedy=PAD),
    "sigmoid": Case(ops.Excitation, lambda x, f: x * f(x.mean((2, 3), keepdim=True)), (nn.Sigmoid(),), SQUEEZE),
    "torch.sigmoid": Case(ops.Excitation, excited(torch.sigmoid, torch.mul), remedy=SQUEEZE),
    ".sigmoid": Case(ops.Product, excited(lambda x: x.sigmoid(), lambda x, y: x.mul(y)), remedy=SQUEEZE),
    "product in place": Case(ops.Product, excited(torch.sigmoid, lambda x, y: (x + 1).mul_(y)), remedy=SQUEEZE),
    "*=": Case(ops.Product, excited(torch.sigmoid, lambda x, y: operator.imul(x + 1, y)), remedy=SQUEEZE),
    "quotient": Case(ops.Product, excited(torch.sigmoid, lambda x, y: x / y), remedy=SQUEEZE),
    "torch.div": Case(ops.Product, excited(torch.sigmoid, torch.div), remedy=SQUEEZE),
    ".div": Case(ops.Product, excited(torch.sigmoid, lambda x, y: x.div(y)), remedy=SQUEEZE),
    "times 2": Case(ops.Free, lambda x: x * 2.0, remedy=GENERAL),
    "times a parameter": Case(ops.Free, lambda x, factor: x * factor, remedy="weights and biases"),
    "-": Case(ops.Free, lambda x, f: x - f(x), (nn.Conv2d(4, 4, 1),), GENERAL),
    "torch.sub": Case(ops.Free, lambda x, f: torch.sub(x, f(x)), (nn.Conv2d(4, 4, 1),), GENERAL),
    ".sub": Case(ops.Free, lambda x, f: x.sub(f(x)), (nn.Conv2d(4, 4, 1),), GENERAL),
    ".permute": Case(ops.Free, lambda x: x.permute(0, 1, 3, 2), remedy=GENERAL),
    ".contiguous": Case(ops.Free, lambda x: x.contiguous(), remedy=GENERAL),
    ".squeeze": Case(ops.Free, lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2), remedy=GENERAL),
}
UNKNOWN = {
    "GELU": (nn.GELU(), "use nn.ReLU and train again"),
    "MaxPool2d": (nn.MaxPool2d(2), "use nn.AvgPool2d"),
    "PixelShuffle": (nn.PixelShuffle(1), "write it with convolutions"),
    "cumsum": (lambda x: x.cumsum(1), "write it with convolutions"),
    "flip": (lambda x: torch.flip(x, (2,)), "write it with convolutions"),
    "a product of two activations": (lambda x: x * x, "remove the gate"),
    "sigmoid": (lambda x: torch.sigmoid(x), "leave it out of the network"),
}


def logits(network, images):
    p = preprocessing_of(INPUT[0])
    with torch.no_grad():
        return network.eval()(normalise(images, tuple(p["mean"]), tuple(p["std"])))


def check_lowered(network):
    images = images_of(16, INPUT, seed=1)
    expected = logits(network, images).double().numpy()
    for cost in (seconds, nothing):
        found = reference.run(lowered_of(network, 32, cost=cost), images).logits
        assert np.abs(found - expected).max() < 0.02


@pytest.mark.parametrize("name", CASES)
def test_every_op_is_counted_fused_and_lowered_or_refused(name):
    case = CASES[name]
    network = case.network()
    images = images_of(4, INPUT)
    expected = logits(network, images)
    read = ops.read_all(network)
    assert case.kind in map(type, read.values())

    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *INPUT))
    assert 2 * count(network).macs == counter.get_total_flops()

    fused = fuse(network)
    assert torch.allclose(logits(fused, images), expected, atol=1e-5)

    found = problems(network)
    if case.remedy:
        assert any(case.remedy in problem.remedy for problem in found)
        assert {problem.path for problem in found} <= {"op", "op.inner.0"}
        with pytest.raises(UserError, match=r"^op(\.inner\.0)?: .* is not supported; "):
            lowered_of(network)
    else:
        assert found == ()
        check_lowered(network)

    folded = fuse(network, cost=nothing)
    if case.is_written or (case.is_written is None and not case.remedy):
        spec = graph_of(folded, 3)
        again = Candidate(spec, Plan.of(folded), weights_of(spec, folded)).network()
        assert torch.allclose(logits(again, images), expected, atol=1e-5)
    else:
        with pytest.raises(UserError, match=r"^op(\.inner\.0)?: .* has no place in a graph "):
            graph_of(folded, 3)


def test_the_cases_are_the_whole_vocabulary():
    """Each line of both tables is met in a trace, and each class of op is read."""
    met, kinds = set(), set()
    for case in CASES.values():
        op = case.op if isinstance(case.op, nn.Module) else Calling(case.op, *case.modules)
        traced = trace.trace(Around(op), INPUT)
        trace.propagate_shapes(traced, INPUT)
        kinds |= {type(ops.read(node)) for node in [*traced.graph.nodes, *case.network().graph.nodes]}
        for node in traced.graph.nodes:
            met |= set(type(trace.called_module(node)).__mro__) if node.op == "call_module" else {node.target}
    assert {*ops.MODULES, *ops.CALLS} - met == {ops.Site}
    assert set(ops.Op.__subclasses__()) - kinds == {ops.Unsupported}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_op_is_refused_by_each_with_path_and_remedy(name):
    op, remedy = UNKNOWN[name]
    network = Case(ops.Unsupported, op).network()
    message = f"op: {name} is not supported; {remedy}"
    refusals = [count, fuse, lowered_of, lambda network: graph_of(network, 3)]
    for refused in refusals:
        with pytest.raises(UserError) as error:
            refused(network)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert [str(problem).startswith(message) for problem in problems(network)] == [True]


def test_a_line_in_the_table_makes_an_op_known(monkeypatch):
    monkeypatch.setitem(ops.MODULES, nn.PixelShuffle, lambda node, module: ops.Identity())
    network = Case(ops.Identity, nn.PixelShuffle(1)).network()
    assert count(network).macs == count(CASES["identity"].network()).macs
    assert not hasattr(fuse(network), "op")
    check_lowered(network)


def test_an_op_of_a_class_that_nobody_matches_is_refused(monkeypatch):
    class Shuffle(ops.Op):
        """One of a plugin's own."""

    monkeypatch.setitem(ops.MODULES, nn.PixelShuffle, lambda node, module: Shuffle())
    network = Case(Shuffle, nn.PixelShuffle(1)).network()
    for refused in (count, lowered_of, lambda network: graph_of(network, 3)):
        with pytest.raises(UserError, match=r"^op: PixelShuffle .*; "):
            refused(network)
    images = images_of(4, INPUT)
    assert torch.allclose(logits(fuse(network), images), logits(network, images), atol=1e-5), "it is left alone"
