"""What every data set promises, for those that are on this machine."""

import pytest
import torch

from parelu import data

THERE = [name for name in data.names() if data.available(name)]


def test_the_bundled_sets_are_always_there():
    assert {"digits", "colour-digits"} <= set(THERE)


@pytest.mark.parametrize("name", THERE)
def test_splits_and_shapes(name):
    dataset = data.load(name, images=500, input_shape=(3, 12, 12))
    assert dataset.input_shape == (3, 12, 12)
    assert len(dataset.train) == 500
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.dtype == torch.uint8
        assert split.images.shape[1:] == (3, 12, 12)
        assert set(split.labels.unique().tolist()) == set(range(dataset.classes))
    pixels = data.normalise(dataset.train.images, dataset.mean, dataset.std)
    assert pixels.mean((0, 2, 3)).abs().max() < 1e-3
    assert (pixels.std((0, 2, 3)) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("name", THERE)
def test_the_same_each_time(name):
    first, second = (data.load(name, images=200) for _ in range(2))
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.validation.labels, second.validation.labels)
