"""What every op of the vocabulary promises: counted, fused, written, exported, lowered; what is none is refused."""

import dataclasses
import inspect
import re
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
from parelu.models.onnx import read_onnx
from parelu.models.onnx_export import to_onnx
from parelu.models.writing import graph_of, weights_of
from parelu.network import nodes, ops
from parelu.network.candidate import Candidate
from parelu.network.canonical import replacements
from parelu.network.count import count, skeleton
from parelu.network.instrument import instrument
from parelu.network.plan import Plan
from parelu.network.preprocessing import normalise
from parelu.private.lowering import reference
from parelu.private.lowering.ops import Resample, Scale, Shift, Truncate
from parelu.private.lowering.outline import outline
from parelu.private.lowering.refusals import problems

INPUT = (1, 6, 6)
CHANNELS = 4


class Calling(nn.Module):
    """The function of a map, with a module and a parameter at its hand."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(modules)
        self.factor = nn.Parameter(torch.rand(1, CHANNELS, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        named = {"factor": self.factor} if "factor" in inspect.signature(self.function).parameters else {}
        return self.function(x, *self.inner, **named)


class Around(nn.Module):
    """A small classifier around an op."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.conv, self.op = nn.Conv2d(1, CHANNELS, 3, padding=1), op
        with torch.no_grad():
            shape = op.eval()(torch.zeros(2, CHANNELS, *INPUT[1:])).shape
        self.is_map = len(shape) == 4
        self.fc = nn.Linear(shape[1:].numel() if not self.is_map else shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.op(self.conv(x))
        return self.fc(x.mean((2, 3)) if self.is_map else x.flatten(1))


@dataclasses.dataclass(frozen=True)
class Case:
    """kind: what the op is read as."""

    kind: type[ops.Op]
    op: nn.Module | Callable[..., Tensor]
    modules: tuple[nn.Module, ...] = ()

    def module(self):
        return Around(self.op if isinstance(self.op, nn.Module) else Calling(self.op, *self.modules))

    def network(self):
        torch.manual_seed(0)
        return ready(self.module(), INPUT, lambda u: u < 0.7)


ONE = nn.Conv2d(4, 4, 1)
CASES = {
    "relu": Case(ops.Activation, nn.ReLU()),
    "conv": Case(ops.Convolution, nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), groups=2)),
    "dilated": Case(ops.Convolution, nn.Conv2d(4, 4, 3, dilation=2)),
    "linear": Case(ops.Linear, lambda x, f: f(x.mean((2, 3))), (nn.Linear(4, 5),)),
    "linear on a map": Case(ops.Linear, nn.Linear(6, 5)),
    "norm": Case(ops.BatchNorm, lambda x, f: f(F.relu(x)), (nn.BatchNorm2d(4),)),
    "norm1d": Case(ops.BatchNorm, lambda x, f: f(F.relu(x.mean((2, 3)))), (nn.BatchNorm1d(4),)),
    "pool": Case(ops.Pool, nn.AvgPool2d(3, 2, 1)),
    "F.avg_pool2d": Case(ops.Pool, lambda x: F.avg_pool2d(x, 2)),
    "adaptive": Case(ops.Pool, nn.AdaptiveAvgPool2d(2)),
    "F.adaptive": Case(ops.Pool, lambda x: F.adaptive_avg_pool2d(x, 3)),
    "mean": Case(ops.Pool, lambda x: x.mean((2, 3))),
    "max-pool": Case(ops.MaxPool, nn.MaxPool2d(3, 2, 1)),
    "F.max_pool2d": Case(ops.MaxPool, lambda x: F.max_pool2d(x, 2)),
    "a hanging max-pool": Case(ops.MaxPool, nn.MaxPool2d(3, 2, ceil_mode=True)),
    "resample": Case(ops.Resample, lambda x: F.adaptive_avg_pool2d(x, 4)),
    "reshape": Case(ops.Reshape, lambda x: x.reshape(x.size(0), 2, 72)),
    "permute": Case(ops.Permute, lambda x: x.permute(0, 2, 3, 1).flatten(1)),
    "select": Case(ops.Select, lambda x: x[:, 1:3]),
    "every second": Case(ops.Select, lambda x: x[:, ::2, ::2]),
    "zero pad": Case(ops.Select, lambda x: F.pad(x, (1, 0, 2, 0))),
    "dropout": Case(ops.Identity, nn.Dropout()),
    "dropout1d": Case(ops.Identity, lambda x, f: f(x.flatten(2)).view(x.size(0), 4, 6, 6), (nn.Dropout1d(),)),
    "dropout2d": Case(ops.Identity, nn.Dropout2d()),
    "sum": Case(ops.Addition, lambda x, f: x + f(x), (ONE,)),
    "twice": Case(ops.Addition, lambda x: x + x),
    "cat": Case(ops.Concat, lambda x, f: torch.cat([f(x), x], -3), (nn.Conv2d(4, 2, 1),)),
    "cat of rows": Case(ops.Concat, lambda x, f: torch.cat([f(x), x], 2), (ONE,)),
    "scaling": Case(ops.Scaling, lambda x: x * 2.0),
    "affine": Case(ops.Affine, lambda x, factor: x * factor + 1),
    "affine behind relu": Case(ops.Affine, lambda x, factor: F.relu(x) * factor - 0.5),
    "product": Case(ops.Product, lambda x, f: x * f(x), (ONE,)),
    "square": Case(ops.Product, lambda x: x * x),
    "gate": Case(ops.Product, lambda x: x * x.mean((2, 3), keepdim=True)),
}
UNKNOWN = {
    "Softplus": (nn.Softplus(threshold=1), "--replace softplus=relu"),
    "GroupNorm": (nn.GroupNorm(2, 4), "--replace groupnorm=batchnorm"),
    "cumsum": (lambda x: x.cumsum(1), "write it with convolutions"),
    "softmax": (lambda x: x.softmax(1), "attention"),
    "matmul": (lambda x: x @ x.transpose(2, 3), "attention"),
    "truediv": (lambda x: x / (x * x + 1.0), "divide by numbers"),
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
def test_every_op_is_counted_and_fused(name):
    case = CASES[name]
    network = case.network()
    images = images_of(4, INPUT)
    expected = logits(network, images)
    assert case.kind in map(type, ops.read_all(network).values())
    module = case.module()
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *INPUT))
    assert 2 * count(network).macs == counter.get_total_flops()
    for cost in (seconds, nothing):
        assert torch.allclose(logits(fuse(network, cost=cost), images), expected, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_op_has_its_place_in_a_program_of_shapes_alone(name):
    network = CASES[name].network()
    spec, plan = graph_of(network, 3), Plan.of(network)
    shapes = skeleton(spec)
    plan.apply(shapes)
    written = Candidate(spec, plan, weights_of(spec, network)).network()
    found, real = outline(shapes), lowered_of(written, 2).program
    public = (Scale, Truncate, Resample, Shift)  # whether they are needed, and on what, numbers say
    said = [
        [(type(op), s) for op, s in zip(p.ops, p.shapes[1:], strict=True) if not isinstance(op, public)]
        for p in (found, real)
    ]
    assert said[0] == said[1]
    assert (found.relus, found.squares) == (real.relus, real.squares)


@pytest.mark.parametrize("name", CASES)
def test_every_op_is_written_in_a_graph(name):
    network = CASES[name].network()
    images = images_of(4, INPUT)
    expected = logits(network, images)
    for written in (network, fuse(network, cost=nothing)):
        spec = graph_of(written, 3)
        again = Candidate(spec, Plan.of(written), weights_of(spec, written)).network()
        assert torch.allclose(logits(again, images), expected, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_op_is_exported_and_read_again(name, tmp_path):
    """ONNX's own reference gives the same outputs, and so does what we read of the file, with the same counts."""
    onnx = pytest.importorskip("onnx")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    network = CASES[name].network()
    x = torch.randn(3, *INPUT)
    with torch.no_grad():
        expected = network(x)
    for exported in (network, fuse(network, cost=nothing)):
        model = to_onnx(exported)
        assert np.allclose(evaluator(model).run(None, {"images": x.numpy()})[0], expected, atol=1e-5)
        onnx.save(model, str(tmp_path / "net.onnx"))
        found = read_onnx(tmp_path / "net.onnx")
        again = instrument(found.module, found.input)
        with torch.no_grad():
            assert torch.allclose(again(x), expected, atol=1e-5)
        counts = [(c.relus, c.comparisons, c.squares, c.macs) for c in (count(exported), count(again))]
        assert counts[0][:3] == counts[1][:3]
        assert counts[0] == counts[1] or name == "resample", "whose matrix is a layer's to whoever reads the file"


@pytest.mark.parametrize("name", CASES)
def test_every_op_is_lowered(name):
    network = CASES[name].network()
    assert problems(network) == ()
    check_lowered(network)


def test_the_cases_are_the_whole_vocabulary():
    """Each line of both tables is met in a canonical network, and each class of op is read."""
    met, kinds = set(), set()
    for case in CASES.values():
        network = case.network()
        kinds |= {type(ops.read(node)) for node in network.graph.nodes}
        for node in network.graph.nodes:
            met |= set(type(nodes.called_module(node)).__mro__) if node.op == "call_module" else {node.target}
    assert {*ops.MODULES, *ops.CALLS} - met == {nn.Identity, torch.flatten}  # fusion writes it
    assert set(ops.Op.__subclasses__()) - kinds == {ops.Unsupported, ops.Number, ops.Constant}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_op_is_refused_by_each_with_path_and_remedy(name):
    op, remedy = UNKNOWN[name]
    network = Case(ops.Unsupported, op).network()
    message = f"op: {name} is not supported; {remedy}"
    for refused in (count, fuse, lowered_of, to_onnx):
        with pytest.raises(UserError) as error:
            refused(network)
        assert any(line.startswith(message) for line in str(error.value).splitlines())
    assert any(str(problem).startswith(message) for problem in problems(network))
    images = images_of(2, INPUT)
    assert logits(network, images).shape == (2, 3), "it runs all the same, as a teacher"


def test_replacements_that_remedies_name_are_there():
    named = {
        tuple(pair.split("="))
        for kind, remedy in ops._REMEDIES.items()
        for pair in re.findall(r"--replace (\w+=\w+)", remedy.format(kind))
    }
    assert named <= set(replacements.REPLACEMENTS)


def test_a_line_in_the_table_makes_an_op_known(monkeypatch):
    monkeypatch.setitem(ops.MODULES, nn.AlphaDropout, lambda node, module: ops.Identity())
    network = Case(ops.Identity, nn.AlphaDropout()).network()
    assert count(network).macs == count(CASES["dropout"].network()).macs
    check_lowered(network)


def test_an_op_of_a_class_that_nobody_matches_is_refused(monkeypatch):
    class Shuffle(ops.Op):
        """One of a plugin's own."""

    monkeypatch.setitem(ops.MODULES, nn.AlphaDropout, lambda node, module: Shuffle())
    network = Case(Shuffle, nn.AlphaDropout()).network()
    for refused in (count, lowered_of, to_onnx):
        with pytest.raises(UserError, match=r"^op: AlphaDropout .*; "):
            refused(network)
    images = images_of(4, INPUT)
    assert torch.allclose(logits(fuse(network), images), logits(network, images), atol=1e-5), "it is left alone"
