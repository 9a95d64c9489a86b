"""The one training loop: schedules, checkpoints each epoch, and a resume that ends in the same weights bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu import data, store
from parelu.data import Dataset, Split
from parelu.distill import Batch, Objective
from parelu.errors import UserError
from parelu.gates import gates_of
from parelu.learner import Learner, Step
from parelu.models import AUXILIARY
from parelu.plan import Plan, load_weights
from parelu.run import write_history
from parelu.sites import Network, observed

Schedule = Literal["step", "cosine", "one-cycle", "constant"]
Optimizer = Literal["sgd", "adam"]


@dataclasses.dataclass(frozen=True)
class Training:
    """How one network is trained.

    Attributes:
        schedule: "step" divides the rate by 10 after each quarter of the epochs; "cosine" falls to 0; "one-cycle"
            rises over the first quarter and falls linearly to 0.
        momentum: of SGD; Adam has its own (0.9, 0.999).
        clip: largest norm of the weights' gradient; 0 for none.
        begin, end: the part of the schedule that the epochs go through, where one training is made of several.
    """

    epochs: int = 120  # DeepReDuce, section 4
    batch: int = 128  # DeepReDuce, section 4
    lr: float = 0.1  # DeepReDuce, section 4
    schedule: Schedule = "step"  # DeepReDuce, section 4: every 30 of 120 epochs
    momentum: float = 0.9  # DeepReDuce, section 4
    weight_decay: float = 4e-4  # DeepReDuce, section 4
    label_smoothing: float = 0.0
    optimizer: Optimizer = "sgd"
    clip: float = 0.0
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for name, (kinds, within, words) in _ALLOWED.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool) or not within(value):
                raise UserError(f"{name} is {value!r}; it should be {words}")
        if self.begin >= self.end:
            raise UserError(f"begin is {self.begin!r}; it should be below end, which is {self.end!r}")

    def shape(self, progress: float) -> float:
        """Learning rate as a share of `lr` where `progress`, in [0, 1), of all steps are done."""
        progress = self.begin + (self.end - self.begin) * progress
        if self.schedule == "step":
            return 0.1 ** int(progress * 4)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "one-cycle":
            return min(progress / 0.25, (1 - progress) / 0.75)
        return 1.0


# Of each field of Training: its types, the range, and both in words. NaN is in no range.
_ALLOWED: dict[str, tuple[tuple[type, ...], Callable[[Any], bool], str]] = {
    "epochs": ((int,), lambda n: n >= 1, "a whole number, 1 or more"),
    "batch": ((int,), lambda n: n >= 2, "a whole number, 2 or more"),
    "lr": ((int, float), lambda x: 0 < x < math.inf, "a number above 0"),
    "schedule": ((str,), lambda name: name in get_args(Schedule), f"one of {', '.join(get_args(Schedule))}"),
    "momentum": ((int, float), lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "weight_decay": ((int, float), lambda x: 0 <= x < math.inf, "a number, 0 or more"),
    "clip": ((int, float), lambda x: 0 <= x < math.inf, "a number, 0 or more"),
    "begin": ((int, float), lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "end": ((int, float), lambda x: 0 < x <= 1, "a number above 0, at most 1"),
    "optimizer": ((str,), lambda name: name in get_args(Optimizer), f"one of {', '.join(get_args(Optimizer))}"),
    "label_smoothing": ((int, float), lambda x: 0 <= x < 1, "a number from 0 to below 1"),
}

# One-cycle training in a handful of epochs (Smith & Topin 2017), for small networks and quick answers.
SHORT = Training(epochs=5, batch=256, lr=0.3, schedule="one-cycle", weight_decay=5e-4, label_smoothing=0.1)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training stands: steps done of all steps, the epoch from 1, the last epoch's validation accuracy."""

    step: int
    steps: int
    epoch: int
    loss: float
    validation_accuracy: float | None


class Teacher:
    """A frozen network's logits for every batch of a training.

    Batches depend on the seed and the epoch alone, so the logits are computed once and kept in a folder for all
    networks of a run, as long as they take less than `LARGEST` bytes; else the teacher runs along.
    """

    LARGEST = 1 << 30

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network.eval().requires_grad_(False).to(_device())
        self.folder = folder

    def logits(self, dataset: Dataset, training: Training, seed: int, epoch: int) -> Callable[[int, Tensor], Tensor]:
        """A function (number of the batch in the epoch, its normalised images) → logits, (N, classes)."""
        size = training.epochs * len(dataset.train) * dataset.classes * 4
        if size > self.LARGEST:
            return lambda _, images: self._run(images)
        folder = self.folder / f"batch-{training.batch}-seed-{seed}-epoch-{epoch}"
        try:
            logits = store.read(folder, "logits")[1]["logits"].to(_device())
        except UserError:  # not there yet, or damaged
            logits = torch.stack([self._run(images) for images, _ in _batches(dataset, training, seed, epoch)])
            store.write(folder, "logits", {}, {"logits": logits})
        return lambda number, _: logits[number]

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Site → output, (N, C, H, W)."""
        with observed(self.network.sites) as maps:
            self._run(images)
        return maps

    def _run(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(fit(images, self.network)).float()


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
) -> list[dict[str, Any]]:
    """Train a network in place; continues from the checkpoint in `folder` where there is one.

    After a kill at any moment and a second call, the weights are those of a training without the kill, bit for bit,
    on one machine's CPU with an equal number of threads.

    Args:
        seed: of the order of the images and their augmentation; the fresh weights are the caller's.
        folder: gets metrics.jsonl and the checkpoint.
        watch: called after each step.
        learner: moves something beside the weights, which it has put into the network.

    Returns:
        One dict an epoch: loss and its terms, learning rate, validation accuracy in percent, seconds; and what a
        learner reports, such as the ReLUs kept.

    Raises:
        UserError: the loss is not finite, or the data set does not fit the network.
    """
    per_epoch = len(dataset.train) // training.batch
    if per_epoch == 0:
        raise UserError(f"{len(dataset.train)} training images do not fill one batch of {training.batch}")
    network.to(_device(), memory_format=memory_format(network))  # pyright: ignore[reportCallIssue]
    optimizers = _optimizers(network, training, learner)
    history = _resume(folder, network, optimizers)
    while len(history) < training.epochs:
        started, epoch = time.perf_counter(), len(history)
        known = history[-1]["validation_accuracy"] if history else None
        means: dict[str, float] = {}
        steps = _epoch(network, dataset, training, objective, optimizers, seed, epoch, teacher, learner)
        for step, terms in enumerate(steps, start=1):
            means = {name: means.get(name, 0.0) + (term - means.get(name, 0.0)) / step for name, term in terms.items()}
            watch(Progress(epoch * per_epoch + step, training.epochs * per_epoch, epoch + 1, terms["loss"], known))
        if learner:
            learner.after_epoch(gates_of(network), epoch + 1)
        history.append({
            "epoch": epoch + 1,
            **means,
            **(learner.report(network) if learner else {}),
            "lr": optimizers[0].param_groups[0]["lr"],
            "validation_accuracy": accuracy(network, dataset.validation, dataset),
            "seconds": time.perf_counter() - started,
        })  # fmt: skip
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
    for number, (images, labels) in enumerate(_batches(dataset, training, seed, epoch)):
        shape = training.shape((epoch * steps + number) / (steps * training.epochs))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["full_lr"] * shape
        watched: dict[str, nn.Module] = {**(gates or network.sites)} if objective.reads_maps else {}
        if objective.reads_auxiliary:
            watched[AUXILIARY] = network.get_submodule(AUXILIARY)
        with _autocast(), observed(watched) as maps:
            logits = network(inputs := fit(images, network))
        auxiliary = maps.pop(AUXILIARY).float() if objective.reads_auxiliary else None
        if logits.shape[1:] != (dataset.classes,):
            raise UserError(f"the network gives {tuple(logits.shape[1:])} outputs, {dataset.name} has "
                            f"{dataset.classes} classes; build it for {dataset.classes}")  # fmt: skip
        batch = Batch(
            labels, maps, answers and partial(answers, number, images), teacher and partial(teacher.maps, images),
            (epoch * steps + number + 1) / (steps * training.epochs), auxiliary,
        )  # fmt: skip
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


def accuracy(network: Network, split: Split, dataset: Dataset, batch: int = 512) -> float:
    """Top-1 accuracy in percent of a network, in evaluation mode."""
    was_training = network.training
    network.eval().to(_device())
    right = 0
    with torch.no_grad(), _autocast():
        for start in range(0, len(split), batch):
            images = data.normalise(split.images[start : start + batch].to(_device()), dataset.mean, dataset.std)
            predicted = network(fit(images, network)).argmax(1)
            right += int((predicted == split.labels[start : start + batch].to(_device())).sum())
    network.train(was_training)
    return 100 * right / len(split)


def recalibrate(network: Network, dataset: Dataset, training: Training, seed: int, batches: int = 40) -> None:
    """Set the batch-norms' running statistics to the medians over the last epoch's first batches.

    Behind squares one image that stands out moves a running variance, or a mean of variances, by far more than itself.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    means, variances = ([[] for _ in norms] for _ in range(2))
    for norm in norms:
        norm.momentum = 1.0  # the running statistics are those of the latest batch
    network.train()
    with torch.no_grad(), _autocast():
        for images, _ in itertools.islice(_batches(dataset, training, seed, training.epochs - 1), batches):
            network(fit(images, network))
            for norm, mean, variance in zip(norms, means, variances, strict=True):
                mean.append(norm.get_buffer("running_mean").clone())
                variance.append(norm.get_buffer("running_var").clone())
    network.eval()
    for norm, momentum, mean, variance in zip(norms, momenta, means, variances, strict=True):
        norm.momentum = momentum
        norm.get_buffer("running_mean").copy_(torch.stack(mean).median(0).values)
        norm.get_buffer("running_var").copy_(torch.stack(variance).median(0).values)


def ranges(network: Network, split: Split, dataset: Dataset, batch: int = 512) -> dict[str, tuple[float, float]]:
    """Site with squares → least and greatest input over the images of a split, in evaluation mode."""
    found: dict[str, tuple[float, float]] = {}

    def extend(site: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = (float(value) for value in torch.aminmax(inputs[0]))
        before = found.get(str(site.name), (low, high))
        found[str(site.name)] = (min(before[0], low), max(before[1], high))

    plan = Plan.of(network)
    squared = [site for name, site in network.sites.items() if plan.sites[name].squares]
    hooks = [site.register_forward_pre_hook(extend) for site in squared]
    accuracy(network, split, dataset, batch)
    for hook in hooks:
        hook.remove()
    return found


def slope_gradients(network: Network, dataset: Dataset, images: int, seed: int, batch: int = 128) -> dict[str, Tensor]:
    """Site → ∂L/∂a, `site.shape`, of activations a·relu(x) + (1 − a)·x at a = 1.

    L is the cross-entropy, the mean over `images` training images drawn by the seed, with the network in evaluation
    mode. The gradient of one position is the mean of its output's gradient times (relu(x) − x).
    """
    split, count = dataset.train, min(images, len(dataset.train))
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    totals = {name: torch.zeros(site.shape, device=_device()) for name, site in network.sites.items()}

    def collect(site: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        total, falls = totals[str(site.name)], F.relu(-inputs[0].detach())

        def add(gradient: Tensor) -> None:
            total.add_((gradient * falls).sum(0))

        output.register_hook(add)

    hooks = [site.register_forward_hook(collect) for site in network.sites.values()]
    network.eval().to(_device()).requires_grad_(False)
    for part in chosen.split(batch):
        pixels = data.normalise(split.images[part].to(_device()), dataset.mean, dataset.std)
        logits = network(fit(pixels, network).requires_grad_())  # no other gradient is needed
        (F.cross_entropy(logits, split.labels[part].to(_device()), reduction="sum") / count).backward()
    for hook in hooks:
        hook.remove()
    return {name: total.cpu() for name, total in totals.items()}


def fit(images: Tensor, network: Network) -> Tensor:
    """Images, (N, C, H, W), at the side and in the layout that a network takes."""
    images = data.resize(images, (network.input_shape[1], network.input_shape[2]))
    return images.contiguous(memory_format=memory_format(network))


def memory_format(network: nn.Module) -> torch.memory_format:
    """channels_last, the faster layout, unless a convolution reads 2 to 7 channels.

    There oneDNN's kernel for a strided 1×1 convolution writes past its buffer in the backward pass (torch 2.13).
    """
    widths = [m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    return torch.channels_last if all(width >= 8 for width in widths[1:]) else torch.contiguous_format


def _batches(dataset: Dataset, training: Training, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised float batches at the data set's own side."""
    stream = data.batches(dataset.train, training.batch, seed=seed, epoch=epoch, augmentation=dataset.augmentation)
    for images, labels in stream:
        yield data.normalise(images.to(_device()), dataset.mean, dataset.std), labels.to(_device())


def _optimizers(network: Network, training: Training, learner: Learner | None) -> list[torch.optim.Optimizer]:
    """One for the weights, one for what the learner moves; each group's `full_lr` is scaled by the schedule."""
    gates = gates_of(network)
    own = {id(parameter) for gate in gates.values() for parameter in gate.parameters()}
    weights = [parameter for parameter in network.parameters() if id(parameter) not in own]
    if training.optimizer == "adam":
        first = torch.optim.Adam(weights, lr=training.lr, weight_decay=training.weight_decay)
    else:
        first = torch.optim.SGD(weights, lr=training.lr, momentum=training.momentum,
                                weight_decay=training.weight_decay)  # fmt: skip
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
    folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], history: list[dict]
) -> None:
    """Keep all that the next epoch depends on; the folder of the epoch before goes when this one is whole."""
    tensors = {f"weight/{name}": tensor for name, tensor in network.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    checkpoints = folder / "checkpoint"
    store.write(checkpoints / str(len(history)), "checkpoint", {"history": history}, tensors)
    write_history(folder, history)
    for old in checkpoints.iterdir():
        if old.name != str(len(history)):
            shutil.rmtree(old, ignore_errors=True)


def _resume(folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """Load the newest whole checkpoint; returns its epochs, none where there is no checkpoint."""
    found = sorted((folder / "checkpoint").glob("*/checkpoint.json"), key=lambda path: int(path.parent.name))
    if not found:
        return []
    header, tensors = store.read(found[-1].parent, "checkpoint")
    load_weights(network, {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")})
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, number, index, key = name.split("/", 3)
            states[int(number)].setdefault(int(index), {})[key] = tensor
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return list(header["history"])


def _mix(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) & 0x7FFF_FFFF_FFFF_FFFF


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _autocast() -> Any:
    """bfloat16 where the device has it in hardware; on a CPU it was slower."""
    return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else nullcontext()
