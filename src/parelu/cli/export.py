"""The commands that take a candidate elsewhere: to other runtimes, to the Hugging Face hub."""

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

    parelu export runs/quickstart/candidates/teacher --onnx net.onnx --torch net.pt2 --card net.md
    """

    candidate: tyro.conf.Positional[Path]
    """the candidate's folder"""
    onnx: Path | None = None
    """an .onnx file; it takes normalised images, and onnxruntime's logits are compared where that is installed"""
    torch: Path | None = None
    """a .pt2 file, which torch.export.load opens without parelu"""
    card: Path | None = None
    """a model card as Markdown: what was measured, counts, threat model, where it comes from"""
    opset: int = 17
    """of the ONNX file, from 14"""
    data_folder: Path | None = None
    """where the files of the candidate's data set are, of which images are taken to check with"""

    def __call__(self) -> None:
        from parelu import api

        if self.onnx is None and self.torch is None and self.card is None:
            raise UserError("give --onnx FILE.onnx, --torch FILE.pt2 or --card FILE.md")
        if self.card is not None and self.card.exists():
            raise UserError(f"{self.card} exists; give another path, or remove it")
        if self.onnx or self.torch:
            options = {"opset": self.opset, "folder": self.data_folder}
            for exported in api.export(self.candidate, self.onnx, self.torch, **options):
                say(str(exported))
        if self.card is not None:
            from parelu.report.card import write_card

            say(f"card: {write_card(self.candidate, self.card)}")


@dataclasses.dataclass(frozen=True)
class Push:
    """Put a candidate into a repository of the Hugging Face hub, with its card: there it is a folder like any other.

    parelu push runs/quickstart/candidates/teacher me/my-network
    """

    candidate: tyro.conf.Positional[Path]
    """the candidate's folder; a README.md in it goes along, else a card is written"""
    repository: tyro.conf.Positional[str]
    """OWNER/NAME; it is made where there is none"""
    public: bool = False
    """whether a new repository shows the weights to everybody"""

    def __call__(self) -> None:
        from parelu import api
        from parelu.report.card import card

        say(f"pushed: {api.push(self.candidate, self.repository, card(self.candidate), is_public=self.public)}")


COMMANDS: dict[str, type[Any]] = {"export": Export, "push": Push}
