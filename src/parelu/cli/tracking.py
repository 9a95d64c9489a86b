"""The command that hands the curves of runs on to TensorBoard or MLflow."""

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
class Track:
    """Hand the curves of run folders on to TensorBoard or MLflow; while a run is at work there, as they grow.

    parelu track runs/quickstart --tensorboard runs/tensorboard

    parelu track runs/deepreduce/table4 --mlflow http://127.0.0.1:5000
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or folders of run folders"""
    tensorboard: Path | None = None
    """a folder for event files, which tensorboard --logdir shows"""
    mlflow: str | None = None
    """the address of an MLflow server"""
    experiment: str = "parelu"
    """of MLflow, that the networks are runs of"""

    def __call__(self) -> None:
        from parelu import api

        if (self.tensorboard is None) == (self.mlflow is None):
            raise UserError("give --tensorboard FOLDER or --mlflow ADDRESS, one of them")
        if not self.runs:
            raise UserError("give a run folder, such as runs/quickstart")
        if self.mlflow is None:
            assert self.tensorboard is not None
            tracker, where = api.TensorBoard(self.tensorboard), str(self.tensorboard)
        else:
            tracker, where = api.MLflow(self.mlflow, self.experiment), self.mlflow
        say(f"{api.follow(self.runs, tracker)} networks → {where}")


COMMANDS: dict[str, type[Any]] = {"track": Track}
