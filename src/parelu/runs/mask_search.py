"""A search for masks: the full-ReLU network trains while an optimizer takes its ReLUs away.

searches/NAME/ in the run folder: metrics.jsonl, checkpoint/ while it runs, BUDGET/ with the candidate that it left as
it passed that budget, and search.json when it is done.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.methods.jobs import TEACHER, Search
from parelu.network import storage
from parelu.network.candidate import Candidate, load_weights
from parelu.network.instrument import instrument
from parelu.network.metrics import SearchMetrics
from parelu.network.settings import settings
from parelu.runs.folder import Run
from parelu.training.batches import device
from parelu.training.evaluation import accuracy
from parelu.training.loop import Progress, train
from parelu.training.teacher import Teacher


def folder_of(run: Run, search: Search) -> Path:
    return run.path / "searches" / search.name


def is_finished(run: Run, search: Search) -> bool:
    """Raises `UserError` where the folder holds a search of other settings or of an earlier version."""
    folder = folder_of(run, search)
    if not (folder / "search.json").exists():
        return False
    if storage.read_header(folder, "search")["identity"] != identity(search):
        raise UserError(
            f"{folder} holds a search of other settings or of an earlier version; delete it or give another --run"
        )
    return True


def found(run: Run, search: Search, budget: int) -> Candidate:
    """What a search left for a budget: its masks and the weights of that moment."""
    return Candidate.load(folder_of(run, search) / str(budget))


def last(run: Run, search: Search) -> Candidate:
    return found(run, search, min(search.budgets))


def identity(search: Search) -> str:
    """A digest of all that decides what a search leaves; its name does not."""
    how = {
        "training": settings(search.training),
        "objective": settings(search.objective),
        "optimizer": [type(search.optimizer).__name__, settings(search.optimizer)],
    }
    teacher = [] if search.teacher == TEACHER else [{"teacher": search.teacher}]
    return storage.digest([search.spec.to_json(), search.plan.digest(), how, list(search.budgets), *teacher])


def search(
    run: Run, search: Search, dataset: Dataset, seed: int, teacher: Teacher, watch: Callable[[Progress], None]
) -> None:
    """Search from the full-ReLU network's weights; goes on from a checkpoint."""
    folder, started = folder_of(run, search), time.perf_counter()
    torch.manual_seed(seed)  # what an optimizer draws
    network = instrument(search.spec.module(), search.spec.input)
    load_weights(network, run.candidate(TEACHER).weights)
    search.plan.apply(network)
    optimizer = search.optimizer.build(network.to(device()))

    def keep(budget: int, progress: Progress) -> None:
        if (folder / str(budget) / "candidate.json").exists():
            return
        plan, seconds = optimizer.plan(budget), time.perf_counter() - started
        left = Candidate(search.spec, plan, optimizer.weights())
        right = accuracy(left.network(), dataset.validation, dataset)
        metrics = SearchMetrics(progress.epoch, seconds, plan.relus, plan.squares, right)
        dataclasses.replace(left, metrics=metrics).save(folder / str(budget))

    def after_step(progress: Progress) -> None:
        watch(progress)
        ends = progress.step == progress.steps or optimizer.is_done()
        for budget in search.budgets if ends else search.budgets[:-1]:  # the last one has the whole search
            if ends or optimizer.kept() <= budget:
                keep(budget, progress)

    train(
        network,
        dataset,
        search.training,
        search.objective,
        seed=seed,
        folder=folder,
        teacher=teacher,
        watch=after_step,
        callback=optimizer,
    )
    storage.write(folder, "search", {"identity": identity(search)}, {})
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
