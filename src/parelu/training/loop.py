"""The one training loop: checkpoints each epoch, and a resume that ends in the same weights bit for bit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.network.sites import Network, observed
from parelu.network.spec import AUXILIARY
from parelu.training import checkpoint, ranks
from parelu.training.batches import autocast, device, fit, memory_format, normalised_batches
from parelu.training.callback import Callback, Step, Still
from parelu.training.evaluation import accuracy
from parelu.training.history import Epoch
from parelu.training.meter import Meter
from parelu.training.norms import shared_statistics
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
    after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    callback: Callback | None = None,
    meter: Meter | None = None,
) -> list[Epoch]:
    """Train a network in place; continues from the checkpoint in `folder` where there is one.

    After a kill at any moment and a second call, the weights are those of a training without the kill, bit for bit,
    on one machine's CPU with an equal number of threads.

    Args:
        seed: of the order of the images and their augmentation; the fresh weights are the caller's.
        folder: gets metrics.jsonl and the checkpoint.
        watch: called after each step; after_epoch: after each epoch, before its checkpoint.
        callback: moves something beside the weights, and may end the training after a step.
        meter: of the losses; who keeps something before an epoch ends lets it check them first.

    Returns:
        Its finished epochs, those before the checkpoint included.

    Raises:
        UserError: the loss is not finite, or the data set fills no batch or does not fit the network.
    """
    training.check_images(len(dataset.train))
    if training.batch < ranks.size():
        raise UserError(
            f"a batch of {training.batch} images is too small for {ranks.size()} ranks; give a larger batch, or fewer "
            "ranks"
        )
    network.to(device(), memory_format=memory_format(network))  # pyright: ignore[reportCallIssue]
    callback = callback or Still()
    optimizers = _optimizers(network, training, callback)
    loop = _Loop(network, dataset, training, objective, seed, teacher, callback, optimizers)
    history = checkpoint.resume(folder, network, optimizers, callback)
    with shared_statistics(network):
        return _epochs(loop, history, folder, watch, after_epoch, meter or Meter())


def _epochs(
    loop: _Loop,
    history: list[Epoch],
    folder: Path,
    watch: Callable[[Progress], None],
    after_epoch: Callable[[Epoch], None],
    meter: Meter,
) -> list[Epoch]:
    """Those that the history lacks."""
    network, dataset, training, callback = loop.network, loop.dataset, loop.training, loop.callback
    per_epoch = len(dataset.train) // training.batch
    while len(history) < training.epochs:
        started, epoch = time.perf_counter(), len(history)
        known = history[-1].validation_accuracy if history else None
        meter.begin(partial(loop.blown_up, epoch))
        for step, terms in enumerate(loop.epoch(epoch), start=1):
            meter.add(terms)
            watch(Progress(epoch * per_epoch + step, training.epochs * per_epoch, epoch + 1, meter.shown, known))
            if callback.is_done():
                return history
        means = meter.means()
        callback.after_epoch(epoch + 1)
        history.append(
            Epoch(
                epoch=epoch + 1,
                loss=means.pop("loss"),
                parts={**means, **callback.report()},
                lr=loop.optimizers[0].param_groups[0]["lr"],
                validation_accuracy=accuracy(network, dataset.validation, dataset),
                seconds=time.perf_counter() - started,
            )
        )
        after_epoch(history[-1])
        checkpoint.write(folder, network, loop.optimizers, callback, history)
    return history


@dataclasses.dataclass(frozen=True)
class _Loop:
    """All that one step reads and moves; the first optimizer is the weights'."""

    network: Network
    dataset: Dataset
    training: Training
    objective: Objective
    seed: int
    teacher: Teacher | None
    callback: Callback
    optimizers: Sequence[torch.optim.Optimizer]

    def epoch(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """One epoch, from 0; yields after each step the loss and its terms. On a device nothing is read of them."""
        torch.manual_seed(_mix(self.seed, epoch) + ranks.number())  # dropout: of other images, other draws
        self.network.train()
        per_epoch = len(self.dataset.train) // self.training.batch
        teacher = self.teacher
        answers = teacher.logits(self.dataset, self.training, self.seed, epoch) if teacher else None
        ends = tuple({site.stage: name for name, site in self.network.sites.items() if site.stage != "stem"}.values())
        batches = normalised_batches(self.dataset, self.training, self.seed, epoch)
        for number, (images, labels) in enumerate(batches):
            done, steps = epoch * per_epoch + number, self.training.epochs * per_epoch
            self._set_rates(self.training.shape(done / steps))
            logits, inputs, maps = self._forward(images)
            auxiliary = maps.pop(AUXILIARY).float() if self.objective.reads_auxiliary else None
            batch = Batch(
                labels,
                maps,
                answers and partial(answers, number, images),
                teacher and partial(teacher.maps, images),
                (done + 1) / steps,
                auxiliary,
                ends,
            )
            terms = self._shared(self.objective(logits, batch), len(labels))
            loss = self._step(terms, epoch)
            self.callback.after_step(
                Step(done, (done + 1) / steps, inputs, labels, teacher.network if teacher else None)
            )
            yield {"loss": loss, **terms}

    def _set_rates(self, shape: float) -> None:
        for group in _groups(self.optimizers):
            group["lr"] = group["full_lr"] * shape

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Logits, (N, classes); the images as the network took them; the outputs that the objective reads."""
        watched: dict[str, nn.Module] = {}
        if self.objective.reads_maps:
            watched |= _activations(self.network, self.callback)
        if self.objective.reads_auxiliary:
            watched[AUXILIARY] = self.network.get_submodule(AUXILIARY)
        with autocast(), observed(watched) as maps:
            logits = self.network(inputs := fit(images, self.network))
        classes, name = self.dataset.classes, self.dataset.name
        if logits.shape[1:] != (classes,):
            raise UserError(
                f"the network gives {tuple(logits.shape[1:])} outputs, {name} has {classes} classes; "
                f"build it for {classes}"
            )
        return logits.float(), inputs, maps

    def _shared(self, terms: Mapping[str, Tensor], images: int) -> Mapping[str, Tensor]:
        """This rank's part of the terms, which are means over its images: over all ranks their sum is the whole."""
        if ranks.size() == 1:
            return terms
        return {name: term * (images / self.training.batch) for name, term in terms.items()}

    def _step(self, terms: Mapping[str, Tensor], epoch: int) -> Tensor:
        """Move weights and what the callback moves against the gradient of the terms' sum, which it returns."""
        loss = torch.stack(list(terms.values())).sum()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if ranks.size() > 1:
            moved = (*self.network.parameters(), *self.callback.parameters())
            gradients = {id(parameter): parameter.grad for parameter in moved if parameter.grad is not None}
            ranks.add_up(*gradients.values(), loss, *terms.values())
        if self.training.clip:
            weights = [parameter for group in _groups(self.optimizers[:1]) for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, self.training.clip)
        self.callback.before_step()
        for optimizer in self.optimizers:
            optimizer.step()
        if loss.device.type == "cpu" and not loss.isfinite():  # on a device it is found later: see `Meter`
            raise self.blown_up(epoch, loss.item())
        return loss

    def blown_up(self, epoch: int, loss: float) -> UserError:
        sites = _activations(self.network, self.callback).values()
        squares = any(bool((site.get_buffer("coefficients")[2] != 0).any()) for site in sites)
        remedy = "its squares feed on each other: give --degree 1, or lower it" if squares else "lower it"
        return UserError(
            f"the loss became {loss} in epoch {epoch + 1} at learning rate {self.training.lr:g}; {remedy}, "
            "in a new run folder"
        )


def _activations(network: Network, callback: Callback) -> dict[str, nn.Module]:
    """Site → the site, or what a callback has put in its place."""
    return {**network.sites, **callback.activations()}


def _groups(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[dict[str, Any]]:
    return (group for optimizer in optimizers for group in optimizer.param_groups)


def _optimizers(network: Network, training: Training, callback: Callback) -> list[torch.optim.Optimizer]:
    """One for the weights, one for what the callback moves; each group's `full_lr` is scaled by the schedule."""
    apart = {id(parameter) for parameter in callback.parameters()}
    weights = [parameter for parameter in network.parameters() if id(parameter) not in apart]
    if training.optimizer == "adam":
        first = torch.optim.Adam(weights, lr=training.lr, weight_decay=training.weight_decay)
    else:
        first = torch.optim.SGD(weights, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay)
    second = callback.optimizer()
    optimizers = [first, *([second] if second else [])]
    for group in _groups(optimizers):
        group["full_lr"] = group["lr"]
    return optimizers


def _mix(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) & 0x7FFF_FFFF_FFFF_FFFF
