"""The command that takes a candidate out: to ONNX, to a program of torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from parelu.cli.output import say
from parelu.errors import UserError


def resolve() -> None:
    """No type of its options is read off a registry."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a candidate for other runtimes, checked on images of its data set: masks and polynomials are constants.

    parelu export runs/quickstart/candidates/teacher --onnx net.onnx --torch net.pt2
    """

    candidate: tyro.conf.Positional[Path]
    """the candidate's folder"""
    onnx: Path | None = None
    """an .onnx file; it takes normalised images, and onnxruntime's logits are compared where that is installed"""
    torch: Path | None = None
    """a .pt2 file, which torch.export.load opens without parelu"""
    opset: int = 17
    """of the ONNX file, from 14"""
    data_folder: Path | None = None
    """where the files of the candidate's data set are, of which images are taken to check with"""

    def __call__(self) -> None:
        from parelu import api

        if self.onnx is None and self.torch is None:
            raise UserError("give --onnx FILE.onnx, --torch FILE.pt2 or both")
        for exported in api.export(self.candidate, self.onnx, self.torch, opset=self.opset, folder=self.data_folder):
            say(str(exported))


COMMANDS: dict[str, type[Any]] = {"export": Export}
