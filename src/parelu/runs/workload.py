"""What a measurement of private inference runs: a program, its network, and images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.network.candidate import Candidate
from parelu.network.spec import Spec
from parelu.private.bench import bench, difference
from parelu.private.engines.base import Options
from parelu.private.fresh import noise, untrained
from parelu.private.lowering import reference
from parelu.private.lowering.lower import Lowered, lower
from parelu.private.offline.mode import ring_for
from parelu.private.rows import Difference, Row
from parelu.runs import measurement


@dataclasses.dataclass(frozen=True)
class Workload:
    """images: uint8 (N, C, H, W), of the network's size."""

    lowered: Lowered
    candidate: Candidate
    images: Tensor

    def run(self, options: Options, engine: str = "delphi") -> Row:
        """The row of an engine; raises `UserError` where it cannot run this."""
        return bench(self.lowered, self.candidate, self.images, options, engine)

    def difference(self, rows: Sequence[Row]) -> Difference:
        """How far the logits of engines are apart, and from the ring reference."""
        ring = reference.run(self.lowered, self.images).logits
        return difference([ring, *(np.array(row.logits) for row in rows)])


def trained_workload(folder: Path, images: int, offline: str, calibrate: Path | None = None) -> Workload:
    """A candidate of a run, with its program for an offline mode, which is kept there, on images of its test set; or of
    a folder, which it is calibrated on."""
    candidate = Candidate.load(folder)
    if calibrate is not None:
        pixels = measurement.calibration_images(candidate, calibrate)
        if len(pixels) < images:
            raise UserError(f"{images} images asked; --calibrate {calibrate} holds {len(pixels)}")
        return Workload(measurement.lowered(folder, candidate, ring_for(offline), pixels), candidate, pixels[:images])
    dataset = measurement.dataset_of(candidate, measurement.data_folder_of(folder))
    lowered = measurement.lowered(folder, candidate, ring_for(offline), dataset)
    return Workload(lowered, candidate, measurement.fit(candidate, dataset.test.first(images)))


def workload_on(candidate: Candidate, dataset: Dataset, images: int, offline: str) -> Workload:
    """A candidate, lowered for an offline mode and calibrated on the training images of a data set, on images of its
    test set.

    Raises:
        UserError: the images have other channels than the network, or there are too few.
    """
    if dataset.input_shape[0] != candidate.spec.input[0]:
        raise UserError(
            f"the images have {dataset.input_shape[0]} channels, the network takes {candidate.spec.input[0]}"
        )
    if not 1 <= images <= len(dataset.test):
        raise UserError(f"{images} images asked; the test set has {len(dataset.test)}")
    seen = measurement.calibrating(candidate, dataset)
    lowered = lower(candidate.network(), seen, candidate.preprocessing, ring=ring_for(offline))
    return Workload(lowered, candidate, measurement.fit(candidate, dataset.test.first(images)))


def untrained_workload(spec: Spec, keep: float, images: int, seed: int, offline: str) -> Workload:
    """An architecture with fresh weights and a random mask that keeps a fraction of its ReLUs, on noise."""
    candidate, pixels = untrained(spec, keep, seed), noise(images, spec.input, seed + 1)
    lowered = lower(candidate.network(), pixels, candidate.preprocessing, ring=ring_for(offline))
    return Workload(lowered, candidate, pixels)
