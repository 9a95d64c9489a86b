"""Python pickles of plain values and arrays of bytes, as CIFAR's python version has them, read without pickle.

Unpickling runs what a file asks for. Here the standard library only takes the file apart (`pickletools.genops`); the
opcodes of protocol 2 that such a file has are acted on below, and nothing in it can name anything but an array.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What a global may name; both spellings, before and after numpy 2.
RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
ARRAY, DTYPE = "numpy ndarray", "numpy dtype"
MARK = object()


class UnreadableError(ValueError):
    """The bytes are no such pickle; the message says in what."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Dtype:
    code: str


@dataclass
class _Array:
    values: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))


def read(content: bytes) -> dict[str, Any]:
    """The dict in a pickle: name → number, text, list or array of bytes; raises `UnreadableError`."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    try:
        with warnings.catch_warnings():  # of opcodes that no such pickle has
            warnings.simplefilter("ignore")
            for opcode, argument, place in pickletools.genops(BytesIO(content)):
                _act(opcode.name, argument, place, stack, memo)
        (value,) = stack
    except UnreadableError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # of an opcode that lacks what it acts on
        raise UnreadableError("it is damaged") from error
    if not isinstance(value, dict):
        raise UnreadableError(f"it holds a {type(value).__name__}, no dict")
    return {name: entry.values if isinstance(entry, _Array) else entry for name, entry in value.items()}


def _act(name: str, argument: Any, place: int | None, stack: list[Any], memo: dict[Any, Any]) -> None:
    if name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in _PUSHED:
        stack.append(_PUSHED[name](argument))
    elif name in _ACTIONS:
        _ACTIONS[name](stack)
    elif name not in ("PROTO", "STOP"):  # the first, and the last that is given
        raise UnreadableError(f"its byte {place} is {name}, which an array of images does not need")


def _global(argument: str) -> _Global:
    if argument not in RECONSTRUCT | {ARRAY, DTYPE}:
        raise UnreadableError(f"it names {argument.replace(' ', '.')}, and no code of a file is run")
    return _Global(argument)


_PUSHED: dict[str, Callable[[Any], Any]] = {
    "MARK": lambda _: MARK,
    "NONE": lambda _: None,
    "NEWFALSE": lambda _: False,
    "NEWTRUE": lambda _: True,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "GLOBAL": _global,
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING", "BININT", "BININT1", "BININT2"), lambda argument: argument),
}


def _marked(stack: list[Any]) -> list[Any]:
    """What stands above the last mark, which are taken off."""
    start = max(place for place, value in enumerate(stack) if value is MARK)
    values = stack[start + 1 :]
    del stack[start:]
    return values


def _popped(stack: list[Any], count: int) -> list[Any]:
    """The last `count`, which are taken off."""
    values = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return values


def _extend(stack: list[Any], values: list[Any]) -> None:
    stack[-1].extend(values)


def _set_items(stack: list[Any], values: list[Any]) -> None:
    for name, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(name, str):
            raise UnreadableError("a name in it is no text")
        stack[-1][name] = value


def _reduce(stack: list[Any]) -> None:
    called, arguments = _popped(stack, 2)
    if not isinstance(called, _Global) or called.name == ARRAY:
        raise UnreadableError("it calls what is no array")
    stack.append(_Dtype(arguments[0]) if called.name == DTYPE else _Array())


def _build(stack: list[Any]) -> None:
    state, built = stack.pop(), stack[-1]
    if isinstance(built, _Dtype):
        return
    _, shape, dtype, is_fortran, data = state
    if dtype.code != "u1" or is_fortran:
        raise UnreadableError("it holds an array of other numbers than bytes, or by columns")
    built.values = np.frombuffer(data.encode("latin-1"), np.uint8).reshape(shape)


_ACTIONS: dict[str, Callable[[list[Any]], None]] = {
    "TUPLE": lambda stack: stack.append(tuple(_marked(stack))),
    "TUPLE1": lambda stack: stack.append(tuple(_popped(stack, 1))),
    "TUPLE2": lambda stack: stack.append(tuple(_popped(stack, 2))),
    "TUPLE3": lambda stack: stack.append(tuple(_popped(stack, 3))),
    "APPENDS": lambda stack: _extend(stack, _marked(stack)),
    "APPEND": lambda stack: _extend(stack, _popped(stack, 1)),
    "SETITEMS": lambda stack: _set_items(stack, _marked(stack)),
    "SETITEM": lambda stack: _set_items(stack, _popped(stack, 2)),
    "REDUCE": _reduce,
    "BUILD": _build,
}
