"""Which two networks are shown, and the images to choose from."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from parelu import api
from parelu.demo.show import Shown
from parelu.errors import UserError
from parelu.report.tables import frontier_rows
from parelu.runs import measurement, pareto

FULL, REDUCED = "full", "reduced"


def packaged() -> dict[str, Path]:
    """The folders of the two that come with parelu, made by `make demo-networks`."""
    own = Path(str(importlib.resources.files("parelu.demo"))) / "networks"
    return {FULL: own / FULL, REDUCED: own / REDUCED}


def of_run(folder: Path) -> dict[str, Path]:
    """The network with all ReLUs of a run, and the one at its frontier's knee.

    Raises UserError where the run has no reduced network on its frontier.
    """
    run = api.Run.open(folder)
    rows = [row for row in frontier_rows(run.candidates()) if row.on_frontier and row.name != "teacher"]
    if not rows:
        raise UserError(f"{folder} has no reduced network on its frontier; give a finished run, or none")
    knee = rows[pareto.knee([(row.relus, row.validation) for row in rows])]
    return {FULL: run.folder("teacher"), REDUCED: run.folder(knee.name)}


def shown(folders: dict[str, Path]) -> tuple[dict[str, Shown], api.Dataset]:
    """The networks in these folders, and the data set of them all, at the size that it has.

    Raises UserError where its images are missing.
    """
    candidates = {key: api.load(folder) for key, folder in folders.items()}
    titles = {FULL: "All ReLUs", REDUCED: "Reduced"}
    networks = {
        key: Shown(titles[key], folders[key], candidate.trained.test_accuracy, tuple(candidate.preprocessing["image"]))
        for key, candidate in candidates.items()
    }
    name = measurement.dataset_name(candidates[FULL])
    return networks, api.data.load(name, folder=measurement.data_folder_of(folders[FULL]))
