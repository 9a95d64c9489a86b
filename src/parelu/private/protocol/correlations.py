"""The correlations that an online phase consumes, as each party asks for them.

Both parties walk the program in the same order and make the same calls, each on its side; `number` is that of the
value being made, `first` the number of the call's first ReLU under the inference's key. An offline mode
is a pair of these classes, with a trusted dealer, by oblivious transfer, by homomorphic encryption, and a third that
tells what their calls send.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.dcf import Key
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.prg import Blocks, Stream
from parelu.private.crypto.ring import Elements
from parelu.private.lowering.ops import Op
from parelu.private.transport.messages import Messages


class ClientOffline(abc.ABC):
    """The client's side. hash: under the key that the garbled circuits were made with."""

    hash: Hash
    first: int = 0  # of the numbers of garbled instances that are free under the key

    def numbers(self, count: int) -> int:
        """The first of so many instances' numbers, each of which is used once."""
        first = self.first
        self.first += count
        return first

    @abc.abstractmethod
    def stream(self, number: int, what: str) -> Stream:
        """The client's own randomness for a value: the masks that become its shares, choice bits."""

    @abc.abstractmethod
    def linear(self, number: int, op: Op, share: Elements, count: int) -> Elements:
        """The client's share, (count,), of W·share; the server's is `ServerOffline.linear`."""

    @abc.abstractmethod
    def labels(self, number: int, first: int, bits: NDArray[np.uint8]) -> Blocks:
        """Active labels (wires, n, 2) of the client's input bits (wires, n)."""

    @abc.abstractmethod
    def random_ot(self, number: int, first: int, choices: NDArray[np.uint8]) -> Elements:
        """Of the server's two random elements, the chosen one, (n,)."""

    @abc.abstractmethod
    def tables(self, number: int, blocks: int) -> Blocks:
        """Garbled tables (blocks, 2) from the server."""

    @abc.abstractmethod
    def product(self, number: int, first: int, values: Elements) -> Elements:
        """The client's share of (the server's bit) · values, (n,)."""

    @abc.abstractmethod
    def square(self, number: int, share: Elements) -> tuple[Elements, Elements]:
        """Shares of 2·c2·a and c1·a + c2·a² for a random a; the client's half of the opening E = x − a goes now."""

    @abc.abstractmethod
    def comparison(self, number: int, share: Elements, bits: int) -> tuple[Key, Elements, Elements]:
        """(key, share of r, shares of r_t·(1, r)), the last (n, 2), for a random r that neither party knows.

        r_t is bit `bits` − 1 of r, r_0 the bits below it. The key's function is (1 − 2·r_t)·(1, r) at points below r_0.
        The client's half of the opening x + r goes now. At most the mode's `most_bits`.
        """


class ServerOffline(abc.ABC):
    """The server's side. delta: (2,), the offset of all labels; seed: of the server's own randomness."""

    hash: Hash
    delta: Blocks
    seed: bytes
    first: int = 0  # of the numbers of garbled instances that are free under the key

    def numbers(self, count: int) -> int:
        """The first of so many instances' numbers, each of which is used once."""
        first = self.first
        self.first += count
        return first

    @abc.abstractmethod
    def linear(self, number: int, op: Op) -> Elements:
        """The server's share, flat, of W·(the client's share)."""

    @abc.abstractmethod
    def labels(self, number: int, first: int, wires: int, count: int) -> Blocks:
        """Zero labels (wires, count, 2) of the client's input bits."""

    @abc.abstractmethod
    def random_ot(self, number: int, first: int, count: int) -> tuple[Elements, Elements]:
        """Two random elements an instance, of which the client has one."""

    @abc.abstractmethod
    def send_tables(self, number: int, tables: Blocks) -> None:
        """Hand garbled tables (blocks, 2) to the client."""

    @abc.abstractmethod
    def product(self, number: int, first: int, bits: NDArray[np.uint8]) -> Elements:
        """The server's share of bits · (the client's values), (n,)."""

    @abc.abstractmethod
    def square(self, number: int, c1: Elements, c2: Elements) -> tuple[Elements, Elements, Elements]:
        """(shift, u, v): E = x_s + shift for the server's share x_s of x; u and v as `ClientOffline.square`."""

    @abc.abstractmethod
    def comparison(self, number: int, count: int, bits: int) -> tuple[Elements, Key, Elements, Elements]:
        """(shift, …): x + r = x_s + shift for the server's share x_s of x; the rest as `ClientOffline.comparison`."""


class OfflineTraffic(abc.ABC):
    """What each call of `ClientOffline` and `ServerOffline` sends, before any is made, in the client's order.

    digest: as long as that of `offline.mode.Mode.make`.
    """

    digest: str = ""

    @abc.abstractmethod
    def connection(self) -> Iterable[tuple[str, str, Messages]]:
        """(phase, layer, messages) of a connection before its first inference."""

    def held(self) -> tuple[int, int]:
        """Bytes that the client and the server keep meanwhile, beside what an inference consumes."""
        return 0, 0

    @abc.abstractmethod
    def inference(self) -> Iterable[tuple[str, Messages]]:
        """(layer, messages) of an inference before its program."""

    @abc.abstractmethod
    def linear(self, number: int, count: int) -> Sequence[Messages]:
        """Of an op that makes value `number`, of so many elements. To be asked in the order of the program."""

    @abc.abstractmethod
    def labels(self, wires: int, count: int) -> Sequence[Messages]: ...

    @abc.abstractmethod
    def random_ot(self, count: int) -> Sequence[Messages]: ...

    @abc.abstractmethod
    def tables(self, blocks: int) -> Sequence[Messages]: ...

    @abc.abstractmethod
    def product(self, count: int) -> Sequence[Messages]: ...

    @abc.abstractmethod
    def square(self, count: int) -> Sequence[Messages]: ...

    @abc.abstractmethod
    def comparison(self, count: int, bits: int) -> Sequence[Messages]: ...
