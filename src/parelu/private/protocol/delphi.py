"""The `delphi` engine: all that does not need the image happens offline; online, only ReLUs and squares cost.

Throughout, the client's share of every value is known before the image is (Mishra et al. 2020). Online the client
sends x − r once; the server computes linear layers on its share at plaintext speed; each activation is one
round trip in which the client's share becomes a mask that it drew offline.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu.errors import UserError
from parelu.private.crypto.codec import Encodable, dump, load
from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.ring import Elements, LinearMap, encode
from parelu.private.lowering.encode import bias_of, linear_map
from parelu.private.lowering.lowered import Integers, Lowered
from parelu.private.lowering.ops import Activation, Conv, Op, Shift, Truncate, local, sources
from parelu.private.lowering.program import Program
from parelu.private.protocol.correlations import ClientOffline, ServerOffline
from parelu.private.protocol.relu import Relu, relus
from parelu.private.protocol.reveal import Reveal
from parelu.private.transport.channel import Channel, elements_of

Measure = Callable[[str], contextlib.AbstractContextManager[None]]  # of a layer's name
INPUT, OUTPUT = "input", "output"
LOCAL = "local"  # the layer of all that a party does on its own between the others
TRUNCATIONS = ("local", "exact")
_GONE = np.zeros(0, np.uint64)
MOST_PREPARED, PREPARED_RELUS = 256, 1_000_000  # each of these ReLUs takes some 50 to 130 B of the server's memory


def unmeasured(layer: str) -> contextlib.AbstractContextManager[None]:
    """Measures nothing."""
    return contextlib.nullcontext()


def check_truncation(truncation: str, relu: Relu) -> None:
    """Raises UserError where there is no such truncation, or the ReLU protocol has it not."""
    if truncation not in TRUNCATIONS:
        raise UserError(f"unknown truncation {truncation[:20]!r}; known are {', '.join(TRUNCATIONS)}")
    if truncation == "exact" and not relu.truncates:
        able = " or ".join(name for name, other in relus().items() if other.truncates)
        raise UserError(f"ReLU {relu.name} does not truncate exactly: give --relu {able}, or --truncation local")


@dataclasses.dataclass(frozen=True, eq=False)
class Terms:
    """What both parties agree on before they start.

    truncation: "local", each party on its own share, 1 off in a way that depends on the client's share; or "exact",
    inside the ReLUs that read a truncation, where it tells the client nothing. Identities and squares are local.
    Raises UserError where the ReLU protocol does not truncate exactly.
    """

    program: Program
    relu: Relu
    reveal: Reveal
    truncation: str = "local"

    def __post_init__(self) -> None:
        check_truncation(self.truncation, self.relu)
        self.reveal.check(self.program)

    @property
    def truncated_locally(self) -> int:
        """Values of an inference that each party truncates on its own share; with "exact" those that no ReLU reads."""
        ops, shapes = self.program.ops, self.program.shapes
        exact: collections.Counter[int] = collections.Counter()
        readers = collections.Counter(value for op in ops for value in sources(op))
        for op in ops:
            if isinstance(op, Activation) and self.reads(op)[1] and readers[op.source] == 1:
                exact[op.source] += len(op.relus)
        truncated = (
            math.prod(shapes[number]) - exact[number]
            for number, op in enumerate(ops, start=1)
            if isinstance(op, Truncate)
        )
        return sum(truncated) + self.program.squares

    def reads(self, op: Activation) -> tuple[int, int]:
        """(number of the value that its ReLUs read, bits by which they truncate it)."""
        before = self.program.ops[op.source - 1] if op.source else None
        if self.truncation == "exact" and isinstance(before, Truncate):
            return before.source, before.bits
        return op.source, 0

    @property
    def most_prepared(self) -> int:
        """Inferences whose offline material one connection may hold."""
        return max(1, min(MOST_PREPARED, PREPARED_RELUS // max(1, self.program.relus)))


class Model:
    """What the server has: the terms, the secret integers, and the linear layers ready to apply.

    made: by the name of an offline mode, what it makes once.
    """

    def __init__(self, lowered: Lowered, relu: Relu, reveal: Reveal, truncation: str = "local") -> None:
        self.lowered, self.terms = lowered, Terms(lowered.program, relu, reveal, truncation)
        ops = enumerate(lowered.program.ops, start=1)
        weights, ring = lowered.weights, lowered.program.ring
        self.maps = {number: linear_map(op, weights[number - 1], ring) for number, op in ops if op.is_secret}
        self.followers = _followers(lowered.program, self.maps)
        self.made: dict[str, Any] = {}


def _followers(program: Program, maps: Mapping[int, Callable[[Elements], Elements]]) -> dict[int, dict[int, LinearMap]]:
    """Activation → the convolutions that read it, where it is sparse enough to apply them in two parts."""
    numbered = list(enumerate(program.ops, start=1))
    convs = {
        n: (op, map_)
        for n, op in numbered
        if isinstance(op, Conv) and op.groups == 1 and isinstance(map_ := maps[n], LinearMap)
    }
    return {
        number: {reader: map_ for reader, (conv, map_) in convs.items() if conv.source == number}
        for number, op in numbered
        if isinstance(op, Activation)
        and len(op.relus) + len(op.squares) <= kernels.SPARSE * math.prod(program.shapes[number])
    }


class Material:
    """What one inference consumes; it can be taken once."""

    def __init__(self, content: Any) -> None:
        self._content = content

    @classmethod
    def load(cls, body: bytes) -> Material:
        """The inverse of `dump`."""
        return cls(load(body))

    def dump(self) -> bytes:
        """The content as bytes, taken: what is on disk is no longer here."""
        return dump(self.take())

    def take(self) -> Any:
        """The content, the first time; raises RuntimeError after that."""
        content, self._content = self._content, None
        if content is None:
            raise RuntimeError("offline material must not be used twice")
        return content


@dataclasses.dataclass(frozen=True, eq=False)
class _Squares(Encodable, kind="squares"):
    offset: Elements  # the client's mask of the output; the server's shift of the opening
    u: Elements
    v: Elements


@dataclasses.dataclass(frozen=True, eq=False)
class _ClientMaterial(Encodable, kind="inference, client"):
    mask: Elements  # of the input
    relus: Mapping[int, Any]
    squares: Mapping[int, _Squares]
    output: Any


@dataclasses.dataclass(frozen=True, eq=False)
class _ServerMaterial(Encodable, kind="inference, server"):
    summands: Mapping[int, Elements]  # of secret ops: the share of the product, and the bias
    relus: Mapping[int, Any]
    squares: Mapping[int, _Squares]
    output: Any


def _walk(program: Program, first_value: Elements, make: Callable[[int, Op, Sequence[Elements]], Elements]) -> Elements:
    """One party's share of the last value; `make` gives those of secret ops, shifts, truncations and activations, given
    the number, the op, and the values before it."""
    values = [first_value]
    for number, op in enumerate(program.ops, start=1):
        if op.is_secret or isinstance(op, (Truncate, Activation, Shift)):
            values.append(make(number, op, values))
        else:
            values.append(local(op, *(values[i] for i in sources(op))))
        for value in program.done_after[number - 1]:
            values[value] = _GONE
    return values[-1]


def prepare_client(terms: Terms, offline: ClientOffline, measure: Measure = unmeasured) -> Material:
    """The client's offline phase."""
    return _ClientWalk(terms, offline, measure).material()


class _ClientWalk:
    """The client goes through the program with its shares, and keeps what it will need online."""

    def __init__(self, terms: Terms, offline: ClientOffline, measure: Measure) -> None:
        self.terms, self.offline, self.measure = terms, offline, measure
        self.relus: dict[int, Any] = {}
        self.squares: dict[int, _Squares] = {}

    def material(self) -> Material:
        program, reveal = self.terms.program, self.terms.reveal
        mask = self.offline.stream(0, "mask").elements(1, *program.input_shape)
        with self.measure(LOCAL):
            last = program.ring.reduce(_walk(program, mask, self._share))[0]
        with self.measure(OUTPUT):
            first = self.offline.numbers(reveal.instances(program.classes))
            number = len(program.ops) + 1
            output = reveal.prepare_client(self.offline, number, first, last, program.output_bits)
        return Material(_ClientMaterial(mask, self.relus, self.squares, output))

    def _share(self, number: int, op: Op, values: Sequence[Elements]) -> Elements:
        """Of the value that the op makes of these shares."""
        source, program = values[op.source], self.terms.program
        if isinstance(op, Truncate):
            return program.ring.truncate_client(source, op.bits)
        if isinstance(op, Shift):
            return source
        shape = (1, *program.shapes[number])
        with self.measure(program.layers[number - 1]):
            if isinstance(op, Activation):
                return self._activation(number, op, values).reshape(shape)
            return self.offline.linear(number, op, source, math.prod(shape)).reshape(shape)

    def _activation(self, number: int, op: Activation, values: Sequence[Elements]) -> Elements:
        flat, ring = values[op.source].reshape(-1), self.terms.program.ring
        out = flat.copy()
        if len(op.relus):
            first = self.offline.numbers(len(op.relus))
            read, cut = self.terms.reads(op)
            share = values[read].reshape(-1)[op.relus]
            ready = self.terms.relu.prepare_client(self.offline, number, first, share, op.bits, cut, ring)
            self.relus[number] = ready
            out[op.relus] = ready.mask
        if len(op.squares):
            fresh = self.offline.stream(number, "square mask").elements(len(op.squares))
            self.squares[number] = _Squares(fresh, *self.offline.square(number, flat[op.squares]))
            out[op.squares] = fresh
        return out


def prepare_server(model: Model, offline: ServerOffline, measure: Measure = unmeasured) -> Material:
    """The server's offline phase."""
    return _ServerWalk(model, offline, measure).material()


class _ServerWalk:
    """The server goes through the program without any share, and keeps what it will need online."""

    def __init__(self, model: Model, offline: ServerOffline, measure: Measure) -> None:
        self.model, self.offline, self.measure = model, offline, measure
        self.summands: dict[int, Elements] = {}
        self.relus: dict[int, Any] = {}
        self.squares: dict[int, _Squares] = {}

    def material(self) -> Material:
        program, reveal = self.model.terms.program, self.model.terms.reveal
        for number, op in enumerate(program.ops, start=1):
            with self.measure(program.layers[number - 1]):
                self._prepare(number, op, self.model.lowered.weights.get(number - 1, {}))
        with self.measure(OUTPUT):
            first = self.offline.numbers(reveal.instances(program.classes))
            number = len(program.ops) + 1
            output = reveal.prepare_server(self.offline, number, first, program.classes, program.output_bits)
        return Material(_ServerMaterial(self.summands, self.relus, self.squares, output))

    def _prepare(self, number: int, op: Op, integers: Integers) -> None:
        program, relu = self.model.terms.program, self.model.terms.relu
        if op.is_secret:
            shape = program.shapes[number]
            bias = np.broadcast_to(encode(bias_of(op, integers)), shape)
            self.summands[number] = self.offline.linear(number, op).reshape(shape) + bias
        elif isinstance(op, Activation):
            if len(op.relus):
                first, count = self.offline.numbers(len(op.relus)), len(op.relus)
                _, cut = self.model.terms.reads(op)
                ready = relu.prepare_server(self.offline, number, first, count, op.bits, cut, program.ring)
                self.relus[number] = ready
            if len(op.squares):
                c1, c2 = (encode(integers[name]) for name in ("c1", "c2"))
                self.squares[number] = _Squares(*self.offline.square(number, c1, c2))


def infer_client(channel: Channel, terms: Terms, materials: Sequence[Material], images: NDArray[np.int64]) -> Elements:
    """The client's online phase; images of one query share its rounds, and have a material each.

    images: integers (N, C, H, W) from `program.low` to `program.high`, checked by the caller. Returns what the terms
    reveal: the last values, all bits or the high ones, (N, classes), or the labels, (N, 1), as elements of its ring.
    Raises NoResult where one of the answers cannot be the network's.
    """
    program: Program = terms.program
    contents: list[_ClientMaterial] = [material.take() for material in materials]
    with channel.measured("online", INPUT):
        masks = np.concatenate([content.mask for content in contents])
        channel.send("inpt", encode(images) - masks)
    for number, op in enumerate(program.ops, start=1):
        if isinstance(op, Activation):
            with channel.measured("online", program.layers[number - 1]):
                answers = [_answer(channel, terms, number, op, content) for content in contents]
                channel.send("mask", *itertools.chain(*answers))
    with channel.measured("online", OUTPUT):
        revealed = program.ring.reduce(np.stack([terms.reveal.answer(channel, content.output) for content in contents]))
    terms.reveal.check_answer(program, program.ring.decode(revealed))
    return revealed


def _answer(channel: Channel, terms: Terms, number: int, op: Activation, content: _ClientMaterial) -> list[Any]:
    answers: list[Any] = []
    if len(op.relus):
        answers += terms.relu.answer(channel, content.relus[number])
    if len(op.squares):
        square = content.squares[number]
        opened = elements_of(channel.receive("sqre", 8 * len(op.squares)))
        share = terms.program.ring.truncate_client(opened * square.u + square.v, op.truncation)
        answers.append(share - square.offset)
    return answers


def infer_server(channel: Channel, model: Model, materials: Sequence[Material]) -> None:
    """The server's online phase, for as many images as materials."""
    terms, program = model.terms, model.terms.program
    contents: list[_ServerMaterial] = [material.take() for material in materials]
    ahead: dict[int, Elements] = {}
    shape = (len(contents), *program.input_shape)
    with channel.measured("online", INPUT):
        share = elements_of(channel.receive("inpt", 8 * math.prod(shape))).reshape(shape)

    def make(number: int, op: Op, values: Sequence[Elements]) -> Elements:
        source = values[op.source]
        if isinstance(op, Truncate):
            return program.ring.truncate_server(source, op.bits)
        if isinstance(op, Shift):
            return source + encode(model.lowered.weights[number - 1]["bias"])
        with channel.measured("online", program.layers[number - 1]):
            if isinstance(op, Activation):
                return _activate(channel, model, number, op, contents, values, ahead)
            product = ahead.pop(number) if number in ahead else model.maps[number](source)
            return product + np.stack([content.summands[number] for content in contents])

    with channel.measured("online", LOCAL):
        last = program.ring.reduce(_walk(program, share, make))
    with channel.measured("online", OUTPUT):
        for content, values in zip(contents, last, strict=True):
            terms.reveal.open(channel, content.output, values)


def _activate(
    channel: Channel,
    model: Model,
    number: int,
    op: Activation,
    contents: Sequence[_ServerMaterial],
    values: Sequence[Elements],
    ahead: dict[int, Elements],
) -> Elements:
    """The server's shares of the activation's outputs; values: its shares of those before.

    While the client works on its answer, the convolutions that follow are applied to the identity positions, whose
    shares are known; `ahead` gets their products, complete when this returns.
    """
    (read, cut), program = model.terms.reads(op), model.terms.program
    layers, shares = program.layers, values[op.source].copy()
    flat = shares.reshape(len(shares), -1)
    at_relus, at_squares = values[read].reshape(len(shares), -1)[:, op.relus], flat[:, op.squares]
    opens = [
        _open(channel, model.terms.relu, number, op, content, *at)
        for content, *at in zip(contents, at_relus, at_squares, strict=True)
    ]
    flat[:, op.relus] = flat[:, op.squares] = 0
    followers = model.followers.get(number, {})
    for follower, map_ in followers.items():
        with channel.measured("online", layers[follower - 1]):
            ahead[follower] = map_(shares)
    relus_due = model.terms.relu.answer_bytes(len(op.relus), cut) if len(op.relus) else 0
    answers = channel.receive("mask", len(shares) * (relus_due + 8 * len(op.squares))).reshape(len(shares), -1)
    for index, (content, (compared, opened), answer) in enumerate(zip(contents, opens, answers, strict=True)):
        if len(op.relus):
            flat[index, op.relus] = model.terms.relu.close(content.relus[number], compared, answer[:relus_due])
        if len(op.squares):
            integers, square = model.lowered.weights[number - 1], content.squares[number]
            found = program.ring.truncate_server(_square(integers, square, opened), op.truncation)
            flat[index, op.squares] = found + elements_of(answer[relus_due:])
    positions = np.concatenate([op.relus, op.squares])
    for follower, map_ in followers.items():
        with channel.measured("online", layers[follower - 1]):
            for out, share in zip(ahead[follower], flat, strict=True):
                map_.add(out[None], shares.shape[1:], positions, share[positions])
    return shares


def _open(
    channel: Channel,
    relu: Relu,
    number: int,
    op: Activation,
    content: _ServerMaterial,
    at_relus: Elements,
    at_squares: Elements,
) -> tuple[Any, Elements]:
    """Send what one image's activation opens; returns what closes its ReLUs, and x − a of its squares."""
    compared, opened = None, at_squares
    if len(op.relus):
        compared = relu.open(channel, content.relus[number], at_relus)
    if len(op.squares):
        opened = at_squares + content.squares[number].offset
        channel.send("sqre", opened)
    return compared, opened


def _square(integers: Integers, square: _Squares, opened: Elements) -> Elements:
    """The server's share of c0 + c1·x + c2·x², not truncated."""
    c0, c1, c2 = (encode(integers[name]) for name in ("c0", "c1", "c2"))
    return c0 + opened * (c1 + opened * c2) + opened * square.u + square.v
