"""What private inference does to a candidate: accuracy in the ring over a test set, and a measured row.

They are kept in private/ beside the candidate, for the report; a candidate that changed since is measured again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parelu import data
from parelu.data import memory
from parelu.data.images import read_images
from parelu.errors import UserError
from parelu.network import storage
from parelu.network.candidate import Candidate
from parelu.private.bench import bench
from parelu.private.crypto.ring import Ring
from parelu.private.engines.base import Options
from parelu.private.lowering import reference
from parelu.private.lowering.lower import Lowered, lower
from parelu.private.lowering.program import FORMAT
from parelu.private.offline.mode import ring_for
from parelu.private.rows import PrivateInference, RingAccuracy, Row
from parelu.runs import folder as run_folder
from parelu.runs.bars import bar
from parelu.runs.data_source import source_of
from parelu.runs.folder import Run

CALIBRATION = 512  # training images, of all classes
TESTED = 10_000  # of the test set at most, in the ring
IMAGES = 5  # of the test set, that a network of a run is measured on
PROGRAM = "program"
ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"}
Count = Callable[[int], None]


def silent(done: int) -> None:
    """No progress."""


def dataset_name(candidate: Candidate) -> str:
    """Of the data set that a candidate was trained on; raises `UserError` where it is unknown, or was in memory."""
    name = candidate.preprocessing.get("dataset")
    if not isinstance(name, str):
        raise UserError("the candidate does not say what data it was trained on; train it with parelu")
    if name == memory.NAME:
        raise UserError(
            "the network was trained on a data set in memory, which no file has; give --calibrate FOLDER with images "
            "like its own, or run it from Python: parelu.bench(candidate, dataset), parelu.serve(candidate, dataset)"
        )
    return name


def dataset_of(candidate: Candidate, folder: Path | None = None) -> data.Dataset:
    """The data set that a candidate was trained on, at its own size; raises as `dataset_name`."""
    native = candidate.preprocessing.get("image")
    return data.load(dataset_name(candidate), folder=folder, input_shape=tuple(native) if native else None)


def data_folder_of(folder: Path) -> Path | None:
    """Where the files of the data lie that a candidate in a run was trained on; None for the usual places."""
    config = folder.resolve().parent.parent / "config.json"
    found = Run.open(config.parent).config.get("data_folder") if config.is_file() else None
    return Path(found) if found else None


def fit(candidate: Candidate, images: Tensor) -> Tensor:
    """uint8 images of the data set, brought to the network's size as in training."""
    return data.resize(images, (candidate.spec.input[1], candidate.spec.input[2]))


def calibrating(candidate: Candidate, dataset: data.Dataset) -> Tensor:
    """Training images to calibrate on, uint8 (N, C, H, W) of the network's size, as many of each class as there are."""
    count = min(CALIBRATION, len(dataset.train))
    return fit(candidate, dataset.train.take(count).first(count))


def program_folder(folder: Path, ring: Ring) -> Path:
    """Beside a candidate, where its program in a ring is kept, and what is made of that."""
    return folder / "private" / f"{ring.bits}-bit"


def calibration_images(candidate: Candidate, folder: Path) -> Tensor:
    """Images to calibrate on, uint8 (N, C, H, W) of the network's size: those of a folder and of what is in it."""
    if not folder.is_dir():
        raise UserError(f"--calibrate {folder} is no folder; give one with images like those the network is used on")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS]
    if not files:
        raise UserError(f"--calibrate {folder} holds no images ({', '.join(sorted(ENDINGS))})")
    step = -(-len(files) // CALIBRATION)  # of all of its folders some
    return read_images(files[::step], candidate.spec.input, candidate.preprocessing.get("middle"))


def kept(folder: Path, ring: Ring) -> Lowered | None:
    """A candidate's program in a ring where it is there, made by this version, of these weights."""
    own = program_folder(folder, ring)
    if not (own / f"{PROGRAM}.json").exists():
        return None
    header, known = storage.read_header(folder, "candidate"), storage.read_header(own, PROGRAM)
    is_ours = (known.get("candidate"), known.get("program_format")) == (header["tensors_sha256"], FORMAT)
    return Lowered.load(own) if is_ours else None


def lowered(
    folder: Path, candidate: Candidate, ring: Ring, dataset: data.Dataset | Tensor | Path | None = None
) -> Lowered:
    """The candidate's program in a ring, calibrated on its training data; made once for each and kept beside it.

    One of another version is made anew, and so is one for which images are given.

    dataset: the data it was trained on, or the folder where its files are; or uint8 images of the network's size.
    """
    header = storage.read_header(folder, "candidate")
    if not isinstance(dataset, Tensor) and (found := kept(folder, ring)):
        return found
    if isinstance(dataset, Tensor):
        images = dataset[:CALIBRATION]
    else:
        known = dataset if isinstance(dataset, data.Dataset) else None
        known = known or dataset_of(candidate, dataset or data_folder_of(folder))  # pyright: ignore[reportArgumentType]
        images = calibrating(candidate, known)
    result = lower(candidate.network(), images, candidate.preprocessing, ring=ring)
    try:
        result.save(program_folder(folder, ring), header["tensors_sha256"])
    except OSError as error:  # made anew at each start, it would have another pin each time
        raise UserError(
            f"{folder}: its program cannot be kept there ({error.strerror}); start once where the folder can be "
            "written to, or copy it to such a place"
        ) from error
    return result


def ring_accuracy(
    program: Lowered, candidate: Candidate, test: data.Images, progress: Count = silent, relu: str = "sign"
) -> RingAccuracy:
    """Run the ring reference, with a ReLU protocol, and the float network over a test set, or `TESTED` images of it."""
    test = test if len(test) <= TESTED else test.take(TESTED)
    mean, std = (tuple(candidate.preprocessing[name]) for name in ("mean", "std"))
    network = candidate.network()
    expected, found, overflows, values = [], [], 0, 0
    for images, _ in test.in_order(250):
        pixels = fit(candidate, images)
        with torch.no_grad():
            expected.append(network(data.normalise(pixels, mean, std)).double().numpy())
        result = reference.run(program, pixels, progress, relu=relu)
        found.append(result.logits)
        overflows, values = overflows + result.overflows, values + result.values
    logits, floats, labels = np.concatenate(found), np.concatenate(expected), test.labels.numpy()
    return RingAccuracy(
        accuracy=100 * float((logits.argmax(1) == labels).mean()),
        float_accuracy=100 * float((floats.argmax(1) == labels).mean()),
        agreement=100 * float((logits.argmax(1) == floats.argmax(1)).mean()),
        max_error=float(np.abs(logits - floats).max()),
        overflow_rate=overflows / max(values, 1),
        images=len(test),
    )


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is measured of each network of a run.

    options: of `delphi`, the images a query of all; others: engines that follow it, with no other option; images: of
    the test set, how many.
    """

    options: Options
    others: Sequence[str] = ()
    images: int = IMAGES

    def has(self, row: Row) -> bool:
        """Whether a row was measured like this; one of versions that told no parts apart was not."""
        o = self.options
        if (row.images, row.batch) != (self.images, o.batch):
            return False
        wanted = o.relu, o.offline, o.link, o.truncation, o.queries
        found = row.relu, row.offline_mode, row.link, row.truncation, row.queries
        return row.engine != "delphi" or (found == wanted and row.costs.parts is not None)


def measure(folder: Path, dataset: data.Dataset, asked: Asked, progress: Count = silent) -> PrivateInference:
    """Ring accuracy and rows of one candidate of a run, kept beside it; what is there already is not measured again."""
    header, options = storage.read_header(folder, "candidate"), asked.options
    known = run_folder.read_private_inference(folder, header)
    row = known.row if known and asked.has(known.row) else None
    others = {name: row for name, row in known.others.items() if asked.has(row)} if known else {}
    missing = [name for name in asked.others if name not in others]
    if known and row and not missing:
        return known
    candidate = Candidate.load(folder)
    program = lowered(folder, candidate, ring_for(options.offline), dataset)
    images = fit(candidate, dataset.test.first(asked.images))
    if known and (known.row.relu, ring_for(known.row.offline_mode)) == (options.relu, program.program.ring):
        ring = known.ring
    else:
        ring = ring_accuracy(program, candidate, dataset.test, progress, options.relu)
    row = row or bench(program, candidate, images, options)
    alone = Options(batch=options.batch)
    others |= {name: bench(program, candidate, images, alone, name) for name in missing}
    value = PrivateInference(ring, row, others)
    run_folder.write_private_inference(folder, header, value)
    return value


def measure_run(
    run: Run,
    names: Sequence[str],
    asked: Asked,
    done: Callable[[str, PrivateInference], None] = lambda name, value: None,
) -> data.Dataset:
    """`measure` networks of a run; `done` is told each. Returns their data set.

    Raises:
        UserError: some cannot be measured, when all others have been.
    """
    candidate = run.candidate(names[0])
    if run.config["data"] == memory.NAME:
        dataset_of(candidate)  # raises: no file has it
    dataset = source_of(run, tuple(candidate.preprocessing["image"])).load()
    problems = []
    for name in names:
        try:
            with bar(f"{name}: test set in the ring", min(TESTED, len(dataset.test))) as progress:
                value = measure(run.folder(name), dataset, asked, progress)
        except UserError as error:
            problems.append(f"{name} cannot be measured: {error}")
        else:
            done(name, value)
    if problems:
        raise UserError("; ".join(problems))
    return dataset
