"""Sets of the Hugging Face hub, by name, as `datasets` has them: from its cache where there is no network."""

from __future__ import annotations

import hashlib
import importlib
import re
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parelu.data.readers.base import Raw, Shape, Split, cached, check_bytes, check_labels, spread
from parelu.errors import UserError, shown
from parelu.network.preprocessing import fit

PREFIX = "hf:"
TESTS = ("test", "validation", "valid", "val")  # what the test split is called, the first that there is
VERSION = 1  # raise it whenever something else is made of a set: it is part of the cache's key
_NAME = re.compile(r"hf:(?P<path>[\w./-]+)(:(?P<config>[\w.+-]+))?(#(?P<label>[\w.-]+))?")


def read(name: str, location: Path, shape: Shape | None = None) -> Raw:
    """The set `hf:NAME`, `hf:NAME:CONFIG` or, where it has several labels, `hf:NAME#LABEL`.

    Every image is brought to `shape`, or to that of the first training image: uint8 (N, C, H, W), C = 1 or 3. A tenth
    of the training images, in the classes' proportions, is the test split where there is none.

    location: of the cache, where it is another than `datasets`' own.

    Raises:
        UserError: no such set here or there, or one without images and labels.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(f"{name} names no set; write hf:NAME, hf:NAME:CONFIG or hf:NAME#LABEL")
    if find_spec("datasets") is None:
        raise UserError(f"{name} needs datasets; pip install 'parelu[data]'")
    library: Any = importlib.import_module("datasets")
    splits = _loaded(library, name, found["path"], found["config"], location)
    train = splits["train"]
    image, label = _columns(library, name, train.features, found["label"])
    classes = train.features[label].num_classes
    test = next((splits[split] for split in TESTS if split in splits), None)
    shape = shape or _shape(train[0][image])
    prints = [split._fingerprint for split in (train, test) if split is not None]
    key = hashlib.sha256(f"{VERSION} {name} {prints} {shape}".encode()).hexdigest()[:16]
    build = partial(_raw, name, train, test, (image, label), classes, shape)
    return cached("hf", key, build)


def _loaded(library: Any, name: str, path: str, config: str | None, location: Path) -> Any:
    """Split → data set."""
    library.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its libraries to its developers
            splits = library.load_dataset(path, config, cache_dir=None if location == Path() else str(location))
    except Exception as error:  # of the hub, of its client for HTTP, of files: they share no base
        raise UserError(f"{name} cannot be had, from the hub or its cache ({shown(str(error), 160)})") from error
    if "train" not in splits:
        raise UserError(f"{name} has no split train, but {', '.join(splits)}; take another set")
    return splits


def _columns(library: Any, name: str, features: Any, wanted: str | None) -> tuple[str, str]:
    """Of the images and of the labels."""
    images = [key for key, feature in features.items() if isinstance(feature, library.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, library.ClassLabel)]
    if wanted is not None:
        labels = [key for key in labels if key == wanted]
    if len(images) != 1 or not labels:
        raise UserError(f"{name} has the columns {', '.join(features)}: not one of images and one of class labels")
    if len(labels) > 1:
        raise UserError(f"{name} has several labels; choose one, as {name}#{labels[0]}: {', '.join(labels)}")
    return images[0], labels[0]


def _raw(name: str, train: Any, test: Any, columns: tuple[str, str], classes: int, shape: Shape) -> Raw:
    first = _split(name, train, columns, classes, shape)
    if test is not None:
        return Raw(first, _split(name, test, columns, classes, shape), classes)
    chosen = torch.zeros(len(first), dtype=torch.bool)
    chosen[spread(first.labels, max(1, len(first) // 10), seed=0, proportional=True)] = True
    return Raw(first.select((~chosen).nonzero()[:, 0]), first.select(chosen.nonzero()[:, 0]), classes)


def _split(name: str, rows: Any, columns: tuple[str, str], classes: int, shape: Shape) -> Split:
    check_bytes(name, len(rows), shape)
    images, labels = torch.empty(len(rows), *shape, dtype=torch.uint8), torch.tensor(rows[columns[1]])
    for number, row in enumerate(rows):
        images[number] = fit(_pixels(row[columns[0]]), shape)[0]
    return Split(images, check_labels(Path(name), labels, classes))


def _shape(picture: Any) -> Shape:
    _, channels, height, width = _pixels(picture).shape
    return channels, height, width


def _pixels(picture: Any) -> torch.Tensor:
    """uint8 (1, C, H, W) of an image of Pillow: grey where it is, else RGB."""
    array = np.array(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))
    return torch.from_numpy(array).view(1, *array.shape[:2], -1).permute(0, 3, 1, 2)
