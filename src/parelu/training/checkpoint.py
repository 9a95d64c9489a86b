"""The checkpoint of a training: all that the next epoch depends on.

checkpoint/EPOCHS/ in a training's folder: the network's state, each optimizer's, and the callback's.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.network import storage
from parelu.network.candidate import load_weights
from parelu.training import ranks
from parelu.training.callback import Callback
from parelu.training.history import Epoch, write_history


def write(
    folder: Path,
    network: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    callback: Callback,
    history: Sequence[Epoch],
) -> None:
    """Keep a training after an epoch; the folder of the epoch before goes when this one is whole."""
    tensors = {f"weight/{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"callback/{name}": tensor for name, tensor in callback.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    checkpoints = folder / "checkpoint"
    if ranks.size() > 1:
        ranks.agree({"network after an epoch": storage.tensors_digest(tensors)}, "use machines of one kind")
    ranks.on_first(lambda: _write(checkpoints, folder, tensors, history))


def _write(checkpoints: Path, folder: Path, tensors: dict[str, Tensor], history: Sequence[Epoch]) -> None:
    epochs = {"history": [epoch.to_json() for epoch in history]}
    storage.write(checkpoints / str(len(history)), "checkpoint", epochs, tensors)
    write_history(folder, history)
    for old in checkpoints.iterdir():
        if old.name != str(len(history)):
            shutil.rmtree(old, ignore_errors=True)


def resume(
    folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], callback: Callback
) -> list[Epoch]:
    """Load the newest whole checkpoint; returns its epochs, none where there is no checkpoint.

    Raises:
        UserError: the checkpoint holds the state of another network or callback.
    """
    found = sorted((folder / "checkpoint").glob("*/checkpoint.json"), key=lambda path: int(path.parent.name))
    if not found:
        return []
    header, tensors = storage.read(found[-1].parent, "checkpoint")
    try:
        load_weights(network, _below("weight/", tensors))
        callback.load_state_dict(_below("callback/", tensors))
    except (UserError, ValueError) as error:
        raise UserError(
            f"{found[-1].parent} is of other settings or of an earlier version ({error}); delete {folder} to begin anew"
        ) from error
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, tensor in _below("optimizer/", tensors).items():
        number, index, key = name.split("/", 2)
        states[int(number)].setdefault(int(index), {})[key] = tensor
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return [Epoch.from_json(epoch) for epoch in header["history"]]


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
