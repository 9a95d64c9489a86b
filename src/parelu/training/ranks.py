"""Several processes that train one network together: the ranks that torchrun starts.

Each has the whole network and a part of every batch, images `rank`, `rank + size`, …; what one process would take over
the batch, they take over their parts and add up: the gradient, the batch-norms' statistics, whatever a mask is chosen
by. All else each computes by itself, from equal numbers, so that weights and masks stay equal bit for bit. The first
writes, the others wait. Without torchrun there is one rank, and nothing here changes anything.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from parelu.data.readers.base import WHOLE
from parelu.errors import UserError, shown

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # for a rank that reads or writes while others wait
WRONG = 0.5  # seconds in which a rank says what is wrong, before others say that they lost it
APPEARS = 60.0  # seconds until what one host wrote is seen on another
_TALK: list[dist.Store] = []  # pyright: ignore[reportPrivateImportUsage] once this process has joined


class Ended(UserError):
    """Another rank ended, so that this one cannot go on."""


def join() -> None:
    """Meet the other ranks that torchrun started; nothing where there are none, or they have met.

    Raises:
        UserError: there is no GPU for this rank, or another rank has another version of what decides a training.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ or dist.is_initialized():
        return
    if torch.cuda.is_available():
        own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= there:
            raise UserError(
                f"rank {os.environ['RANK']} is number {own + 1} of {platform.node()}, which has {there} GPUs; give "
                f"--nproc-per-node {there}"
            )
        torch.cuda.set_device(own)
    store, rank, of = next(dist.rendezvous("env://", timeout=PATIENCE))  # pyright: ignore[reportPrivateImportUsage]
    kind = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _TALK.append(store)
    dist.init_process_group(kind, store=store, rank=rank, world_size=of, timeout=PATIENCE)
    found = {"python": platform.python_version(), **{name: version(name) for name in ("parelu", "torch", "numpy")}}
    agree({**found, "device": "cuda" if torch.cuda.is_available() else "cpu"}, "install the same on all machines")


def leave() -> None:
    """At the end of a process that went well."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _TALK.clear()


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def mine() -> slice:
    """Of a batch, or of many, this rank's."""
    return slice(number(), None, size()) if size() > 1 else WHOLE


def count(of: int) -> int:
    """How many of so many are this rank's."""
    return len(range(of)[mine()])


def total(of: int) -> int:
    """How many images the ranks' batches have together; of: this rank's."""
    if size() == 1:
        return of
    number = torch.tensor(of)
    add_up(number)
    return int(number)


def add_up(*tensors: Tensor) -> None:
    """Each becomes the sum over all ranks, in place, to the same bits on all of them; all in one message."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    _checked(lambda: dist.all_reduce(flat))
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def mean(x: Tensor, over: Sequence[int] = (0,)) -> Tensor:
    """Without gradient, over dimensions among which is the batch's: of the images of all ranks."""
    x = x.detach()
    if size() == 1:
        return x.mean(tuple(over))
    total = x.sum(tuple(over))
    number = x.new_full((), float(x.numel() // max(1, total.numel())))
    add_up(total, number)
    return total / number


def average(own: Tensor, images: int) -> Tensor:
    """The mean over all ranks' images; own: that over this one's, a number, of so many."""
    return own if size() == 1 else mean(own.expand(images))


def gathered(x: Tensor) -> Tensor:
    """What all ranks have, (ranks, *x.shape), in their order."""
    if size() == 1:
        return x[None]
    parts = [torch.empty_like(x) for _ in range(size())]
    _checked(lambda: dist.all_gather(parts, x.contiguous()))
    return torch.stack(parts)


def extremes(least: Tensor, greatest: Tensor) -> None:
    """Each becomes the least, or greatest, over all ranks, in place."""
    if size() > 1:
        _checked(lambda: dist.all_reduce(least, dist.ReduceOp.MIN))
        _checked(lambda: dist.all_reduce(greatest, dist.ReduceOp.MAX))


def first_says(tensor: Tensor) -> Tensor:
    """In place, what the first rank has."""
    if size() > 1:
        _checked(lambda: dist.broadcast(tensor, 0))
    return tensor


def decides(is_so: bool) -> bool:
    """What the first rank finds, for all: they look at files while others may write them."""
    return bool(first_says(torch.tensor(int(is_so)))) if size() > 1 else is_so


def on_first(do: Callable[[], object]) -> None:
    """Let the first rank do what writes files; the others wait until it has."""
    if number() == 0:
        do()
    if size() > 1:
        _checked(lambda: dist.all_reduce(torch.zeros(1)))


def after_first(do: Callable[[], T], made: Path, then: Callable[[], T]) -> T:
    """Let the first rank do what makes a file, and the others something else when they see that.

    Raises:
        UserError: one does not see the file.
    """
    found = [do()] if number() == 0 else []
    on_first(lambda: None)
    if found:
        return found[0]
    until = time.monotonic() + APPEARS
    while not made.exists():
        if time.monotonic() > until:
            raise UserError(
                f"rank {number()}, on {platform.node()}, does not see {made}, which rank 0 wrote; give --run a folder "
                "on a disk that all machines share"
            )
        time.sleep(0.2)
    return then()


def agree(values: Mapping[str, object], remedy: str) -> None:
    """Raises `UserError` on a rank that has another of some named values than the first, and ends the others."""
    if size() == 1:
        return
    (store,) = _TALK
    key = f"agree/{store.add(f'agrees/{number()}', 1)}"
    if number() == 0:
        store.set(key, json.dumps({name: str(value) for name, value in values.items()}))
    first = json.loads(store.get(key))
    different = [name for name, value in values.items() if first.get(name) != str(value)]
    differing = torch.tensor(float(len(different)))
    add_up(differing)
    if different:
        (name, *_) = different
        raise UserError(
            f"rank {number()}, on {platform.node()}, has another {name} than rank 0: {shown(str(values[name]), 60)}, "
            f"not {shown(str(first.get(name)), 60)}; {remedy}"
        )
    if differing:
        raise Ended("another rank has other versions or data")


def is_to_say(error: BaseException) -> bool:
    """Whether this rank is the one that says what ended all of them: the first that something was wrong with."""
    if not _TALK:
        return True
    (store,) = _TALK
    try:
        if isinstance(error, Ended):
            time.sleep(WRONG)
            return not store.check(["wrong"]) and store.add("lost", 1) == 1
        return store.add("wrong", 1) == 1
    except RuntimeError:  # the process that holds the store has ended too
        return not isinstance(error, Ended)


def _checked(do: Callable[[], object]) -> None:
    try:
        do()
    except RuntimeError as error:
        raise Ended(
            "another rank was lost (killed, or out of memory); run the same command again to go on from the last "
            "finished epoch"
        ) from error
