"""What will pass between the parties: exact bytes and rounds of a program, without its weights.

Each protocol and offline mode says in its own file what its messages are; this walks the program as both parties will,
and counts as their meters do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Activation, Op
from parelu.private.offline.mode import Mode
from parelu.private.protocol.correlations import OfflineTraffic
from parelu.private.protocol.delphi import INPUT, OUTPUT, Terms
from parelu.private.rows import QUERIES
from parelu.private.serving import greeting
from parelu.private.serving.session import COMMAND
from parelu.private.transport.messages import Messages, to_client, to_server

SETUP, OFFLINE, ONLINE = "setup", "offline", "online"
UNCOUNTED = ""  # the phase of a command, which no layer counts

Sent = tuple[str, str, Messages]  # with their phase and layer


class LayerTraffic(NamedTuple):
    """Of a layer in one phase, bytes with their headers. rounds: half of the client's turns from sending to receiving
    and back that its messages begin with; waits: those to receiving, in which it waits for a round trip."""

    phase: str
    layer: str
    to_client: int
    to_server: int
    rounds: float
    waits: int = 0


def traffic(
    terms: Terms, mode: Mode, batch: int = 1, queries: int = QUERIES, lowered: Lowered | None = None
) -> list[LayerTraffic]:
    """Of a query of `batch` images with their offline phases, of which the server opens none, after another query.

    queries, lowered: as `Mode.traffic` takes them, which may raise ValueError.
    """
    offline = mode.traffic(terms.program, queries, lowered)
    return _counted(_query(terms, mode, offline, batch), was_sending=False)


def once(terms: Terms, mode: Mode, queries: int = QUERIES, lowered: Lowered | None = None) -> list[LayerTraffic]:
    """Of a connection before its first inference, of a client that has kept nothing; as `traffic`.

    Base transfers and keys are made anew after `serving.session.RENEWED` inferences.
    """
    offline = mode.traffic(terms.program, queries, lowered)
    return _counted(_connection(terms, mode, offline), was_sending=None)


def total(layers: Iterable[LayerTraffic], *phases: str) -> LayerTraffic:
    """Of all layers in these phases, or in all."""
    counted = [layer for layer in layers if not phases or layer.phase in phases]
    down, up, rounds, waits = (
        (sum(values) for values in zip(*(layer[2:] for layer in counted), strict=True)) if counted else (0, 0, 0.0, 0)
    )
    return LayerTraffic(", ".join(phases), "", int(down), int(up), rounds, int(waits))


def _counted(sent: Iterable[Sent], *, was_sending: bool | None) -> list[LayerTraffic]:
    """was_sending: of the client, before; None at the start of a connection."""
    found: dict[tuple[str, str], list[int]] = {}
    for phase, layer, messages in sent:
        is_sending = not messages.to_client
        counts = found.setdefault((phase, layer), [0, 0, 0, 0])
        counts[is_sending] += messages.bytes
        counts[2] += is_sending != was_sending
        counts[3] += is_sending != was_sending and not is_sending
        was_sending = is_sending
    return [
        LayerTraffic(phase, layer, down, up, turns / 2, waits)
        for (phase, layer), (down, up, turns, waits) in found.items()
        if phase != UNCOUNTED
    ]


def _connection(terms: Terms, mode: Mode, offline: OfflineTraffic) -> Iterator[Sent]:
    for messages in greeting.traffic(terms, mode, offline.digest):
        yield SETUP, "handshake", messages
    yield UNCOUNTED, "", to_server(COMMAND.size)
    yield from offline.connection()


def _query(terms: Terms, mode: Mode, offline: OfflineTraffic, batch: int) -> Iterator[Sent]:
    """As `serving.session.Session.prepare` and `infer`."""
    yield UNCOUNTED, "", to_server(COMMAND.size)
    for _ in range(batch):
        for layer, messages in _prepared(terms, offline):
            yield OFFLINE, layer, messages
        if mode.audits:
            yield OFFLINE, "audit", to_client(1)
    yield ONLINE, "request", to_server(COMMAND.size)
    for layer, messages in _inferred(terms, batch):
        yield ONLINE, layer, messages


def _prepared(terms: Terms, offline: OfflineTraffic) -> Iterator[tuple[str, Messages]]:
    """As `protocol.delphi.prepare_client`."""
    program = terms.program
    yield from offline.inference()
    for number, (op, layer) in enumerate(zip(program.ops, program.layers, strict=True), start=1):
        for messages in _of_op(terms, offline, number, op):
            yield layer, messages
    for messages in terms.reveal.prepare_traffic(offline, program.classes, program.output_bits):
        yield OUTPUT, messages


def _of_op(terms: Terms, offline: OfflineTraffic, number: int, op: Op) -> Iterator[Messages]:
    program = terms.program
    if op.is_secret:
        yield from offline.linear(number, math.prod(program.shapes[number]))
    elif isinstance(op, Activation):
        if len(op.relus):
            _, cut = terms.reads(op)
            yield from terms.relu.prepare_traffic(offline, len(op.relus), op.bits, cut, program.ring)
        if len(op.squares):
            yield from offline.square(len(op.squares))


def _inferred(terms: Terms, batch: int) -> Iterator[tuple[str, Messages]]:
    """As `protocol.delphi.infer_client`."""
    program, relu = terms.program, terms.relu
    yield INPUT, to_server(8 * batch * math.prod(program.input_shape))
    for op, layer in zip(program.ops, program.layers, strict=True):
        if isinstance(op, Activation):
            answer, (_, cut) = 8 * len(op.squares), terms.reads(op)
            if len(op.relus):
                opened = relu.open_bytes(len(op.relus), op.bits, cut, program.ring)
                yield layer, to_client(batch * opened, batch)
                answer += relu.answer_bytes(len(op.relus), cut)
            if len(op.squares):
                yield layer, to_client(batch * 8 * len(op.squares), batch)
            yield layer, to_server(batch * answer)
    revealed = terms.reveal.open_bytes(program.classes, program.output_bits)
    yield OUTPUT, to_client(batch * revealed, batch)
