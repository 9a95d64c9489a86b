"""Data sets that are in memory already: tensors, or any map-style data set of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from parelu.data.augmentation import Augmentation
from parelu.data.dataset import Dataset, hold_out, moments
from parelu.data.readers.base import Split, check_bytes
from parelu.errors import UserError

NAME = "in memory"
REMEDY = "give a name, (images, labels) as tensors, or a map-style torch Dataset of (image, label)"


def from_memory(
    train: Any,
    test: Any = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation | None = None,
    classes: int | None = None,
) -> Dataset:
    """A set of images in memory, with a tenth of the training images held out for validation.

    Args:
        train: (images, labels), or a map-style torch data set of such pairs. images: uint8, or floats from 0 to 1,
            (N, C, H, W) or (N, H, W); labels: whole numbers from 0, (N,). An item's image may be a PIL image too.
        test: likewise; a tenth of `train` if left out.
        mean, std: that a network normalises with, a number a channel, in units of the full range (0 to 1); those of the
            training images if left out. Give those that a trained network is used to.
        augmentation: of training images; none if left out.
        classes: how many there are; one more than the largest label if left out.

    Raises:
        UserError: it is no data set, an image is no image, or a class has no training image.
    """
    if isinstance(train, Dataset):
        for name, given in (("test", test), ("mean", mean), ("std", std), ("augmentation", augmentation)):
            if given is not None:
                raise UserError(f"{name} is given beside a data set of parelu, which has its own; leave it out")
        return train
    rest = _split(train, "the data set")
    if len(rest) < 3:
        raise UserError(f"the data set has {len(rest)} images; give more, for training, validation and test")
    if test is None:
        rest, tested = hold_out(NAME, rest, None)
    else:
        tested = _split(test, "the test set")
    if tested.images.shape[1:] != rest.images.shape[1:]:
        raise UserError(
            f"the test images are {tuple(tested.images.shape[1:])}, the training images "
            f"{tuple(rest.images.shape[1:])}; bring them to one shape"
        )
    number = classes if classes is not None else int(torch.cat([rest.labels, tested.labels]).max()) + 1
    kept, held_out = hold_out(NAME, rest, None)
    lacking = (torch.bincount(kept.labels, minlength=number)[:number] == 0).nonzero()
    if len(lacking) or int(torch.cat([rest.labels, tested.labels]).max()) >= number:
        what = f"no training image is of class {lacking[0].item()}" if len(lacking) else "a label is too large"
        raise UserError(f"the data set has {number} classes and {what}; labels are 0 to {number - 1}, each with images")
    found = moments(kept)
    return Dataset(
        name=NAME,
        train=kept,
        validation=held_out,
        test=tested,
        classes=number,
        mean=numbers("mean", mean, found[0]),
        std=numbers("std", std, found[1]),
        augmentation=augmentation or Augmentation(),
    )


def numbers(name: str, given: Sequence[float] | None, own: tuple[float, ...]) -> tuple[float, ...]:
    """A mean or a standard deviation as it is given, else a data set's own; raises `UserError` for what is none."""
    if given is None:
        return own
    try:
        found = tuple(float(number) for number in given)
    except (TypeError, ValueError):
        found = ()
    if len(found) != len(own) or not all(0 <= number <= 1 for number in found) or (name == "std" and 0 in found):
        what = "one a channel, where 1 is the full range of a pixel"
        raise UserError(f"{name} is {given!r}; it should be {len(own)} {_MOMENTS[name]}, {what}")
    return found


_MOMENTS = {"mean": "numbers from 0 to 1", "std": "numbers above 0, at most 1"}


def _split(source: Any, what: str) -> Split:
    images, labels = _pair(source, what)
    split = Split(_bytes(images, what), _whole(labels, len(images), what))
    check_bytes(what, len(split), (int(split.images.shape[1]), int(split.images.shape[2]), int(split.images.shape[3])))
    return split


def _pair(source: Any, what: str) -> tuple[Tensor, Tensor]:
    """Images and labels of whatever it is."""
    if isinstance(source, torch_data.TensorDataset):
        source = source.tensors
    if isinstance(source, (tuple, list)) and len(source) == 2 and hasattr(source[0], "shape"):
        return _tensor(source[0], f"{what}: images"), _tensor(source[1], f"{what}: labels")
    if isinstance(source, torch_data.IterableDataset) or not (
        hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, (str, bytes, Tensor))
    ):
        raise UserError(f"{what} is a {type(source).__name__}; {REMEDY}")
    if not len(source):
        raise UserError(f"{what} is empty; {REMEDY}")
    images, labels = [], []
    for number in range(len(source)):
        item = source[number]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UserError(f"{what}: item {number} is a {type(item).__name__}, not a pair (image, label)")
        images.append(_image(item[0], number, what))
        labels.append(_label(item[1], number, what))
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise UserError(f"{what} has images of shapes {sorted(shapes)[:3]}; bring them to one shape")
    return torch.stack(images), torch.tensor(labels)


def _tensor(value: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} are no array of numbers ({str(error).splitlines()[0]}); give tensors") from error


def _label(label: Any, number: int, what: str) -> int:
    array = np.asarray(label)  # a number of Python or of numpy, or a tensor of one
    if array.size != 1 or array.dtype.kind not in "iu":
        shown = " ".join(repr(label).split())[:40]
        raise UserError(f"{what}: the label of item {number} is {shown}, not a whole number from 0")
    return int(array.item())


def _image(image: Any, number: int, what: str) -> Tensor:
    if isinstance(image, Tensor):
        return image
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise UserError(f"{what}: item {number} has a {type(image).__name__} that is not an image; give tensors")
    tensor = torch.from_numpy(array.copy())
    return tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor  # rows, columns, channels, as PIL has them


def _bytes(images: Tensor, what: str) -> Tensor:
    """uint8 (N, C, H, W)."""
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4 or not len(images):
        raise UserError(f"{what}: images are {tuple(images.shape)}; they should be (N, C, H, W)")
    if images.dtype == torch.uint8:
        return images.contiguous()
    if not images.is_floating_point() or not (float(images.min()) >= 0 and float(images.max()) <= 1):
        raise UserError(
            f"{what}: images are {images.dtype} from {images.min():g} to {images.max():g}; give bytes, or floats from "
            "0 to 1, and leave normalising to mean= and std="
        )
    return (images * 255).round().to(torch.uint8)


def _whole(labels: Tensor, count: int, what: str) -> Tensor:
    """int64 (N,)."""
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(
            f"{what}: labels are {labels.dtype} {tuple(labels.shape)}; they should be {count} whole numbers"
        )
    labels = labels.long()
    if int(labels.min()) < 0:
        raise UserError(f"{what}: label {int(labels.min())} is below 0; labels count from 0")
    return labels
