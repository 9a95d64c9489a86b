"""Reading weights: safetensors, checkpoints of torch, a candidate's folder, a state dict in memory.

Nothing in a file is run: torch reads a checkpoint with `weights_only=True`, which makes tensors and plain values.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from parelu.errors import UserError, shown
from parelu.network.candidate import Candidate
from parelu.network.weights import check_finite, fit_weights

# Where a checkpoint keeps its state dict beside other things: the first of these that it has.
KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "ema",
    "model_ema",
    "state_dict_ema",
)
MAPPING = "the weights"
DEPTH = 3  # dicts in dicts, such as {"ema": {"module": {"state_dict": …}}}


class Weights(dict[str, Tensor]):
    """Named tensors as they were read. notes: what was chosen in doing so, for the user to see."""

    notes: tuple[str, ...] = ()


def read_weights(source: Path | Mapping[str, Tensor]) -> Weights:
    """The named tensors of a file, a folder or a mapping.

    Args:
        source: a candidate's folder, a .safetensors file, a checkpoint that torch.save wrote (a state dict, alone or
            under one of `KEYS`), or a state dict.

    Raises:
        UserError: it is missing, truncated, something else, holds code, or a tensor of it is not finite.
    """
    if isinstance(source, Mapping):
        weights = _state_dict(source, MAPPING)
    elif not isinstance(source, Path):
        raise UserError(
            f"weights is a {type(source).__name__}; give a state dict, such as model.state_dict(), or a path"
        )
    elif source.is_dir():
        weights = Weights(Candidate.load(source).weights)
    elif not source.is_file():
        raise UserError(
            f"--weights {source} does not exist; give a safetensors file, a checkpoint of torch or a candidate's folder"
        )
    else:
        weights = _from_file(source)
    check_finite(weights)
    return weights


def load(module: nn.Module, source: Path | Mapping[str, Tensor]) -> tuple[str, ...]:
    """Put the weights of a file, a folder or a mapping into a module; returns notes on how they were made to fit.

    Raises:
        UserError: as `read_weights` and `fit_weights`.
    """
    weights, notes = fit_weights(module, read_weights(source))
    module.load_state_dict(weights)
    return notes


def _from_file(path: Path) -> Weights:
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{":  # after the length of its header
        try:
            return Weights(load_file(path))
        except SafetensorError as error:
            raise UserError(
                f"--weights {path} is no whole safetensors file ({shown(str(error))}); copy it again"
            ) from error
    if path.suffix == ".onnx":
        raise UserError(f"--weights {path} is a network with its weights; give it as --model {path}")
    return _state_dict(_load(path, start), f"--weights {path}")


def _load(path: Path, start: bytes) -> Any:
    """What torch reads of a checkpoint, without running anything."""
    if start.startswith(b"PK"):
        _check_archive(path)
    elif not start.startswith(b"\x80"):  # the beginning of a pickle, as torch wrote it before 1.6
        raise UserError(f"--weights {path} is neither a safetensors file nor a checkpoint of torch, or is truncated")
    try:
        with warnings.catch_warnings(), path.open("rb") as file:  # of a path, torch would go by its ending
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged files torch raises whatever its readers do
        text = str(error)
        if "weights_only" in text or "Unsupported global" in text:
            raise UserError(
                f"--weights {path} holds Python objects that would run code ({shown(_culprit(text))}); where you trust "
                "it, load it yourself and save the model's state_dict() alone"
            ) from error
        reason = shown(text) or "it ends early"
        raise UserError(f"--weights {path} is no whole checkpoint of torch ({reason}); copy it again") from error


def _culprit(text: str) -> str:
    """The class that torch names in its refusal."""
    for mark in ("Unsupported global: GLOBAL ", "Unsupported class ", "Unsupported operand "):
        if mark in text:
            return text.partition(mark)[2].split()[0].rstrip(".,")
    return "a pickled module"


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:  # of names and versions in it
        raise UserError(
            f"--weights {path} is no whole checkpoint of torch ({shown(str(error))}); copy it again"
        ) from error
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends or "data.pkl" not in ends:
        kind = "a TorchScript archive" if "constants.pkl" in ends else "an archive, but no checkpoint of torch"
        raise UserError(f"--weights {path} is {kind}; save the model's state_dict() alone")


def _state_dict(value: Any, what: str) -> Weights:
    """The state dict in what a checkpoint holds: itself, or the first of `KEYS`."""
    path: list[str] = []
    notes: list[str] = []
    while not _is_state_dict(value):
        keys = [key for key in KEYS if isinstance(value, Mapping) and isinstance(value.get(key), Mapping)]
        if not keys or len(path) == DEPTH:
            verb = "hold" if what == MAPPING else "holds"
            raise UserError(f"{what} {verb} no state dict but {_kind(value)}; save the model's state_dict() alone")
        if len(keys) > 1:
            notes.append(f"{what}: {keys[0]!r} was taken, not {' or '.join(map(repr, keys[1:]))}")
        path.append(keys[0])
        value = value[keys[0]]
    if path:
        notes.append(f"{what}: the state dict is under {'.'.join(path)!r}")
    for name, tensor in value.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UserError(
                f"{what}: {shown(name)} is no plain tensor of numbers (quantised, sparse or without data); "
                "take the float checkpoint"
            )
    weights = Weights((name, tensor.detach()) for name, tensor in value.items())
    weights.notes = tuple(notes)
    return weights


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())


def _kind(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    if not value:
        return "an empty dict"
    odd = next((name for name, entry in value.items() if not isinstance(entry, Tensor)), "")
    if any(isinstance(entry, Tensor) for entry in value.values()):
        return f"a dict whose {str(odd)[:40]!r} is a {type(value[odd]).__name__}"
    return "a dict of " + ", ".join(repr(str(name)[:40]) for name in list(value)[:6])
