"""Offline mode `seal`: no third party. Linear layers by homomorphic encryption, all else by oblivious transfer.

For each linear layer the client encrypts its share r of the layer's input and gets W·r − s back (DELPHI, section 4.1),
packed as in `packing`. Where every position has a weight of its own, and for squares, integers are
multiplied by oblivious transfer. Both parties walk the program in the same order; ciphertexts are sent one by one, so
that one party works on a ciphertext while the other makes the next.

A client that deviates in its ciphertexts reads weights out of the answers. An audit finds it out: the client shows
the secret key of a query that is over, and the server sees whether all that came under it were fresh encryptions.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import ClassVar

import numpy as np

from parelu.errors import ProtocolError, UserError
from parelu.fusion.packing import Packing, packing, stated
from parelu.private.crypto import he
from parelu.private.crypto.prg import Stream
from parelu.private.crypto.ring import Elements, encode
from parelu.private.lowering.layers import layers
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Op
from parelu.private.lowering.program import Program
from parelu.private.offline.comparisons import MOST_BITS
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

SIZES = struct.Struct("<BB")  # the choice of parameters, and the bits of the largest factor of a single value
CHANNELS = np.dtype("<u4")  # a polynomial, of each packed layer in order


def norm(lowered: Lowered, packed: dict[int, Packing]) -> int:
    """The largest Σ|w| over the polynomials that are multiplied for one answer: of all rows of a block of outputs."""
    found = 1
    for number, how in packed.items():
        weight = np.abs(lowered.weights[number - 1]["weight"])
        rows = weight.reshape(len(weight), -1).sum(1)
        found = max(found, int(np.add.reduceat(rows, np.arange(0, len(rows), how.kernels)).max()))
    return found


def parameters(lowered: Lowered, packed: dict[int, Packing]) -> he.Parameters:
    """Raises UserError where none are secure and exact."""
    coefficients = sum(math.prod(lowered.program.shapes[number]) for number in packed)
    return he.parameters(norm(lowered, packed), coefficients)


def packings(program: Program) -> dict[int, Packing]:
    """Value → how the layer that makes it is packed; raises ValueError where one does not fit."""
    return {layer.number: packing(layer.shape) for layer in layers(program)}


def _sizes_bytes(packed: int) -> int:
    """Length of the server's message about so many packed layers."""
    return SIZES.size + CHANNELS.itemsize * packed


class _Server(ObliviousServer):
    def __init__(self, channel: Channel, context: bytes, model: Model) -> None:
        super().__init__(channel, context)
        self.model, self.packings = model, packings(model.terms.program)
        self.ring = model.terms.program.ring
        self.parameters, self.width = parameters(model.lowered, self.packings), width(model.lowered)
        self.uploads: list[np.ndarray] | None = None  # of an audited query
        with channel.measured("setup", "keys"):
            channels = np.array([how.channels for how in self.packings.values()], CHANNELS)
            channel.send("size", SIZES.pack(he.CHOICES.index(self.parameters), self.width), channels)

    def start(self, *, audited: bool) -> None:
        """A query's seed and key."""
        self.begin()
        self.uploads = [] if audited else None
        with self.channel.measured("offline", "keys"):
            key = self.channel.receive("hkey", self.parameters.upload_bytes)
            self.he = he.Server(self.parameters, key, Stream(self.seed, "answers"))

    def check(self) -> None:
        """Of the query that just ended, with what the client shows."""
        with self.channel.measured("offline", "audit"):
            secret = self.channel.receive("show", he.SECRET_BYTES)
            uploads, self.uploads = self.uploads, None
            assert uploads is not None, "the query was not audited"
            try:
                audit = he.Audit(self.parameters, secret)
            except ProtocolError as error:
                raise Deviation(f"an audit: {error}") from error
            if not audit.is_fresh(self.he.public_key, is_key=True):
                raise Deviation("an audit: the client's public key is no encryption of zero")
            if not all(audit.is_fresh(upload) for upload in uploads):
                raise Deviation("an audit: a ciphertext of the client's is no fresh encryption")

    def linear(self, number: int, op: Op) -> Elements:
        program, weights = self.model.terms.program, self.model.lowered.weights[number - 1]["weight"]
        mask = Stream(self.seed, "linear", number).elements(math.prod(program.shapes[number]))
        if number not in self.packings:
            return self.multiply(encode(weights.reshape(-1)), self.width)
        packed = self.packings[number]
        columns = weights.reshape(len(weights), -1)
        inputs = [self.he.open(self._upload()) for _ in range(packed.uploads)]
        for block in range(packed.output_blocks):
            totals = [self.he.blank() for _ in range(packed.tiles)]
            for read in packed.reads(block):
                weight = self.he.weight(packed.pack_weight(columns, block, read))
                for tile, total in enumerate(totals):
                    self.he.accumulate(total, inputs[tile * packed.input_blocks + read], weight)
            for tile, total in enumerate(totals):
                coefficients, positions = packed.needed(block, tile)
                self.channel.send("answ", self.he.answer(total, mask[positions], coefficients))
        return mask

    def _upload(self) -> np.ndarray:
        upload = self.channel.receive("upld", self.parameters.upload_bytes)
        if self.uploads is not None:
            self.uploads.append(upload)
        return upload


class _Client(ObliviousClient):
    def __init__(self, channel: Channel, context: bytes, program: Program) -> None:
        super().__init__(channel, context)
        packed = layers(program)
        with channel.measured("setup", "keys"):
            body = channel.receive("size", _sizes_bytes(len(packed))).tobytes()
        choice, self.width = SIZES.unpack_from(body)
        channels = np.frombuffer(body, CHANNELS, offset=SIZES.size).tolist()
        self.ring = program.ring
        if choice >= len(he.CHOICES) or not 2 <= self.width < self.ring.bits:
            raise ProtocolError(f"the server states parameters {choice} and weights of {self.width} bits")
        self.parameters = he.CHOICES[choice]
        try:
            self.packings = {of.number: stated(of.shape, n) for of, n in zip(packed, channels, strict=True)}
        except ValueError as error:
            raise ProtocolError(f"the server's packing is refused: {error}") from error

    def start(self) -> None:
        """A query's seed and key."""
        self.begin()
        with self.channel.measured("offline", "keys"):
            self.he = he.Client(self.parameters, Stream(self.seed, "ciphertexts"))
            self.channel.send("hkey", self.he.public_key())

    def linear(self, number: int, op: Op, share: Elements, count: int) -> Elements:
        flat = share.reshape(-1)
        if number not in self.packings:
            return self.multiply(flat, self.width)
        packed = self.packings[number]
        for polynomial in packed.pack_input(flat):
            self.channel.send("upld", self.he.encrypt(polynomial))
        out = np.empty(count, np.uint64)
        for block in range(packed.output_blocks):
            for tile in range(packed.tiles):
                coefficients, positions = packed.needed(block, tile)
                answer = self.channel.receive("answ", self.parameters.answer_bytes(len(coefficients)))
                out[positions] = self.he.decrypt(answer, coefficients)
        return out


class _Traffic(ObliviousTraffic):
    def __init__(self, program: Program, lowered: Lowered | None) -> None:
        self.packings = packings(program)
        self.parameters = parameters(lowered, self.packings) if lowered else he.USUAL
        super().__init__(program.ring, width(lowered) if lowered else USUAL_WIDTH)

    def connection(self) -> Iterator[tuple[str, str, Messages]]:
        yield from super().connection()
        yield "setup", "keys", to_client(_sizes_bytes(len(self.packings)))

    def inference(self) -> Iterator[tuple[str, Messages]]:
        yield "keys", to_server(self.parameters.upload_bytes)

    def linear(self, number: int, count: int) -> list[Messages]:
        if number not in self.packings:
            return super().linear(number, count)
        packed, up = self.packings[number], self.parameters.upload_bytes
        answers = (packed.downloads - 1) * self.parameters.answer_bytes(0) + self.parameters.answer_bytes(count)
        return [to_server(packed.uploads * up, packed.uploads), to_client(answers, packed.downloads)]


class HomomorphicEncryption(Mode):
    name: ClassVar[str] = "seal"
    threat_model: ClassVar[str] = "semi-honest; no third party"
    third_party: ClassVar[bool] = False
    ring_bits: ClassVar[int] = he.BITS
    relus_by: ClassVar[str] = "transfers"
    comparisons: ClassVar[str] = "both parties make the ReLUs' keys"
    most_bits: ClassVar[int] = MOST_BITS
    audits: ClassVar[bool] = True

    def check(self, model: Model) -> None:
        try:
            packed = packings(model.terms.program)
        except ValueError as error:
            raise UserError(f"offline mode {self.name} cannot run this network: {error}") from error
        parameters(model.lowered, packed)

    def traffic(self, program: Program, queries: int, lowered: Lowered | None = None) -> _Traffic:
        return _Traffic(program, lowered)

    def work(self, program: Program, queries: int) -> tuple[Features, Features]:
        packed = packings(program).values()
        uploads, downloads = (float(sum(getattr(how, name) for how in packed)) for name in ("uploads", "downloads"))
        answered = float(sum(how.layer.outputs * how.positions for how in packed))
        both = {"seal: upload": uploads, "seal: download": downloads, "seal: output": answered, **multiplied(program)}
        products = {
            "seal: product": float(sum(how.products for how in packed)),
            "seal: weight": float(sum(how.products // how.tiles for how in packed)),
        }
        return both, both | products

    def server(self, channel: Channel, context: bytes, model: Model) -> _Server:
        return _Server(channel, context, model)

    def client(self, channel: Channel, context: bytes, terms: Terms, digest: str, keep: Keep) -> _Client:
        return _Client(channel, context, terms.program)

    def serve(
        self,
        channel: Channel,
        state: _Server,
        model: Model,
        *,
        audited: bool = False,
        asking: AbstractContextManager[None] = UNASKED,
    ) -> Material:
        state.start(audited=audited)
        return prepare_server(model, state, functools.partial(channel.measured, "offline"))

    def fetch(self, channel: Channel, state: _Client) -> _Client:
        state.start()
        return state

    def audit(self, channel: Channel, state: _Server, model: Model) -> None:
        state.check()

    def show(self, channel: Channel, state: _Client) -> None:
        with channel.measured("offline", "audit"):
            channel.send("show", state.he.show())
