"""Offline mode `dealer`: a trusted third party expands seeds. For development and comparison, never for privacy.

The dealer runs in the server's process and knows the weights and both parties' randomness: whoever runs that process
can decrypt the client's image. The client gets a seed, and garbled tables or the corrections of its keys; all that it
would have received from a protocol otherwise, it draws from the seed, and the dealer makes the server's half fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.dcf import Key, correct, correction_blocks
from parelu.private.crypto.garbling import with_colour
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.prg import SEED_BYTES, Blocks, Stream, derive, fresh_seed
from parelu.private.crypto.ring import Elements
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Op
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import UNASKED, Keep, Mode, Package
from parelu.private.protocol.correlations import ClientOffline, OfflineTraffic, ServerOffline
from parelu.private.protocol.delphi import OUTPUT, Material, Model, Terms, prepare_client, prepare_server
from parelu.private.transport.channel import Channel
from parelu.private.transport.messages import Messages, to_client


class DealtClient(ClientOffline):
    """The client with a seed of the dealer's; tables come over the channel in the order of the program."""

    def __init__(self, seed: bytes, key: bytes, channel: Channel | None) -> None:
        self.seed, self.hash, self.channel = seed, Hash(key), channel
        self.permutation = derive(key, "comparison")

    def stream(self, number: int, what: str) -> Stream:
        return Stream(self.seed, "client", what, number)

    def linear(self, number: int, op: Op, share: Elements, count: int) -> Elements:
        return self.stream(number, "linear").elements(count)

    def labels(self, number: int, first: int, bits: NDArray[np.uint8]) -> Blocks:
        return self.stream(number, "labels").blocks(*bits.shape)

    def random_ot(self, number: int, first: int, choices: NDArray[np.uint8]) -> Elements:
        return self.stream(number, "random ot").elements(len(choices))

    def tables(self, number: int, blocks: int) -> Blocks:
        assert self.channel is not None
        return self.channel.receive("tabl", 16 * blocks).view(np.uint64).reshape(-1, 2)

    def product(self, number: int, first: int, values: Elements) -> Elements:
        return self.stream(number, "product").elements(len(values))

    def square(self, number: int, share: Elements) -> tuple[Elements, Elements]:
        u, v = self.stream(number, "square").elements(2, len(share))
        return u, v

    def comparison(self, number: int, share: Elements, bits: int) -> tuple[Key, Elements, Elements]:
        count, levels, own = len(share), bits - 1, self.stream(number, "comparison")
        roots, r, top = own.blocks(count), own.elements(count), own.elements(count, 2)
        corrections = self.tables(number, correction_blocks(levels, count))
        return Key(self.permutation, 0, levels, roots, corrections), r, top


class Mirror(DealtClient):
    """The dealer's copy of the client: it keeps what the client asked for and what it drew."""

    def __init__(self, seed: bytes) -> None:
        super().__init__(seed, bytes(SEED_BYTES), None)
        self.asked: dict[tuple[str, int], Any] = {}

    def linear(self, number: int, op: Op, share: Elements, count: int) -> Elements:
        result = super().linear(number, op, share, count)
        self.asked["linear", number] = share, result
        return result

    def labels(self, number: int, first: int, bits: NDArray[np.uint8]) -> Blocks:
        result = super().labels(number, first, bits)
        self.asked["labels", number] = bits
        return result

    def random_ot(self, number: int, first: int, choices: NDArray[np.uint8]) -> Elements:
        result = super().random_ot(number, first, choices)
        self.asked["random ot", number] = choices, result
        return result

    def tables(self, number: int, blocks: int) -> Blocks:
        return np.empty((0, 2), np.uint64)

    def product(self, number: int, first: int, values: Elements) -> Elements:
        result = super().product(number, first, values)
        self.asked["product", number] = values, result
        return result

    def square(self, number: int, share: Elements) -> tuple[Elements, Elements]:
        result = super().square(number, share)
        self.asked["square", number] = (share, *result)
        return result

    def comparison(self, number: int, share: Elements, bits: int) -> tuple[Key, Elements, Elements]:
        result = super().comparison(number, share, bits)
        self.asked["comparison", number] = (share, *result)
        return result


class Dealer(ServerOffline):
    """The server's half, made to fit by a dealer in its process.

    mirror: after it walked the program as the client will.
    """

    def __init__(self, mirror: Mirror, model: Model) -> None:
        self.seed, self.key = fresh_seed(), fresh_seed()
        self.hash, self.permutation = Hash(self.key), derive(self.key, "comparison")
        self.delta = with_colour(Stream(self.seed, "delta").blocks())
        self.mirror, self.model = mirror, model
        self.outgoing: list[tuple[str, Blocks]] = []  # layer, tables

    def _asked(self, what: str, number: int) -> Any:
        return self.mirror.asked.pop((what, number))

    def linear(self, number: int, op: Op) -> Elements:
        share, result = self._asked("linear", number)
        return self.model.maps[number](share).reshape(-1) - result

    def labels(self, number: int, first: int, wires: int, count: int) -> Blocks:
        bits = self._asked("labels", number)
        labels = self.mirror.stream(number, "labels").blocks(wires, count)
        labels ^= (np.uint64(0) - bits.astype(np.uint64))[:, :, None] & self.delta
        return labels

    def random_ot(self, number: int, first: int, count: int) -> tuple[Elements, Elements]:
        choices, chosen = self._asked("random ot", number)
        other = Stream(self.seed, "random ot", number).elements(count)
        return np.where(choices == 0, chosen, other), np.where(choices == 0, other, chosen)

    def send_tables(self, number: int, tables: Blocks) -> None:
        layers = (*self.model.terms.program.layers, OUTPUT)
        self.outgoing.append((layers[number - 1], tables))

    def product(self, number: int, first: int, bits: NDArray[np.uint8]) -> Elements:
        values, theirs = self._asked("product", number)
        return bits * values - theirs

    def square(self, number: int, c1: Elements, c2: Elements) -> tuple[Elements, Elements, Elements]:
        share, u, v = self._asked("square", number)
        # Neither party has a: the dealer draws it from both seeds.
        a = Stream(self.seed, "square", number).elements(len(share)) + self.mirror.stream(number, "a").elements(
            len(share)
        )
        return share - a, np.uint64(2) * c2 * a - u, c1 * a + c2 * a * a - v

    def comparison(self, number: int, count: int, bits: int) -> tuple[Elements, Key, Elements, Elements]:
        share, theirs, their_r, their_top = self._asked("comparison", number)
        own = Stream(self.seed, "comparison", number)
        roots, our_r = own.blocks(count), own.elements(count)
        r = their_r + our_r  # neither party has it
        one_and_r, top = np.stack([np.ones_like(r), r], 1), (r >> np.uint64(bits - 1) & np.uint64(1))[:, None]
        betas = (np.uint64(1) - np.uint64(2) * top) * one_and_r
        corrections = correct(self.permutation, bits - 1, r, betas, (theirs.roots, roots))
        self.send_tables(number, corrections)
        key = Key(self.permutation, 1, bits - 1, roots, corrections)
        return share + r, key, our_r, top * one_and_r - their_top


class _Dealt(Package):
    def __init__(self, dealer: Dealer, material: Material) -> None:
        self.dealer, self.material = dealer, material

    def deliver(self, channel: Channel) -> Material:
        with channel.measured("offline", "seed"):
            channel.send("deal", self.dealer.mirror.seed, self.dealer.key)
        while self.dealer.outgoing:
            layer, tables = self.dealer.outgoing.pop(0)
            with channel.measured("offline", layer):
                channel.send("tabl", tables)
        return self.material


def deal(model: Model) -> tuple[Dealer, Material]:
    """Walk the program as both parties will; the dealer has what the client is to get."""
    mirror = Mirror(fresh_seed())
    prepare_client(model.terms, mirror)
    dealer = Dealer(mirror, model)
    return dealer, prepare_server(model, dealer)


class _Traffic(OfflineTraffic):
    """Seeds and tables: all else is drawn from them."""

    def connection(self) -> list[tuple[str, str, Messages]]:
        return []

    def inference(self) -> Iterator[tuple[str, Messages]]:
        yield "seed", to_client(2 * SEED_BYTES)

    def linear(self, number: int, count: int) -> list[Messages]:
        return []

    def labels(self, wires: int, count: int) -> list[Messages]:
        return []

    def random_ot(self, count: int) -> list[Messages]:
        return []

    def tables(self, blocks: int) -> list[Messages]:
        return [to_client(16 * blocks)]

    def product(self, count: int) -> list[Messages]:
        return []

    def square(self, count: int) -> list[Messages]:
        return []

    def comparison(self, count: int, bits: int) -> list[Messages]:
        return self.tables(correction_blocks(bits - 1, count))


class Dealt(Mode):
    name: ClassVar[str] = "dealer"
    threat_model: ClassVar[str] = "semi-honest, with a trusted dealer in the server's process: no privacy against it"
    third_party: ClassVar[bool] = True
    packages: ClassVar[bool] = True
    comparisons: ClassVar[str] = "that dealer makes the keys of the ReLUs"

    def package(self, model: Model) -> Package:
        return _Dealt(*deal(model))

    def traffic(self, program: Program, queries: int, lowered: Lowered | None = None) -> _Traffic:
        return _Traffic()

    def server(self, channel: Channel, context: bytes, model: Model) -> None:
        return None

    def client(self, channel: Channel, context: bytes, terms: Terms, digest: str, keep: Keep) -> None:
        return None

    def serve(
        self,
        channel: Channel,
        state: None,
        model: Model,
        *,
        audited: bool = False,
        asking: AbstractContextManager[None] = UNASKED,
    ) -> Material:
        with channel.measured("offline", "dealer"):
            package = self.package(model)
        return package.deliver(channel)

    def fetch(self, channel: Channel, state: None) -> DealtClient:
        with channel.measured("offline", "seed"):
            body = channel.receive("deal", 2 * SEED_BYTES).tobytes()
        return DealtClient(body[:SEED_BYTES], body[SEED_BYTES:], channel)
