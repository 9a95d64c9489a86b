"""The offline phase with hints between two parties: products, noise, secrets that are used once, audits, refusals."""

import contextlib
import copy
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_programs import Hand
from hypothesis import given, settings
from hypothesis import strategies as st
from lattice_integers import signed, values
from two_parties import NARROW, WIDE, Ends, Pair, Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError, UserError
from parelu.private.crypto.lattice import parameters, scheme
from parelu.private.crypto.lattice.parameters import DEGREE, FLOOD_BITS, KEPT, PRIMES, Q_KEPT, RANK, P, Q
from parelu.private.crypto.lattice.residues import message, pack, reduce, unpack
from parelu.private.crypto.lattice.transforms import forward, inverse
from parelu.private.crypto.prg import SEED_BYTES, Stream, fresh_seed
from parelu.private.lowering import reference
from parelu.private.lowering.lowered import Lowered
from parelu.private.offline import hint_exchange, hint_secrets, hints
from parelu.private.offline.hint_exchange import WANT
from parelu.private.offline.hint_sets import Use, uses
from parelu.private.offline.hints import Hints
from parelu.private.offline.mode import Deviation, Keep, Unanswered
from parelu.private.protocol.delphi import Model, prepare_client
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.transport.channel import HEADER, Channel

MODE = Hints()
ROOT = Path(__file__).parents[3]
CANDIDATES = 3  # of a query's secrets here: each takes its time
pytestmark = pytest.mark.usefixtures("two_sets", "few_candidates", "known_base_transfers")


@pytest.fixture
def few_candidates(monkeypatch):
    monkeypatch.setattr(hint_secrets, "CANDIDATES", CANDIDATES)


ALL, ANSWERED = range(len(PRIMES)), range(len(KEPT))


def block(ring=WIDE, largest=60, seed=0) -> Lowered:
    """A block whose shortcut has an upload of its own, which comes after that of a later layer; and 5 logits."""
    hand = Hand((3, 8, 8), ring, seed, largest)
    first = hand.activation(hand.truncate(hand.conv(0, 4, stride=2)), 0.3, 0.1)
    second, shortcut = hand.conv(first, 32), hand.conv(0, 32, kernel=1, stride=2, padding=0)
    hand.linear(hand.pool(hand.activation(hand.truncate(hand.add(second, shortcut)), 0.02)), 5)
    return hand.lowered()


def tiled(ring=WIDE) -> Lowered:
    """A map of 64 × 64 in three tiles, read by two layers, and a map with an odd number of coefficients."""
    hand = Hand((1, 64, 64), ring)
    first = hand.truncate(hand.conv(0, 2))
    other = hand.truncate(hand.conv(0, 2, kernel=1, padding=0))
    second = hand.activation(hand.pool(hand.concat(first, other), 8, 8), 0.2)
    third = hand.truncate(hand.conv(second, 3, kernel=2, padding=0))
    hand.linear(hand.multiply(hand.activation(third, 0.3)), 5)
    return hand.lowered()


def grouped(ring=WIDE) -> Lowered:
    """Groups, kernels beyond the map, a matrix on a matrix, factors of single values, squares."""
    hand = Hand((4, 5, 5), ring)
    first = hand.truncate(hand.conv(0, 6, groups=2))
    second = hand.activation(hand.truncate(hand.conv(first, 6, kernel=5, padding=2, groups=6)), 0.2, 0.3)
    third = hand.truncate(hand.multiply(hand.concat(second, first)))
    hand.linear(hand.activation(hand.truncate(hand.linear(third, 17)), 0.5, 0.3), 5)
    return hand.lowered()


def odd() -> Lowered:
    """Uploads and answers of odd numbers of residues."""
    hand = Hand((1, 3, 3))
    first = hand.conv(0, 3, kernel=1, padding=0)
    second = hand.conv(first, 3, kernel=3, padding=0)
    third = hand.linear(second, 3)
    hand.linear(third, 5)
    return hand.lowered()


PROGRAMS = {"block": block, "tiled": tiled, "grouped": grouped}


def model_of(lowered: Lowered) -> Model:
    return Model(lowered, relus()["sign"], reveal_of("label"))


BLOCK, SMALL = block(), model_of(odd())
MODEL = model_of(BLOCK)


class Edited(Channel):
    """What is sent passes `edit`, given its kind and how many of the kind were sent before; `kinds`: all that were;
    `changed`: those that the edit changed."""

    def __init__(self, channel: Channel, edit: Callable[[str, int, bytes], bytes]) -> None:
        super().__init__(channel.socket, channel.timeout)
        self.edit, self.kinds = edit, []
        self.changed: set[tuple[str, int]] = set()

    def send(self, kind: str, *parts: Any) -> None:
        body = b"".join(part.tobytes() if isinstance(part, np.ndarray) else bytes(part) for part in parts)
        edited = self.edit(kind, self.kinds.count(kind), body)
        if edited != body:
            self.changed.add((kind, self.kinds.count(kind)))
        self.kinds.append(kind)
        super().send(kind, edited)


STARTED = ["cmit", "open", "beta"]  # by a client, at the beginning of a query


def unchanged(kind: str, index: int, body: bytes) -> bytes:
    return body


def at(kind: str, index: int, change: Callable[[bytes], bytes]) -> Callable[[str, int, bytes], bytes]:
    """An edit of one message."""
    return lambda sent, number, body: change(body) if (sent, number) == (kind, index) else body


def bit(place: int) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        changed = bytearray(body)
        changed[place] ^= 1
        return bytes(changed)

    return change


class Phases:
    """Offline phases of a connection.

    from_client, from_server: edits. audited: of each phase, whether it is opened. products: for each phase, number of a
    linear op → what it was asked to multiply, the client's share of the product, the server's. shown: seeds of
    the secrets of each phase; opened: of those that were not chosen.
    """

    def __init__(
        self, model: Model, *, audited=(False,), from_client=unchanged, from_server=unchanged, digest="", keep=None
    ) -> None:
        offered = MODE.make(model)
        self.products: list[dict[int, Any]] = [{} for _ in audited]
        self.shown: list[bytes] = []
        self.opened: list[bytes] = []
        self.from_server: list[tuple[str, int, bytes]] = []
        self.rounds = 0

        def client(channel: Channel) -> None:
            self.client_channel = Edited(channel, lambda *sent: from_client(*self._seen(*sent)))
            state = MODE.client(self.client_channel, bytes(32), model.terms, digest or offered, keep or Keep())
            self.client = state
            for opened, found in zip(audited, self.products, strict=True):
                own = MODE.fetch(self.client_channel, state)
                with noted(own, found, lambda share, count: (share.reshape(-1).copy(),)):
                    prepare_client(model.terms, own)
                self.shown.append(own.show())
                if opened:
                    MODE.show(self.client_channel, state)

        def server(channel: Channel) -> None:
            self.server_channel = Edited(channel, lambda *sent: (self.from_server.append(sent), from_server(*sent))[1])
            state = self.server = MODE.server(self.server_channel, bytes(32), model)
            for opened, found in zip(audited, self.products, strict=True):
                with noted(state, found, lambda: ()):
                    MODE.serve(self.server_channel, state, model, audited=opened)
                if opened:
                    MODE.audit(self.server_channel, state, model)
                self.rounds += 1

        self.results = Ends(client, server).results

    def _seen(self, kind: str, index: int, body: bytes) -> tuple[str, int, bytes]:
        if kind == "open":
            self.opened += [body[i : i + SEED_BYTES] for i in range(0, len(body), SEED_BYTES)]
        return kind, index, body

    def passed(self) -> "Phases":
        assert self.results == {"client": None, "server": None}
        return self


@contextlib.contextmanager
def noted(state: Any, found: dict[int, Any], asked: Callable[..., tuple[Any, ...]]) -> Iterator[None]:
    """Note a state's linear products; client and server add to one entry, the client's in front."""
    linear = state.linear

    def noting(number, op, *rest):
        result = linear(number, op, *rest)
        before = found.get(number, ())
        entry = (*asked(*rest), result.copy())
        found[number] = (*entry, *before) if len(entry) == 2 else (*before, *entry)
        return result

    state.linear = noting
    try:
        yield
    finally:
        del state.linear


def times(lowered: Lowered, number: int, share: Any) -> Any:
    """W·share modulo 2^64, by the reference."""
    op = lowered.program.ops[number - 1]
    x = share.view(np.int64).reshape(1, *lowered.program.shapes[op.source])
    return reference._modular_products(op, lowered.weights[number - 1]["weight"], x).reshape(-1).view(np.uint64)


# What is computed


@pytest.mark.parametrize("ring", [NARROW, WIDE])
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("queries", [1, 1000])
def test_shares_of_each_product_add_up_to_it(name, queries, ring):
    lowered = PROGRAMS[name](ring)
    phases = Phases(model_of(lowered), audited=(False, True), keep=Keep(queries)).passed()
    secret = [number for number, op in enumerate(lowered.program.ops, start=1) if op.is_secret]
    for found in phases.products:
        assert sorted(found) == secret
        for number, (share, ours, theirs) in found.items():
            np.testing.assert_array_equal(ours + theirs, times(lowered, number, share))
    first, second = phases.products
    assert all((first[number][2] != second[number][2]).all() for number in secret), "masks are of one query"


def test_the_programs_have_what_is_hard():
    plans = {name: [use.plan for use in uses(make().program, "")] for name, make in PROGRAMS.items()}
    readers = {name: [r for plan in found for r in plan.readers.values()] for name, found in plans.items()}
    assert max(upload.tiles for upload in plans["tiled"][-1].uploads) == 3
    assert {r.per_row > 1 for name in readers for r in readers[name]} == {False, True}
    assert {r.merged > 1 for r in readers["grouped"]} == {False, True}
    assert any(len(upload.layers) == 2 for upload in plans["tiled"][-1].uploads)
    assert any(len(upload.coefficients) < upload.points for upload in plans["block"][-1].uploads)
    orders = [[use.upload_of[number] for number in sorted(use.plan.readers)] for use in uses(BLOCK.program, "")]
    assert all(order != sorted(order) for order in orders), "an upload comes before one with a lower number"


@pytest.mark.parametrize("relu", ["sign", "full", "fss"])
@pytest.mark.parametrize(
    ("ring", "offline"), [(NARROW, "hints"), (NARROW, "seal"), (NARROW, "dealer"), (WIDE, "hints")]
)
def test_an_inference_is_the_replayed_reference_as_in_every_other_mode(offline, ring, relu):
    for make in PROGRAMS.values() if relu == "sign" else (grouped,):
        lowered = make(ring)
        if offline == "seal" and make is tiled:
            continue
        with Pair(lowered, relu, offline, timeout=60) as pair:
            image = images_of(1, lowered.program.input_shape)[0]
            result, shares = pair.infer(image)
            assert np.array_equal(result, reference.replay(lowered, image, shares, relu))
        assert pair.server_error is None


@st.composite
def programs(draw):
    """Of one to three blocks on maps of any size up to 9."""
    ring = draw(st.sampled_from([NARROW, WIDE]))
    side, channels = draw(st.integers(3, 9)), draw(st.integers(1, 4))
    hand = Hand((channels, side, side), ring, draw(st.integers(0, 99)), draw(st.sampled_from([1, 60, 4000])))
    value = 0
    for _ in range(draw(st.integers(1, 3))):
        channels, *_ = hand.shapes[value]
        groups = draw(st.sampled_from([n for n in (1, 2, 3, channels) if channels % n == 0]))
        outputs, stride = groups * draw(st.integers(1, 3)), draw(st.integers(1, 2))
        kernel, padding = draw(st.sampled_from([(1, 0), (3, 1), (2, 1), (5, 2)]))
        made = hand.truncate(hand.conv(value, outputs, kernel, stride, padding, groups))
        match draw(st.sampled_from(["shortcut", "dense", "multiply", "pool", "moved", "resampled", "plain"])):
            case "shortcut":
                made = hand.add(made, hand.truncate(hand.conv(value, outputs, kernel, stride, padding)))
            case "dense" if hand.shapes[made][1:] == hand.shapes[value][1:]:
                made = hand.concat(value, made)
            case "multiply":
                made = hand.truncate(hand.multiply(made))
            case "pool" if min(hand.shapes[made][1:]) > 1:
                made = hand.pool(made, 2, draw(st.integers(1, 2)))
            case "moved":
                made = hand.select(hand.shift(made), draw(st.integers(0, 2)), draw(st.integers(1, 6)))
                made = hand.permute(made, *draw(st.permutations(range(3))))
                made = hand.reshape(made, *draw(st.permutations(hand.shapes[made])))
            case "resampled":
                made = hand.truncate(
                    hand.resample(hand.scale(made, -3), draw(st.integers(0, 2)), draw(st.integers(1, 6)))
                )
        value = hand.activation(made, draw(st.floats(0, 0.3)), draw(st.floats(0, 0.3)))
    hand.linear(value, draw(st.integers(1, 7)))
    return hand.lowered(hand.ring.bits)


@settings(max_examples=12)
@given(programs(), st.sampled_from([1, 1000]))
def test_an_inference_of_random_programs_is_the_replayed_reference(lowered, queries):
    image = images_of(1, lowered.program.input_shape)[0]
    with Pair(lowered, "sign", "hints", keep=Keep(queries), timeout=60) as pair:
        result, shares = pair.infer(image)
    assert pair.server_error is None
    assert np.array_equal(result, reference.replay(lowered, image, shares, "sign"))


def test_a_network_of_every_op_infers_as_the_reference():
    lowered = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.4), ring=WIDE)
    images = images_of(2, (1, 6, 6))
    with Pair(lowered, "sign", "hints", timeout=60) as pair:
        for image in images:
            result, shares = pair.infer(image)
            assert np.array_equal(result, reference.replay(lowered, image, shares, "sign"))
            logits = lowered.program.ring.decode(result) * lowered.program.output_unit
            assert np.abs(logits - reference.run(lowered, image[None]).logits).max() < 0.05
    assert pair.server_error is None


def with_rows(*weights: tuple[int, int]) -> Model:
    """Of a layer of these weights alone, which one row of hints holds."""
    hand = Hand((1, 4, 4))
    hand.linear(hand.conv(0, 2, kernel=1, padding=0), 3)
    lowered = hand.lowered()
    lowered.weights[0]["weight"][:] = np.array(weights).reshape(2, 1, 1, 1)
    return model_of(lowered)


@pytest.mark.parametrize("weights", [((1 << 27) - 1, 1 - (1 << 27)), ((1 << 28) - 1, 1)])
def test_the_largest_weights_are_right(weights):
    model = with_rows(*weights)
    MODE.check(model)
    for number, (share, ours, theirs) in Phases(model).passed().products[0].items():
        np.testing.assert_array_equal(ours + theirs, times(model.lowered, number, share))


def test_larger_weights_are_refused():
    """By Σ|w| of a row, which is of all its outputs."""
    message = r"Σ\|w\| = 268435457 at layer1 are not exact there; give --offline seal"
    with pytest.raises(UserError, match=message):
        MODE.check(with_rows(1 << 28, 1))


def test_a_program_without_a_linear_layer_is_refused_by_both(monkeypatch):
    hand = Hand((1, 3, 3))
    hand.flatten(hand.multiply(0))
    model = model_of(hand.lowered())
    with pytest.raises(UserError, match="it has no convolution and no matrix"):
        MODE.check(model)
    MODE.make(MODEL)
    monkeypatch.setattr(Hints, "make", lambda *given: "")
    model.made[MODE.name] = MODEL.made[MODE.name]
    refused(Phases(model).results, "client", "the server's program is refused: it has no convolution and no matrix")


# The noise


class Watched:
    """A phase of a model with what its noise is computed by: hints before the drop, and all that was answered."""

    def __init__(self, lowered: Lowered, monkeypatch: pytest.MonkeyPatch, queries: int = 1000) -> None:
        whole, answered, decoded, drop, answer, decode = [], [], [], scheme.drop, hints.answer, hints.decode
        monkeypatch.setattr(scheme, "drop", lambda x: (whole.append(x), drop(x))[1])
        monkeypatch.setattr(hints, "answer", lambda *given: (answered.append(given), answer(*given))[1])
        monkeypatch.setattr(hints, "decode", lambda x: (decoded.append(x), decode(x))[1])
        model = model_of(lowered)
        self.phases = Phases(model, keep=Keep(queries)).passed()
        self.use, chunks = self.phases.client.use, []
        for made in model.made["hints"]:
            own, whole = whole[: len(made.use.chunks)], whole[len(made.use.chunks) :]
            chunks = own if made.use == self.use else chunks
        self.numbers = sorted(self.use.plan.readers)
        self.answered, self.decoded = (dict(zip(self.numbers, x, strict=True)) for x in (answered, decoded))
        self.hints: dict[int, Any] = {}
        for chunk, h in zip(self.use.chunks, chunks, strict=True):
            part = h.reshape(len(PRIMES), DEGREE, RANK, -1)
            before = self.hints.get(chunk.reader.number)
            self.hints[chunk.reader.number] = part if before is None else np.concatenate([before, part], 3)

    def products(self, number: int) -> tuple[Any, Any]:
        """⟨h, s⟩ modulo q, and the client's share, at the outputs in the order in which they are sent."""
        reader = self.use.plan.readers[number]
        secrets = self.use.secrets(self.phases.shown[0]).secrets
        places = reader.positions * reader.upload.classes
        found = []
        for k in ALL:
            h, s = forward(self.hints[number][k], k), forward(secrets, k)
            of_tiles = []
            for tile in range(reader.upload.tiles):
                total = reduce(sum(reduce(h[:, i] * s[:, i, tile, None], k) for i in range(RANK)), k)
                of_tiles.append(inverse(total, k)[places].T)
            found.append(np.stack(of_tiles, 1)[reader.used])
        return np.stack(found), reader.rows_of(self.phases.products[0][number][1])[reader.used]

    def before_the_drop(self, number: int) -> Any:
        """v: what an answer is off without its flooding, modulo q."""
        (sums, taken, masks, _), (hs, y) = self.answered[number], self.products(number)
        rest = sums.reshape(hs.shape) + taken.reshape(hs.shape) - message(masks) - hs - message(y)
        rows = np.stack([reduce(rest[k], k) for k in ALL])
        return np.array([float(signed(v, Q)) for v in values(rows, PRIMES)])

    def at_the_client(self, number: int) -> Any:
        """What the client's decoding rounds away, flooding included, of q'."""
        _, y = self.products(number)
        off = []
        for v, of_y in zip(values(self.decoded[number], KEPT), y, strict=True):
            off.append(signed((v << 64) - Q_KEPT * int(of_y), Q_KEPT << 64) / (1 << 64))
        return np.array(off)


def of_noise(largest: int, side: int = 16) -> Lowered:
    """A layer whose hints are of two u, and one row a hint; and one of few weights."""
    hand = Hand((3, side, side), largest=largest)
    hand.linear(hand.pool(hand.conv(0, 10), side, side), 3, largest=2)
    return hand.lowered()


@pytest.mark.parametrize("largest", [3, 900])
@pytest.mark.parametrize("queries", [1, 1000])
def test_the_noise_before_the_drop_is_of_the_foretold_size(largest, queries, monkeypatch):
    """An error that is missing, or a sum that is transposed, shows by a third and more; of small weights those that
    hints and β bring, of large ones those of uploads."""
    watched = Watched(of_noise(largest), monkeypatch, queries)
    number = watched.numbers[0]
    reader, found = watched.use.plan.readers[number], watched.before_the_drop(number)
    matrix = reader.matrix(watched.phases.server.model.lowered.weights[number - 1]["weight"])
    rows = matrix.reshape(reader.rows, -1)
    squares, norm = (rows**2).sum(1).mean(), int(np.abs(rows).sum(1).max())
    assert np.abs(found).max() <= parameters.noise(norm)
    constant = 2 * 21 / 2 * (2 / 3) * RANK * DEGREE
    assert (squares * 21 / 2 > 5 * constant) == (largest == 900) and len(found) == 10 * 16 * 16
    assert (
        0.7 < (found**2).mean() / ((21 / 2 + 1 / 12) * squares + constant) < 1.33
    )  # a standard deviation: 0.02 to 0.08


def test_answers_are_flooded_and_within_the_bound(monkeypatch):
    watched = Watched(of_noise(900), monkeypatch)
    for number in watched.numbers:
        off = watched.at_the_client(number)
        worst = ((3 << FLOOD_BITS) + parameters.noise(parameters.LARGEST_NORM)) / P + (1 + RANK * DEGREE) / 2
        assert np.abs(off).max() < worst < Q_KEPT / 2**65
    off = watched.at_the_client(watched.numbers[0])
    foretold = ((1 << FLOOD_BITS) / P) ** 2 + (1 + 2 / 3 * RANK * DEGREE) / 12
    assert (off**2).mean() == pytest.approx(foretold, rel=0.15)
    assert abs(off.mean()) < 6 * math.sqrt(foretold / len(off))


def test_no_flooding_is_used_twice(monkeypatch):
    """Of any output, layer or query; and each output has four words of it."""
    words, answer = [], hints.answer

    class Noted:
        def __init__(self, stream: Stream) -> None:
            self.stream = stream

        def bytes(self, count: int) -> Any:
            found = self.stream.bytes(count)
            words.append(found.view(np.uint64))
            return found

    monkeypatch.setattr(hints, "answer", lambda *given: answer(*given[:3], Noted(given[3])))
    phases = [Phases(MODEL, audited=(False, False)).passed() for _ in range(2)]
    outputs = sum(math.prod(BLOCK.program.shapes[number]) for number in phases[0].client.use.plan.readers)
    drawn = np.concatenate(words)
    assert len(drawn) == 4 * 4 * outputs == len(np.unique(drawn))


# Secrets are of one query


def test_sessions_and_threads_share_no_secret():
    found: list[Phases] = []
    threads = [
        threading.Thread(target=lambda: found.append(Phases(MODEL, audited=(False, False)).passed())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seeds = [seed for phases in found for seed in phases.shown + phases.opened]
    assert len(seeds) == len(set(seeds)) == 3 * 2 * CANDIDATES
    use = found[0].client.use
    assert len({use.secrets(seed).secrets.tobytes() for phases in found for seed in phases.shown}) == 6


FORKED = """
import os, sys
from test_hints import *
print(*(seed.hex() for seed in Phases(SMALL).passed().shown), flush=True)  # what runs ahead has threads now
child = os.fork()
print(*(seed.hex() for seed in Phases(SMALL, audited=(False, True)).passed().shown), flush=True)
if child:
    sys.exit(os.waitpid(child, 0)[1])
os._exit(0)
"""


def test_a_fork_shares_no_secret_with_its_parent():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert len(set(done.stdout.split())) == 5


class Obliging:
    """A socket that takes everything, chooses the secrets of each query that is started, and answers nothing else."""

    def __init__(self) -> None:
        self.coming, self.queries = b"", 0

    def sendall(self, data: Any) -> None: ...

    def start(self, state: Any) -> None:
        self.coming, self.queries = HEADER.pack(b"chos", self.queries, 1) + b"\1", self.queries + 1
        state.start()

    def recv_into(self, buffer: Any) -> int:
        if not self.coming:
            raise TimeoutError
        part, self.coming = self.coming[: len(buffer)], self.coming[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def settimeout(self, seconds: float | None) -> None: ...
    def close(self) -> None: ...


def alone() -> tuple[Any, Obliging, list[tuple[str, bytes]]]:
    """A client's state after its phases, on a connection that leads nowhere, and what it sends there."""
    state, peer, sent = Phases(MODEL).passed().client, Obliging(), []
    state.channel = Edited(Channel(peer), lambda kind, index, body: (sent.append((kind, body)), body)[1])
    return state, peer, sent


def test_a_restored_copy_of_a_client_starts_its_next_query_with_another_seed():
    state, peer, _ = alone()
    restored = copy.copy(state)
    for each in (state, restored):
        peer.start(each)
    assert state.show() != restored.show() and state.seed != restored.seed


def test_all_that_a_query_draws_follows_from_one_seed(monkeypatch):
    """A secret comes again only where r does."""
    state, peer, sent = alone()
    for seed in (b"a" * SEED_BYTES, b"a" * SEED_BYTES, b"b" * SEED_BYTES):
        monkeypatch.setattr("parelu.private.offline.transfers.fresh_seed", lambda seed=seed: seed)
        peer.start(state)
        with contextlib.suppress(ProtocolError):
            state.linear(1, None, state.stream(0, "mask").elements(3 * 64), 0)
    assert [kind for kind, _ in sent] == [*STARTED, "upld"] * 3
    first, again, other = sent[:4], sent[4:8], sent[8:]
    assert first == again and all(one != another for one, another in zip(first, other, strict=True))


def test_what_hides_a_message_is_gone_before_it_hides_one(monkeypatch):
    state, peer, sent = alone()
    peer.start(state)
    share = np.zeros(3 * 64, np.uint64)
    with pytest.MonkeyPatch.context() as patch:

        def broken(*given: Any) -> Any:
            raise RuntimeError("in the middle")

        patch.setattr(hints, "ciphertext", broken)
        with pytest.raises(RuntimeError):
            state.linear(1, None, share, 0)
    with pytest.raises(ProtocolError, match="silent"):  # it waits for the answer, and sends nothing again
        state.linear(1, None, share, 0)
    assert [kind for kind, _ in sent] == STARTED
    peer.start(state)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="silent"):
            state.linear(1, None, share, 0)
    assert [kind for kind, _ in sent] == [*STARTED, *STARTED, "upld"]


def test_a_client_keeps_hints_and_nothing_of_a_query_on_disk(tmp_path):
    phases = Phases(MODEL, keep=Keep(folder=tmp_path), audited=(True, False)).passed()
    (made,) = [made for made in MODEL.made["hints"] if made.use == phases.client.use]
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"".join(made.body())


# Audits


def residues_of(body: bytes) -> Any:
    """Of β or an upload; (primes, count)."""
    count = 8 * len(body) // sum(prime.bit_length() for prime in PRIMES)
    return unpack(np.frombuffer(body, np.uint8), PRIMES, count)


def shifted(by: int, coefficient: int = 0) -> Callable[[bytes], bytes]:
    """One coefficient moved, as integers modulo q are."""

    def change(body: bytes) -> bytes:
        rows = residues_of(body)
        rows[:, coefficient] += [by % p for p in PRIMES]
        return pack(np.stack([reduce(rows[k], k) for k in ALL]), PRIMES)

    return change


def test_an_honest_client_passes_every_audit():
    for make in (block, tiled):
        phases = Phases(model_of(make()), audited=(True, False, True)).passed()
        assert phases.rounds == 3 and len(set(phases.shown)) == 3
        assert phases.server.received is None


@pytest.mark.parametrize("seed", [lambda seed: bytes([seed[0] ^ 1]) + seed[1:], lambda seed: bytes(SEED_BYTES)])
def test_an_audit_finds_another_seed(seed):
    phases = Phases(MODEL, audited=(True,), from_client=at("show", 0, seed))
    assert isinstance(phases.results["server"], Deviation) and phases.rounds == 0
    assert str(phases.results["server"]) == "an audit: the client's β is not that of its seed"


NOT_COMMITTED = "the public part of a client's secrets is not the one that it committed to"


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(at("beta", 0, shifted(1)), id="β with another error"),
        pytest.param(at("beta", 0, shifted(Q >> 40, DEGREE * RANK - 1)), id="a malformed β"),
        pytest.param(at("cmit", 0, lambda body: bytes(len(body))), id="no commitments"),
        pytest.param(at("cmit", 0, lambda body: body[32:] + body[:32]), id="commitments turned"),
        *(
            pytest.param(at("open", 0, bit(SEED_BYTES * n)), id=f"seed {n} of those opened")
            for n in range(CANDIDATES - 1)
        ),
        pytest.param(at("open", 0, lambda body: body[SEED_BYTES:] + body[:SEED_BYTES]), id="seeds turned"),
    ],
)
def test_public_parts_that_are_not_of_their_seeds_are_found_before_anything_is_answered(edit):
    phases = Phases(MODEL, from_client=edit)
    assert isinstance(phases.results["server"], Deviation) and str(phases.results["server"]) == NOT_COMMITTED
    assert "answ" not in phases.server_channel.kinds and phases.rounds == 0


def test_a_committed_malformed_part_is_found_unless_it_is_chosen_and_then_by_the_audit():
    """The chance is one in CANDIDATES; nothing is answered where it is found."""
    found: list[str] = []
    for chosen in range(CANDIDATES):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hint_secrets, "Stream", lambda *labels, chosen=chosen: Fixed(chosen))
            with malformed(0):
                phases = Phases(MODEL, audited=(True,))
        assert isinstance(phases.results["server"], Deviation)
        found.append(str(phases.results["server"]))
        assert ("answ" in phases.server_channel.kinds) == (chosen == 0)
    assert found == ["an audit: the client's β is not that of its seed", *[NOT_COMMITTED] * (CANDIDATES - 1)]


class Fixed:
    """A stream of one byte."""

    def __init__(self, value: int) -> None:
        self.value = value

    def bytes(self, count: int) -> Any:
        return np.full(count, self.value, np.uint8)


@contextlib.contextmanager
def malformed(candidate: int) -> Iterator[None]:
    """A client whose β of one candidate, and the commitment to it, are no honest ones."""
    honest, derive, of_candidate, made_before = hint_secrets._made, hint_secrets.derive, [], []

    def derived(*given: Any) -> bytes:
        found = derive(*given)
        of_candidate.extend([found] if given[-1] == candidate else [])
        return found

    def made(use: Use, seed: bytes) -> Any:
        secrets, part = honest(use, seed)
        if seed not in of_candidate or seed in made_before:
            return secrets, part
        made_before.append(seed)  # afterwards it is the server that makes it
        return secrets, shifted(Q >> 30)(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hint_secrets, "derive", derived)
        patch.setattr(hint_secrets, "_made", made)
        yield


def test_which_secrets_are_chosen_is_drawn_anew_each_time():
    phases = Phases(SMALL, audited=(False,) * 12).passed()
    chosen = [body for kind, _, body in phases.from_server if kind == "chos"]
    assert len(chosen) == 12 and len(set(chosen)) > 1 and all(body[0] < CANDIDATES for body in chosen)


@pytest.mark.parametrize(("kind", "error"), [("cmit", ProtocolError), ("open", Unanswered), ("beta", ProtocolError)])
def test_a_client_that_stops_when_it_is_asked_has_not_answered(kind, error):
    """One that stops later has shown seeds that fit, and one before does not know the choice."""

    def stop(body: bytes) -> bytes:
        raise ProtocolError("gone")

    assert type(Phases(MODEL, from_client=at(kind, 0, stop)).results["server"]) is error
    if kind == "beta":
        with malformed(0), pytest.MonkeyPatch.context() as patch:
            patch.setattr(hint_secrets, "Stream", lambda *labels: Fixed(1))
            assert type(Phases(MODEL, from_client=at(kind, 0, stop)).results["server"]) is Deviation


@pytest.mark.parametrize("chosen", [CANDIDATES, 255])
def test_secrets_that_are_not_there_cannot_be_chosen(chosen):
    phases = Phases(MODEL, from_server=at("chos", 0, lambda body: bytes([chosen])))
    assert f"the server chooses secrets {chosen} of {CANDIDATES}" in str(phases.results["client"])
    assert "open" not in phases.client_channel.kinds


@pytest.mark.parametrize("upload", range(4))
@pytest.mark.parametrize("by", [1, -3, 1 << 40, Q // 3], ids=["1", "-3", "2^40", "q/3"])
def test_an_audit_finds_another_error_in_any_upload(upload, by):
    phases = Phases(MODEL, audited=(False, True), from_client=at("upld", 4 + upload, shifted(by, 7)))
    assert isinstance(phases.results["server"], Deviation) and phases.rounds == 1
    assert str(phases.results["server"]) == "an audit: a ciphertext of the client's is no fresh encryption"


def test_an_audit_lets_pass_another_share(monkeypatch):
    """It would harm nobody but the client."""
    honest = hints.ciphertext
    monkeypatch.setattr(hints, "ciphertext", lambda masks, r: honest(masks, r + np.uint64(1 << 63)))
    Phases(MODEL, audited=(True,)).passed()


def test_an_audit_finds_ciphertexts_under_another_secret_and_swapped_tiles():
    model, other = MODEL, fresh_seed()
    masked = hints.masked

    def under_another(use: Use, secrets: Any, number: int, public: Any) -> Any:
        return masked(
            use, use.secrets(other) if threading.current_thread().name.startswith("ahead") else secrets, number, public
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hints, "masked", under_another)
        phases = Phases(model, audited=(True,))
    assert "no fresh encryption" in str(phases.results["server"])

    def turned(body: bytes) -> bytes:
        """Two tiles swapped."""
        rows = residues_of(body).reshape(len(PRIMES), 3, -1)
        return pack(np.ascontiguousarray(rows[:, [1, 0, 2]]).reshape(len(PRIMES), -1), PRIMES)

    phases = Phases(model_of(tiled()), audited=(True,), from_client=at("upld", 0, turned))
    assert "no fresh encryption" in str(phases.results["server"])


def test_the_wire_does_not_tell_which_phase_will_be_opened():
    sent = []
    for audited in (False, True):
        phases = Phases(MODEL, audited=(audited,))
        sent.append(([k for k in phases.client_channel.kinds if k != "show"], phases.server_channel.kinds))
    assert sent[0] == sent[1] and len(sent[0][1]) > 5


def test_uploads_are_kept_for_an_audit_alone():
    model, kept = MODEL, []
    MODE.make(model)

    def server(channel: Channel) -> None:
        state = MODE.server(channel, bytes(32), model)
        for audited in (False, True):
            MODE.serve(channel, state, model, audited=audited)
            kept.append(state.received and len(state.received))
        MODE.audit(channel, state, model)
        kept.append(state.received)

    def client(channel: Channel) -> None:
        state = MODE.client(channel, bytes(32), model.terms, MODE.make(model), Keep())
        for _ in range(2):
            prepare_client(model.terms, MODE.fetch(channel, state))
        MODE.show(channel, state)

    assert Ends(client, server).results == {"client": None, "server": None}
    assert kept == [None, len(uses(BLOCK.program, "")[0].plan.uploads), None]


# What is refused, by whom


def refused(results: dict[str, Any], who: str, message: str) -> None:
    """One party refuses in a line; the other sees the connection end."""
    other = {"client": "server", "server": "client"}[who]
    assert type(results[who]) is ProtocolError and message in str(results[who]), results
    assert "\n" not in str(results[who]) and len(str(results[who])) < 200
    assert type(results[other]) is ProtocolError and any(word in str(results[other]) for word in ("closed", "broke"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(bit(0), id="other weights"),
        pytest.param(bit(40), id="another set"),
        pytest.param(lambda body: body[: 16 + len(body) // 2], id="a set less"),
        pytest.param(lambda body: body + body[-(len(body) - 32) // 2 :], id="a set more"),
        pytest.param(lambda body: body[:-1], id="part of a plan"),
        pytest.param(lambda body: b"", id="nothing"),
        pytest.param(lambda body: body[:32] + body[16 + len(body) // 2 :] + body[32 : 16 + len(body) // 2], id="order"),
        pytest.param(lambda body: body[:-1] + b"\1", id="another plan"),
    ],
)
def test_sets_that_are_not_those_of_the_offer_are_refused_before_anything_is_sent(change):
    phases = Phases(MODEL, from_server=at("sets", 0, change))
    refused(phases.results, "client", "the server's hints are not those that it offers")
    assert not {"want", "beta"} & set(phases.client_channel.kinds)


def test_more_sets_than_any_model_has_are_refused_unread():
    phases = Phases(MODEL, from_server=at("sets", 0, lambda body: body + bytes(len(body) * 8)))
    refused(phases.results, "client", "bytes, not at most")


@pytest.mark.parametrize(
    "other", [grouped(), block(), block(seed=1), block(NARROW)], ids=["g", "salt", "weights", "ring"]
)
def test_hints_of_another_model_are_refused_before_anything_is_sent(other):
    """Another program, salt, weights, or ring; whoever serves them."""
    offered = MODE.make(model_of(Lowered(BLOCK.program, BLOCK.weights, (), bytes(32))))
    phases = Phases(model_of(other), digest=offered)
    refused(phases.results, "client", "the server's hints are not those that it offers")
    assert "beta" not in phases.client_channel.kinds


@pytest.mark.parametrize(("which", "has"), [(2, 0), (255, 1), (0, 2)])
def test_a_set_that_is_not_there_cannot_be_wanted(which, has):
    phases = Phases(MODEL, from_client=at("want", 0, lambda body: WANT.pack(which, has)))
    refused(phases.results, "server", f"the client wants set of hints {which} of 2")


def test_sets_that_are_too_large_are_not_fetched(monkeypatch):
    monkeypatch.setattr(hint_exchange, "LARGEST", 1 << 16)
    phases = Phases(MODEL)
    refused(phases.results, "client", "the server's hints take 0 GB, more than 0")
    assert "want" not in phases.client_channel.kinds


@pytest.mark.parametrize("width", [0, 1, 59, 255])
def test_a_width_that_is_none_is_refused(width):
    phases = Phases(model_of(block(NARROW)), from_server=at("size", 0, lambda body: bytes([width])))
    refused(phases.results, "client", f"the server states weights of {width} bits")


@pytest.mark.parametrize("kept", [True, False])
def test_changed_hints_are_refused_and_not_kept(kept, tmp_path):
    """Residues that are some, but others."""
    keep = Keep(folder=tmp_path if kept else None)
    phases = Phases(MODEL, from_server=at("hint", 2, bit(4)), keep=keep)
    refused(phases.results, "client", "the server's hints are not those that it offers")
    assert not keep.loaded and not [*tmp_path.iterdir()] and "beta" not in phases.client_channel.kinds


def too_large(first: int) -> Callable[[bytes], bytes]:
    """The residue at a byte is all ones."""
    return lambda body: body[:first] + b"\xff" * 8 + body[first + 8 :]


NO_RESIDUE = [
    pytest.param(too_large(0), "a residue is not below its prime", id="of the first prime"),
    pytest.param(lambda body: body[:-8] + b"\xff" * 8, "a residue is not below its prime", id="the last"),
    pytest.param(lambda body: body[:-1], "bytes, not", id="shorter"),
    pytest.param(lambda body: body + b"\0", "bytes, not", id="longer"),
    pytest.param(lambda body: b"", "has 0 bytes, not", id="empty"),
]


@pytest.mark.parametrize(("change", "message"), NO_RESIDUE)
@pytest.mark.parametrize(("kind", "index"), [("upld", 0), ("upld", 2), ("hint", 0), ("hint", 3), ("answ", 1)])
def test_residues_that_are_none_are_refused_by_who_gets_them(kind, index, change, message):
    edit = {"from_client" if kind in ("beta", "upld") else "from_server": at(kind, index, change)}
    phases = Phases(MODEL, **edit)
    refused(phases.results, "server" if "from_client" in edit else "client", message)
    assert phases.rounds == 0


@pytest.mark.parametrize(("change", "message"), NO_RESIDUE[:2])
def test_a_committed_part_of_no_residues_is_refused(change, message, monkeypatch):
    made = hint_secrets._made
    monkeypatch.setattr(hint_secrets, "_made", lambda use, seed: (made(use, seed)[0], change(made(use, seed)[1])))
    refused(Phases(MODEL).results, "server", message)


@pytest.mark.parametrize(("change", "message"), NO_RESIDUE[2:])
def test_seeds_of_another_length_are_no_answer(change, message):
    results = Phases(MODEL, from_client=at("open", 0, change)).results
    assert isinstance(results["server"], Unanswered) and message in str(results["server"])


@pytest.mark.parametrize(("change", "message"), NO_RESIDUE[2:])
def test_a_part_of_another_length_is_refused(change, message):
    refused(Phases(MODEL, from_client=at("beta", 0, change)).results, "server", message)


@pytest.mark.parametrize(("kind", "index"), [("upld", 2), ("answ", 3)])
def test_a_bit_behind_the_last_residue_is_refused(kind, index):
    """Of a body that does not end on a byte."""

    def change(body: bytes) -> bytes:
        return body[:-1] + bytes([body[-1] | 0x80])

    edit = {"from_client" if kind == "upld" else "from_server": at(kind, index, change)}
    phases = Phases(SMALL, **edit)
    refused(phases.results, "server" if kind == "upld" else "client", "a bit is set behind the last residue")


@settings(max_examples=20)
@given(
    st.sampled_from(["cmit", "chos", "open", "beta", "upld", "answ", "hint", "sets", "want", "size", "show"]),
    st.integers(0, 3),
    st.integers(0, 1 << 20),
    st.binary(min_size=1, max_size=12),
    st.booleans(),
)
def test_whatever_is_written_into_a_message_ends_in_a_line_or_is_found_by_the_audit(
    kind, index, place, written, opened
):
    def change(body: bytes) -> bytes:
        start = place % max(1, len(body))
        return (body[:start] + written + body[start + len(written) :])[: len(body)]

    edit = at(kind, index, change)
    phases = Phases(SMALL, audited=(opened,), from_client=edit, from_server=edit)
    results = phases.results.values()
    assert all(result is None or isinstance(result, ProtocolError) for result in results)
    is_changed = (kind, index) in phases.client_channel.changed
    if is_changed and opened and kind != "want":
        assert isinstance(phases.results["server"], ProtocolError)
