"""Hints from a server to a client, once: what sets there are, the one that the client wants, and its copy on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from parelu.errors import ProtocolError
from parelu.fusion.hint_plan import best, stated
from parelu.private.lowering.layers import layers
from parelu.private.lowering.program import Program
from parelu.private.offline.hint_folder import file_of, make_room, temporary, touch
from parelu.private.offline.hint_sets import DIGEST_BYTES, Hints, Made, Use, hashed, is_whole, loaded, read
from parelu.private.offline.mode import Keep
from parelu.private.transport.channel import Channel
from parelu.private.transport.messages import Messages, to_client, to_server

LARGEST = 8 << 30  # bytes of a client's memory that a set may take
MOST = 8  # sets of a model
UPLOADS = np.dtype("<u4")  # the number of a layer's upload, and the outputs of its rows
WANT = struct.Struct("<BB")  # number of the set; whether the client has it


def send(channel: Channel, sets: Sequence[Made]) -> Made:
    """The server's end: say what sets there are, and send the one that the client wants; returns it."""
    channel.send("sets", statement(sets))
    which, has = WANT.unpack(channel.receive("want", WANT.size).tobytes())
    if which >= len(sets) or has not in (0, 1):
        raise ProtocolError(f"the client wants set of hints {which} of {len(sets)}")
    for body in sets[which].body() if not has else ():
        channel.send("hint", body)
    return sets[which]


def traffic(sets: int, use: Use) -> Iterator[Messages]:
    """What the two ends send each other, of so many sets; use: of the one that comes."""
    yield to_client(DIGEST_BYTES + sets * _stated_bytes(len(use.plan.readers)))
    yield to_server(WANT.size)
    yield to_client(use.bytes, len(use.chunks))


def statement(sets: Sequence[Made]) -> bytes:
    """The commitment to the weights, and of each set its digest and plan."""
    each = [made.digest + np.array(made.use.plan.stated, UPLOADS).tobytes() for made in sets]
    return bytes.fromhex(sets[0].use.weights) + b"".join(each)


def root(statement: bytes) -> str:
    """What binds all sets of a model: it is offered and pinned."""
    return hashlib.sha256(statement).hexdigest()


def fetched(channel: Channel, program: Program, digest: str, keep: Keep) -> tuple[Use, Hints]:
    """The client's end: the best set for as many queries as it expects, or one for more that it has kept.

    digest: the `root` that was offered. Raises ProtocolError where the server's sets are others.
    """
    linear = layers(program)
    if not linear:
        raise ProtocolError("the server's program is refused: it has no convolution and no matrix")
    size = _stated_bytes(len(linear))
    body = channel.receive_up_to("sets", DIGEST_BYTES + MOST * size)
    weights, sets = body[:DIGEST_BYTES].hex(), [body[i : i + size] for i in range(DIGEST_BYTES, len(body), size)]
    digests = [one[:DIGEST_BYTES] for one in sets]
    if not sets or len(sets[-1]) != size or root(body) != digest:
        raise ProtocolError("the server's hints are not those that it offers")
    try:
        plans = [stated(linear, np.frombuffer(one[DIGEST_BYTES:], UPLOADS).reshape(-1, 2).tolist()) for one in sets]
    except ValueError as error:
        raise ProtocolError(f"the server's program or plan is refused: {error}") from error
    own = [Use(program.digest, weights, plan) for plan in plans]
    wanted = best(plans, keep.queries)
    for which in range(wanted, len(own)):
        hints = _kept(own[which], digests[which], keep)
        if hints is not None:
            channel.send("want", WANT.pack(which, 1))
            return own[which], hints
    if own[wanted].memory > LARGEST:
        raise ProtocolError(f"the server's hints take {own[wanted].memory >> 30} GB, more than {LARGEST >> 30}")
    channel.send("want", WANT.pack(wanted, 0))
    return own[wanted], _received(channel, own[wanted], digests[wanted], keep)


def _stated_bytes(layers: int) -> int:
    """What a set's digest and plan take, of so many linear layers."""
    return DIGEST_BYTES + 2 * UPLOADS.itemsize * layers


def _kept(use: Use, digest: bytes, keep: Keep) -> Hints | None:
    """What is in memory or in the file; None where it is not there, or damaged."""
    if digest.hex() in keep.loaded:
        return keep.loaded[digest.hex()]
    file = file_of(keep.folder, digest) if keep.folder else None
    if file is None or not is_whole(file, use.bytes):
        return None
    found = hashlib.sha256(use.identity)
    try:
        hints = loaded(use, hashed(read(file, use), found))
    except (OSError, ProtocolError):
        return None
    if found.digest() != digest:
        return None
    touch(file)
    keep.loaded[digest.hex()] = hints
    return hints


def _received(channel: Channel, use: Use, digest: bytes, keep: Keep) -> Hints:
    """A set as it comes; it is kept in a file where the disk has room."""
    found, done = hashlib.sha256(use.identity), 0

    def coming() -> Iterator[bytes]:
        nonlocal done
        for chunk in use.chunks:
            body = channel.receive("hint", chunk.bytes).tobytes()
            done += len(body)
            keep.progress(done, use.bytes)
            yield body

    with _Copy(keep, digest) as copy:
        hints = loaded(use, copy.passing(hashed(coming(), found)))
        if found.digest() != digest:
            raise ProtocolError("the server's hints are not those that it offers")
        copy.keep()
    keep.loaded[digest.hex()] = hints
    return hints


class _Copy:
    """What passes, in a file that is there whole or not at all; a full disk is told, and ends the copy alone."""

    def __init__(self, keep: Keep, digest: bytes) -> None:
        self._keep, self._digest = keep, digest
        self._file: BinaryIO | None = None

    def __enter__(self) -> _Copy:
        if self._keep.folder is not None:
            with self._telling():
                self._keep.folder.mkdir(parents=True, exist_ok=True)
                self._whole = file_of(self._keep.folder, self._digest)
                self._path = temporary(self._whole)
                self._file = self._path.open("wb")
        return self

    def passing(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self._file is not None:
                with self._telling():
                    self._file.write(chunk)
            yield chunk

    def keep(self) -> None:
        if self._file is not None:
            with self._telling():
                self._file.flush()
                os.fsync(self._file.fileno())
                self._path.replace(self._whole)
                make_room(self._whole)

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._path.unlink(missing_ok=True)
            self._file = None

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._keep.notice(
                f"{self._keep.folder}: hints cannot be kept ({error.strerror}); they come again next time"
            )
            self._end()
