"""Conducting a search: the full-ReLU network trains while a learner takes its ReLUs away.

searches/NAME/ in the run folder: metrics.jsonl, checkpoint/ while it runs, BUDGET/ with the candidate that it left as
it passed that budget, and search.json when it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.masks.gate import gates_of, without_gates
from parelu.methods.jobs import TEACHER, Search
from parelu.network import storage
from parelu.network.candidate import Candidate, load_weights
from parelu.network.instrument import instrument
from parelu.network.metrics import SearchMetrics
from parelu.network.plan import Plan, SitePlan
from parelu.network.sites import Network
from parelu.runs.folder import Run
from parelu.training.evaluation import accuracy
from parelu.training.loop import Progress, train
from parelu.training.teacher import Teacher


def folder_of(run: Run, search: Search) -> Path:
    return run.path / "searches" / search.name


def is_finished(run: Run, search: Search) -> bool:
    """Raises `UserError` where the folder holds a search of other settings."""
    folder = folder_of(run, search)
    if not (folder / "search.json").exists():
        return False
    if storage.read_header(folder, "search")["identity"] != _identity(search):
        raise UserError(f"{folder} holds a search of other settings; delete it or give another --run")
    return True


def found(run: Run, search: Search, budget: int) -> Candidate:
    """What a search left for a budget: its masks and the weights of that moment."""
    return Candidate.load(folder_of(run, search) / str(budget))


def last(run: Run, search: Search) -> Candidate:
    return found(run, search, min(search.budgets))


def _identity(search: Search) -> str:
    settings = {
        "training": dataclasses.asdict(search.training),
        "objective": dataclasses.asdict(search.objective),
        "learner": [type(search.learner).__name__, dataclasses.asdict(search.learner)],
    }
    return storage.digest([search.spec.to_json(), search.plan.digest(), settings, list(search.budgets)])


class _Passed(Exception):
    """Raised inside a training when the learner has passed its last budget."""


def conduct(
    run: Run, search: Search, dataset: Dataset, seed: int, teacher: Teacher, watch: Callable[[Progress], None]
) -> None:
    """Search from the full-ReLU network's weights; goes on from a checkpoint."""
    folder, started = folder_of(run, search), time.perf_counter()
    torch.manual_seed(seed)  # what a learner draws
    network = instrument(search.spec.module(), search.spec.input)
    load_weights(network, run.candidate(TEACHER).weights)
    search.plan.apply(network)
    search.learner.prepare(network)
    gates = gates_of(network)

    def keep(budget: int, progress: Progress) -> None:
        if (folder / str(budget) / "candidate.json").exists():
            return
        seconds = time.perf_counter() - started
        left = _left(search, network, budget)
        right = accuracy(left.network(), dataset.validation, dataset)
        metrics = SearchMetrics(progress.epoch, seconds, left.plan.relus, left.plan.squares, right)
        dataclasses.replace(left, metrics=metrics).save(folder / str(budget))

    def after_step(progress: Progress) -> None:
        watch(progress)
        if search.learner.stops_at_budget or len(search.budgets) > 1:
            kept = search.learner.kept(gates)
            for budget in search.budgets[: None if search.learner.stops_at_budget else -1]:
                if kept <= budget:
                    keep(budget, progress)
            if kept <= search.budgets[-1] and search.learner.stops_at_budget:
                raise _Passed
        if progress.step == progress.steps:
            for budget in search.budgets:
                keep(budget, progress)

    with contextlib.suppress(_Passed):
        train(
            network,
            dataset,
            search.training,
            search.objective,
            seed=seed,
            folder=folder,
            teacher=teacher,
            watch=after_step,
            learner=search.learner,
        )
    storage.write(folder, "search", {"identity": _identity(search)}, {})
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def _left(search: Search, network: Network, budget: int) -> Candidate:
    gates = gates_of(network)
    masks = search.learner.project(gates, budget)
    plan = Plan({name: SitePlan(masks[name].cpu(), gate.coefficients.cpu()) for name, gate in gates.items()})
    weights: dict[str, Tensor] = {name: tensor.cpu().clone() for name, tensor in without_gates(network).items()}
    return Candidate(search.spec, plan, weights)
