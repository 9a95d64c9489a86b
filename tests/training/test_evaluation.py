"""Accuracy, ranges, slopes' gradients and recalibrated batch-norms, each against its definition written out."""

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from small_networks import SHORT, network, quadratic
from torch import nn

from parelu import data
from parelu.training.evaluation import accuracy, ranges, recalibrate, slope_gradients, unbounded


class Slope(nn.Module):
    """a·relu(x) + (1 − a)·x, written out."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a * F.relu(x) + (1 - self.a) * x


def test_slope_gradients_are_those_of_slopes_written_out(digits):
    full = network()
    found = slope_gradients(full, digits, 300, seed=1, batch=64)
    slopes = network()
    for name, site in slopes.sites.items():
        slopes.set_submodule(name, Slope(site.shape))
    chosen = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(1))[:300]
    images = data.normalise(digits.train.images[chosen], digits.mean, digits.std)
    F.cross_entropy(slopes.eval()(images), digits.train.labels[chosen]).backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, slopes.get_submodule(name).a.grad, rtol=1e-3, atol=1e-6)
    assert any(gradient.abs().max() > 1e-4 for gradient in found.values())
    assert not any(site._forward_hooks for site in full.sites.values()), "it leaves nothing behind"
    more = slope_gradients(full, digits, 10**6, seed=1)
    assert set(more) == set(found)


def test_accuracy_counts_and_restores_the_mode(digits):
    net = network().train()
    images = data.normalise(digits.test.images, digits.mean, digits.std)
    got = accuracy(net, digits.test, digits, batch=100)
    assert net.training
    expected = (net.eval()(images).argmax(1) == digits.test.labels).float().mean() * 100
    assert got == pytest.approx(float(expected))


def test_ranges_are_those_of_the_inputs_of_squares(digits):
    net = quadratic(network())
    first = next(iter(net.sites.values()))
    first.assign(torch.ones(first.shape, dtype=torch.bool))
    images = data.normalise(digits.validation.images, digits.mean, digits.std)
    seen = {}
    for site in net.sites.values():
        site.register_forward_pre_hook(lambda module, args: seen.__setitem__(module.name, args[0].detach()))
    net.eval()(images)
    expected = {name: (float(x.min()), float(x.max())) for name, x in seen.items() if name != first.name}
    found = ranges(net, digits.validation, digits, batch=50)
    assert list(found) == list(expected)
    for name, (low, high) in found.items():
        assert (low, high) == pytest.approx(expected[name], rel=1e-4)
    assert all(len(site._forward_pre_hooks) == 1 for site in net.sites.values()), "it leaves nothing behind"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_images_that_are_not_finite_are_wrong_and_in_no_range(digits, bad):
    """Of four batches the second is lost; the others are as they would be alone."""
    net, split = quadratic(network()), digits.validation
    conv = next(module for module in net.modules() if isinstance(module, torch.nn.Conv2d))
    kept = [i for i in range(len(split)) if not 50 <= i < 100]
    rest = dataclasses.replace(split, images=split.images[kept], labels=split.labels[kept])
    expected, right = ranges(net, rest, digits), accuracy(net, rest, digits) * len(rest)
    for found in (ranges, accuracy, unbounded):
        calls = itertools.count()
        hook = conv.register_forward_hook(lambda module, args, out, c=calls: out * (bad if next(c) == 1 else 1))
        value = found(net, split, digits, batch=50)
        hook.remove()
        if found is ranges:
            assert list(value) == list(expected)
            torch.testing.assert_close(torch.tensor(list(value.values())), torch.tensor(list(expected.values())))
        else:
            assert value == pytest.approx(right / len(split) if found is accuracy else 5000 / len(split))


def test_recalibrated_statistics_do_not_follow_one_image(digits):
    training = dataclasses.replace(SHORT, epochs=1, batch=16)
    plain = torch.full_like(digits.train.images[:320], round(255 * digits.mean[0]))
    plain += torch.randint(0, 8, plain.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loud = plain.clone()
    loud[7] = 255
    found = []
    for images in (plain, loud):
        net = network()
        norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
        seen = []
        hook = norm.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].var((0, 2, 3))))
        split = dataclasses.replace(digits.train, images=images, labels=digits.train.labels[:320])
        flat = dataclasses.replace(digits, train=split, augmentation=data.Augmentation())
        recalibrate(net, flat, training, seed=0)
        hook.remove()
        found.append((norm.running_var.clone(), torch.stack(seen).mean(0)))
        assert norm.momentum == 0.1
        assert not net.training
    (quiet, quiet_mean), (with_loud, loud_mean) = found
    assert bool((loud_mean > 2 * quiet_mean).all()), "a mean over batches follows the image"
    torch.testing.assert_close(with_loud, quiet, rtol=0.1, atol=0)


@pytest.mark.parametrize(("options", "batches"), [({"batches": 7}, 7), ({}, 40)])
def test_recalibrated_statistics_are_the_medians_over_batches(digits, options, batches):
    """Of as many batches as are asked for, as the last epoch draws them, whatever mode the network was in."""
    training, net = dataclasses.replace(SHORT, epochs=2, batch=24), network().eval()
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    seen = {name: [] for name in norms}
    hooks = [
        norm.register_forward_pre_hook(lambda module, args, name=name: seen[name].append(args[0].detach()))
        for name, norm in norms.items()
    ]
    recalibrate(net, digits, training, seed=4, **options)
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        assert len(seen[name]) == batches
        means = torch.stack([x.mean((0, 2, 3)) for x in seen[name]])
        variances = torch.stack([x.var((0, 2, 3)) for x in seen[name]])
        torch.testing.assert_close(norm.running_mean, means.median(0).values, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(norm.running_var, variances.median(0).values, rtol=1e-4, atol=1e-6)
    stream = data.batches(digits.train, 24, seed=4, epoch=1, augmentation=digits.augmentation)
    images = data.normalise(next(iter(stream))[0], digits.mean, digits.std)
    first = net.get_submodule("conv1")
    torch.testing.assert_close(next(iter(seen.values()))[0], first(images), rtol=1e-4, atol=1e-5)


def test_images_of_another_side_are_resized(digits):
    net = network(side=12)
    images = data.resize(data.normalise(digits.test.images, digits.mean, digits.std), (12, 12))
    expected = (net.eval()(images).argmax(1) == digits.test.labels).float().mean() * 100
    assert accuracy(net, digits.test, digits) == pytest.approx(float(expected))
