"""The correlations that an online phase consumes, as each party asks for them.

Both parties walk the program in the same order and make the same calls, each on its side; `number` is that of the
value being made, `first` the number of the call's first ReLU under the connection's or package's key. A mode is a pair
of these classes: with a trusted dealer, by oblivious transfer, by homomorphic encryption.
"""

from __future__ import annotations

import abc
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu.errors import UserError
from parelu.private.primitives.dcf import Key
from parelu.private.primitives.hash import Hash
from parelu.private.primitives.prg import Blocks, Stream
from parelu.private.program import Activation, Op, Program
from parelu.private.ring import BITS, Ring

if TYPE_CHECKING:
    from parelu.private.activations.base import Relu
    from parelu.private.channel import Channel
    from parelu.private.engines.delphi import Material, Model, Terms


class ClientOffline(abc.ABC):
    """The client's side. hash: under the key that the garbled circuits were made with."""

    hash: Hash

    @abc.abstractmethod
    def stream(self, number: int, what: str) -> Stream:
        """The client's own randomness for a value: the masks that become its shares, choice bits."""

    @abc.abstractmethod
    def linear(self, number: int, op: Op, share: Ring, count: int) -> Ring:
        """The client's share, (count,), of W·share; the server's is `ServerOffline.linear`."""

    @abc.abstractmethod
    def labels(self, number: int, first: int, bits: NDArray[np.uint8]) -> Blocks:
        """Active labels (wires, n, 2) of the client's input bits (wires, n)."""

    @abc.abstractmethod
    def random_ot(self, number: int, first: int, choices: NDArray[np.uint8]) -> Ring:
        """Of the server's two random elements, the chosen one, (n,)."""

    @abc.abstractmethod
    def tables(self, number: int, blocks: int) -> Blocks:
        """Garbled tables (blocks, 2) from the server."""

    @abc.abstractmethod
    def product(self, number: int, first: int, values: Ring) -> Ring:
        """The client's share of (the server's bit) · values, (n,)."""

    @abc.abstractmethod
    def square(self, number: int, share: Ring) -> tuple[Ring, Ring]:
        """Shares of 2·c2·a and c1·a + c2·a² for a random a; the client's half of the opening E = x − a goes now."""

    @abc.abstractmethod
    def comparison(self, number: int, share: Ring, bits: int) -> tuple[Key, Ring, Ring]:
        """(key, share of r, shares of r_t·(1, r)), the last (n, 2), for a random r that neither party knows.

        r_t is bit `bits` − 1 of r, r_0 the bits below it. The key's function is (1 − 2·r_t)·(1, r) at points below r_0.
        The client's half of the opening x + r goes now. At most the mode's `most_bits`.
        """


class ServerOffline(abc.ABC):
    """The server's side. delta: (2,), the offset of all labels; seed: of the server's own randomness."""

    hash: Hash
    delta: Blocks
    seed: bytes

    @abc.abstractmethod
    def linear(self, number: int, op: Op) -> Ring:
        """The server's share, flat, of W·(the client's share)."""

    @abc.abstractmethod
    def labels(self, number: int, first: int, wires: int, count: int) -> Blocks:
        """Zero labels (wires, count, 2) of the client's input bits."""

    @abc.abstractmethod
    def random_ot(self, number: int, first: int, count: int) -> tuple[Ring, Ring]:
        """Two random elements an instance, of which the client has one."""

    @abc.abstractmethod
    def send_tables(self, number: int, tables: Blocks) -> None:
        """Hand garbled tables (blocks, 2) to the client."""

    @abc.abstractmethod
    def product(self, number: int, first: int, bits: NDArray[np.uint8]) -> Ring:
        """The server's share of bits · (the client's values), (n,)."""

    @abc.abstractmethod
    def square(self, number: int, c1: Ring, c2: Ring) -> tuple[Ring, Ring, Ring]:
        """(shift, u, v): E = x_s + shift for the server's share x_s of x; u and v as `ClientOffline.square`."""

    @abc.abstractmethod
    def comparison(self, number: int, count: int, bits: int) -> tuple[Ring, Key, Ring, Ring]:
        """(shift, …): x + r = x_s + shift for the server's share x_s of x; the rest as `ClientOffline.comparison`."""


class Package(abc.ABC):
    """An inference's material that was made without the client, waiting to be delivered once."""

    @abc.abstractmethod
    def deliver(self, channel: Channel) -> Material:
        """Send the client's part; returns the server's."""


class Mode(abc.ABC):
    """An offline mode.

    threat_model: whom the privacy of its rows rests on. packages: whether material can be made before a client comes.
    comparisons: who makes the keys of `comparison`; most_bits: the widest input of a ReLU that they are made for.
    """

    name: ClassVar[str]
    threat_model: ClassVar[str]
    packages: ClassVar[bool] = False
    comparisons: ClassVar[str]
    most_bits: ClassVar[int] = BITS

    def check_terms(self, program: Program, relu: Relu) -> None:
        """Raises UserError where the mode cannot make what the ReLU protocol consumes."""
        widths = [(op.bits, layer) for op, layer in zip(program.ops, program.layers, strict=True)
                  if isinstance(op, Activation) and len(op.relus)]  # fmt: skip
        bits, layer = max(widths, default=(0, ""))
        if relu.compares and bits > self.most_bits:
            able = " or ".join(name for name, mode in modes().items() if mode.most_bits >= bits)
            raise UserError(f"ReLU {relu.name} needs keys for m = {bits} bits at {layer}; offline mode {self.name} "
                            f"makes them up to {self.most_bits}: give --offline {able}, or another --relu")  # fmt: skip

    def trust(self, relu: Relu) -> str:
        """Whom the privacy of a row with this ReLU protocol rests on."""
        return f"{self.threat_model}; {self.comparisons}" if relu.compares else self.threat_model

    def package(self, model: Model) -> Package:
        """Material made ahead, where `packages`."""
        raise NotImplementedError(f"offline mode {self.name} needs the client")

    def check(self, model: Model) -> None:  # noqa: B027
        """Raises UserError where the mode cannot run this model."""

    @abc.abstractmethod
    def server(self, channel: Channel, context: bytes, model: Model) -> Any:
        """Set a connection up; context: what both parties have seen of it. Returns the state for `serve`."""

    @abc.abstractmethod
    def client(self, channel: Channel, context: bytes, terms: Terms) -> Any:
        """The other end; returns the state for `fetch`."""

    @abc.abstractmethod
    def serve(self, channel: Channel, state: Any, model: Model) -> Material:
        """Make the material of one inference with the client."""

    @abc.abstractmethod
    def fetch(self, channel: Channel, state: Any, terms: Terms, *, keep_shares: bool = False) -> Material:
        """The client's end of `serve`, or of a package's delivery. keep_shares: for `reference.replay`."""


def modes() -> dict[str, Mode]:
    """Name → mode: every concrete `Mode` in a file of this folder."""
    package = importlib.import_module("parelu.private.offline")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{info.name}")
    return {cls.name: cls() for cls in sorted(Mode.__subclasses__(), key=lambda c: c.name)}
