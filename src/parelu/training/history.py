"""The history of a training: metrics.jsonl, a line per epoch."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from parelu.errors import UserError
from parelu.network import storage


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch of a training.

    Attributes:
        epoch: from 1.
        loss: mean over its steps.
        parts: the loss's terms by name, and what a callback reports, such as the ReLUs kept.
        lr: learning rate of the weights at its last step.
        validation_accuracy: after it, in percent.
    """

    epoch: int
    loss: float
    parts: Mapping[str, Any]
    lr: float
    validation_accuracy: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        fixed = dict(vars(self))
        return {"epoch": fixed.pop("epoch"), "loss": fixed.pop("loss"), **fixed.pop("parts"), **fixed}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Epoch:
        """Raises `KeyError` where a figure is missing, `TypeError` where there is no mapping."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "parts"]
        parts = {name: value[name] for name in value if name not in names}
        return cls(parts=parts, **{name: value[name] for name in names})


class StoredHistory(Sequence[Epoch]):
    """The epochs of a folder, read when they are first used, as `read_history` does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def _read(self) -> list[Epoch]:
        return read_history(self.folder)

    @overload
    def __getitem__(self, index: int) -> Epoch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Epoch]: ...
    def __getitem__(self, index: int | slice) -> Epoch | Sequence[Epoch]:
        return self._read[index]

    def __len__(self) -> int:
        return len(self._read)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented


def read_history(folder: Path) -> list[Epoch]:
    """The epochs of metrics.jsonl; none where there is no such file."""
    try:
        return [Epoch.from_json(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'metrics.jsonl'} is damaged ({error}); delete the folder to train it again"
        ) from error


def write_history(folder: Path, history: Sequence[Epoch]) -> None:
    lines = "".join(json.dumps(epoch.to_json(), allow_nan=False) + "\n" for epoch in history)
    storage.write_atomic(folder / "metrics.jsonl", lines.encode())
