"""Where a run's images come from: a named data set, which each process loads itself, or tensors in memory."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parelu import data
from parelu.data import memory
from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.network import storage
from parelu.runs.folder import Run

IN_MEMORY = memory.NAME  # in a run's configuration, in place of a name or a path


class DataSource(abc.ABC):
    """Gives a data set to whatever process asks."""

    @property
    @abc.abstractmethod
    def input(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""

    @abc.abstractmethod
    def load(self) -> Dataset: ...


@dataclasses.dataclass(frozen=True)
class Named(DataSource):
    """A data set by its name, and at what shape: see `data.load`. mean, std: instead of its own.

    sha256: what its digest was when the run began.
    """

    name: str
    folder: Path | None
    images: int | None
    shape: tuple[int, int, int]
    sha256: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def input(self) -> tuple[int, int, int]:
        return self.shape

    def load(self) -> Dataset:
        """Raises `UserError` where it is not what it was."""
        own = data.load(self.name, folder=self.folder, images=self.images, input_shape=self.shape)
        found = normalised(own, self.mean, self.std)
        if digest(found) != self.sha256:
            raise UserError(
                f"{self.folder or self.name}: its images or labels are others than when the run began; restore them, "
                "or give another --run"
            )
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory(DataSource):
    """A data set of the caller's. Worker processes are given it as they start, in memory that all share."""

    dataset: Dataset

    @property
    def input(self) -> tuple[int, int, int]:
        return self.dataset.input_shape

    def load(self) -> Dataset:
        return self.dataset


def normalised(dataset: Dataset, mean: Sequence[float] | None, std: Sequence[float] | None) -> Dataset:
    """The data set with another normalisation, such as a trained network is used to; raises `UserError` for none."""
    own = {"mean": dataset.mean, "std": dataset.std}
    given = {name: memory.numbers(name, value, own[name]) for name, value in (("mean", mean), ("std", std))}
    return dataclasses.replace(dataset, **given)


def digest(dataset: Dataset) -> str:
    """Of all that a training reads of a data set: its pixels, or the files that have them, labels, statistics."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    tensors = {f"{name}.{part}": tensor for name, split in splits.items() for part, tensor in split.contents().items()}
    others: list[Any] = [dataset.classes, dataset.mean, dataset.std, dataclasses.asdict(dataset.augmentation)]
    return storage.digest([storage.tensors_digest(tensors), *others])


def _kept(run: Run) -> str:
    """The digest of its data set; raises `UserError` where an older version kept none."""
    if "data_sha256" not in run.config:
        raise UserError(f"{run.path} is of an older version, which kept no digest of its data; give another --run")
    return run.config["data_sha256"]


def source_of(run: Run, shape: tuple[int, int, int], dataset: Dataset | None = None) -> DataSource:
    """What a run was trained on, with images of a shape, (C, H, W).

    dataset: the same as then, where it was in memory.

    Raises:
        UserError: it was in memory, and is not given or another.
    """
    if run.config["data"] != IN_MEMORY:
        folder = run.config.get("data_folder")
        place = Path(folder) if folder else None
        moments = (tuple(run.config[name]) if name in run.config else None for name in ("mean", "std"))
        return Named(run.config["data"], place, run.config["images"], shape, _kept(run), *moments)
    if dataset is None or digest(dataset) != run.config["data_sha256"]:
        raise UserError(f"{run.path} was trained on a data set in memory; give the same one again, from Python")
    return InMemory(dataset)
