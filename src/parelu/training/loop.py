"""The one training loop: checkpoints each epoch, and a resume that ends in the same weights bit for bit."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.masks.gate import gates_of
from parelu.network import storage
from parelu.network.candidate import load_weights
from parelu.network.sites import Network, observed
from parelu.network.spec import AUXILIARY
from parelu.training.batches import autocast, device, fit, memory_format, normalised_batches
from parelu.training.callback import Learner, Step
from parelu.training.evaluation import accuracy
from parelu.training.history import Epoch, write_history
from parelu.training.objectives import Batch, Objective
from parelu.training.schedule import Training
from parelu.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training stands: steps done of all steps, the epoch from 1, the last epoch's validation accuracy."""

    step: int
    steps: int
    epoch: int
    loss: float
    validation_accuracy: float | None


def train(
    network: Network,
    dataset: Dataset,
    training: Training,
    objective: Objective,
    *,
    seed: int,
    folder: Path,
    teacher: Teacher | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    learner: Learner | None = None,
) -> list[Epoch]:
    """Train a network in place; continues from the checkpoint in `folder` where there is one.

    After a kill at any moment and a second call, the weights are those of a training without the kill, bit for bit,
    on one machine's CPU with an equal number of threads.

    Args:
        seed: of the order of the images and their augmentation; the fresh weights are the caller's.
        folder: gets metrics.jsonl and the checkpoint.
        watch: called after each step.
        learner: moves something beside the weights, which it has put into the network.

    Returns:
        Its epochs, those before the checkpoint included.

    Raises:
        UserError: the loss is not finite, or the data set does not fit the network.
    """
    per_epoch = len(dataset.train) // training.batch
    if per_epoch == 0:
        raise UserError(f"{len(dataset.train)} training images do not fill one batch of {training.batch}")
    network.to(device(), memory_format=memory_format(network))  # pyright: ignore[reportCallIssue]
    optimizers = _optimizers(network, training, learner)
    history = _resume(folder, network, optimizers)
    while len(history) < training.epochs:
        started, epoch = time.perf_counter(), len(history)
        known = history[-1].validation_accuracy if history else None
        means: dict[str, float] = {}
        steps = _epoch(network, dataset, training, objective, optimizers, seed, epoch, teacher, learner)
        for step, terms in enumerate(steps, start=1):
            means = {name: means.get(name, 0.0) + (term - means.get(name, 0.0)) / step for name, term in terms.items()}
            watch(Progress(epoch * per_epoch + step, training.epochs * per_epoch, epoch + 1, terms["loss"], known))
        if learner:
            learner.after_epoch(gates_of(network), epoch + 1)
        history.append(
            Epoch(
                epoch=epoch + 1,
                loss=means.pop("loss"),
                parts={**means, **(learner.report(network) if learner else {})},
                lr=optimizers[0].param_groups[0]["lr"],
                validation_accuracy=accuracy(network, dataset.validation, dataset),
                seconds=time.perf_counter() - started,
            )
        )
        _checkpoint(folder, network, optimizers, history)
    return history


def _epoch(
    network: Network,
    dataset: Dataset,
    training: Training,
    objective: Objective,
    optimizers: Sequence[torch.optim.Optimizer],
    seed: int,
    epoch: int,
    teacher: Teacher | None,
    learner: Learner | None,
) -> Iterator[dict[str, float]]:
    """One epoch; yields after each step the loss and its terms."""
    torch.manual_seed(_mix(seed, epoch))  # dropout
    network.train()
    steps = len(dataset.train) // training.batch
    gates = gates_of(network) if learner else {}
    weights = [parameter for group in optimizers[0].param_groups for parameter in group["params"]]
    answers = teacher.logits(dataset, training, seed, epoch) if teacher else None
    for number, (images, labels) in enumerate(normalised_batches(dataset, training, seed, epoch)):
        shape = training.shape((epoch * steps + number) / (steps * training.epochs))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["full_lr"] * shape
        watched: dict[str, nn.Module] = {**(gates or network.sites)} if objective.reads_maps else {}
        if objective.reads_auxiliary:
            watched[AUXILIARY] = network.get_submodule(AUXILIARY)
        with autocast(), observed(watched) as maps:
            logits = network(inputs := fit(images, network))
        auxiliary = maps.pop(AUXILIARY).float() if objective.reads_auxiliary else None
        if logits.shape[1:] != (dataset.classes,):
            raise UserError(
                f"the network gives {tuple(logits.shape[1:])} outputs, {dataset.name} has "
                f"{dataset.classes} classes; build it for {dataset.classes}"
            )
        batch = Batch(
            labels,
            maps,
            answers and partial(answers, number, images),
            teacher and partial(teacher.maps, images),
            (epoch * steps + number + 1) / (steps * training.epochs),
            auxiliary,
        )
        terms = objective(logits.float(), batch)
        loss = torch.stack(list(terms.values())).sum()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if training.clip:
            torch.nn.utils.clip_grad_norm_(weights, training.clip)
        if learner:
            learner.before_step(gates)
        for optimizer in optimizers:
            optimizer.step()
        if not math.isfinite(loss.item()):
            raise UserError(_blown_up(network, loss.item(), epoch, training))
        if learner:
            done = epoch * steps + number
            full = teacher.network if teacher else None
            learner.after_step(network, Step(done, (done + 1) / (steps * training.epochs), inputs, labels, full))
        yield {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}


def _optimizers(network: Network, training: Training, learner: Learner | None) -> list[torch.optim.Optimizer]:
    """One for the weights, one for what the learner moves; each group's `full_lr` is scaled by the schedule."""
    gates = gates_of(network)
    own = {id(parameter) for gate in gates.values() for parameter in gate.parameters()}
    weights = [parameter for parameter in network.parameters() if id(parameter) not in own]
    if training.optimizer == "adam":
        first = torch.optim.Adam(weights, lr=training.lr, weight_decay=training.weight_decay)
    else:
        first = torch.optim.SGD(weights, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay)
    second = learner.optimizer(gates) if learner else None
    optimizers = [first, *([second] if second else [])]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["full_lr"] = group["lr"]
    return optimizers


def _blown_up(network: Network, loss: float, epoch: int, training: Training) -> str:
    sites = [*network.sites.values(), *gates_of(network).values()]
    squares = any(bool((site.coefficients[2] != 0).any()) for site in sites)
    remedy = "its squares feed on each other: give --degree 1, or lower it" if squares else "lower it"
    return (
        f"the loss became {loss} in epoch {epoch + 1} at learning rate {training.lr:g}; {remedy}, in a new run folder"
    )


def _checkpoint(
    folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], history: list[Epoch]
) -> None:
    """Keep all that the next epoch depends on; the folder of the epoch before goes when this one is whole."""
    tensors = {f"weight/{name}": tensor for name, tensor in network.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    checkpoints = folder / "checkpoint"
    storage.write(checkpoints / str(len(history)), "checkpoint", {"history": [e.to_json() for e in history]}, tensors)
    write_history(folder, history)
    for old in checkpoints.iterdir():
        if old.name != str(len(history)):
            shutil.rmtree(old, ignore_errors=True)


def _resume(folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[Epoch]:
    """Load the newest whole checkpoint; returns its epochs, none where there is no checkpoint."""
    found = sorted((folder / "checkpoint").glob("*/checkpoint.json"), key=lambda path: int(path.parent.name))
    if not found:
        return []
    header, tensors = storage.read(found[-1].parent, "checkpoint")
    load_weights(network, {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")})
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, number, index, key = name.split("/", 3)
            states[int(number)].setdefault(int(index), {})[key] = tensor
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return [Epoch.from_json(epoch) for epoch in header["history"]]


def _mix(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) & 0x7FFF_FFFF_FFFF_FFFF
