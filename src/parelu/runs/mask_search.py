"""A search for masks: a network trains while an optimizer takes its ReLUs away.

searches/NAME/ in the run folder: metrics.jsonl, checkpoint/ while it runs, BUDGET/ with the candidate that it left as
it passed that budget, or of its best epoch (`MaskOptions.keeps_best`), and search.json when it is done.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.methods.jobs import FROM_TEACHER, TEACHER, Search
from parelu.network import storage
from parelu.network.candidate import Candidate, load_weights
from parelu.network.instrument import network_of
from parelu.network.metrics import SearchMetrics
from parelu.network.settings import settings
from parelu.runs.folder import Run
from parelu.training import ranks
from parelu.training.batches import device
from parelu.training.evaluation import accuracy
from parelu.training.history import Epoch
from parelu.training.loop import Progress, train
from parelu.training.meter import Meter
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
        **({"leaves": "the best epoch"} if search.optimizer.keeps_best else {}),
    }
    others: dict[str, Any] = {}
    if search.teacher != TEACHER:
        others["teacher"] = search.teacher
    if search.start != FROM_TEACHER:
        others["start"] = search.start.key
    if search.unit.name:
        others["limits"] = [search.unit.called(budget) for budget in search.budgets]
    later = [others] if others else []
    return storage.digest([search.spec.to_json(), search.plan.digest(), how, list(search.budgets), *later])


def search(
    run: Run, search: Search, dataset: Dataset, seed: int, teacher: Teacher, watch: Callable[[Progress], None]
) -> None:
    """Search from a trained network's weights; goes on from a checkpoint."""
    folder, started = folder_of(run, search), time.perf_counter()
    torch.manual_seed(seed)  # what an optimizer draws
    network = network_of(search.spec)
    load_weights(network, Candidate.load(search.start.folder(run.path)).weights)
    search.plan.apply(network)
    optimizer, meter = search.build(network.to(device())), Meter()

    def keep(budget: int, epoch: int) -> None:
        meter.check()
        plan, seconds = search.left(optimizer, budget), time.perf_counter() - started
        left = Candidate(search.spec, plan, optimizer.weights())
        right = accuracy(left.network(), dataset.validation, dataset)
        metrics = SearchMetrics(epoch, seconds, plan.relus, plan.squares, right)
        kept = dataclasses.replace(left, metrics=metrics)
        ranks.on_first(lambda: kept.save(folder / str(budget)))

    def after_step(progress: Progress) -> None:
        watch(progress)
        if search.optimizer.keeps_best:
            return
        ends = progress.step == progress.steps or optimizer.is_done()
        for budget in search.budgets if ends else search.budgets[:-1]:  # the last one has the whole search
            is_kept = (folder / str(budget) / "candidate.json").exists()
            if not is_kept and (ends or optimizer.has_passed(budget)):
                keep(budget, progress.epoch)

    def after_epoch(epoch: Epoch) -> None:
        if search.optimizer.keeps_best and epoch.validation_accuracy > _best(folder / str(search.budgets[-1])):
            keep(search.budgets[-1], epoch.epoch)

    history = train(
        network,
        dataset,
        search.training,
        search.objective,
        seed=seed,
        folder=folder,
        teacher=teacher,
        watch=after_step,
        after_epoch=after_epoch,
        callback=optimizer,
        meter=meter,
    )
    if search.optimizer.keeps_best:
        ranks.on_first(lambda: _charge(folder / str(search.budgets[-1]), history))
    ranks.on_first(lambda: storage.write(folder, "search", {"identity": identity(search)}, {}))
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def _best(folder: Path) -> float:
    """Validation accuracy of what was kept so far; below all where nothing was."""
    if not (folder / "candidate.json").exists():
        return -1.0
    return storage.read_header(folder, "candidate")["metrics"]["validation_accuracy"]


def _charge(folder: Path, history: Sequence[Epoch]) -> None:
    """Put the cost of the whole search down to the epoch that was kept."""
    kept = Candidate.load(folder)
    assert isinstance(kept.metrics, SearchMetrics)
    seconds = sum(epoch.seconds for epoch in history)
    dataclasses.replace(kept, metrics=dataclasses.replace(kept.metrics, epochs=len(history), seconds=seconds)).save(
        folder
    )
