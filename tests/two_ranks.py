"""Trainings by two processes that gloo connects, as torchrun would start them, and by one; see training/test_ranks.py.

python two_ranks.py WHAT FOLDER runs one of the functions below as one rank, by RANK, WORLD_SIZE and the like.
"""

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from methods_bench import DryBench
from small_networks import network
from torch import Tensor

from parelu import data
from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.methods.learned import LearnedMasks
from parelu.network import storage
from parelu.network.instrument import network_of
from parelu.network.spec import spec_of
from parelu.training import ranks
from parelu.training.evaluation import accuracy, ranges, recalibrate, slope_gradients
from parelu.training.loop import train
from parelu.training.objectives import Distillation
from parelu.training.schedule import Training
from parelu.training.teacher import Teacher

SPEC = spec_of("resnet10 m=2", (1, 8, 8), 10)
BUDGET, BATCH = 60, 65  # an odd one: the first rank has an image more
TRAINING = Training(epochs=2, batch=BATCH, lr=0.02, schedule="constant")
LEARNED = tuple(name for name, cls in methods().items() if issubclass(cls, LearnedMasks))


def digits() -> Dataset:
    whole = data.load("digits")
    return dataclasses.replace(whole, train=whole.train.take(4 * BATCH))


def searched(name: str, folder: Path) -> dict[str, Tensor]:
    """A search of a few steps: the network's state, the optimizer's, the masks that it ends with, and its losses."""
    method, bench = methods()[name](), DryBench(spec=SPEC)
    assert isinstance(method, LearnedMasks)
    plan = method.start(bench, bench.teacher.plan, (BUDGET,))
    options = method.optimizer(bench, plan, (BUDGET,))
    options = dataclasses.replace(options, **({"every": 2} if hasattr(options, "every") else {}))
    torch.manual_seed(5)
    student = network_of(SPEC)
    plan.apply(student)
    masks = options.build(student)
    history = train(
        student,
        digits(),
        TRAINING,
        method.objective(finetuning=False),
        seed=1,
        folder=folder / name,
        teacher=Teacher(network(7), folder / "logits"),
        callback=masks,
    )
    losses = torch.tensor([[epoch.loss, epoch.validation_accuracy] for epoch in history])
    chosen = {f"mask/{site}": mask for site, mask in masks.project(BUDGET).items()}
    return {"losses": losses, **student.state_dict(), **masks.state_dict(), **chosen}


def every_search(folder: Path) -> dict[str, Tensor]:
    return {f"{name}/{key}": tensor for name in LEARNED for key, tensor in searched(name, folder).items()}


def trained(folder: Path) -> dict[str, Tensor]:
    """A search, what is read off a network, and a training by maps of a teacher."""
    return {**searched("snl", folder), **evaluated(folder), **learnt(folder)}


def evaluated(folder: Path) -> dict[str, Tensor]:
    """What is read off a network with squares."""
    student, whole = network(), digits()
    for site in student.sites.values():
        site.assign(torch.arange(site.mask.numel()).view(site.shape) % 2 == 0, (0.1, 0.5, 0.02))
    recalibrate(student, whole, TRAINING, seed=3, batches=3)
    found = {f"norm/{name}": tensor.clone() for name, tensor in student.state_dict().items()}
    found |= {f"range/{name}": torch.tensor(pair) for name, pair in ranges(student, whole.test, whole, 50).items()}
    found |= {f"slope/{name}": g for name, g in slope_gradients(network(), whole, 200, seed=1, batch=64).items()}
    found["accuracy"] = torch.tensor(accuracy(student, whole.test, whole, batch=100))
    return found


def learnt(folder: Path) -> dict[str, Tensor]:
    """By maps of a teacher, with weights that are clipped."""
    student, training = network(), dataclasses.replace(TRAINING, clip=0.5)
    by = Teacher(network(7), folder / "logits")
    train(
        student, digits(), training, Distillation(mismatch=1.0, tails=1.0), seed=1, folder=folder / "maps", teacher=by
    )
    return {f"maps/{name}": tensor for name, tensor in student.state_dict().items()}


WHATS = {what.__name__: what for what in (every_search, trained)}


def by_two(what: str, folder: Path, timeout: float = 300) -> list[tuple[Mapping[str, Tensor], str]]:
    """What each of two ranks found, and what it said when at the end they had other data."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, what, str(folder)],
            env={**os.environ, **common, **paths, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [one.communicate(timeout=timeout)[1] for one in started]
    found = []
    for rank, words in enumerate(said):
        place = folder / f"rank{rank}"
        found.append((storage.read(place, "found")[1] if (place / "found.json").exists() else {}, words))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    (what, folder), error = sys.argv[1:], None
    ranks.join()
    try:
        found = WHATS[what](Path(folder))
        storage.write(Path(folder) / f"rank{ranks.number()}", "found", {}, found)
        ranks.agree({"data": "clothes" if ranks.number() else "digits"}, "give all ranks the same")
    except UserError as wrong:
        if ranks.is_to_say(wrong):
            print(wrong, file=sys.stderr)
