"""Recipes in words: those there are, and what one would train."""

from __future__ import annotations

from collections.abc import Sequence

from parelu import data
from parelu.data.dataset import ENTRIES, Dataset
from parelu.methods.jobs import Search
from parelu.report.tables import aligned
from parelu.runs.dry_run import Outlook
from parelu.runs.experiment import Experiment
from parelu.runs.recipes import read_recipe, recipes


def listed_text() -> str:
    """The recipes that come with parelu, a line each, those of a paper together."""
    known = {name: read_recipe(name) for name in recipes()}
    width = max(map(len, known))
    lines, paper = [], ""
    for name, recipe in known.items():
        folder = name.rpartition("/")[0]
        if folder != paper:
            lines, paper = [*lines, ""], folder
        lines.append(f"{name:{width}}  {recipe.title}")
    return "\n".join(lines)


def outlook_text(ahead: Outlook) -> str:
    """What an experiment would train, a line each."""
    shape = "x".join(map(str, ahead.spec.input))
    head = f"{ahead.name}, {shape}: {ahead.full.relus:,} ReLUs, {ahead.full.macs / 1e6:,.1f}M multiply-adds"
    rows = [("ReLUs", "multiply-adds", "epochs", "")]
    for one in ahead.planned:
        epochs = one.task.training.epochs if one.task.training else 0
        name = f"search {one.task.name}" if isinstance(one.task, Search) else one.task.name
        rows.append((f"{one.relus:,}", f"{one.counts.macs / 1e6:,.1f}M", f"{epochs:,}", name))
    return "\n".join([head, *(f"  {line}" for line in aligned(rows, 1).splitlines()), ""])


def work_text(ahead: Sequence[Outlook], seeds: int, cost: str) -> str:
    """How much work that is, and what it costs where that was measured."""
    trainings, work = (sum(values) for values in zip(*((len(a.planned), a.work) for a in ahead), strict=True))
    often = f", {seeds} seeds: {seeds * work:.1e}" if seeds > 1 else ""
    return (
        f"{trainings} trainings of {ahead[0].images:,} images an epoch, {work:.1e} multiply-adds, the gradients' "
        f"included{often}; cost: {cost or 'unknown on a GPU, no step was measured on one'}"
    )


def data_text(experiment: Experiment) -> str:
    """Whether an experiment's images are here, and where to get them."""
    name = experiment.data
    if isinstance(name, Dataset) or data.available(name, folder=experiment.data_folder):
        return f"data: {name if isinstance(name, str) else name.name} is here"
    place = ENTRIES[name].place
    assert place is not None, "a set without files is always here"
    return f"data: {place.missing(name, experiment.data_folder)}"
