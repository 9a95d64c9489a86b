"""Offline mode `hints`: no third party; linear layers by public polynomials and hints, all else by oblivious transfer.

A server publishes once what its weights make of public polynomials, masked: the hints. A query's secrets are fresh. The
client sends the coefficients of its share r under them, the server convolves these with its weights as they are, and
the client takes off what the hints say that its secrets have become: W·r − s is left. `crypto.lattice.scheme` is the
construction, `fusion.hint_layout` says how an op's elements lie in polynomials.

What does not depend on r runs ahead of the program, on other threads: the client's a·s + e and h·s, the server's β·u.
Secrets and errors come from a seed that is drawn with the phase and dies with it. For an audit the client shows it, and
the server makes the phase's messages again.
"""

from __future__ import annotations

import functools
import math
import struct
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu.errors import ProtocolError, UserError
from parelu.fusion.hint_layout import Reader, Upload
from parelu.fusion.hint_plan import best, plans
from parelu.private.crypto.lattice.parameters import DEGREE, KEPT, PRIMES, RANK, holds
from parelu.private.crypto.lattice.residues import (
    answer,
    ciphertext,
    decode,
    drop,
    message,
    pack,
    packed_bytes,
    reduce,
    unpack,
)
from parelu.private.crypto.lattice.scheme import (
    ALL,
    ANSWERED,
    Betas,
    Residues,
    Secrets,
    Stored,
    times_hints,
    times_u,
)
from parelu.private.crypto.prg import SEED_BYTES, Stream
from parelu.private.crypto.ring import Elements, encode
from parelu.private.lowering.layers import layers
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Op
from parelu.private.lowering.program import Program
from parelu.private.offline import hint_exchange, hint_secrets
from parelu.private.offline.ahead import ahead
from parelu.private.offline.comparisons import MOST_BITS
from parelu.private.offline.hint_convolution import convolved
from parelu.private.offline.hint_exchange import fetched, root, send, statement
from parelu.private.offline.hint_secrets import chosen, offer, public_part
from parelu.private.offline.hint_sets import DIGEST_BYTES, Made, Use, sets, uses
from parelu.private.offline.mode import UNASKED, Deviation, Features, Keep, Mode
from parelu.private.offline.transfers import (
    USUAL_WIDTH,
    ObliviousClient,
    ObliviousServer,
    ObliviousTraffic,
    multiplied,
    width,
)
from parelu.private.protocol.delphi import Material, Model, Terms, prepare_server
from parelu.private.transport.channel import Channel
from parelu.private.transport.messages import Messages, to_client, to_server

WIDTH = struct.Struct("<B")  # bits of the largest factor of a single value


class _Server(ObliviousServer):
    def __init__(self, channel: Channel, context: bytes, model: Model, sets: tuple[Made, ...]) -> None:
        super().__init__(channel, context)
        self.model, self.ring, self.width = model, model.terms.program.ring, width(model.lowered)
        with channel.measured("setup", "hints"):
            channel.send("size", WIDTH.pack(self.width))
            made = send(channel, sets)
        self.use, self._factors = made.use, made.factors()
        self.received: dict[int, NDArray[np.uint8]] | None = None  # an audited query's uploads
        self._masks: dict[int, Future[Residues]] = {}

    def start(self, asking: AbstractContextManager[None], *, audited: bool) -> None:
        """A query's seed, and the client's β."""
        self.begin()
        self.received = {} if audited else None
        plan = self.use.plan
        with self.channel.measured("offline", "keys"):
            self._beta = chosen(self.channel, self.use, self.seed, asking)
            shape = len(PRIMES), DEGREE, RANK, len(plan.public_parts)
            betas = Betas([*unpack(self._beta, PRIMES, math.prod(shape[1:])).reshape(shape)])
        self._opened: dict[int, Residues] = {}
        self._readers = Counter(self.use.upload_of.values())
        self._masks = {number: ahead(self._times_u, betas, reader) for number, reader in plan.readers.items()}

    def _upload(self, at: int) -> Residues:
        """(primes, tiles, parts, coefficients)."""
        upload = self.use.plan.uploads[at]
        shape = len(PRIMES), upload.tiles, upload.parts, len(upload.coefficients)
        body = self.channel.receive("upld", packed_bytes(PRIMES, math.prod(shape[1:])))
        if self.received is not None:
            self.received[at] = body
        return unpack(body, PRIMES, math.prod(shape[1:])).reshape(shape)

    def _times_u(self, betas: Betas, reader: Reader) -> Residues:
        """(primes, elements)."""
        u, parts = self._factors[reader.number].u, self.use.parts_of(reader)
        found = times_u(u, betas, reader.upload.points, parts, reader.matrices)
        return np.stack([_at_slots(reader, of_prime) for of_prime in found])

    def linear(self, number: int, op: Op) -> Elements:
        reader = self.use.plan.readers.get(number)
        if reader is None:
            return self.multiply(encode(self.model.lowered.weights[number - 1]["weight"].reshape(-1)), self.width)
        sums, taken = self._convolved(reader), self._masks.pop(number).result()
        mask = Stream(self.seed, "linear", number).elements(reader.count)
        flooding = Stream(self.seed, "flooding", number)
        self.channel.send("answ", pack(answer(sums, taken, reader.rows_of(mask)[reader.used], flooding), KEPT))
        return mask

    def _convolved(self, reader: Reader) -> Residues:
        """Σ_i b_i·w_i, (primes, elements), exact integers."""
        at = self.use.upload_of[reader.number]
        matrix = self._factors[reader.number].matrix.astype(np.float64)
        if at not in self._opened:
            self._opened[at] = self._upload(at)
        sent = self._opened[at]
        self._readers[at] -= 1
        if not self._readers[at]:
            del self._opened[at]
        return convolved(reader, matrix, sent)

    def drop(self) -> None:
        """What a query that broke off has left undone."""
        for made in self._masks.values():
            made.cancel()

    def check(self) -> None:
        """Of the query that just ended: make its messages again from the seed that the client shows."""
        with self.channel.measured("offline", "audit"):
            seed = self.channel.receive("show", SEED_BYTES).tobytes()
            received, self.received = self.received, None
            assert received is not None, "the query was not audited"
            secrets = self.use.secrets(seed)
            if public_part(secrets) != self._beta.tobytes():
                raise Deviation("an audit: the client's β is not that of its seed")
            for at, body in received.items():
                masks = masked(self.use, secrets, at, self.use.public_polynomials(at))
                if not _is_fresh(unpack(body, PRIMES, masks.shape[1]), masks):
                    raise Deviation("an audit: a ciphertext of the client's is no fresh encryption")


class _Client(ObliviousClient):
    def __init__(self, channel: Channel, context: bytes, terms: Terms, digest: str, keep: Keep) -> None:
        super().__init__(channel, context)
        self.ring = terms.program.ring
        with channel.measured("setup", "hints"):
            (self.width,) = WIDTH.unpack(channel.receive("size", WIDTH.size).tobytes())
            if not 2 <= self.width < self.ring.bits:
                raise ProtocolError(f"the server states weights of {self.width} bits")
            self.use, self._hints = fetched(channel, terms.program, digest, keep)
            self._public = [self.use.public_polynomials(at) for at in range(len(self.use.plan.uploads))]

    def start(self) -> None:
        """A query's seed and secrets."""
        self.begin()
        with self.channel.measured("offline", "keys"):
            self._seed, secrets = offer(self.channel, self.use, self.seed)
        self._masks: dict[int, Future[Residues]] = {}
        self._taken: dict[int, Future[Residues]] = {}
        for at, upload in enumerate(self.use.plan.uploads):
            self._masks[at] = ahead(masked, self.use, secrets, at, self._public[at])
            for reader in upload.readers:
                self._taken[reader.number] = ahead(self._times_hints, secrets, reader)

    def _times_hints(self, secrets: Secrets, reader: Reader) -> Residues:
        """(kept primes, elements)."""
        upload = reader.upload
        found = times_hints(self._hints[reader.number], secrets.partners(upload.points), upload.tiles)
        return np.stack([_at_slots(reader, of_prime) for of_prime in found])

    def linear(self, number: int, op: Op, share: Elements, count: int) -> Elements:
        reader = self.use.plan.readers.get(number)
        if reader is None:
            return self.multiply(share.reshape(-1), self.width)
        at = self.use.upload_of[number]
        if at in self._masks:
            # Not before its turn: a false answer to an earlier op would bring its masks into what is sent in the clear.
            message = reader.upload.pack(share.reshape(-1)).reshape(-1)
            self.channel.send("upld", pack(ciphertext(self._masks.pop(at).result(), message), PRIMES))
        body = self.channel.receive("answ", packed_bytes(KEPT, reader.count))
        rest = unpack(body, KEPT, reader.count) - self._taken.pop(number).result()
        found = np.empty(reader.used.shape, np.uint64)
        found[reader.used] = decode(_reduced(rest, ANSWERED))
        return reader.outputs(found)

    def show(self) -> bytes:
        """The seed of this query's secrets and errors."""
        return self._seed


def masked(use: Use, secrets: Secrets, at: int, public: list[Stored]) -> Residues:
    """a·s + e at the coefficients of upload `at` that are sent, (primes, tiles · parts · coefficients)."""
    upload = use.plan.uploads[at]
    found = secrets.masks(at, public, upload.tiles)
    shape = upload.points, upload.classes, upload.tiles, upload.polynomials
    sent = np.stack([of_prime.reshape(shape)[upload.coefficients] for of_prime in found])
    parts = sent.transpose(0, 3, 4, 2, 1)  # of the coefficients: tile, polynomial, class, the last two a part
    parts = parts.reshape(len(PRIMES), upload.tiles, -1, len(upload.coefficients))[:, :, : upload.parts]
    return np.ascontiguousarray(parts).reshape(len(PRIMES), -1)


def _is_fresh(sent: Residues, masks: Residues) -> bool:
    """Whether what was sent less the masks is a message, round(q·r/2^64) for some r."""
    rest = _reduced(sent - masks, ALL)
    return bool((message(decode(drop(rest))) == rest).all())


def _at_slots(reader: Reader, coefficients: Residues) -> Residues:
    """(n, tiles, rows) → those of the op's elements, in order of its slots in use."""
    return coefficients[reader.positions].transpose(2, 1, 0)[: reader.rows][reader.used]


def _reduced(residues: Residues, primes: range) -> Residues:
    return np.stack([reduce(residues[k], k) for k in primes])


def _upload_bytes(upload: Upload) -> int:
    return packed_bytes(PRIMES, upload.tiles * upload.parts * len(upload.coefficients))


class _Traffic(ObliviousTraffic):
    """use: of the set of hints that the client takes."""

    digest = "0" * 2 * DIGEST_BYTES

    def __init__(self, program: Program, queries: int, lowered: Lowered | None) -> None:
        super().__init__(program.ring, width(lowered) if lowered else USUAL_WIDTH)
        offered = plans(layers(program))
        self.sets, self.use = len(offered), Use("", "", offered[best(offered, queries)])

    def connection(self) -> Iterator[tuple[str, str, Messages]]:
        yield from super().connection()
        for messages in (to_client(WIDTH.size), *hint_exchange.traffic(self.sets, self.use)):
            yield "setup", "hints", messages

    def held(self) -> tuple[int, int]:
        return self.use.memory, self.use.memory_of_factors

    def inference(self) -> Iterator[tuple[str, Messages]]:
        for messages in hint_secrets.traffic(self.use):
            yield "keys", messages

    def linear(self, number: int, count: int) -> list[Messages]:
        reader = self.use.plan.readers.get(number)
        if reader is None:
            return super().linear(number, count)
        is_first = number == min(layer.number for layer in reader.upload.layers)
        uploads = [to_server(_upload_bytes(reader.upload))] if is_first else []
        return [*uploads, to_client(packed_bytes(KEPT, count))]


class Hints(Mode):
    name: ClassVar[str] = "hints"
    threat_model: ClassVar[str] = "semi-honest; no third party"
    third_party: ClassVar[bool] = False
    relus_by: ClassVar[str] = "transfers"
    comparisons: ClassVar[str] = "both parties make the ReLUs' keys"
    most_bits: ClassVar[int] = MOST_BITS
    audits: ClassVar[bool] = True

    def check(self, model: Model) -> None:
        """Raises UserError where a map is too wide, or a row's weights are too large to be exact."""
        for use in self._uses(model):
            for reader in use.plan.readers.values():
                weight = np.abs(model.lowered.weights[reader.number - 1]["weight"])
                of_output = np.append(weight.reshape(len(weight), -1).sum(1), 0)  # −1 takes the zero
                norm = int(of_output[reader.row_outputs].sum(1).max())
                if not holds(norm):
                    raise UserError(
                        f"offline mode {self.name} cannot run this network: weights of Σ|w| = {norm} at "
                        f"{model.terms.program.layers[reader.number - 1]} are not exact there; give --offline seal"
                    )

    def make(self, model: Model, keep: Keep | None = None) -> str:
        if self.name not in model.made:
            model.made[self.name] = sets(self._uses(model), model.lowered, keep or Keep())
        return root(statement(model.made[self.name]))

    def sizes(self, model: Model) -> tuple[int, ...]:
        return tuple(use.bytes for use in self._uses(model))

    def _uses(self, model: Model) -> tuple[Use, ...]:
        try:
            return uses(model.terms.program, model.lowered.commitment)
        except ValueError as error:
            reason = f"offline mode {self.name} cannot run this network: {error}, or give --offline seal"
            raise UserError(reason) from error

    def traffic(self, program: Program, queries: int, lowered: Lowered | None = None) -> _Traffic:
        return _Traffic(program, queries, lowered)

    def work(self, program: Program, queries: int) -> tuple[Features, Features]:
        offered = plans(layers(program))
        plan = offered[best(offered, queries)]
        client, server = Counter[str](multiplied(program)), Counter[str](multiplied(program))
        client["hints: public part"] = server["hints: public part"] = len(plan.public_parts)
        for upload in plan.uploads:
            client["hints: polynomial"] += upload.polynomials * upload.tiles
            server["hints: coefficient"] += len(upload.coefficients) * upload.parts * upload.tiles
            client["hints: coefficient"] += len(upload.coefficients) * upload.parts * upload.tiles
            for reader in upload.readers:
                rows = upload.tiles * reader.rows
                for features in (client, server):
                    features["hints: row"] += rows
                    features["hints: transform"] += rows * upload.points * (2 * upload.points).bit_length()
                    features["hints: output"] += reader.count
                server["hints: multiply-add"] += reader.macs
                server["hints: column"] += reader.gathered
        return client, server

    def server(self, channel: Channel, context: bytes, model: Model) -> _Server:
        return _Server(channel, context, model, model.made[self.name])

    def client(self, channel: Channel, context: bytes, terms: Terms, digest: str, keep: Keep) -> _Client:
        return _Client(channel, context, terms, digest, keep)

    def serve(
        self,
        channel: Channel,
        state: _Server,
        model: Model,
        *,
        audited: bool = False,
        asking: AbstractContextManager[None] = UNASKED,
    ) -> Material:
        try:
            state.start(asking, audited=audited)
            return prepare_server(model, state, functools.partial(channel.measured, "offline"))
        finally:
            state.drop()

    def fetch(self, channel: Channel, state: _Client) -> _Client:
        state.start()
        return state

    def audit(self, channel: Channel, state: _Server, model: Model) -> None:
        state.check()

    def show(self, channel: Channel, state: _Client) -> None:
        with channel.measured("offline", "audit"):
            channel.send("show", state.show())
