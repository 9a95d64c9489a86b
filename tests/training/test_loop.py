"""The training loop: its schedules, its losses, and that an interruption leaves no trace."""

import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import SHORT, network, quadratic, same_weights
from torch import nn

from parelu import data
from parelu.errors import UserError
from parelu.network import storage
from parelu.training.batches import memory_format
from parelu.training.callback import Callback
from parelu.training.evaluation import accuracy
from parelu.training.history import read_history
from parelu.training.loop import train
from parelu.training.objectives import CrossEntropy, Distillation
from parelu.training.schedule import Training
from parelu.training.teacher import Teacher


def test_the_loop_says_how_far_it_is(digits, tmp_path):
    told = []

    class Told(CrossEntropy):
        def __call__(self, logits, batch):
            told.append(batch.progress)
            return super().__call__(logits, batch)

    train(network(), digits, dataclasses.replace(SHORT, epochs=2), Told(), seed=0, folder=tmp_path)
    assert told == pytest.approx([(step + 1) / len(told) for step in range(len(told))])


def test_schedules():
    step = Training(lr=1.0, schedule="step")
    assert [step.shape(p) for p in (0, 0.24, 0.25, 0.5, 0.99)] == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    cosine = Training(lr=1.0, schedule="cosine")
    assert [cosine.shape(p) for p in (0, 0.5, 0.999)] == pytest.approx([1, 0.5, 0], abs=1e-5)
    cycle = Training(lr=1.0, schedule="one-cycle")
    assert [cycle.shape(p) for p in (0, 0.125, 0.25, 0.625)] == pytest.approx([0, 0.5, 1, 0.5])


@given(st.sampled_from(["step", "cosine", "one-cycle", "constant"]), st.integers(1, 9), st.floats(0, 0.999))
def test_parts_of_a_schedule_make_the_whole(schedule, tenth, progress):
    whole, border = Training(lr=1.0, schedule=schedule), tenth / 10
    first, second = (dataclasses.replace(whole, begin=a, end=b) for a, b in ((0, border), (border, 1)))
    assert first.shape(progress) == pytest.approx(whole.shape(border * progress))
    assert second.shape(progress) == pytest.approx(whole.shape(border + (1 - border) * progress))


@pytest.mark.parametrize(
    ("field", "values", "range_"),
    [
        ("epochs", (0, -1, 1.5, math.inf, "x", True), "a whole number, 1 or more"),
        ("batch", (1, 2.0, None), "a whole number, 2 or more"),
        ("lr", (0.0, -0.1, math.nan, math.inf, "0.1"), "a number above 0"),
        ("schedule", ("linear", "", None), "one of step, cosine, one-cycle, constant"),
        ("optimizer", ("lion", None), "one of sgd, adam"),
        ("clip", (-1.0, math.nan, math.inf), "a number, 0 or more"),
        ("momentum", (-0.1, 1, 1.5, math.nan), "a number from 0 to below 1"),
        ("weight_decay", (-1e-4, math.nan, math.inf), "a number, 0 or more"),
        ("label_smoothing", (-0.1, 1.0, math.nan), "a number from 0 to below 1"),
        ("begin", (-0.1, 1.0, math.nan), "a number from 0 to below 1"),
        ("end", (0.0, 1.1, math.nan), "a number above 0, at most 1"),
    ],
)
def test_bad_settings(field, values, range_):
    for value in values:
        with pytest.raises(UserError) as caught:
            Training(**{field: value})
        assert str(caught.value) == f"{field} is {value!r}; it should be {range_}"


def test_every_setting_has_a_range_and_its_edges_are_good():
    edges = {"epochs": 1, "batch": 2, "lr": 1, "schedule": "cosine", "momentum": 0, "weight_decay": 0.0}
    edges |= {"label_smoothing": 0, "optimizer": "adam", "clip": 0, "begin": 0, "end": 1, "milestones": ()}
    assert dataclasses.asdict(Training(**edges)) == edges
    for field in dataclasses.fields(Training):
        with pytest.raises(UserError, match=f"^{field.name} is None"):
            Training(**{field.name: None})
    with pytest.raises(UserError, match=r"begin is 0\.5; it should be below end, which is 0\.5"):
        Training(begin=0.5, end=0.5)


def test_training_learns_and_repeats_itself(digits, tmp_path):
    first, second = network(), network()
    history = train(first, digits, SHORT, CrossEntropy(), seed=1, folder=tmp_path / "a")
    train(second, digits, SHORT, CrossEntropy(), seed=1, folder=tmp_path / "b")
    assert same_weights(first, second)
    assert history[-1].loss < history[0].loss
    assert history[-1].validation_accuracy == accuracy(first, digits.validation, digits)
    other = network()
    train(other, digits, SHORT, CrossEntropy(), seed=2, folder=tmp_path / "c")
    assert not same_weights(first, other)


class Cut(Exception):
    pass


@pytest.mark.parametrize("at", [1, 10, 12, 25])
def test_an_interrupted_training_ends_in_the_same_bits(digits, tmp_path, at):
    whole, broken = network(), network()
    train(whole, digits, SHORT, CrossEntropy(0.1), seed=3, folder=tmp_path / "whole")

    def cut(progress):
        if progress.step == at:
            raise Cut

    with pytest.raises(Cut):
        train(broken, digits, SHORT, CrossEntropy(0.1), seed=3, folder=tmp_path / "broken", watch=cut)
    resumed = network()  # a new process starts from fresh weights
    train(resumed, digits, SHORT, CrossEntropy(0.1), seed=3, folder=tmp_path / "broken")
    assert same_weights(whole, resumed)
    histories = [read_history(tmp_path / name) for name in ("whole", "broken")]
    whole_epochs, broken_epochs = ([dataclasses.replace(e, seconds=0) for e in epochs] for epochs in histories)
    assert whole_epochs == broken_epochs
    assert len(list((tmp_path / "broken" / "checkpoint").iterdir())) == 1


class Counting(Callback):
    """Owns the classifier's bias, which its own optimizer moves, and adds the number of its steps to it."""

    def __init__(self, network, ends_at=math.inf):
        self.bias, self.ends_at = network.get_submodule("fc").bias, ends_at
        self.steps = torch.tensor(0)
        self.told = []

    def parameters(self):
        return [self.bias]

    def optimizer(self):
        return torch.optim.Adam([self.bias], lr=0.01)

    def before_step(self):
        self.told.append(("before", float(self.bias.grad.norm()), self.bias.detach().clone()))

    @torch.no_grad()
    def after_step(self, step):
        self.told.append(("after", step.number, self.bias.clone()))
        self.steps += 1
        self.bias += 1e-3 * self.steps

    def after_epoch(self, epoch):
        self.told.append(("epoch", epoch, None))

    def is_done(self):
        return int(self.steps) == self.ends_at

    def report(self):
        return {"counted": int(self.steps)}

    def state_dict(self):
        return {"steps": self.steps}


@pytest.mark.parametrize("at", [1, 10, 12, 25])
def test_an_interruption_leaves_no_trace_in_a_callback(digits, tmp_path, at):
    whole, broken, resumed = network(), network(), network()
    train(whole, digits, SHORT, CrossEntropy(), seed=3, folder=tmp_path / "a", callback=Counting(whole))

    def cut(progress):
        if progress.step == at:
            raise Cut

    options = {"seed": 3, "folder": tmp_path / "b"}
    with pytest.raises(Cut):
        train(broken, digits, SHORT, CrossEntropy(), callback=Counting(broken), watch=cut, **options)
    callback = Counting(resumed)
    train(resumed, digits, SHORT, CrossEntropy(), callback=callback, **options)
    assert same_weights(whole, resumed)
    per_epoch = len(digits.train) // SHORT.batch
    assert int(callback.steps) == 3 * per_epoch
    assert [epoch.parts["counted"] for epoch in read_history(tmp_path / "b")] == [
        per_epoch,
        2 * per_epoch,
        3 * per_epoch,
    ]


def test_a_callback_is_told_of_every_step_and_epoch(digits, tmp_path):
    """And its optimizer's rate follows the schedule from its own height, as the weights' does."""
    net, teacher, inputs, told = network(), Teacher(network(7), tmp_path / "logits"), [], []
    own = nn.Parameter(torch.ones(()))

    class Told(Counting):
        def parameters(self):
            return []

        def optimizer(self):
            return torch.optim.SGD([own], lr=0.5)

        def before_step(self):
            own.grad = torch.ones(())
            told.append(("before", own.item()))

        def after_step(self, step):
            told.append(("after", step))

        def after_epoch(self, epoch):
            told.append(("epoch", epoch))

    net.register_forward_pre_hook(lambda module, images: inputs.append(images[0]) if net.training else None)
    training = Training(epochs=2, batch=400, lr=0.1, schedule="one-cycle")
    options = {"seed": 0, "folder": tmp_path / "a", "teacher": teacher}
    history = train(net, digits, training, Distillation(), callback=Told(net), **options)
    per_epoch = len(digits.train) // 400
    steps = 2 * per_epoch
    assert [kind for kind, _ in told] == (["before", "after"] * per_epoch + ["epoch"]) * 2
    assert [value for kind, value in told if kind == "epoch"] == [1, 2]
    after = [value for kind, value in told if kind == "after"]
    assert [(step.number, step.progress) for step in after] == [
        (n, pytest.approx((n + 1) / steps)) for n in range(steps)
    ]
    assert all(a.images is images and a.teacher is teacher.network for a, images in zip(after, inputs, strict=True))
    batches = [data.batches(digits.train, 400, seed=0, epoch=e, augmentation=digits.augmentation) for e in (0, 1)]
    labels = [label for stream in batches for _, label in stream]
    assert all(torch.equal(a.labels, label) for a, label in zip(after, labels, strict=True))
    shapes = [training.shape(n / steps) for n in range(steps)]
    values = [value for kind, value in told if kind == "before"]
    assert values == pytest.approx([1 - 0.5 * sum(shapes[:n]) for n in range(steps)])
    assert [epoch.lr for epoch in history] == pytest.approx([0.1 * shapes[per_epoch - 1], 0.1 * shapes[-1]])


def test_what_a_callback_moves_is_no_weight(digits, tmp_path):
    """It is not clipped, its own optimizer alone moves it, and the callback is asked at the said moments."""
    net = network()
    before = net.get_submodule("fc").bias.detach().clone()
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    training = Training(
        epochs=1, batch=len(digits.train), lr=1.0, schedule="constant", momentum=0, weight_decay=0, clip=1e-3
    )
    callback = Counting(net)
    train(net, digits, training, CrossEntropy(), seed=0, folder=tmp_path, callback=callback)
    (first, norm, same), (second, number, stepped), (third, epoch, _) = callback.told
    assert (first, second, third, number, epoch) == ("before", "after", "epoch", 0, 1)
    assert norm > 1e-3 and torch.equal(same, before)
    torch.testing.assert_close((stepped - before).abs(), torch.full((10,), 0.01), rtol=1e-3, atol=0)
    moved = [p.detach() - weights[name] for name, p in net.named_parameters() if name != "fc.bias"]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_callback_ends_a_training(digits, tmp_path):
    net, per_epoch = network(), len(digits.train) // SHORT.batch
    seen, callback = [], Counting(net, ends_at=per_epoch + 2)
    history = train(
        net, digits, SHORT, CrossEntropy(), seed=3, folder=tmp_path, callback=callback, watch=lambda p: seen.append(p)
    )
    assert [progress.step for progress in seen] == list(range(1, per_epoch + 3))
    assert len(history) == len(read_history(tmp_path)) == 1, "the epochs that were finished"


@pytest.mark.parametrize("other", [{"lam": torch.tensor(1.0)}, {"steps": torch.zeros(2)}])
def test_a_checkpoint_of_another_callback_is_one_clear_line(digits, tmp_path, other):
    net, once = network(), dataclasses.replace(SHORT, epochs=1)
    train(net, digits, once, CrossEntropy(), seed=3, folder=tmp_path, callback=Counting(net))
    callback = Counting(net)
    callback.state_dict = lambda: other
    with pytest.raises(UserError) as error:
        train(net, digits, SHORT, CrossEntropy(), seed=3, folder=tmp_path, callback=callback)
    assert re.fullmatch(
        r"\S+checkpoint/1 is of other settings or of an earlier version \(the state.* (lam|steps).*\); "
        r"delete \S+ to begin anew",
        str(error.value),
    )
    train(network(), digits, once, CrossEntropy(), seed=3, folder=tmp_path / "plain")
    with pytest.raises(UserError, match="the state lacks steps"):
        train(net, digits, SHORT, CrossEntropy(), seed=3, folder=tmp_path / "plain", callback=Counting(net))


def test_a_half_written_checkpoint_is_not_used(digits, tmp_path):
    whole, resumed = network(), network()
    train(whole, digits, SHORT, CrossEntropy(), seed=3, folder=tmp_path / "a")
    train(network(), digits, dataclasses.replace(SHORT, epochs=1), CrossEntropy(), seed=3, folder=tmp_path / "half")
    half = tmp_path / "a" / "checkpoint" / "4"
    half.mkdir()
    (half / "checkpoint.safetensors").write_bytes(b"cut off here")
    train(resumed, digits, SHORT, CrossEntropy(), seed=3, folder=tmp_path / "a")
    assert same_weights(whole, resumed)


def test_a_loss_that_blows_up_is_one_clear_error(digits, tmp_path):
    net = network()
    train(net, digits, dataclasses.replace(SHORT, epochs=1), CrossEntropy(), seed=0, folder=tmp_path)

    class Poisoned(CrossEntropy):
        def __call__(self, logits, batch):
            return {"ce": logits.sum() * math.nan}

    with pytest.raises(UserError, match=r"the loss became nan in epoch 2 at learning rate 0\.1"):
        train(net, digits, SHORT, Poisoned(), seed=0, folder=tmp_path)
    assert len(read_history(tmp_path)) == 1, "the epoch before is kept"


def test_what_does_not_fit_is_said(digits, tmp_path):
    with pytest.raises(UserError, match=r"gives \(7,\) outputs, digits has 10 classes"):
        train(network(classes=7), digits, SHORT, CrossEntropy(), seed=0, folder=tmp_path)
    with pytest.raises(UserError, match="do not fill one batch of 100000"):
        train(network(), digits, dataclasses.replace(SHORT, batch=100_000), CrossEntropy(), seed=0, folder=tmp_path)


def test_cached_teacher_is_the_live_one(digits, tmp_path, monkeypatch):
    results = []
    for largest in (0, Teacher.LARGEST):
        monkeypatch.setattr(Teacher, "LARGEST", largest)
        net, teacher = network(), Teacher(network(7), tmp_path / f"logits-{largest}")
        train(net, digits, SHORT, Distillation(), seed=0, folder=tmp_path / str(largest), teacher=teacher)
        results.append(net)
    assert same_weights(*results)
    assert not (tmp_path / "logits-0").exists()
    cache = tmp_path / f"logits-{Teacher.LARGEST}"
    assert len(list(cache.iterdir())) == SHORT.epochs


def test_a_damaged_teacher_cache_is_made_again(digits, tmp_path):
    teacher = Teacher(network(7), tmp_path)
    before = teacher.logits(digits, SHORT, 0, 0)(3, torch.empty(0))
    (file,) = tmp_path.glob("*/logits.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(teacher.logits(digits, SHORT, 0, 0)(3, torch.empty(0)), before)
    assert storage.read(file.parent, "logits")[1]["logits"].shape[0] == len(digits.train) // SHORT.batch


@pytest.mark.parametrize(
    ("name", "layout"), [("resnet10 m=8", torch.channels_last), ("resnet10 m=4", torch.contiguous_format)]
)
def test_layouts_agree(name, layout):
    net = network(name=name)
    assert memory_format(net) == layout
    x = torch.randn(16, 1, 8, 8)
    gradients = []
    for used in (layout, torch.contiguous_format):
        copy = network(name=name).to(memory_format=used)
        copy(x.contiguous(memory_format=used)).square().sum().backward()
        gradients.append([p.grad for p in copy.parameters()])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-2)


def test_squares_that_blow_up_are_named(digits, tmp_path):
    net = quadratic(network())
    with pytest.raises(UserError, match="its squares feed on each other: give --degree 1, or lower it"):
        train(net, digits, dataclasses.replace(SHORT, lr=1e6), CrossEntropy(), seed=0, folder=tmp_path)


def test_clipping_bounds_a_step(digits, tmp_path):
    moved = {}
    for clip in (0.0, 1e-3):
        torch.manual_seed(0)
        net = network()
        before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
        training = Training(
            epochs=1, batch=len(digits.train), lr=1.0, schedule="constant", momentum=0, weight_decay=0, clip=clip
        )
        train(net, digits, training, CrossEntropy(), seed=0, folder=tmp_path / str(clip))
        moved[clip] = float((torch.cat([p.detach().flatten() for p in net.parameters()]) - before).norm())
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[0.0] > 0.01
