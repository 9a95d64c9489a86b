"""What is kept between runs: tensors under $XDG_CACHE_HOME/parelu (or ~/.cache/parelu), and compiled loops.

Losing it loses only time. Torch is imported where tensors are read and written, as in `storage`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parelu.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def folder() -> Path:
    """The cache folder; it need not exist. A relative $XDG_CACHE_HOME is ignored, as its specification asks.

    Raises UserError for a user who has neither that nor a home folder.
    """
    return _folder("XDG_CACHE_HOME", ".cache", "the cache")


def data_folder() -> Path:
    """$XDG_DATA_HOME/parelu (or ~/.local/share/parelu), of what a user made and wants to keep; as `folder`."""
    return _folder("XDG_DATA_HOME", ".local/share", "what is kept")


def _folder(variable: str, below_home: str, what: str) -> Path:
    base = Path(os.environ.get(variable, ""))
    try:
        return (base if base.is_absolute() else Path.home() / below_home) / "parelu"
    except RuntimeError as error:
        raise UserError(f"this user has no home folder: set {variable} to an absolute path, for {what}") from error


def tensors(stem: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in the cache file `stem`.safetensors, or those of `build()`, which are then kept there.

    A file that is damaged is built anew; a folder that cannot be written to costs a log entry and nothing else.
    """
    path = folder() / f"{stem}.safetensors"
    kept = _read(path)
    if kept is None:
        kept = {name: tensor.contiguous() for name, tensor in build().items()}
        _write(path, kept)
    return kept


def _read(path: Path) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            intact = (file.metadata() or {}).get("sha256") == _digest(kept)
    except (OSError, SafetensorError) as error:
        log.info("%s cannot be read and is built anew: %s", path, error)
        return None
    if not intact:
        log.info("%s is damaged and is built anew", path)
    return kept if intact else None


def _write(path: Path, kept: dict[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, partial, metadata={"sha256": _digest(kept)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        log.info("going on without a cache, %s cannot be written: %s", path, error)
        if partial.exists():
            partial.unlink()


def _digest(kept: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(kept):
        digest.update(f"{name} {kept[name].dtype} {tuple(kept[name].shape)}".encode())
        digest.update(kept[name].numpy().data)
    return digest.hexdigest()


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with these options; numba keeps the machine code beside the source or in the user's cache folder.

    Where it can write to neither (a read-only installation, a user without a home), each process compiles anew.
    Raises ImportError where numba is missing.
    """
    import numba

    def compile(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            log.info("%s is compiled in each process: %s", function.__name__, error)
            return numba.njit(**options)(function)

    return compile
