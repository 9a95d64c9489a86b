"""Data sets in memory: whatever a user has of images and labels becomes the same set, or one clear line."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import data as torch_data

from parelu.data import Augmentation
from parelu.data.memory import from_memory
from parelu.errors import UserError

IMAGES = torch.randint(256, (60, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(60) % 3


class Items(torch_data.Dataset):
    """A map-style data set of whatever items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


class Stream(torch_data.IterableDataset):
    def __iter__(self):
        return iter([])


def pictures():
    return Items([(Image.fromarray(i.permute(1, 2, 0).numpy()), int(y)) for i, y in zip(IMAGES, LABELS, strict=True)])


@pytest.mark.parametrize(
    "source",
    [
        (IMAGES, LABELS),
        [IMAGES.numpy(), LABELS.numpy()],
        (IMAGES.float() / 255, LABELS.int()),
        torch_data.TensorDataset(IMAGES, LABELS),
        Items(list(zip(IMAGES, LABELS, strict=True))),
        Items([(i.float() / 255, y) for i, y in zip(IMAGES, LABELS.tolist(), strict=True)]),
        torch_data.Subset(pictures(), range(60)),
    ],
    ids=["tensors", "arrays", "floats", "TensorDataset", "items", "floating items", "pictures"],
)
def test_all_forms_are_one_set(source):
    found, expected = from_memory(source), from_memory((IMAGES, LABELS))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(found, part).images, getattr(expected, part).images)
        assert torch.equal(getattr(found, part).labels, getattr(expected, part).labels)
    assert found.classes == 3 and found.input_shape == (3, 4, 5)
    assert found.augmentation == Augmentation()


def test_validation_and_test_are_held_out_once_each():
    found = from_memory((torch.arange(60, dtype=torch.uint8).view(60, 1, 1).expand(60, 4, 4), LABELS))
    parts = [split.images[:, 0, 0, 0].tolist() for split in (found.train, found.validation, found.test)]
    assert sorted(number for part in parts for number in part) == list(range(60))
    assert min(map(len, parts)) > 0
    given = from_memory((IMAGES, LABELS), (IMAGES[:9], LABELS[:9]))
    assert torch.equal(given.test.images, IMAGES[:9]) and len(given.train) + len(given.validation) == 60


def test_normalisation_is_the_users_or_the_images_own():
    assert from_memory((IMAGES, LABELS), mean=[0, 0, 0], std=[1, 1, 1]).std == (1.0, 1.0, 1.0)
    own = from_memory((IMAGES, LABELS))
    pixels = own.train.images.double() / 255
    assert np.allclose(own.mean, pixels.mean((0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digitz", "the data set is a str; give a name, (images, labels) as tensors, or a map-style torch Dataset"),
        (7, "the data set is a int; give a name"),
        (IMAGES, "the data set is a Tensor; give a name"),
        (Stream(), "the data set is a Stream; give a name, (images, labels) as tensors, or a map-style torch Dataset"),
        (Items([]), "the data set is empty"),
        (Items([IMAGES[0]]), "item 0 is a Tensor, not a pair (image, label)"),
        (Items([("cat", 1)]), "item 0 has a str that is not an image"),
        (Items([(IMAGES[0], 0), (IMAGES[1, :, :2], 1)]), "images of shapes [(3, 2, 5), (3, 4, 5)]; bring them to one"),
        ((IMAGES.float(), LABELS), "give bytes, or floats from 0 to 1, and leave normalising to mean= and std="),
        ((IMAGES.int(), LABELS), "images are torch.int32 from 0 to 255; give bytes"),
        ((IMAGES[:0], LABELS[:0]), "images are (0, 3, 4, 5); they should be (N, C, H, W)"),
        ((IMAGES, LABELS[:7]), "labels are torch.int64 (7,); they should be 60 whole numbers"),
        ((IMAGES, LABELS.float()), "labels are torch.float32 (60,); they should be 60 whole numbers"),
        ((IMAGES, LABELS - 1), "label -1 is below 0"),
        ((IMAGES, ["cat"] * 60), "labels are no array of numbers"),
        ((IMAGES, torch.ones(60).to(torch.uint16)), "no training image is of class 0"),
        (Items([(IMAGES[0], "cat")]), "the label of item 0 is 'cat', not a whole number from 0"),
        (Items([(IMAGES[0], 1.7)]), "the label of item 0 is 1.7, not a whole number from 0"),
        (Items([(IMAGES[0], torch.tensor([0, 1]))]), "the label of item 0 is tensor([0, 1]), not a whole number"),
        ((IMAGES[:1], LABELS[:1]), "the data set has 1 images; give more, for training, validation and test"),
        ((IMAGES, LABELS * 2), "5 classes and no training image is of class 1; labels are 0 to 4"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_no_data_set_is_named(source, message):
    with pytest.raises(UserError) as error:
        from_memory(source)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_options_that_do_not_fit():
    with pytest.raises(UserError, match=r"std is \[1, 0, 1\]; it should be 3 numbers above 0, at most 1"):
        from_memory((IMAGES, LABELS), std=[1, 0, 1])
    for wrong in ([127.0, 127.0, 127.0], 0.5, [0.5], "abc", [float("nan")] * 3):
        with pytest.raises(UserError, match="it should be 3 numbers from 0 to 1, one a channel, where 1 is the full"):
            from_memory((IMAGES, LABELS), mean=wrong)
    with pytest.raises(UserError, match="mean is given beside a data set of parelu, which has its own"):
        from_memory(from_memory((IMAGES, LABELS)), mean=[0, 0, 0])
    with pytest.raises(UserError, match="the test images are"):
        from_memory((IMAGES, LABELS), (IMAGES[:, :1], LABELS))
    with pytest.raises(UserError, match="2 classes and a label is too large"):
        from_memory((IMAGES, LABELS), classes=2)
