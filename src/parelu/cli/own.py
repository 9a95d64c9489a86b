"""Options of the commands that take a network with its weights, whatever it comes from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from parelu.errors import UserError

if TYPE_CHECKING:
    from parelu.api import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """How a network of your own is read."""

    weights: Path | None = None
    """of a trained network: a safetensors file, a checkpoint of torch or a candidate's folder"""
    pretrained: bool = False
    """the weights that your builder gives are trained ones"""
    replace: str = ""
    """what is to stand in the place of ops: "silu=relu,maxpool=avgpool", or all; with weights, training goes on from
    them, with the network as it was as the teacher"""
    output: str | None = None
    """of a network with several outputs: the index or name of the logits"""
    mean: tuple[float, ...] = ()
    """that the network is used to, a number a channel, where 1 is the full range; the training images' if left out"""
    std: tuple[float, ...] = ()
    """likewise, the standard deviation"""

    def read(self, experiment: Experiment) -> Experiment:
        """The experiment with these options."""
        return dataclasses.replace(
            experiment,
            weights=self.weights,
            pretrained=self.pretrained,
            replace=self.replace,
            output=self.output,
            mean=self.mean or None,
            std=self.std or None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken(Read):
    """A network with its weights that is taken into a run as it is, to be measured or served."""

    data: str | None = None
    """of a network with weights: the data set that its ranges are calibrated on, by name, or folder"""
    data_folder: Path | None = None
    """where the data set's files are"""
    run: Path | None = None
    """of a network with weights: the folder that it is taken into; runs/taken-NAME-DATA if left out"""
    calibrate: Path | None = None
    """a folder of images like those the network is used on, for the ranges of its numbers; left out, images that it was
    trained on"""

    def take(self, name: str, input: str | None) -> Path | None:
        """The folder of the candidate that a network with weights becomes; None for a name that has none."""
        from parelu import api

        if not (self.weights or self.pretrained or api.is_trained(name)):
            return None
        if self.data is None:
            raise UserError(f"{name} has weights: give --data, which the ranges of its numbers are calibrated on")
        shape = api.parse_input(input) if input else None
        plain = api.Experiment(name, self.data, (), api.training_of("paper"), 0, shape, data_folder=self.data_folder)
        experiment = self.read(plain)
        if api.needs_training(self.replace):
            raise UserError("--replace changes what the network computes: parelu train --replace trains it first")
        default = f"taken-{Path(name.replace(':', '-')).name}-{self.data}".replace(" ", "-")
        folder = self.run or Path("runs") / default
        with api.TerminalProgress() as progress:
            api.run_experiment(experiment, folder, progress, api.InProcess())
        return folder / "candidates" / "teacher"
