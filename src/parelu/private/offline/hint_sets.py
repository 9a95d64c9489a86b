"""Hints of a model: made once by its server, kept in a file, sent once to a client, kept by it under a pinned digest.

A set is for one plan: clients that come for many inferences get more hints, and pay less for each. What hides the
weights in it is drawn by a secret of the model, its salt, over all that it is for: every process that serves the model
makes the same set, and other weights have another u.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parelu.errors import ProtocolError
from parelu.fusion import hint_layout, hint_plan
from parelu.fusion.hint_layout import Reader
from parelu.fusion.hint_plan import Plan, plans
from parelu.private.crypto.lattice import parameters
from parelu.private.crypto.lattice.parameters import DEGREE, KEPT, MATRICES, PRIMES, RANK
from parelu.private.crypto.lattice.residues import pack, packed_bytes, unpack
from parelu.private.crypto.lattice.scheme import (
    ALL,
    ANSWERED,
    AT_ONCE,
    Hiding,
    Secrets,
    Stored,
    as_classes,
    public_polynomials,
)
from parelu.private.crypto.prg import derive
from parelu.private.lowering.layers import layers
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.program import Program
from parelu.private.offline.hint_folder import drop_others, file_of, temporary
from parelu.private.offline.mode import Keep, Progress

FORMAT = "parelu-hints-1"
assert (hint_layout.DEGREE, hint_layout.MATRICES, hint_plan.RANK) == (DEGREE, MATRICES, RANK), (
    "plans are for the lattice"
)
DIGEST_BYTES = 32
POLYNOMIAL = DEGREE * RANK  # coefficients of a hint

Body = Callable[[], Iterator[bytes]]  # a set's chunks, from the first on
Hints = dict[int, list[Stored]]  # op → its hints as classes, modulo each kept prime


@dataclasses.dataclass(frozen=True)
class Use:
    """What a set of hints is for.

    program, weights: of the offer: SHA-256 of the program, and the commitment.
    """

    program: str
    weights: str
    plan: Plan

    @functools.cached_property
    def identity(self) -> bytes:
        """SHA-256 of all of it and of the parameters."""
        parts = FORMAT, parameters.DESCRIPTION, self.program, self.weights, self.plan.text
        return hashlib.sha256("\n".join(parts).encode()).digest()

    @functools.cached_property
    def public(self) -> bytes:
        """The seed of the public polynomials and matrices, which neither party chooses."""
        return derive(self.identity, "public")

    @functools.cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """Of a set, in order."""
        return tuple(
            Chunk(reader, slice(first, min(first + AT_ONCE, reader.rows)))
            for upload in self.plan.uploads
            for reader in upload.readers
            for first in range(0, reader.rows, AT_ONCE)
        )

    @property
    def bytes(self) -> int:
        return sum(chunk.bytes for chunk in self.chunks)

    @property
    def memory(self) -> int:
        """Bytes that a client keeps: hints and public polynomials as 32-bit residues."""
        polynomials = len(PRIMES) * sum(upload.polynomials for upload in self.plan.uploads)
        return 4 * POLYNOMIAL * (len(KEPT) * self.plan.rows + polynomials)

    @property
    def memory_of_factors(self) -> int:
        """Bytes that a server keeps to answer with: matrices, and what hides them."""
        readers = self.plan.readers.values()
        matrices = sum(reader.rows * reader.columns for reader in readers)
        hiding = len(PRIMES) * POLYNOMIAL * sum(-(-reader.rows // reader.matrices) for reader in readers)
        return 4 * (matrices + hiding)

    @functools.cached_property
    def upload_of(self) -> dict[int, int]:
        """Op → the number of its upload."""
        numbered = enumerate(self.plan.uploads)
        return {reader.number: number for number, upload in numbered for reader in upload.readers}

    def public_polynomials(self, upload: int) -> list[Stored]:
        return public_polynomials(self.public, upload, self.plan.uploads[upload].polynomials)

    def secrets(self, seed: bytes) -> Secrets:
        """A client's of one query, by its seed."""
        counts = Counter(secret for secret, _ in self.plan.public_parts)
        return Secrets(seed, self.public, tuple(counts[secret] for secret in range(self.plan.secrets)))

    def parts_of(self, reader: Reader) -> list[int]:
        """Numbers of the public parts that an op's answers are made with."""
        pairs = itertools.product(range(reader.upload.tiles), range(reader.matrices))
        return [self.plan.public_parts.index(pair) for pair in pairs]

    def digest(self, body: Iterator[bytes]) -> bytes:
        """SHA-256 of what the set is for and of its chunks."""
        found = hashlib.sha256(self.identity)
        for chunk in body:
            found.update(chunk)
        return found.digest()


def uses(program: Program, weights: str) -> tuple[Use, ...]:
    """Of the sets that a server offers.

    Raises ValueError where there is no linear layer, or a map is too wide for a polynomial.
    """
    found = layers(program)
    if not found:
        raise ValueError("it has no convolution and no matrix")
    return tuple(Use(program.digest, weights, plan) for plan in plans(found))


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Hints that are packed together: some rows of an op."""

    reader: Reader
    rows: slice

    @property
    def count(self) -> int:
        return self.rows.stop - self.rows.start

    @property
    def bytes(self) -> int:
        return packed_bytes(KEPT, POLYNOMIAL * self.count)


class Made:
    """A server's set."""

    def __init__(self, use: Use, lowered: Lowered, keep: Keep) -> None:
        self.use, self._lowered, self._lock = use, lowered, threading.Lock()
        self._secret = derive(lowered.salt, "hints", use.identity.hex())
        self.file = file_of(keep.folder, use.identity) if keep.folder else None
        self.body: Body
        self.digest = self._kept() or self._make(keep)

    def _kept(self) -> bytes | None:
        """The digest of the set in the file, whose last bytes it is; None where that is not there, or damaged."""
        if self.file is None or not is_whole(self.file, self.use.bytes + DIGEST_BYTES):
            return None
        try:
            self.body = _Opened(self.file, self.use).body
            digest = self.use.digest(self.body())
            with self.file.open("rb") as file:
                file.seek(-DIGEST_BYTES, os.SEEK_END)
                return digest if file.read() == digest else None
        except (OSError, ProtocolError):
            return None

    def _make(self, keep: Keep) -> bytes:
        """Make the set, in the file or, where its disk is full or there is none, in memory."""
        if self.file is not None:
            found = hashlib.sha256(self.use.identity)
            try:
                write(self.file, itertools.chain(hashed(self._chunks(keep.progress), found), _end(found)))
                self.body = _Opened(self.file, self.use).body
                return found.digest()
            except OSError as error:
                keep.notice(f"{self.file.parent}: hints cannot be kept ({error.strerror}): they stay in memory")
        chunks = [*self._chunks(keep.progress)]
        self.body = lambda: iter(chunks)
        return self.use.digest(self.body())

    def _chunks(self, progress: Progress) -> Iterator[bytes]:
        done = 0
        for number, upload in enumerate(self.use.plan.uploads):
            polynomials = public_polynomials(self.use.public, number, upload.polynomials)
            for reader in upload.readers:
                matrix = reader.matrix(self._lowered.weights[reader.number - 1]["weight"])
                weights = functools.partial(reader.polynomials, matrix)
                for hints in self._hiding(reader).hints(polynomials, weights):
                    packed = pack(hints.reshape(len(KEPT), -1), KEPT)
                    done += len(packed)
                    progress(done, self.use.bytes)
                    yield packed

    def _hiding(self, reader: Reader) -> Hiding:
        secret = derive(self._secret, "op", reader.number)
        return Hiding(secret, self.use.public, reader.rows, reader.matrices)

    def factors(self) -> dict[int, Factors]:
        """Op → what the server multiplies by; made for the first client that chooses this set."""
        with self._lock:
            return self._factors

    @functools.cached_property
    def _factors(self) -> dict[int, Factors]:
        return {
            number: Factors(
                reader.matrix(self._lowered.weights[number - 1]["weight"]).astype(np.int32),
                [as_classes(self._hiding(reader).u(), reader.upload.points, k) for k in ALL],
            )
            for number, reader in self.use.plan.readers.items()
        }


def sets(uses: Sequence[Use], lowered: Lowered, keep: Keep) -> tuple[Made, ...]:
    """A server's, made or taken from its folder; progress is of all of them."""
    total, before, made = sum(use.bytes for use in uses), 0, []
    for use in uses:
        shifted = functools.partial(_shifted, keep.progress, before, total)
        made.append(Made(use, lowered, dataclasses.replace(keep, progress=shifted)))
        before += use.bytes
    if keep.folder and keep.alone:
        drop_others(keep.folder, [each.file for each in made if each.file])
    return tuple(made)


def _shifted(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """matrix: of `Reader.matrix`, below 2^28 and so in half the memory; u: modulo each prime, `as_classes`."""

    matrix: np.ndarray
    u: list[Stored]


def loaded(use: Use, body: Iterator[bytes]) -> Hints:
    """A set's hints, ready to be multiplied; raises ProtocolError where a residue is none."""
    found: Hints = {}
    for chunk, packed in zip(use.chunks, body, strict=True):
        reader, n = chunk.reader, chunk.reader.upload.points
        if reader.number not in found:
            found[reader.number] = [np.empty((n, RANK * DEGREE // n, reader.rows), np.int32) for _ in ANSWERED]
        residues = unpack(np.frombuffer(packed, np.uint8), KEPT, POLYNOMIAL * chunk.count)
        for k, of_prime in zip(ANSWERED, residues.reshape(len(KEPT), DEGREE, RANK, -1), strict=True):
            found[reader.number][k][:, :, chunk.rows] = as_classes(of_prime, n, k)
    return found


def hashed(chunks: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _end(digest: Any) -> Iterator[bytes]:
    """The digest, once all before it was hashed."""
    yield digest.digest()


class _Opened:
    """A server's file, which stays there for this process where another drops it."""

    def __init__(self, file: Path, use: Use) -> None:
        self._descriptor, self._use = os.open(file, os.O_RDONLY), use
        weakref.finalize(self, os.close, self._descriptor)

    def body(self) -> Iterator[bytes]:
        first = 0
        for chunk in self._use.chunks:
            body = os.pread(self._descriptor, chunk.bytes, first)
            if len(body) != chunk.bytes:
                raise ProtocolError("the server's hints were damaged on its disk; its operator starts it again")
            yield body
            first += chunk.bytes


def is_whole(file: Path, size: int) -> bool:
    try:
        return file.stat().st_size == size
    except OSError:
        return False


def read(file: Path, use: Use) -> Iterator[bytes]:
    """A set's chunks, of the beginning of a file."""
    with file.open("rb") as opened:
        for chunk in use.chunks:
            yield opened.read(chunk.bytes)


def write(file: Path, content: Iterator[bytes]) -> None:
    """Write a file so that it is there whole or not at all; raises OSError where the disk is full."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary(file)
    try:
        with unfinished.open("wb") as opened:
            for part in content:
                opened.write(part)
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
