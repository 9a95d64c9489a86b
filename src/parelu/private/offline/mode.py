"""The contract of an offline mode: who makes the correlations, and whom that trusts."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from parelu import registry
from parelu.errors import ProtocolError, UserError
from parelu.private.crypto.ring import Ring
from parelu.private.lowering.layers import layers
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Activation
from parelu.private.lowering.program import Program
from parelu.private.protocol.correlations import ClientOffline, OfflineTraffic
from parelu.private.protocol.delphi import Material, Model, Terms
from parelu.private.protocol.relu import Relu
from parelu.private.transport.channel import Channel

Features = Mapping[str, float]  # kind of work → how much of it

UNASKED = contextlib.nullcontext()
DEFAULT = "hints"


Progress = Callable[[int, int], None]  # bytes that are done, and of how many


def silent(done: int, total: int) -> None:
    """No progress."""


@dataclasses.dataclass
class Keep:
    """What a party brings to a mode that makes and sends something once.

    queries: inferences that a client expects to ask for. folder: where it is kept, None for memory alone; alone: that
    a server's folder is one model's, so that what is left there of others is dropped. progress: of making or sending
    it. notice: is told in one line what went wrong without harm. loaded: what a client has in memory, by digest.
    """

    queries: int = 1
    folder: Path | None = None
    progress: Progress = silent
    notice: Callable[[str], None] = lambda line: None
    loaded: dict[str, Any] = dataclasses.field(default_factory=dict)
    alone: bool = False


class Deviation(ProtocolError):
    """The client's messages of an offline phase were not those of an honest one."""


class Unanswered(ProtocolError):
    """The client stopped where it was asked to show that it is honest."""


class Package(abc.ABC):
    """An inference's material that was made without the client, waiting to be delivered once."""

    @abc.abstractmethod
    def deliver(self, channel: Channel) -> Material:
        """Send the client's part; returns the server's."""


class Mode(abc.ABC):
    """An offline mode.

    threat_model: whom the privacy of its rows rests on; third_party: whether that is anybody but the two.
    ring_bits: of the widest ring that it computes in, which programs for it are made for.
    packages: whether material can be made before a client comes.
    relus_by: by what the correlations of ReLUs are made, where several modes do that alike; "" for a way of its own.
    comparisons: who makes the keys of `comparison`; most_bits: the widest input of a ReLU that they are made for.
    audits: whether a phase can be opened when it is over: the client shows what it drew, the server checks that its
    messages were honest, and both drop the phase's material.
    """

    name: ClassVar[str]
    threat_model: ClassVar[str]
    third_party: ClassVar[bool] = True  # unless it says otherwise: clients accept such a mode by its name alone
    ring_bits: ClassVar[int] = 64
    packages: ClassVar[bool] = False
    audits: ClassVar[bool] = False
    relus_by: ClassVar[str] = ""
    comparisons: ClassVar[str]
    most_bits: ClassVar[int] = 64

    def check_terms(self, program: Program, relu: Relu) -> None:
        """Raises UserError where the mode does not compute in the program's ring, or cannot make what the ReLU protocol
        consumes."""
        if program.ring.bits > self.ring_bits:
            able = " or ".join(name for name, mode in modes().items() if mode.ring_bits >= program.ring.bits)
            raise UserError(
                f"the program's ring has {program.ring.bits} bits; offline mode {self.name} computes in at most "
                f"{self.ring_bits}: give --offline {able}, or lower the network again for {self.name}"
            )
        widths = [
            (op.bits, layer)
            for op, layer in zip(program.ops, program.layers, strict=True)
            if isinstance(op, Activation) and len(op.relus)
        ]
        bits, layer = max(widths, default=(0, ""))
        if relu.compares and bits > self.most_bits:
            able = " or ".join(name for name, mode in modes().items() if mode.most_bits >= bits)
            raise UserError(
                f"ReLU {relu.name} needs keys for m = {bits} bits at {layer}; offline mode {self.name} "
                f"makes them up to {self.most_bits}: give --offline {able}, or another --relu"
            )

    def trust(self, relu: Relu) -> str:
        """Whom the privacy of a row with this ReLU protocol rests on."""
        return f"{self.threat_model}; {self.comparisons}" if relu.compares else self.threat_model

    def package(self, model: Model) -> Package:
        """Material made ahead, where `packages`."""
        raise NotImplementedError(f"offline mode {self.name} needs the client")

    def check(self, model: Model) -> None:  # noqa: B027
        """Raises UserError where the mode cannot run this model."""

    def make(self, model: Model, keep: Keep | None = None) -> str:
        """Make what the mode makes once for a model, or take what was kept; the digest that clients pin.

        "" where it makes nothing. What was made is kept with the model, so that to ask again costs nothing.
        """
        return ""

    def sizes(self, model: Model) -> tuple[int, ...]:
        """Bytes of what `make` makes for clients, of which each gets one: for the fewest queries first."""
        return ()

    def work(self, program: Program, queries: int) -> tuple[Features, Features]:
        """What the client and the server do in one offline phase but for the ReLUs, by names of the mode's own: seconds
        are predicted from it (`parelu.private.cost`). queries: that the client expects to ask for."""
        outputs = sum(math.prod(program.shapes[n]) for n, op in enumerate(program.ops, start=1) if op.is_secret)
        both = {f"{self.name}: square": float(program.squares), f"{self.name}: output": float(outputs)}
        shapes = [layer.shape for layer in layers(program)]
        columns = sum(math.prod(s.kernel) * math.prod(s.output_size) * s.inputs for s in shapes)
        once = {
            f"{self.name}: multiply-add": float(sum(s.macs for s in shapes)),
            f"{self.name}: column": float(columns),
        }
        return both, {**both, **once}

    @abc.abstractmethod
    def traffic(self, program: Program, queries: int, lowered: Lowered | None = None) -> OfflineTraffic:
        """What it sends, of a client that expects so many inferences.

        lowered: with it the bytes are exact; else weights are as large as they mostly are. Raises ValueError where the
        mode cannot run the program.
        """

    @abc.abstractmethod
    def server(self, channel: Channel, context: bytes, model: Model) -> Any:
        """Set a connection up; context: what both parties have seen of it. Returns the state for `serve`."""

    @abc.abstractmethod
    def client(self, channel: Channel, context: bytes, terms: Terms, digest: str, keep: Keep) -> Any:
        """The other end; returns the state for `fetch`. digest: as the server's `make` gave it, by its offer."""

    @abc.abstractmethod
    def serve(
        self,
        channel: Channel,
        state: Any,
        model: Model,
        *,
        audited: bool = False,
        asking: AbstractContextManager[None] = UNASKED,
    ) -> Material:
        """Make the material of one inference with the client.

        audited: keep of the client's messages what `audit` needs; the client must not be able to tell. asking: entered
        while the client is asked to show something in every phase: what is raised in it counts.
        """

    @abc.abstractmethod
    def fetch(self, channel: Channel, state: Any) -> ClientOffline:
        """The client's end of `serve`, or of a package's delivery: what `prepare_client` asks of the server."""

    def audit(self, channel: Channel, state: Any, model: Model) -> None:
        """Right after `serve(audited=True)`, where `audits`: check the client's messages with what it shows.

        The phase's material must never be used. Raises Deviation where they were not an honest client's.
        """
        raise NotImplementedError(f"offline mode {self.name} cannot be audited")

    def show(self, channel: Channel, state: Any) -> None:
        """The client's end of `audit`, for the phase of the last `fetch`, whose material must never be used."""
        raise NotImplementedError(f"offline mode {self.name} cannot be audited")


def modes() -> dict[str, Mode]:
    """Name → mode: those in `parelu.private.offline`, and those of plugins."""
    return registry.instances(Mode, "parelu.private.offline")


def ring_for(offline: str) -> Ring:
    """The ring of programs that are made for this offline mode."""
    return Ring(modes()[offline].ring_bits)
