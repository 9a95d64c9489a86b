"""Offline material as bytes and back: dataclasses made for it, mappings, arrays, numbers, bytes. No code, no pickle."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.hash import Hash

FORMAT = "parelu-material-4"
TYPES = ("uint8", "uint64", "int64")
LENGTH = struct.Struct("<Q")


class Encodable:
    """Base of the dataclasses that material consists of; a subclass has a name of its own, which files hold."""

    kinds: ClassVar[dict[str, type[Encodable]]] = {}
    kind: ClassVar[str]

    def __init_subclass__(cls, kind: str) -> None:
        assert kind not in Encodable.kinds, f"two classes are named {kind}"
        cls.kind = kind
        Encodable.kinds[kind] = cls


def dump(value: Any) -> bytes:
    """A skeleton as JSON, then the arrays one behind the other."""
    arrays: list[NDArray[Any]] = []
    skeleton = json.dumps({"format": FORMAT, "value": _skeleton(value, arrays)}).encode()
    return b"".join([LENGTH.pack(len(skeleton)), skeleton, *(array.tobytes() for array in arrays)])


def load(body: bytes) -> Any:
    """The inverse; raises ValueError for what `dump` of this version did not make."""
    try:
        (length,) = LENGTH.unpack_from(body)
        position = LENGTH.size + length
        skeleton = json.loads(body[LENGTH.size : position])
        if not isinstance(skeleton, dict) or skeleton.get("format") != FORMAT:
            raise ValueError(f"it is not {FORMAT}: another version of parelu made it")
        value, position = _value(skeleton["value"], body, position)
    except (struct.error, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"malformed material ({type(error).__name__})") from error
    if position != len(body):
        raise ValueError(f"{len(body) - position} bytes too many")
    return value


def _skeleton(value: Any, arrays: list[NDArray[Any]]) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case bytes():
            return {"bytes": value.hex()}
        case Hash():
            return {"hash": value.key.hex()}
        case np.ndarray() if value.dtype.name in TYPES:
            arrays.append(value)
            return {"array": value.dtype.name, "shape": value.shape}
        case Mapping():
            return {"mapping": [[key, _skeleton(item, arrays)] for key, item in value.items()]}
        case Encodable():
            fields = {f.name: _skeleton(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}  # pyright: ignore[reportArgumentType]
            return {"kind": value.kind, "fields": fields}
        case _:
            raise TypeError(f"{type(value).__name__} cannot be stored")


def _value(skeleton: Any, body: bytes, position: int) -> tuple[Any, int]:
    if not isinstance(skeleton, dict):
        return skeleton, position
    if "bytes" in skeleton:
        return bytes.fromhex(skeleton["bytes"]), position
    if "hash" in skeleton:
        return Hash(bytes.fromhex(skeleton["hash"])), position
    if "array" in skeleton:
        dtype = np.dtype(TYPES[TYPES.index(skeleton["array"])])
        count = int(np.prod(skeleton["shape"], dtype=np.int64))
        array = np.frombuffer(body, dtype, count, position).reshape(skeleton["shape"]).copy()
        return array, position + array.nbytes
    if "mapping" in skeleton:
        found = {}
        for key, item in skeleton["mapping"]:
            found[key], position = _value(item, body, position)
        return found, position
    fields = {}
    for name, item in skeleton["fields"].items():
        fields[name], position = _value(item, body, position)
    return Encodable.kinds[skeleton["kind"]](**fields), position
