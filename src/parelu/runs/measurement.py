"""What private inference does to a candidate: accuracy in the ring over a test set, and a measured row.

They are kept in private/ beside the candidate, for the report; a candidate that changed since is measured again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parelu import data
from parelu.errors import UserError
from parelu.network import storage
from parelu.network.candidate import Candidate
from parelu.network.count import skeleton
from parelu.network.instrument import instrument
from parelu.network.plan import Plan
from parelu.network.spec import Spec
from parelu.private.bench import bench
from parelu.private.lowering import reference
from parelu.private.lowering.lower import Lowered, lower
from parelu.runs import folder as run_folder

CALIBRATION = 512  # training images
IMAGES = 5  # of the test set, that a network of a run is measured on
NOISE = 16  # images of noise, for a network without training data
PROGRAM = "program"
Count = Callable[[int], None]


def silent(done: int) -> None:
    """No progress."""


def dataset_of(candidate: Candidate, folder: Path | None = None) -> data.Dataset:
    """The data set that a candidate was trained on, at its own size; raises `UserError` where it is unknown."""
    name = candidate.preprocessing.get("dataset")
    if not isinstance(name, str):
        raise UserError("the candidate does not say what data it was trained on; train it with parelu")
    native = candidate.preprocessing.get("image")
    return data.load(name, folder=folder, input_shape=tuple(native) if native else None)


def fit(candidate: Candidate, images: Tensor) -> Tensor:
    """uint8 images of the data set, brought to the network's size as in training."""
    return data.resize(images, (candidate.spec.input[1], candidate.spec.input[2]))


def lowered(folder: Path, candidate: Candidate, dataset: data.Dataset | Path | None = None) -> Lowered:
    """The candidate's program, calibrated on its training data; made once and kept beside it.

    dataset: the data it was trained on, or the folder where its files are.
    """
    header = storage.read_header(folder, "candidate")
    own = folder / "private"
    if (own / f"{PROGRAM}.json").exists():
        known = storage.read_header(own, PROGRAM)
        if known.get("candidate") == header["tensors_sha256"]:
            return Lowered.load(own)
    if not isinstance(dataset, data.Dataset):
        dataset = dataset_of(candidate, dataset)
    images = fit(candidate, dataset.train.images[:CALIBRATION])
    result = lower(candidate.network(), images, candidate.preprocessing)
    result.save(own, header["tensors_sha256"])
    return result


def untrained(spec: Spec, keep: float, seed: int) -> Candidate:
    """A network with fresh weights and a random mask: enough to measure seconds and bytes, not accuracy."""
    if not (math.isfinite(keep) and 0 <= keep <= 1):
        raise UserError(f"--keep {keep:g} is not a fraction from 0 to 1")
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: site.shape for name, site in skeleton(spec).sites.items()}
    masks = {name: torch.rand(shape, generator=generator) < keep for name, shape in shapes.items()}
    return fresh(spec, Plan.from_masks(masks), seed)


def fresh(spec: Spec, plan: Plan, seed: int = 0) -> Candidate:
    """A candidate with fresh weights. Its batch-norms are set by noise, so that activations have the range that
    training gives them."""
    torch.manual_seed(seed)
    network = instrument(spec.module(), spec.input)
    plan.apply(network)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.momentum = None  # the mean over all batches
    network.train()
    mean, std = (0.5,) * spec.input[0], (0.25,) * spec.input[0]
    with torch.no_grad():
        network(data.normalise(noise(NOISE, spec.input, seed), mean, std))
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return Candidate(spec, plan, weights, {}, {"mean": list(mean), "std": list(std)})


def sketch(spec: Spec, plan: Plan) -> Lowered:
    """The program that a network with fresh weights would have."""
    candidate = fresh(spec, plan)
    return lower(candidate.network(), noise(NOISE, spec.input, seed=1), candidate.preprocessing)


def noise(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """uint8 (count, *shape), uniform."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)


@dataclasses.dataclass(frozen=True)
class RingAccuracy:
    """Over a whole test set. accuracy, float_accuracy, agreement: percent; overflow_rate: of ReLU inputs."""

    accuracy: float
    float_accuracy: float
    agreement: float
    max_error: float
    overflow_rate: float
    images: int


def ring_accuracy(program: Lowered, candidate: Candidate, test: data.Split, progress: Count = silent) -> RingAccuracy:
    """Run the ring reference and the float network over a test set."""
    images = fit(candidate, test.images)
    mean, std = (tuple(candidate.preprocessing[name]) for name in ("mean", "std"))
    network = candidate.network()
    with torch.no_grad():
        batches = (network(data.normalise(batch, mean, std)) for batch in images.split(250))
        expected = torch.cat(list(batches)).double().numpy()
    result = reference.run(program, images, progress)
    labels = test.labels.numpy()
    return RingAccuracy(
        accuracy=100 * float((result.labels == labels).mean()),
        float_accuracy=100 * float((expected.argmax(1) == labels).mean()),
        agreement=100 * float((result.labels == expected.argmax(1)).mean()),
        max_error=float(np.abs(result.logits - expected).max()),
        overflow_rate=result.overflows / max(result.values, 1),
        images=len(images),
    )


def measure(
    folder: Path,
    dataset: data.Dataset,
    relu: str,
    offline: str,
    network: str,
    progress: Count = silent,
    others: Sequence[str] = (),
) -> dict[str, Any]:
    """Ring accuracy and rows of one candidate of a run, kept beside it.

    relu, offline, network: as `bench` takes them; others: engines that are measured after `delphi`.
    Returns {"ring": …, "row": that of delphi, "others": {engine: row}}.
    """
    header = storage.read_header(folder, "candidate")
    known = run_folder.measured(folder, header) or {}
    wanted = {"relu": relu, "offline_mode": offline, "network": network}
    # A row of an older form has no total, and is measured again.
    fits = "total" in known.get("row", {}) and all(known["row"][name] == value for name, value in wanted.items())
    rows = dict(known.get("others", {}))
    if fits and set(others) <= set(rows):
        return known
    candidate = Candidate.load(folder)
    program, images = lowered(folder, candidate, dataset), fit(candidate, dataset.test.images[:IMAGES])
    value = (
        {name: known[name] for name in ("ring", "row")}
        if fits
        else {
            "ring": dataclasses.asdict(ring_accuracy(program, candidate, dataset.test, progress)),
            "row": bench(program, candidate, images, relu=relu, offline=offline, link=network),
        }
    )
    rows |= {name: bench(program, candidate, images, engine=name) for name in others if name not in rows}
    value["others"] = rows
    run_folder.keep_measured(folder, header, value)
    return value
