"""The frozen network that others are distilled from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.network import storage
from parelu.network.sites import Network, observed
from parelu.training import ranks
from parelu.training.batches import device, fit, normalised_batches
from parelu.training.schedule import Training


class Teacher:
    """A frozen network's logits for every batch of a training.

    Batches depend on the seed and the epoch alone, so the logits are computed once and kept in a folder for all
    networks of a run, as long as they take less than `LARGEST` bytes; else the teacher runs along.
    """

    LARGEST = 1 << 30

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network.eval().requires_grad_(False).to(device())
        self.folder = folder

    def logits(self, dataset: Dataset, training: Training, seed: int, epoch: int) -> Callable[[int, Tensor], Tensor]:
        """A function (number of the batch in the epoch, its normalised images) → logits, (N, classes)."""
        size = training.epochs * len(dataset.train) * dataset.classes * 4
        if size > self.LARGEST:
            return lambda _, images: self._run(images)
        folder = self.folder / f"batch-{training.batch}-seed-{seed}-epoch-{epoch}"
        number, mine = len(dataset.train) // training.batch, ranks.mine()
        kept = _kept(folder) if ranks.number() == 0 else None
        if ranks.decides(kept is not None):
            empty = torch.empty(number, training.batch, dataset.classes)
            logits = ranks.first_says((empty if kept is None else kept).to(device()))[:, mine]
        else:  # not there yet, or damaged
            batches = normalised_batches(dataset, training, seed, epoch)
            logits = torch.stack([self._run(images) for images, _ in batches])
            whole = logits.new_zeros(number, training.batch, *logits.shape[2:])
            whole[:, mine] = logits
            ranks.add_up(whole)
            ranks.on_first(lambda: storage.write(folder, "logits", {}, {"logits": whole}))
        return lambda number, _: logits[number]

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Site → output, (N, C, H, W)."""
        with observed(self.network.sites) as maps:
            self._run(images)
        return maps

    def _run(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(fit(images, self.network)).float()


def _kept(folder: Path) -> Tensor | None:
    """The logits in a folder; None where there are none, or they are damaged."""
    try:
        return storage.read(folder, "logits")[1]["logits"]
    except UserError:
        return None
