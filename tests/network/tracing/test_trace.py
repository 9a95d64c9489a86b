"""Tracing: what people write is read as they mean it, and what cannot be is refused in one line with its place."""

from __future__ import annotations

import dataclasses
import operator
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune

from parelu.errors import UserError
from parelu.network.nodes import owner
from parelu.network.tracing.trace import trace

SHAPE = (3, 8, 8)


class Forward(nn.Module):
    """Some layers, and a forward of a test's own between them."""

    def __init__(self, forward: Callable[..., object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.act = nn.ReLU(inplace=True), nn.ReLU()
        self.fc, self.wide = nn.Linear(4, 5), nn.Linear(4 * 8 * 8, 5)
        self.gamma = nn.Parameter(torch.rand(4))
        self.register_buffer("mean", torch.rand(3))
        self.made = forward
        self.bn.register_buffer("running_mean", torch.rand(4) - 0.5)

    def forward(self, x: Tensor) -> object:
        return self.made(self, x)


def traced_as_computed(module: nn.Module, shape: tuple[int, ...] = SHAPE, **options) -> fx.GraphModule:
    """The module traced, after a check that it computes the same for other images, more of them, and fewer."""
    traced = trace(module, shape, **options)
    modes = {name: part.training for name, part in module.named_modules()}
    module.eval()
    traced.eval()
    for count in (1, 3):
        x = torch.randn(count, *shape)
        with torch.no_grad():
            expected = module(x.clone())
            torch.testing.assert_close(traced(x.clone()), expected if isinstance(expected, Tensor) else expected[0])
    for name, part in module.named_modules():
        part.training = modes[name]
    return traced


def targets(traced: fx.GraphModule) -> list[object]:
    return [node.target for node in traced.graph.nodes if node.op.startswith("call")]


def pooled(m: Forward, y: Tensor) -> Tensor:
    return m.fc(y.mean((2, 3)))


def compiled(code: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # networks have it all the same
        return torch.jit.script(code)


def _gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _in_place(x: Tensor) -> Tensor:
    return x.relu_()


scripted, scripted_in_place = compiled(_gate), compiled(_in_place)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return torch.relu(x) * 2


def in_place_of_another_name(m, x):
    y = m.conv(x)
    z = y
    z += 1.0
    return pooled(m, y + z)


def in_place_of_a_part(m, x):
    first, second = m.conv(x).chunk(2, 1)
    first.relu_()
    return pooled(m, torch.cat([first, second], 1))


def written_into_zeros(m, x):
    y, out = m.conv(x), torch.zeros(x.size(0), 4, 8, 8)
    out[:, 1:] = y[:, :3]
    return pooled(m, out)


def with_sizes(m, x):
    b, c, h, w = x.shape
    assert c == 3 and x.dim() == 4 and len(x.shape) == 4, "an image"
    torch._assert(h % 4 == 0, "the height")
    y = m.conv(x) if w > 4 else x
    y = F.avg_pool2d(y, y.size()[3])
    return m.fc(y.view(b, y.numel() // b))


def branching_on_the_batch(m, x):
    return pooled(m, m.conv(x) if x.shape[0] > 0 else x)


def normalised(m, x):
    return pooled(m, m.conv((x - m.mean.view(1, -1, 1, 1)) / (2 * m.mean[:, None, None])))


def standardised(m, x):
    weight = m.conv.weight
    weight = (weight - weight.mean()) / weight.std()
    return pooled(m, F.conv2d(x, weight, m.conv.bias, padding=1))


def by_functions(m, x):
    y = F.conv2d(x, m.conv.weight, m.conv.bias, padding=1)
    y = F.batch_norm(y, m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias, m.training)
    return F.linear(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1), m.fc.weight, m.fc.bias)


def hidden_in_a_list(m, x):
    return pooled(m, [m.conv, m.act][1](m.conv(x)))


FORWARDS: dict[str, Callable[..., Tensor]] = {
    "plain": lambda m, x: pooled(m, m.relu(m.bn(m.conv(x)))),
    "sizes": with_sizes,
    "a branch on the batch": branching_on_the_batch,
    "view of the batch": lambda m, x: m.wide(m.conv(x).view(x.size(0), -1)),
    "view of the rest": lambda m, x: m.wide(m.conv(x).view(-1, 4 * x.shape[2] * x.shape[3])),
    "squeeze": lambda m, x: m.fc(F.adaptive_avg_pool2d(m.conv(x), 1).squeeze(3).squeeze(2)),
    "in place of another name": in_place_of_another_name,
    "in place of a part": in_place_of_a_part,
    "in place by a layer": lambda m, x: pooled(m, (y := m.conv(x)) + m.relu(y)),
    "in place by a function": lambda m, x: pooled(m, (y := m.conv(x)) + F.relu(y, inplace=True) + torch.relu_(y)),
    "in place by a method": lambda m, x: pooled(m, (y := m.conv(x)).mul_(2).add_(1) + y),
    "out": lambda m, x: pooled(m, torch.add(y := m.conv(x), 1, out=y) + y),
    "written into zeros": written_into_zeros,
    "zeros beside": lambda m, x: pooled(m, torch.cat([m.conv(x)[:, :2], torch.zeros(x.shape[0], 2, 8, 8)], 1)),
    "zeros like": lambda m, x: pooled(m, torch.cat([y := m.conv(x)[:, :2], torch.zeros_like(y)], 1)),
    "a parameter for each image": lambda m, x: m.fc(
        m.gamma.expand(len(x.shape) and x.shape[0], -1) + x.mean((1, 2, 3))[:, None]
    ),
    "normalised inside": normalised,
    "layer scale": lambda m, x: pooled(m, m.conv(x) * m.gamma.view(-1, 1, 1)),
    "reflected operators": lambda m, x: pooled(m, 1 - m.conv(x) + (2 + m.conv(x)) / 2 - 3 * m.conv(x)),
    "a constant over": lambda m, x: pooled(m, 1 / (m.conv(x).abs() + 1)),
    "functional layers": by_functions,
    "standardised weights": standardised,
    "dropout": lambda m, x: pooled(m, F.dropout(m.conv(x), 0.5, m.training)),
    "the training branch": lambda m, x: pooled(m, m.conv(x)) + 100 if m.training else pooled(m, m.conv(x)),
    "a layer made in the forward": lambda m, x: pooled(m, nn.ReLU()(m.conv(x))),
    "a layer in a list": hidden_in_a_list,
    "split": lambda m, x: pooled(m, torch.cat(m.conv(x).split([1, 3], 1)[::-1], 1)),
    "shuffle": lambda m, x: pooled(
        m, m.conv(x).view(x.size(0), 2, 2, 8, 8).transpose(1, 2).reshape(x.shape[0], 4, 8, 8)
    ),
    "unbind": lambda m, x: pooled(m, torch.stack(m.conv(x).unbind(1), 1).sum(1, True).expand(-1, 4, -1, -1)),
    "a map of tensors": lambda m, x: pooled(m, {"a": m.conv(x)}["a"]),
    "detached": lambda m, x: pooled(m, m.conv(x).detach().data.float().to(x.device).contiguous()),
    "a script": lambda m, x: pooled(m, scripted(m.conv(x))),
    "a script in place": lambda m, x: pooled(m, (y := m.conv(x)) + scripted_in_place(y) + y),
    "a function of autograd": lambda m, x: pooled(m, Function.apply(m.conv(x))),
    "transposed twice": lambda m, x: pooled(m, m.conv(x).mT.mT.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
    "largest": lambda m, x: m.fc(m.conv(x).flatten(2).max(-1)[0]),
    "top": lambda m, x: m.fc(m.conv(x).flatten(2).topk(2, -1).values.sum(-1)),
    "a matrix of images": lambda m, x: m.fc(torch.einsum("bchw,bchw->bc", m.conv(x), m.conv(x))),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_what_people_write_is_traced_as_it_computes(name):
    module = Forward(FORWARDS[name])
    traced = traced_as_computed(module)
    assert all(part.training for part in module.modules())
    owned = dict(module.named_parameters())
    for name, parameter in traced.named_parameters():
        assert parameter.shape != owned[name].shape or parameter is owned[name] or traced.meta["notes"], name


@pytest.mark.parametrize("name", FORWARDS)
def test_what_is_recorded_is_out_of_place_and_of_the_image(name):
    traced = trace(Forward(FORWARDS[name]), SHAPE)
    depends = set()
    for node in traced.graph.nodes:
        if node.op == "placeholder" or any(n in depends for n in node.all_input_nodes):
            depends.add(node)
        else:
            assert node.op == "get_attr", node.format_node()
        assert "inplace" not in node.kwargs or not node.kwargs["inplace"]
        assert not str(getattr(node.target, "__name__", node.target)).endswith("_")
        assert node.users or node.op == "output"


def test_shapes_and_numbers_are_of_one_image():
    traced = trace(Forward(FORWARDS["zeros beside"]), SHAPE)
    shapes = {node.name: node.meta.get("shape") for node in traced.graph.nodes}
    assert shapes["conv"] == shapes["cat"] == (4, 8, 8)
    assert shapes["output"] == (5,)
    assert {node.meta["number"] for node in traced.graph.nodes if node.target == "size"} == {1}


def test_names_of_parameters_stay():
    module = Forward(by_functions)
    traced = trace(module, SHAPE)
    assert set(traced.state_dict()) == {
        *("conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"),
        *("fc.weight", "fc.bias"),
    }
    assert traced.get_parameter("conv.weight") is module.conv.weight


def test_what_is_computed_of_a_parameter_has_its_name_and_is_noted():
    module = Forward(standardised)
    traced = trace(module, SHAPE)
    assert isinstance(traced.get_parameter("conv.weight"), nn.Parameter)
    assert any(note.startswith("conv.weight: ") for note in traced.meta["notes"])
    assert trace(Forward(FORWARDS["layer scale"]), SHAPE).get_parameter("gamma").shape == (4, 1, 1)


def test_a_view_of_a_parameter_shares_its_memory():
    module = Forward(FORWARDS["layer scale"])
    traced = trace(module, SHAPE)
    assert traced.meta["notes"] == []
    assert traced.get_parameter("gamma").data_ptr() == module.gamma.data_ptr()


def test_dropout_by_a_function_drops_in_training():
    traced = trace(Forward(FORWARDS["dropout"]), SHAPE)
    x = torch.rand(2, *SHAPE)
    torch.testing.assert_close(traced.eval()(x), traced(x))
    assert not torch.allclose(traced.train()(x), traced(x))


def test_modes_are_left_as_they_are():
    module = Forward(FORWARDS["plain"])
    module.bn.eval()
    trace(module, SHAPE)
    assert module.training and not module.bn.training


def weighted(change: Callable[[nn.Module], object]) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    for layer in (module[0], module[4]):
        change(layer)
    module(torch.rand(2, *SHAPE))
    return module


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: (prune.random_unstructured(layer, "weight", 0.5), prune.random_unstructured(layer, "bias", 0.5)),
    ],
    ids=["weight norm", "spectral norm", "old weight norm", "old spectral norm", "prune", "prune both"],
)
def test_computed_weights_are_baked(change):
    traced = traced_as_computed(weighted(change))
    assert {name for name, _ in traced.named_parameters()} == {
        f"{layer}.{name}" for layer in (0, 1, 4) for name in ("weight", "bias")
    }
    assert [note.split(":")[0] for note in traced.meta["notes"]] == ["0", "4"]
    assert type(traced.get_submodule("0")) is nn.Conv2d
    assert not traced.get_submodule("0")._forward_pre_hooks


def test_a_compiled_module_is_traced_by_its_operators():
    plain = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 5)),
    ).eval()
    traced = traced_as_computed(compiled(plain))
    assert set(traced.state_dict()) >= {"0.weight", "0.bias", "1.running_mean", "7.weight", "7.bias"}
    assert F.batch_norm in targets(traced)
    assert F.max_pool2d in targets(traced)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch's compiler imports
@pytest.mark.parametrize("wrapped", [nn.DataParallel, torch.compile])
def test_wrappers_are_taken_off(wrapped):
    module = Forward(FORWARDS["plain"])
    traced = trace(wrapped(nn.DataParallel(module)), SHAPE)
    assert set(traced.state_dict()) == set(trace(module, SHAPE).state_dict())


@dataclasses.dataclass
class Outputs:
    logits: Tensor
    features: Tensor


@pytest.mark.parametrize(
    ("result", "output"),
    [
        (lambda y, z: (y, z), None),
        (lambda y, z: [z, y], None),
        (lambda y, z: {"features": z, "logits": y}, None),
        (lambda y, z: Outputs(y, z), None),
        (lambda y, z: (y + 1, y), 1),
        (lambda y, z: (y + 1, y), "1"),
        (lambda y, z: {"aux": y + 1, "logits": y}, "logits"),
        (lambda y, z: {"heads": [y + 1, y]}, "heads.1"),
    ],
)
def test_one_of_several_outputs_is_the_logits(result, output):
    module = Forward(lambda m, x: result(pooled(m, m.conv(x)), m.conv(x)))
    traced = trace(module, SHAPE, output=output).eval()
    x = torch.rand(2, *SHAPE)
    torch.testing.assert_close(traced(x), pooled(module, module.conv(x)))


class Defaults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, image: Tensor, is_feat: bool = False, preact=None) -> object:
        y = self.fc(image.mean((2, 3)))
        return (y, image) if is_feat else y


def test_defaults_are_constants_and_the_input_keeps_its_name():
    traced = traced_as_computed(Defaults())
    assert [node.target for node in traced.graph.nodes if node.op == "placeholder"] == ["image"]


def values_of(m, x):
    return pooled(m, m.conv(x)) if x.sum() > 0 else pooled(m, -m.conv(x))


def changed_by_a_view(m, x):
    y = m.conv(x)
    m.relu(y.flatten(1))
    return pooled(m, y)


def raising(m, x):
    raise KeyError("no such thing")


def mixed(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return pooled(m, m.conv(x))


REFUSED: dict[str, tuple[Callable[..., object], str]] = {
    "autocast": (mixed, "cannot be traced: its forward switches autocast on; leave it to who calls the network"),
    "control flow": (values_of, r"^Forward: cannot be traced: it reads a tensor's values by __bool__; "),
    "a number": (lambda m, x: pooled(m, m.conv(x)) * x.max().item(), "values by item; "),
    "numpy": (lambda m, x: torch.from_numpy(m.conv(x).numpy()), "values by numpy; "),
    "a layer's values": (lambda m, x: m.fc(x) if bool(m.conv(x).any()) else x, "values by __bool__"),
    "a view changed": (changed_by_a_view, r"reads conv after a view of it was changed in place; .*inplace=False"),
    "an exception": (raising, r"Forward: its forward raises KeyError: 'no such thing' \(.*test_trace.py:\d+\)$"),
    "another shape": (
        lambda m, x: m.wide(x),
        r"^the network does not take an input of shape 3x8x8: mat1 .* \(in wide\)$",
    ),
    "two logits": (lambda m, x: (y := pooled(m, m.conv(x)), 2 * y), r"choose one with --output: 0 \(5\), 1 \(5\)$"),
    "no logits": (lambda m, x: (m.conv(x), m.bn), r"choose one with --output: 0 \(4x8x8\)$"),
    "no tensor": (lambda m, x: 3, "returns a int, not one tensor"),
    "images beside": (
        lambda m, x: pooled(m, torch.relu(torch.cat([y := m.conv(x), y], 0))),
        r"^network: cat gives \(4, ",
    ),
    "channels as images": (
        lambda m, x: pooled(m, m.conv(x).view(x.shape[0] * 4, 1, 8, 8).relu().view(x.shape[0], 4, 8, 8)),
        r"^network: view gives \(8, 1, 8, 8\) for 2 images",
    ),
    "places as images": (lambda m, x: m.fc(m.conv(x).flatten(2).permute(2, 0, 1)).relu().mean(0), "permute gives"),
    "two places as images": (lambda m, x: m.fc(m.conv(x)[:, :, 0, :2].permute(2, 0, 1)).mean(0), "permute gives"),
    "a mean of images": (lambda m, x: pooled(m, (y := m.conv(x)) - y.mean(0)), "mean gives"),
    "a mean of images kept": (lambda m, x: pooled(m, (y := m.conv(x)) - y.mean(0, True)), "mean gives"),
    "the other image": (lambda m, x: pooled(m, m.conv(x).flip(0)), "flip gives an image another result beside"),
    "statistics of the batch": (
        lambda m, x: pooled(m, F.batch_norm(m.conv(x), None, None, training=True)),
        "batch_norm",
    ),
    "the number of images": (lambda m, x: pooled(m, m.conv(x) / x.shape[0]), "truediv gives an image another"),
    "chance": (lambda m, x: pooled(m, F.dropout(m.conv(x))), "dropout gives an image another .* at random"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_one_line(name):
    forward, message = REFUSED[name]
    module = Forward(forward)
    with pytest.raises(UserError, match=message) as error:
        trace(module, SHAPE)
    assert "\n" not in str(error.value)
    assert all(part.training for part in module.modules())


def test_a_call_is_judged_by_what_it_is_given():
    """Rounding that is different beside other images may grow without end; that mixes nothing."""
    traced_as = trace(Forward(lambda m, x: pooled(m, torch.sin(1e7 * m.conv(x)))), SHAPE)
    assert torch.sin in targets(traced_as)


def test_a_refusal_names_the_module():
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Forward(values_of)))
    with pytest.raises(UserError, match=r"^1\.0: cannot be traced: "):
        trace(module, SHAPE)


def test_an_output_that_is_not_there():
    with pytest.raises(UserError, match=r"no output aux; --output can be one of 0 \(5\), 1 \(4x8x8\)"):
        trace(Forward(lambda m, x: (pooled(m, m.conv(x)), m.conv(x))), SHAPE, output="aux")


def test_on_the_meta_device_shapes_are_the_same():
    for forward in FORWARDS.values():
        module = Forward(forward)
        expected = {n.name: n.meta.get("shape") for n in trace(module, SHAPE).graph.nodes}
        if "constant" not in str(expected):
            assert {n.name: n.meta.get("shape") for n in trace(module.to("meta"), SHAPE).graph.nodes} == expected


def test_owners_are_paths_of_modules():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Forward(lambda m, x: x.flatten(1)[:, :5] * 2)))
    owners = {node.target: owner(node) for node in trace(module, (3, 2, 2)).graph.nodes}
    assert owners[operator.mul] == "1.0"


def test_a_layer_that_does_more_than_its_class_is_what_it_does():
    module = Forward(lambda m, x: pooled(m, m.relu(m.bn(m.conv(x)))))
    module.conv.register_forward_hook(lambda layer, given, result: torch.mul(result, 2))  # pyright: ignore
    module.fc.register_forward_pre_hook(lambda layer, given: (given[0] + 1,))
    plain = module.bn.forward
    module.bn.forward = lambda input: plain(input) * 3
    traced = traced_as_computed(module)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in traced.modules())
    assert operator.mul in targets(traced)


def test_scripts_and_exported_programs():
    module = Forward(lambda m, x: None)
    module.layers = nn.Sequential(module.conv, module.bn, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), module.fc)
    x, layers = torch.rand(2, *SHAPE), module.layers.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripts = [torch.jit.script(layers), torch.jit.trace(layers, x), torch.jit.freeze(torch.jit.script(layers))]
    batch = torch.export.Dim("batch")
    programs = [torch.export.export(layers, (x,), dynamic_shapes=s).module() for s in (None, ({0: batch},))]
    for read in (*scripts, *programs):
        traced = trace(read, SHAPE)
        images = torch.rand(3, *SHAPE)
        with torch.no_grad():
            torch.testing.assert_close(traced.eval()(images), layers(images))


def test_a_dropout_that_never_stops_is_told_how():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 4)

        def forward(self, x):
            return self.layer(F.dropout(x.flatten(1), 0.5))

    with pytest.raises(UserError, match=r"dropout gives .* at random; give it training=self\.training"):
        trace(Net(), SHAPE)


@pytest.mark.parametrize("name", ["3x3+conv", "import", "a b", "sites", "graph", "self", "x\ny"])
def test_a_part_with_a_name_that_no_network_can_have_is_named(name):
    class Named(nn.Sequential):
        def add_module(self, name: str, module: nn.Module | None) -> None:  # of what torch would not take either
            self._modules[name] = module

    module = Named(nn.Flatten(), nn.Linear(192, 4))
    module.add_module(name, nn.Linear(4, 4))
    with pytest.raises(UserError, match="a part of a network cannot be called '"):
        trace(module, SHAPE)


STEPS: list[Callable[[Tensor], Tensor]] = [
    lambda y: y.relu(),
    lambda y: F.relu_(y),
    lambda y: y.add_(0.5),
    lambda y: y.mul_(-1.5),
    lambda y: y + y.flip(1),
    lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
    lambda y: y.transpose(2, 3),
    lambda y: y.reshape(y.shape[0], -1).view(y.shape),
    lambda y: 1 - y,
    lambda y: y * y.mean((2, 3), keepdim=True),
    lambda y: y - torch.ones(y.shape[0], 4, 1, 1),
    lambda y: F.pad(y, (1, 0, 0, 1))[:, :, 1:, :-1],
    lambda y: F.interpolate(F.avg_pool2d(y, 2), scale_factor=2),
    lambda y: y.clone().sigmoid_() + y,
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(range(len(STEPS))), st.booleans()), max_size=7))
def test_random_forwards_are_traced_as_they_compute(steps):
    """A step changes its input, or a copy of it, and what it was before is added at the end: aliases as they come."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        y = kept = m.conv(x)
        for step, is_kept in steps:
            y = STEPS[step](y)
            kept = y if is_kept else kept
        return pooled(m, y + kept)

    try:
        traced_as_computed(Forward(forward))
    except UserError as error:
        assert "after a view of it was changed in place" in str(error)
