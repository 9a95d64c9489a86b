"""Canonical form: what people write, in the ops of the vocabulary, with the same outputs."""

import math
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.network import ops
from parelu.network.count import count
from parelu.network.instrument import instrument

CHANNELS, SIDE = 4, 6


class Calling(nn.Module):
    """A function of a map, with what a module may have."""

    def __init__(self, function: Callable[..., Tensor], channels: int = CHANNELS) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.row = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)
        self.map = nn.Parameter(torch.rand(1, channels, SIDE, SIDE))
        self.kernel = nn.Parameter(torch.rand(6, channels, 3, 3) - 0.5)
        self.matrix = nn.Parameter(torch.rand(5, SIDE))
        self.tall = nn.Parameter(torch.rand(6, channels, 5, 1))
        self.gain = nn.Parameter(torch.rand(channels))
        self.columns = nn.Parameter(torch.rand(SIDE, 5))
        self.offset = nn.Parameter(torch.rand(6))
        self.register_buffer("mean", torch.rand(1, channels, 1, 1))
        self.register_buffer("average", torch.rand(channels))
        self.register_buffer("variance", torch.rand(channels) + 0.5)
        self.register_buffer("number", torch.tensor(0.25))
        self.register_buffer(
            "blur", (torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1]) / 16).expand(4, 1, 3, 3)
        )
        self.register_buffer("order", torch.randperm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Around(nn.Module):
    """A small classifier around a function of a map, which may make any tensor."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.op = nn.Conv2d(1, CHANNELS, 3, padding=1), Calling(function)
        with torch.no_grad():
            outputs = self.op(torch.rand(2, CHANNELS, SIDE, SIDE)).flatten(1).shape[1]
        self.fc = nn.Linear(outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.op(self.conv(x)), 1))


R, P, S = ops.Reshape, ops.Permute, ops.Select
CASES: dict[str, tuple[Callable[..., Tensor], set[type[ops.Op]]]] = {
    # movements
    "view": (lambda m, x: x.view(x.size(0), -1), {R}),
    "slice": (lambda m, x: x[:, 1:3], {S}),
    "step": (lambda m, x: x[:, :, ::2, ::2], {S}),
    "option A": (lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)), {S}),
    "option A with zeros": (lambda m, x: torch.cat([x, x * 0], 1), {ops.Concat, ops.Scaling}),
    "chunk": (lambda m, x: x.chunk(2, 1)[1], {S}),
    "split": (lambda m, x: torch.cat(torch.split(x, [1, 3], 1)[::-1], 1), {S, ops.Concat}),
    "unbind": (lambda m, x: x.unbind(1)[2], {S, R}),
    "tensor_split": (lambda m, x: torch.tensor_split(x, 2, 1)[0], {S}),
    "index": (lambda m, x: x[..., 0], {S, R}),
    "two indices": (lambda m, x: x[:, :, 0, 0], {S, R}),
    "list": (lambda m, x: x[:, [3, 0, 1]], {S}),
    "narrow": (lambda m, x: x.narrow(2, 1, 3), {S}),
    "index_select": (lambda m, x: torch.index_select(x, 1, m.order), {S}),
    "flip": (lambda m, x: torch.flip(x, (2,)), {S}),
    "roll": (lambda m, x: torch.roll(x, (1, 2), (2, 3)), {S}),
    "repeat": (lambda m, x: x.repeat(1, 2, 1, 1), {S}),
    "repeat_interleave": (lambda m, x: x.repeat_interleave(2, 1), {S}),
    "expand": (lambda m, x: x[:, :1].expand(-1, 3, -1, -1), {S}),
    "expand_as": (lambda m, x: x[:, :1].expand_as(x), {S}),
    "tile": (lambda m, x: x.tile((1, 1, 2, 1)), {S}),
    "stack": (lambda m, x: torch.stack([x, x], 2), {R, ops.Concat}),
    "stack and sum": (lambda m, x: torch.stack([x, x * 2.0], 1).sum(1), {R, ops.Concat, ops.Resample, ops.Scaling}),
    "squeeze": (lambda m, x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(2), {ops.Pool, R}),
    "unsqueeze": (lambda m, x: x.unsqueeze(1), {R}),
    "transpose": (lambda m, x: x.transpose(1, 2), {P}),
    "permute": (lambda m, x: x.permute(0, 2, 3, 1), {P}),
    "permute and back": (lambda m, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), set()),
    "movedim": (lambda m, x: x.movedim(1, -1), {P}),
    "swapaxes": (lambda m, x: x.swapaxes(2, 3).contiguous(), {P}),
    "unflatten": (lambda m, x: x.unflatten(1, (2, 2)), {R}),
    "shuffle": (lambda m, x: x.view(-1, 2, 2, SIDE, SIDE).transpose(1, 2).reshape(-1, 4, SIDE, SIDE), {R, P}),
    "channel_shuffle": (lambda m, x: F.channel_shuffle(x, 2), {R, P}),
    "pixel_shuffle": (lambda m, x: F.pixel_shuffle(x, 2), {R, P}),
    "pixel_unshuffle": (lambda m, x: F.pixel_unshuffle(x, 2), {R, P}),
    "unfold": (lambda m, x: F.unfold(x, 2), {R, S}),
    "zero pad": (lambda m, x: F.pad(x, (1, 0, 0, 2)), {S}),
    "one pad": (lambda m, x: F.pad(x, (1, 0, 0, 2), value=0.3), {S, ops.Affine}),
    "reflect": (lambda m, x: F.pad(x, (1, 2, 1, 1), mode="reflect"), {S}),
    "replicate": (lambda m, x: F.pad(x, (1, 2, 1, 1), mode="replicate"), {S}),
    "circular": (lambda m, x: F.pad(x, (1, 2, 1, 1), mode="circular"), {S}),
    "dropout": (lambda m, x: F.dropout(x, 0.5, m.training), {ops.Identity}),
    # arithmetic
    "times 2": (lambda m, x: x * 2.0, {ops.Scaling}),
    "2 times": (lambda m, x: 2 * x, {ops.Scaling}),
    "over 2": (lambda m, x: x / 2, {ops.Scaling}),
    "minus": (lambda m, x: -x, {ops.Scaling}),
    "+ 1": (lambda m, x: x + 1.0, {ops.Affine}),
    "1 -": (lambda m, x: 1 - x, {ops.Scaling, ops.Affine}),
    "scale": (lambda m, x: x * m.scale, {ops.Affine}),
    "layer scale": (lambda m, x: x + m.row * x, {ops.Affine, ops.Addition}),
    "affine": (lambda m, x: x * m.row + m.scale, {ops.Affine}),
    "normalisation": (lambda m, x: (x - m.mean) / m.variance.view(-1, 1, 1).sqrt(), {ops.Affine}),
    "over a parameter": (lambda m, x: x / m.scale, {ops.Affine}),
    "minus a parameter": (lambda m, x: x - m.scale, {ops.Affine}),
    "+ map": (lambda m, x: x + m.map, {ops.Affine}),
    "times a buffer": (lambda m, x: x * m.number, {ops.Scaling}),
    "-": (lambda m, x: x - x.flip(3), {S, ops.Scaling, ops.Addition}),
    "alpha": (lambda m, x: torch.add(x, x.flip(3), alpha=2), {S, ops.Scaling, ops.Addition}),
    "sum": (lambda m, x: sum([x, x.flip(3), x]), {S, ops.Addition}),
    "broadcast": (lambda m, x: x + x.mean((2, 3), keepdim=True), {ops.Pool, S, ops.Addition}),
    "addcmul": (lambda m, x: torch.addcmul(x, x, m.scale, value=0.5), {ops.Affine, ops.Scaling, ops.Addition}),
    "in place": (lambda m, x: operator.iadd(x * 1.5, x), {ops.Scaling, ops.Addition}),
    "add_": (lambda m, x: (x * 1.5).add_(x), {ops.Scaling, ops.Addition}),
    "square": (lambda m, x: x * x, {ops.Product}),
    "power": (lambda m, x: x**2, {ops.Product}),
    "gate": (lambda m, x: x * x.mean((2, 3), keepdim=True), {ops.Pool, ops.Product}),
    # averages and largest
    "avg_pool2d": (lambda m, x: F.avg_pool2d(x, 3, 2, 1), {ops.Pool}),
    "ceil": (lambda m, x: F.avg_pool2d(x, 4, 3, ceil_mode=True), {ops.Resample}),
    "ceil for nothing": (lambda m, x: F.avg_pool2d(x, 2, 2, ceil_mode=True), {ops.Pool}),
    "uncounted": (lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), {ops.Resample}),
    "divisor": (lambda m, x: F.avg_pool2d(x, 2, divisor_override=3), {ops.Pool, ops.Scaling}),
    "adaptive": (lambda m, x: F.adaptive_avg_pool2d(x, 3), {ops.Pool}),
    "uneven": (lambda m, x: F.adaptive_avg_pool2d(x, (4, 6)), {ops.Resample}),
    "adaptive from one": (lambda m, x: F.adaptive_avg_pool2d(x[:, :, :1, :1], 7), {S}),
    "mean": (lambda m, x: x.mean((2, 3)), {ops.Pool}),
    "mean twice": (lambda m, x: x.mean(3).mean(2), {ops.Resample, R}),
    "mean of all": (lambda m, x: x.flatten(2).mean(-1), {ops.Resample, R}),
    "mean of channels": (lambda m, x: x.mean(1, keepdim=True), {ops.Resample}),
    "nearest": (lambda m, x: F.interpolate(x, scale_factor=2), {S}),
    "bilinear": (lambda m, x: F.interpolate(x, size=(9, 13), mode="bilinear"), {ops.Resample}),
    "corners": (lambda m, x: F.interpolate(x, size=(9, 13), mode="bilinear", align_corners=True), {ops.Resample}),
    "bicubic": (lambda m, x: F.interpolate(x, scale_factor=1.5, mode="bicubic"), {ops.Resample}),
    "area": (lambda m, x: F.interpolate(x, size=4, mode="area"), {ops.Resample}),
    "blur": (lambda m, x: F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), m.blur, stride=2, groups=4), {S, ops.Resample}),
    "max": (lambda m, x: F.max_pool2d(x, 3, 2, 1), {ops.MaxPool}),
    "max ceil": (lambda m, x: F.max_pool2d(x, 3, 2, ceil_mode=True), {ops.MaxPool}),
    "max hanging over": (lambda m, x: nn.MaxPool2d(2, 4, 1, ceil_mode=True)(x), {ops.MaxPool}),
    "max padded": (lambda m, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2), {ops.MaxPool}),
    "max padded before": (lambda m, x: F.max_pool2d(F.pad(x, (2, 0, 1, 0), value=-math.inf), 3, 1), {S, ops.MaxPool}),
    "max dilated": (lambda m, x: F.max_pool2d(x, 2, 1, 1, dilation=3), {S, ops.MaxPool}),
    "adaptive max": (lambda m, x: F.adaptive_max_pool2d(x, 1), {ops.MaxPool}),
    "uneven max": (lambda m, x: F.adaptive_max_pool2d(x, 4), {S, ops.MaxPool}),
    "amax": (lambda m, x: x.amax((2, 3)), {ops.MaxPool, R}),
    "casts": (lambda m, x: x.double().float().to(torch.float32).type_as(x), set()),
    "a constant in its type": (lambda m, x: torch.hstack([x, torch.ones(1).to(x) * x]), {ops.Concat, ops.Affine}),
    "amax of channels": (lambda m, x: torch.amax(x, 1), {ops.MaxPool, P, R}),
    "max of rows": (lambda m, x: torch.max(x, 2)[0], {ops.MaxPool, P, R}),
    "max with indices": (lambda m, x: x.max(dim=3, keepdim=True).values, {ops.MaxPool, R}),
    # layers
    "conv2d": (lambda m, x: F.conv2d(x, m.kernel, m.offset, 2, 1), {ops.Convolution}),
    "padded": (lambda m, x: F.conv2d(F.pad(x, (2, 2, 1, 1)), m.kernel), {ops.Convolution}),
    "same": (lambda m, x: F.conv2d(x, m.tall, padding="same"), {ops.Convolution}),
    "linear": (lambda m, x: F.linear(x, m.matrix), {ops.Linear}),
    "matmul": (lambda m, x: x @ m.columns, {ops.Linear}),
    "einsum of channels": (lambda m, x: torch.einsum("nchw, dc -> ndhw", x, m.kernel[:, :, 0, 0]), set()),
    "einsum turned": (lambda m, x: torch.einsum("cd,nchw->ndhw", [m.kernel[:, :, 0, 0].T, x]), set()),
    "einsum of rows": (lambda m, x: torch.einsum("nchw,hk->nkcw", x, m.columns), {P, ops.Linear}),
    "einsum of a vector": (lambda m, x: torch.einsum("nc,dc->nd", x.mean((2, 3)), m.kernel[:, :, 0, 0]), {ops.Pool}),
    "batch_norm": (lambda m, x: F.batch_norm(x, m.average, m.variance, m.gain), {ops.BatchNorm}),
}  # fmt: skip

MODULES: dict[str, tuple[nn.Module, set[type[ops.Op]]]] = {
    "same": (nn.Conv2d(4, 3, 3, padding="same"), set()),
    "same, uneven": (nn.Conv2d(4, 3, (3, 5), padding="same", dilation=(1, 2)), set()),
    "valid": (nn.Conv2d(4, 3, 3, padding="valid"), set()),
    "reflect": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), {S}),
    "replicate": (nn.Conv2d(4, 3, 3, 2, padding=(2, 1), padding_mode="replicate"), {S}),
    "circular": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular", bias=False), {S}),
    "dilated": (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), set()),
    "padded before": (nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 3, 3, padding=1)), set()),
    "padded more at one side": (nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(4, 3, 3)), {S}),
    "conv1d": (nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 5, 2, 2, 1), nn.BatchNorm1d(3)), {R, ops.BatchNorm}),
    "linear of rows": (nn.Linear(6, 2, bias=False), set()),
    "reflection pad": (nn.ReflectionPad2d((1, 2, 0, 1)), {S}),
    "constant pad": (nn.ConstantPad2d(1, -0.5), {S, ops.Affine}),
    "pixel shuffle": (nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(3)), {R, P}),
    "upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), {ops.Resample}),
    "nearest": (nn.UpsamplingNearest2d(scale_factor=2), {S}),
    "ceil": (nn.AvgPool2d(4, 3, ceil_mode=True), {ops.Resample}),
    "uneven": (nn.AdaptiveAvgPool2d(5), {ops.Resample}),
    "global": (nn.AdaptiveAvgPool2d(1), {ops.Pool}),
    "max": (nn.MaxPool2d(3, 2, 1), {ops.MaxPool}),
    "max ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), {ops.MaxPool}),
    "adaptive max": (nn.AdaptiveMaxPool2d(2), {ops.MaxPool}),
    "line": (nn.Sequential(nn.Flatten(2), nn.AvgPool1d(3, 2), nn.AdaptiveAvgPool1d(4)), {R, ops.Resample}),
}


def run_both(module: nn.Module, shape: tuple[int, ...] = (1, SIDE, SIDE)):
    network = instrument(module, shape)
    images = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), module.eval()(images), rtol=1e-4, atol=1e-5)
    return network


ALWAYS = {ops.Input, ops.Output, ops.Convolution, ops.Linear}


@pytest.mark.parametrize("name", CASES)
def test_what_people_write_is_read(name):
    function, kinds = CASES[name]
    torch.manual_seed(0)
    network = run_both(Around(function))
    found = set(map(type, ops.read_all(network).values()))
    assert kinds - ALWAYS <= found
    assert found - ALWAYS - kinds <= {R, ops.Constant}


@pytest.mark.parametrize(
    "last", [nn.Softmax(1), nn.LogSoftmax(-1), nn.Sigmoid(), lambda x: F.softmax(x, -1), lambda x: x.sigmoid()]
)
def test_probabilities_at_the_end_are_left_out(last):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.last = nn.Linear(9, 3), last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.fc(x.flatten(1)))

    torch.manual_seed(0)
    module = Last().eval()
    network = instrument(module, (1, 3, 3))
    x = torch.randn(4, 1, 3, 3)
    torch.testing.assert_close(network(x), module.fc(x.flatten(1)))
    assert "is left out" in network.notes[0]
    assert not ops.unsupported(network)


def test_a_softmax_within_a_network_is_refused():
    module = nn.Sequential(nn.Flatten(), nn.Softmax(1), nn.Linear(9, 3))
    (problem,) = ops.unsupported(instrument(module, (1, 3, 3)))
    assert (problem.path, problem.op) == ("1", "Softmax")


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_read(name):
    module, kinds = MODULES[name]
    torch.manual_seed(0)
    around = Around(lambda m, x: module(x))
    around.inner = module
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.copy_(torch.rand(3)), part.running_var.copy_(torch.rand(3) + 0.5)
    network = run_both(around)
    found = set(map(type, ops.read_all(network).values()))
    assert kinds <= found <= kinds | ALWAYS | {R}
    assert set(network.state_dict()) >= {f"inner.{name}" for name, _ in module.named_parameters()}


MAPS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.flip(2),
    lambda x: x.roll(1, 1),
    lambda x: x.transpose(2, 3),
    lambda x: x.permute(0, 2, 3, 1),
    lambda x: x.chunk(2, 1)[0] if x.shape[1] > 1 else x,
    lambda x: torch.cat([x, x.flip(1)], 1),
    lambda x: torch.stack([x, 2 * x], 2).flatten(1, 2),
    lambda x: x[:, :, ::2],
    lambda x: F.pad(x, (1, 0, 2, 1)),
    lambda x: F.pad(x, (1, 1, 0, 0), value=0.5),
    lambda x: x.flatten(2).unflatten(2, x.shape[2:]),
    lambda x: x.reshape(x.shape[0], -1, *x.shape[1:3]),
    lambda x: x.repeat(1, 2, 1, 1),
    lambda x: 1 - x,
    lambda x: x / 3 + 0.25,
    lambda x: x - x.mean(1, keepdim=True),
    lambda x: x + x.mean((2, 3), keepdim=True),
    lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
    lambda x: F.adaptive_avg_pool2d(x, 3),
    lambda x: F.interpolate(x, size=(4, 5), mode="bilinear"),
    lambda x: F.interpolate(x, scale_factor=2),
    lambda x: F.max_pool2d(x, 2, 1, 1, ceil_mode=True),
    lambda x: x.amax(1, keepdim=True),
    lambda x: x.sum(3, keepdim=True),
    lambda x: x * x.mean((2, 3), keepdim=True),
]


@settings(max_examples=60, deadline=None)
@given(chain=st.lists(st.sampled_from(range(len(MAPS))), min_size=2, max_size=5))
def test_chains_of_maps_are_read(chain):
    def all_of_them(m: nn.Module, x: Tensor) -> Tensor:
        for number in chain:
            x = MAPS[number](x)
            assume(x[0].numel() <= 3000)
        return x

    torch.manual_seed(0)
    network = run_both(Around(all_of_them))
    assert not ops.unsupported(network)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sort(1)[0],
        lambda x: x.median(1)[0],
        lambda x: x.min(1)[0],
        lambda x: x.topk(2, 1)[0],
        lambda x: x.cummax(1)[0],
        lambda x: x.diff(dim=1),
        lambda x: x.round(),
        lambda x: x.sign(),
        lambda x: x.std(1),
        lambda x: x / x.sum(1, keepdim=True),
        lambda x: x @ x.transpose(2, 3),
        lambda x: F.instance_norm(x),
        lambda x: F.local_response_norm(x, 2),
        lambda x: F.normalize(x),
        lambda x: x.softmax(1),
        lambda x: 2**x,
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    ],
)
def test_what_is_no_map_of_ours_is_refused_and_still_runs(function):
    torch.manual_seed(0)
    module = Around(lambda m, x: function(x))
    network = instrument(module, (1, SIDE, SIDE))
    images = torch.rand(3, 1, SIDE, SIDE)
    torch.testing.assert_close(network.eval()(images), module.eval()(images), rtol=1e-4, atol=1e-5)
    problems = ops.unsupported(network)
    assert problems
    assert {problem.path for problem in problems} == {"op"}


class Shared(nn.Module):
    """Layers and parameters that are used twice, each time otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)
        self.same = nn.Conv2d(1, 1, 3, padding="same")
        self.scale = nn.Parameter(torch.rand(1))
        self.weight = nn.Parameter(torch.rand(1, 1, 3, 3))
        self.register_buffer("number", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.same(F.pad(x, (1, 1, 1, 1))))
        x = self.conv(F.pad(self.conv(x) * self.scale + 0.5, (1, 1, 1, 1))) * self.scale - 0.1
        x = (x - 0.1) * 3.0 + ((x - 0.1) - self.number)
        return F.conv2d(F.conv2d(x, self.weight), self.weight, padding=1).flatten(1) * self.number


def test_what_is_used_twice_is_not_changed_for_the_other():
    torch.manual_seed(0)
    network = run_both(Shared(), (1, 9, 9))
    found = dict(network.named_parameters(remove_duplicate=False))
    scales = {id(p) for name, p in found.items() if name.startswith("scale")}
    assert len(scales) == 1, "both uses of a parameter are trained as one"
    assert {"conv.weight", "same.weight", "weight.weight"} <= set(found)
    assert "number" in dict(network.named_buffers())


class Owning(nn.Module):
    """A module with a layer's parameters, and a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2, 1, 3, 3))
        self.register_buffer("gain", torch.tensor(0.5))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.conv2d(x, self.weight)) * self.gain


def test_a_layer_takes_the_place_of_the_module_that_owned_its_weight():
    torch.manual_seed(0)
    network = run_both(nn.Sequential(Owning(), nn.Flatten()), (1, 5, 5))
    assert list(network.state_dict()) == ["0.weight", "0.gain"]
    assert list(network.sites) == ["0.act"]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "bias": False},
        {"kernel_size": (3, 1), "stride": (1, 3), "padding": (2, 0), "groups": 2},
        {"kernel_size": 2, "stride": 3, "padding": 2, "dilation": 2, "groups": 2},
        {"kernel_size": 1, "stride": 2, "padding": 1, "output_padding": 1},
    ],
)
@pytest.mark.parametrize("as_module", [True, False])
def test_transposed_convolutions(options, as_module):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 6, **options)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            if as_module:
                return self.act(self.up(x)).flatten(1)
            names = ("stride", "padding", "output_padding", "groups", "dilation")
            given = [getattr(self.up, name) for name in names]
            return self.act(F.conv_transpose2d(x, self.up.weight, self.up.bias, *given)).flatten(1)

    torch.manual_seed(0)
    module = Net().eval()
    network = instrument(module, (4, 5, 6))
    assert not ops.unsupported(network)
    images = torch.randn(3, 4, 5, 6)
    assert torch.allclose(network(images), module(images), atol=1e-5)
    assert "up.weight" in dict(network.named_parameters())


MASK = (torch.arange(20).view(4, 5) % 3 == 0) & (torch.arange(5) != 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, mask: x.masked_fill(mask, 0.0),
        lambda x, mask: torch.masked_fill(x, mask, -1.5),
        lambda x, mask: x.clone().masked_fill_(mask[:1], 2.0),
        lambda x, mask: torch.where(mask, x, x.flip(1)),
        lambda x, mask: torch.where(mask, x, torch.zeros(())),
        lambda x, mask: torch.where(mask[0], 3.0, x[:, :1]),
        lambda x, mask: x.where(mask, torch.arange(5.0)),
    ],
)
def test_what_a_constant_mask_chooses(call):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)
            self.register_buffer("mask", MASK)

        def forward(self, x: Tensor) -> Tensor:
            return call(self.conv(x), self.mask).flatten(1)

    module, images = Net().eval(), torch.randn(3, 2, 4, 5)
    network = instrument(module, (2, 4, 5))
    assert not ops.unsupported(network)
    assert torch.allclose(network(images), module(images), atol=1e-6)


@pytest.mark.parametrize("is_swapped", [False, True])
@given(st.lists(st.booleans(), min_size=12, max_size=12), st.sampled_from(["x", "square", "other"]))
@settings(max_examples=25)
def test_a_relu_behind_a_constant_mask_is_counted_where_it_stays(is_swapped, kept, elsewhere):
    mask = torch.tensor(kept).view(3, 2, 2)

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            relu, rest = F.relu(x), {"x": x, "square": x * x - 0.5, "other": x.flip(1) * 2}[elsewhere]
            return (torch.where(~mask, rest, relu) if is_swapped else torch.where(mask, relu, rest)).flatten(1)

    network, images = instrument(Net(), (3, 2, 2)), torch.randn(4, 3, 2, 2)
    assert torch.allclose(network(images), Net()(images), atol=1e-6)
    assert count(network).relus == sum(kept)
    assert list(network.sites) == (["relu"] if sum(kept) else [])


def test_a_relu_that_something_else_reads_too_stays_whole():
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            relu = F.relu(x)
            return (torch.where(MASK, relu, x) + relu).flatten(1)

    network, images = instrument(Net(), (2, 4, 5)), torch.randn(3, 2, 4, 5)
    assert torch.allclose(network(images), Net()(images), atol=1e-6)
    assert count(network).relus == 40


def test_infinity_by_a_mask_is_refused():
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(MASK, -torch.inf).flatten(1)

    (problem,) = ops.unsupported(instrument(Net(), (2, 4, 5)))
    assert problem.op == "masked_fill"


@pytest.mark.parametrize("function", [F.prelu, lambda x, w: x.mean((2, 3)) * w])
def test_a_parameter_of_a_layer_that_something_else_reads_too_is_named(function):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x):
            return function(self.conv(x), self.conv.bias).flatten(1)

    with pytest.raises(
        UserError, match=r"^conv: its bias is read by \w+ in the network as well; give that a parameter"
    ):
        instrument(Shared(), (1, SIDE, SIDE))
