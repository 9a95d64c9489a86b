"""A candidate as a file for other runtimes, written once it computes what the candidate does, on real images."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parelu import data
from parelu.errors import UserError, shown
from parelu.models.onnx_export import INPUT, OPSET, to_onnx
from parelu.network import storage
from parelu.network.candidate import Candidate
from parelu.network.count import count
from parelu.network.preprocessing import normalise
from parelu.network.sites import Network
from parelu.runs import measurement

CHECKED = 32  # images
TOLERANCE = 1e-3  # of the largest logit


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        checked: what ran it, on what images; "" where nothing here runs it.
        difference: from the candidate's logits, of the largest.
    """

    path: Path
    checked: str = ""
    difference: float = 0.0

    def __str__(self) -> str:
        if not self.checked:
            return f"{self.path}: written, not checked: pip install 'parelu[onnx]' has onnxruntime, which runs it"
        return f"{self.path}: {self.checked}: the candidate's logits within {self.difference:.1g} of the largest"


@dataclasses.dataclass(frozen=True)
class Images:
    """normalised: float32 (N, C, H, W), as the network takes them; what: for people."""

    normalised: Tensor
    what: str


def images_of(candidate: Candidate, folder: Path | None = None) -> Images:
    """Images of the test set of a candidate's data; where no file has it, random ones.

    folder: where the files of the data are.
    """
    name = candidate.preprocessing.get("dataset")
    try:
        is_there = data.available(str(name), folder=folder)
        test = measurement.dataset_of(candidate, folder).test.first(CHECKED) if is_there else None
    except UserError:  # in memory then, or gone since
        test = None
    if test is None:
        generator = torch.Generator().manual_seed(0)
        return Images(torch.randn(CHECKED, *candidate.spec.input, generator=generator), f"{CHECKED} random images")
    pixels = measurement.fit(candidate, test)
    mean, std = (tuple(candidate.preprocessing[key]) for key in ("mean", "std"))
    return Images(normalise(pixels, mean, std).contiguous(), f"{len(pixels)} test images of {name}")


def write_onnx(candidate: Candidate, path: Path, images: Images, opset: int = OPSET) -> Exported:
    """Write an ONNX file, with the weights in it, and the normalisation and counts beside (`metadata_props`).

    Raises:
        UserError: see `to_onnx`; or onnxruntime computes something else.
    """
    _check_ending(path, ".onnx")
    network = candidate.network()
    contents = to_onnx(network, opset=opset, about=_about(candidate, network)).SerializeToString()
    found = Exported(path)
    if find_spec("onnxruntime") is not None:
        found = _checked(network, images, path, f"onnxruntime {version('onnxruntime')}", _session(contents))
    storage.write_atomic(path, contents)
    return found


def write_program(candidate: Candidate, path: Path, images: Images) -> Exported:
    """Write a program of `torch.export`; raises `UserError` as `write_onnx` does."""
    from parelu.models.program_export import to_program  # torch.export takes a second to import

    _check_ending(path, ".pt2")
    network, file = candidate.network(), io.BytesIO()
    torch.export.save(to_program(network), file)
    file.seek(0)
    program = torch.export.load(file).module()
    found = _checked(network, images, path, f"torch {version('torch')}", program)
    storage.write_atomic(path, file.getvalue())
    return found


def _check_ending(path: Path, ending: str) -> None:
    if path.suffix != ending:
        raise UserError(f"{path} does not end in {ending}; give a path that does")


def _about(candidate: Candidate, network: Network) -> dict[str, str]:
    """What the file says of itself."""
    counts, preprocessing = count(network), candidate.preprocessing
    known = {key: json.dumps(preprocessing[key]) for key in ("dataset", "mean", "std") if key in preprocessing}
    counted = {"relus": str(counts.relus), "comparisons": str(counts.comparisons), "squares": str(counts.squares)}
    return {**known, **counted, "parelu": version("parelu")}


def _session(contents: bytes) -> Callable[[Tensor], Tensor]:
    """The model run by onnxruntime."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, torch.get_num_threads()
    try:
        session = runtime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, none of which has a common base
        raise UserError(
            f"onnxruntime does not take the file ({shown(str(error), 160)}); try another --opset"
        ) from error
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def _checked(network: Network, images: Images, path: Path, runtime: str, run: Callable[[Tensor], Tensor]) -> Exported:
    with torch.no_grad():
        expected, found = network(images.normalised), run(images.normalised)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    what = f"{runtime}, {images.what}"
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path} is not written: {what}: its logits are {difference:.1g} of the largest from the candidate's"
        )
    return Exported(path, what, difference)
