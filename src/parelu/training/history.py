"""The history of a training: metrics.jsonl, a line per epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parelu.errors import UserError
from parelu.network import storage


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The epochs of metrics.jsonl; none where there is no such file."""
    try:
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(
            f"{folder / 'metrics.jsonl'} is damaged ({error}); delete the folder to train it again"
        ) from error


def write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(epoch, allow_nan=False) + "\n" for epoch in history)
    storage.write_atomic(folder / "metrics.jsonl", lines.encode())
