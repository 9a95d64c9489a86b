"""Rows of private inference that a benchmark keeps beside a run, one a repetition, and how a table shows them."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parelu.runs.folder import Run


def path_of(run: Run, label: str, offline: str, network: str, number: int) -> Path:
    return run.path / "measured" / f"{label} {offline} {network} {number}.json"


def rows_of(run: Run, label: str, offline: str, network: str) -> Iterator[dict[str, Any]]:
    """Of each repetition so far."""
    for number in itertools.count():
        path = path_of(run, label, offline, network, number)
        if not path.exists():
            return
        yield json.loads(path.read_bytes())


def middle(values: Sequence[float], form: str) -> str:
    """Median and range."""
    if not values:
        return "–"
    low, median, high = (format(value, form) for value in (min(values), statistics.median(values), max(values)))
    return median if low == high else f"{median} ({low}–{high})"
