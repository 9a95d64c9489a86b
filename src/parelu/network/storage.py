"""Two files that belong together: a JSON header and named tensors, both checked when they are read back.

The header holds the SHA-256 of the tensor file and of itself, so that a truncated, foreign or edited file is noticed.
That guards against accidents, not against somebody who writes a matching digest. Torch is imported where tensors are
read and written: clients of private inference do without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parelu.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_HEADER = 64 << 20  # bytes
ABANDONED = 3600.0  # seconds


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also across a kill or a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def drop_abandoned(folder: Path, pattern: str) -> None:
    """Remove files of this pattern that were being written by a process that was killed, an hour ago or longer."""
    with contextlib.suppress(OSError):
        for file in folder.glob(pattern):
            if time.time() - file.stat().st_mtime > ABANDONED:
                file.unlink(missing_ok=True)


def check_secret(path: Path) -> None:
    """Raises UserError where anybody may write to a file that a party's secrets rest on."""
    if path.stat().st_mode & stat.S_IWOTH:
        raise UserError(f"{path} can be written to by anybody; make a new one, or `chmod 600 {path}` if it is yours")


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: their names, types, shapes and bytes."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def write(folder: Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `kind.safetensors`, then `kind.json`: the header's presence says that both are whole."""
    from safetensors.torch import save

    data = save(_apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    write_atomic(folder / f"{kind}.safetensors", data)
    full = {"format": f"parelu-{kind}-1", **header, "tensors_sha256": hashlib.sha256(data).hexdigest()}
    write_json(folder / f"{kind}.json", {**full, "sha256": digest(full)})


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each in memory of its own, as the format wants it: tied weights are written twice."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found


def read_header(folder: Path, kind: str) -> dict[str, Any]:
    """The checked header alone; raises `UserError` where it is missing, foreign or edited."""
    path = folder / f"{kind}.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no {kind} ({path.name} is missing); give the folder of a {kind}")
    if path.stat().st_size > LARGEST_HEADER:
        raise UserError(f"{path} is larger than {LARGEST_HEADER >> 20} MiB: not a {kind} of parelu")
    try:
        header = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): truncated or not a {kind} of parelu") from error
    if not isinstance(header, dict) or header.get("format") != f"parelu-{kind}-1":
        raise UserError(f"{path} is not a {kind} of this version of parelu (format parelu-{kind}-1)")
    claimed = header.pop("sha256", None)
    if claimed != digest(header):
        raise UserError(f"{path} was changed after it was written (its digest does not match); make it again")
    return header


def read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors; raises `UserError` where either was damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    header = read_header(folder, kind)
    path = folder / f"{kind}.safetensors"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing beside {kind}.json; copy both files") from error
    if hashlib.sha256(data).hexdigest() != header.get("tensors_sha256"):
        raise UserError(f"{path} does not match {kind}.json: truncated, or of another {kind}")
    try:
        return header, dict(sorted(load(data).items()))
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error})") from error
