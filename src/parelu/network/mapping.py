"""What people write in YAML files, checked against the fields of dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from parelu.errors import UserError


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping; raises UserError where it is none, or cannot be read."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a mapping of keys")
    return content


def checked(content: dict[str, Any], *kinds: type[Any], key: str = "") -> dict[str, Any]:
    """A copy of what a file says of the fields of these dataclasses; `UserError` unless it fits their types.

    key: what stands before a key in a message.
    """
    fields = {field.name: (field, kind) for kind in kinds for field in dataclasses.fields(kind)}
    of_kind = {kind: get_type_hints(kind, include_extras=True) for kind in kinds}
    hints = {name: of_kind[kind][name] for name, (_, kind) in fields.items()}
    for name, value in content.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            hint = f"; nearest is {near[0]!r}" if near else ""
            raise UserError(f"unknown key {f'{key}{name}'!r}{hint}; known are {', '.join(fields)}")
        if not _fits(value, hints[name]):
            raise UserError(f"{key}{name} is {reprlib.repr(value)}; it should be {_words(hints[name])}")
    for name, (field, _) in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in content:
            raise UserError(f"{key}{name} is missing; it should be {_words(hints[name])}")
    return dict(content)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of a type: a class, a list, tuple or mapping, a Literal, or a union of these."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, inner[0])
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(_fits(a, inner[0]) and _fits(b, inner[1]) for a, b in value.items())
    if hint is Path:
        return isinstance(value, str)
    if hint is float:
        return type(value) in (int, float) and abs(value) < math.inf  # NaN is not
    return type(value) is hint


def _words(hint: Any) -> str:
    """A type as a user calls it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return inner[1] if isinstance(inner[1], str) else _words(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in inner if one is not NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is Mapping:
        return "a mapping such as {epochs: 5, lr: 0.1}" if inner[0] is str else "a mapping such as {0.1: 40, 0.02: 80}"
    if origin in (list, tuple):
        return "a list such as [30, 60, 90]" if inner[0] is int else 'a list such as ["cull S1; thin all", none]'
    named = {str: "text, in quotes", int: "a whole number", float: "a number such as 0.1", bool: "true or false"}
    named[Path] = "a path, as text"
    return named.get(hint, str(hint))
