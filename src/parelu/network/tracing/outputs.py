"""The logits among what a forward returns: one tensor, or by choice one of a tuple, a dict or a dataclass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from parelu.errors import UserError


def chosen(result: Any, output: int | str | None = None) -> Tensor:
    """One tensor of a result; raises `UserError` that names the choices.

    output: index or name, with dots where they are nested; None for the one entry of shape (batch, classes).
    """
    if isinstance(result, Tensor) and output is None:
        return result
    entries = dict(_entries(result))
    if output is not None:
        if str(output) not in entries:
            raise UserError(f"the network has no output {output}; --output can be one of {_choices(entries)}")
        return entries[str(output)]
    logits = [t for t in entries.values() if t.dim() == 2]
    if len(logits) != 1:
        what = f"the network returns a {type(result).__name__}, not one tensor (batch, classes)"
        if not entries:
            raise UserError(f"{what}; wrap it in a module that returns the logits alone")
        raise UserError(f"{what}; choose one with --output: {_choices(entries)}")
    return logits[0]


def _entries(result: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Name or index → tensor, of nested outputs."""
    if isinstance(result, Tensor):
        yield name, result
        return
    parts: list[tuple[Any, Any]] = []
    if is_dataclass(result):
        parts = [(f.name, getattr(result, f.name)) for f in fields(result)]
    elif isinstance(result, Mapping):
        parts = [*result.items()]
    elif isinstance(result, tuple) and hasattr(result, "_asdict"):
        parts = [*result._asdict().items()]  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(result, tuple | list):
        parts = [*enumerate(result)]
    for key, part in parts:
        yield from _entries(part, f"{name}.{key}" if name else str(key))


def _choices(entries: Mapping[str, Tensor]) -> str:
    named = (f"{name or 'no name'} ({'x'.join(map(str, t.shape[1:])) or 'a number'})" for name, t in entries.items())
    return ", ".join(named) or "no tensors"
