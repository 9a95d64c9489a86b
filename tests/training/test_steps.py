"""What one step reads and moves: optimizers written out, objectives and watchers told of the right batch."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from small_networks import SHORT, network
from torch import nn

from parelu import data
from parelu.network.instrument import instrument, network_of
from parelu.network.sites import observed
from parelu.network.spec import spec_of
from parelu.training.history import read_history
from parelu.training.loop import train
from parelu.training.objectives import CrossEntropy, Distillation
from parelu.training.schedule import Training
from parelu.training.teacher import Teacher

ONCE = dataclasses.replace(SHORT, epochs=1, batch=400)


def steps_written_out(net, digits, training, seed, clip=math.inf):
    """Trains with SGD, momentum and weight decay as their papers have them."""
    net.train()
    weights = [p for p in net.parameters() if p.requires_grad]
    speeds = [torch.zeros_like(p) for p in weights]
    per_epoch = len(digits.train) // training.batch
    for epoch in range(training.epochs):
        stream = data.batches(digits.train, training.batch, seed=seed, epoch=epoch, augmentation=digits.augmentation)
        for number, (images, labels) in enumerate(stream):
            lr = training.lr * training.shape((epoch * per_epoch + number) / (training.epochs * per_epoch))
            logits = net(data.normalise(images, digits.mean, digits.std))
            gradients = torch.autograd.grad(F.cross_entropy(logits, labels), weights)
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            with torch.no_grad():
                for p, speed, g in zip(weights, speeds, gradients, strict=True):
                    speed.mul_(training.momentum).add_(g * min(1.0, clip / norm) + training.weight_decay * p)
                    p -= lr * speed


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_steps_are_those_of_sgd_written_out(digits, tmp_path, clip):
    training = Training(epochs=2, batch=400, lr=0.05, schedule="cosine", momentum=0.8, weight_decay=1e-2, clip=clip)
    mine, plain = network(), network()
    train(mine, digits, training, CrossEntropy(), seed=3, folder=tmp_path)
    steps_written_out(plain, digits, training, 3, clip or math.inf)
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)


def test_adam_has_the_trainings_rate_and_decay(digits, tmp_path):
    training = Training(
        epochs=1, batch=len(digits.train), lr=0.01, schedule="constant", optimizer="adam", weight_decay=0.1
    )
    mine, plain = network(), network()
    train(mine, digits, training, CrossEntropy(), seed=0, folder=tmp_path)
    ((images, labels),) = data.batches(digits.train, training.batch, seed=0, epoch=0, augmentation=digits.augmentation)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01, weight_decay=0.1)
    F.cross_entropy(plain.train()(data.normalise(images, digits.mean, digits.std)), labels).backward()
    optimizer.step()
    for name, value in plain.named_parameters():
        torch.testing.assert_close(mine.get_parameter(name), value, rtol=1e-3, atol=1e-4, msg=name)


def test_an_objective_reads_the_maps_and_the_teacher_of_its_own_batch(digits, tmp_path):
    """Images, outputs of sites, and what the teacher says of those images."""
    net, teacher, inputs, outputs = network(), Teacher(network(7), tmp_path / "logits"), [], {}
    net.register_forward_pre_hook(lambda module, images: inputs.append(images[0]))
    for name, site in net.sites.items():
        site.register_forward_hook(lambda module, images, output, name=name: outputs.__setitem__(name, output))
    auxiliary = []

    class Read(Distillation):
        def __call__(self, logits, batch):
            full, images = teacher.network, inputs[-1]
            with observed(full.sites) as maps:
                torch.testing.assert_close(batch.teacher(), full(images))
            assert list(batch.maps) == list(outputs) == list(net.sites)
            assert all(batch.maps[name] is outputs[name] for name in outputs)
            theirs = batch.teacher_maps()
            assert list(theirs) == list(maps) and all(torch.equal(theirs[name], maps[name]) for name in maps)
            auxiliary.append(batch.auxiliary)
            return super().__call__(logits, batch)

    twice = dataclasses.replace(ONCE, epochs=2)
    history = train(net, digits, twice, Read(mismatch=1.0), seed=0, folder=tmp_path / "a", teacher=teacher)
    assert auxiliary == [None] * 2 * (len(digits.train) // 400)
    for epoch in history:
        assert set(epoch.parts) == {"ce", "kd", "pram"}
        assert epoch.loss == pytest.approx(sum(epoch.parts.values()))
    assert not teacher.network.training and not any(p.requires_grad for p in teacher.network.parameters())


@pytest.mark.parametrize("mismatch", [0.0, 1.0])
def test_an_objective_reads_the_auxiliary_classifier_where_it_asks_for_it(digits, tmp_path, mismatch):
    spec = dataclasses.replace(spec_of("resnet10 m=2", (1, 8, 8), 10), exits="both")
    net, outputs, read = network_of(spec), [], []
    net.get_submodule("auxiliary").register_forward_hook(
        lambda module, images, output: outputs.append(output) if module.training else None
    )

    class Read(Distillation):
        def __call__(self, logits, batch):
            read.append((batch.auxiliary, list(batch.maps)))
            return super().__call__(logits, batch)

    options = {"seed": 0, "folder": tmp_path / "a", "teacher": Teacher(network(7), tmp_path / "logits")}
    (epoch,) = train(net, digits, ONCE, Read(auxiliary=0.5, mismatch=mismatch), **options)
    assert "akd" in epoch.parts and len(read) == len(digits.train) // 400
    for (auxiliary, maps), output in zip(read, outputs, strict=True):
        assert torch.equal(auxiliary, output) and maps == (list(net.sites) if mismatch else [])


def test_dropout_is_drawn_by_the_seed_and_the_epoch(digits, tmp_path):
    """So that it is the same whatever was drawn before, and another in each epoch."""

    def drawn(seed, before):
        net = instrument(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10), nn.ReLU()), (1, 8, 8))
        net.register_forward_pre_hook(lambda module, images: (torch.ones_like(images[0]),))
        seen = []
        net.get_submodule("1").register_forward_hook(
            lambda module, images, output: seen.append(output > 0) if module.training else None
        )
        torch.manual_seed(before)
        training = Training(epochs=2, batch=len(digits.train))
        train(net, digits, training, CrossEntropy(), seed=seed, folder=tmp_path / f"{seed}-{before}")
        return seen

    first, again, other = drawn(0, 0), drawn(0, 1), drawn(1, 0)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], first[1])
    assert not any(map(torch.equal, first, other))


def test_a_network_of_another_side_is_trained(digits, tmp_path):
    net, sides = network(side=12), set()
    net.register_forward_pre_hook(lambda module, images: sides.add(tuple(images[0].shape[2:])))
    train(net, digits, ONCE, CrossEntropy(), seed=0, folder=tmp_path)
    assert sides == {(12, 12)}


def test_a_watcher_is_told_where_a_training_stands(digits, tmp_path):
    told, net, training = [], network(), dataclasses.replace(ONCE, epochs=3)
    history = train(net, digits, training, CrossEntropy(), seed=0, folder=tmp_path, watch=told.append)
    per_epoch = len(digits.train) // 400
    places = [(n + 1, 3 * per_epoch, n // per_epoch + 1) for n in range(3 * per_epoch)]
    assert [(p.step, p.steps, p.epoch) for p in told] == places
    known = [None, *(epoch.validation_accuracy for epoch in history)]
    assert [p.validation_accuracy for p in told] == [known[n // per_epoch] for n in range(3 * per_epoch)]
    for number, epoch in enumerate(history):
        losses = [p.loss for p in told[number * per_epoch :][:per_epoch]]
        assert epoch.loss == epoch.parts["ce"] == pytest.approx(sum(losses) / per_epoch)
        assert epoch.epoch == number + 1 and epoch.seconds > 0
    assert read_history(tmp_path) == history
