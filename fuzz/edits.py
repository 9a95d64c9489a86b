"""Edits of messages as bytes, so that a fuzzer's input says what is changed in what an honest party sends.

An input is a row of edits: what (1 byte), the message's number (2), the place in it (3), a size (1), and as many bytes
where they are to be written. Every input means something, and the empty one changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

HEAD = 7
KINDS = ("replace", "insert", "delete", "double", "drop", "swap")


def edit(kind: str, message: int, place: int = 0, body: bytes = b"", size: int = 0) -> bytes:
    """One edit as bytes; body: what is written, or `size` bytes that are deleted."""
    count = len(body) if body else size
    numbers = ((KINDS.index(kind), 1), (message, 2), (place, 3), (count, 1))
    return b"".join(number.to_bytes(width, "little") for number, width in numbers) + body


def apply(data: bytes, messages: Sequence[bytes]) -> bytes:
    """The messages one behind the other, after the edits that `data` says."""
    found = [bytearray(message) for message in messages]
    while len(data) >= HEAD and found:
        kind, number, place = KINDS[data[0] % len(KINDS)], int.from_bytes(data[1:3], "little") % len(found), data[3:6]
        at, size, data = int.from_bytes(place, "little") % (len(found[number]) + 1), data[6], data[HEAD:]
        match kind:
            case "replace" | "insert":
                body, data = data[:size], data[size:]
                found[number][at : at + (len(body) if kind == "replace" else 0)] = body
            case "delete":
                del found[number][at : at + size]
            case "double":
                found.insert(number, found[number])
            case "drop":
                del found[number]
            case "swap":
                other = at % len(found)
                found[number], found[other] = found[other], found[number]
    return b"".join(found)
