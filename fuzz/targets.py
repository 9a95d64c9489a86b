"""The fuzz targets: what decodes bytes, and the errors that its documentation allows.

A target takes any bytes and may raise nothing else, in bounded time and memory; what it accepts is checked where a law
is known. `TARGETS` is the registry; tests/fuzz/test_targets.py checks that all decoders of the sources are reached.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from fuzz import edits, sessions
from parelu.data.readers import cifar, fashion
from parelu.errors import ProtocolError, UserError
from parelu.models.onnx import read_onnx
from parelu.models.weights import read_weights
from parelu.network import storage
from parelu.network.candidate import Candidate
from parelu.network.plan import Plan
from parelu.private.cost.calibration import Calibration
from parelu.private.cost.predict import spread
from parelu.private.crypto import base_ot, codec, he
from parelu.private.crypto.lattice.parameters import KEPT, PRIMES
from parelu.private.crypto.lattice.residues import pack, unpack
from parelu.private.crypto.ot_extension import BASE, ExtensionReceiver, ExtensionSender
from parelu.private.crypto.prg import Stream
from parelu.private.lowering.lower import Lowered
from parelu.private.lowering.program import Program
from parelu.private.offline.hint_exchange import fetched, send, statement
from parelu.private.offline.hint_sets import Made
from parelu.private.offline.hints import Hints
from parelu.private.offline.mode import Keep
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.reveal import reveal_of as read_reveal
from parelu.private.serving import greeting as greetings
from parelu.private.serving.ledger import Ledger
from parelu.private.serving.stock import NAME_BYTES, ClientStocks
from parelu.private.transport.channel import HEADER, Before, Channel, bits_of, elements_of, pack_bits

LONGEST = 500  # characters of an error's one line
FEW = 200  # transfers of an extension, more or less
CLIENT_HELLO = ("versions", "nonce", "pin", "stock")


@dataclasses.dataclass(frozen=True)
class Target:
    """run: takes any bytes, and raises `allowed` where it refuses them; seconds: that one input may take."""

    run: Callable[[bytes], None]
    allowed: tuple[type[Exception], ...]
    seconds: float = 5.0

    def __call__(self, data: bytes) -> bool:
        """Whether the bytes were accepted; raises what nobody may."""
        try:
            self.run(data)
        except self.allowed as error:
            if isinstance(error, ProtocolError | UserError):
                line = str(error)
                assert line and len(line) <= LONGEST and line.isprintable(), f"no clear line: {line!r}"
            return False
        return True


TARGETS: dict[str, Target] = {}


def target(*allowed: type[Exception], seconds: float = 5.0) -> Callable[[Callable[[bytes], None]], Target]:
    """Register a function under its name."""

    def register(run: Callable[[bytes], None]) -> Target:
        TARGETS[run.__name__] = Target(run, allowed, seconds)
        return TARGETS[run.__name__]

    return register


# What the wire carries


@target(ValueError)
def program(data: bytes) -> None:
    assert Program.from_bytes(data).to_bytes() == data


@target(ProtocolError)
def greeting(data: bytes) -> None:
    """The first byte chooses which: the client's or the server's, which is taken as far as its terms."""
    offer_fields = tuple(field.name for field in dataclasses.fields(greetings.Offer))
    of_the_server = data[:1] == b"\1"
    fields = ("version", "nonce", "engine", *offer_fields, "room", "left", "server") if of_the_server else CLIENT_HELLO
    value = greetings._load(data[1:], fields)
    assert set(value) == set(fields) and all(isinstance(text, str) for text in value.values())
    if of_the_server:
        offer = greetings.Offer(**{name: value[name] for name in offer_fields})
        greetings.Accepted(offline=offer.offline, relu=offer.relu).check(offer)
        greetings._terms(sessions.model("dealer_sign").terms.program, offer)
        assert min(map(greetings._number, (value["room"], value["left"]))) >= 0


@target(UserError)
def pin(data: bytes) -> None:
    assert len(bytes.fromhex(greetings.Accepted(data.decode("utf-8", "replace")).pin or "")) == 32


@target(ValueError)
def reveal_of(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    assert read_reveal(text).text == text


@target(ProtocolError)
def messages(data: bytes) -> None:
    """A channel that is asked for what the first bytes say: pairs of how, and of how many bytes."""
    count, asked = data[0] % 4 if data else 0, data[1:9]
    channel = Channel(sessions.Silent(data[9:]))
    for how, length in zip(asked[0 : 2 * count : 2], asked[1 : 2 * count : 2], strict=False):
        if how % 2:
            before = Before("wait", 4, lambda body: None) if how & 2 else None
            assert len(channel.receive_up_to("kind", length, before)) <= length
        else:
            assert len(channel.receive("kind", length)) == length


@target(ProtocolError)
def ring_elements(data: bytes) -> None:
    body = np.frombuffer(data, np.uint8)[: len(data) // 8 * 8]
    assert elements_of(body).tobytes() == body.tobytes()


@target(ProtocolError)
def packed_bits(data: bytes) -> None:
    """The first byte says how many are due."""
    body = np.frombuffer(data[1:], np.uint8)
    assert pack_bits(bits_of(body, data[0] if data else 0)).tobytes() == data[1:]


@target(ProtocolError)
def base_points_of_a_sender(data: bytes) -> None:
    base_ot.Receiver(np.array([0, 1], np.uint8), b"fuzz").respond(data)


@target(ProtocolError)
def base_points_of_a_receiver(data: bytes) -> None:
    """The first byte says how many are due."""
    sender = base_ot.Sender(data[0] % 4 if data else 0, b"fuzz")
    assert len(sender.seeds(data[1:])) == sender.count and len(sender.transcript) == 32


def _transfers() -> tuple[ExtensionReceiver, Callable[[bytes], ExtensionSender]]:
    """Both ends of an extension: the receiver, and what makes the sender of its trees."""
    pairs, delta = Stream(bytes(16), "pairs").bytes(2 * BASE * 16).reshape(BASE, 2, 16), np.ones(BASE, np.uint8)
    delta[:-1] = Stream(bytes(16), "delta").bits(BASE - 1)
    sender = functools.partial(ExtensionSender, delta, pairs[np.arange(BASE), delta], bytes(32))
    return ExtensionReceiver(pairs, bytes(32)), sender


@target(ProtocolError)
def extension_trees(data: bytes) -> None:
    receiver, sender = _transfers()
    sender(edits.apply(data, [receiver.trees]))


@target(ProtocolError)
def extension(data: bytes) -> None:
    """Edits of a receiver's message; the first byte is for the number of transfers."""
    count = (data[0] if data else 7) + FEW
    receiver, sender = _transfers()
    choices = Stream(bytes(16), "choices").bits(count)
    message, t = receiver.extend(choices)
    spoilt, ends = edits.apply(data[1:], [message.tobytes()]), sender(receiver.trees)
    q = ends.extend(np.frombuffer(spoilt, np.uint8), count)
    assert (spoilt != message.tobytes()) or (q == t ^ choices[:, None] * ends.delta).all()


@functools.cache
def _keys() -> tuple[he.Client, bytes, bytes]:
    """A client, its public key, and an upload."""
    client = he.Client(he.CHOICES[0], Stream(bytes(16), "client"))
    return client, client.public_key(), client.encrypt(np.arange(he.DEGREE, dtype=np.uint64))


def _server(public_key: np.ndarray) -> he.Server:
    return he.Server(he.CHOICES[0], public_key, Stream(bytes(16), "server"))


def _of_length(data: bytes, honest: bytes) -> np.ndarray:
    """The honest message with edits, brought to its length again, which a channel insists on."""
    return np.frombuffer(edits.apply(data, [honest])[: len(honest)].ljust(len(honest), b"\0"), np.uint8)


@target(ProtocolError)
def he_public_key(data: bytes) -> None:
    _server(_of_length(data, _keys()[1]))


@target(ProtocolError)
def he_upload(data: bytes) -> None:
    _, key, upload = _keys()
    server = _server(np.frombuffer(key, np.uint8))
    server.accumulate(server.blank(), server.open(_of_length(data, upload)), server.weight(np.arange(he.DEGREE)))


@target(ProtocolError)
def he_answer(data: bytes) -> None:
    client, key, _ = _keys()
    server, needed = _server(np.frombuffer(key, np.uint8)), np.arange(5)
    honest = server.answer(server.blank(), np.arange(5, dtype=np.uint64), needed)
    assert not (client.decrypt(_of_length(data, honest), needed) >> np.uint64(59)).any()


@target(ProtocolError)
def he_audit(data: bytes) -> None:
    """What a client shows, its public key, and an upload: they pass if nothing is changed."""
    client, key, upload = _keys()
    honest = [client.show(), key, upload]
    spoilt = _of_length(data, b"".join(honest))
    secret, key, upload = np.split(spoilt, np.cumsum([len(part) for part in honest[:-1]]))
    audit = he.Audit(client.parameters, secret)
    is_fresh = audit.is_fresh(key, is_key=True) and audit.is_fresh(upload)
    assert is_fresh == (spoilt.tobytes() == b"".join(honest))


def _register_residues(name: str, primes: tuple[int, ...]) -> None:
    def run(data: bytes) -> None:
        """The first byte says how many are due modulo each prime."""
        count = data[0] % 16 if data else 0
        body = np.frombuffer(data[1:], np.uint8)
        found = unpack(body, primes, count)
        assert found.shape == (len(primes), count) and pack(found, primes) == data[1:]
        assert all((np.abs(row) <= prime // 2).all() for row, prime in zip(found, primes, strict=True))

    TARGETS[f"residues_{name}"] = Target(run, (ProtocolError,))


_register_residues("kept", KEPT)
_register_residues("all", PRIMES)


@functools.cache
def _sets() -> tuple[Model, tuple[Made, ...]]:
    model = sessions.model("hints_sign")
    Hints().make(model)
    return model, model.made["hints"]


def _stated(made: tuple[Made, ...]) -> bytes:
    """What a server says that its sets are."""
    body = statement(made)
    return HEADER.pack(b"sets", 0, len(body)) + body


@target(ProtocolError)
def hint_sets(data: bytes) -> None:
    """Of a server, with edits: only those of the offer are wanted."""
    model, made = _sets()
    keep = Keep(loaded={each.digest.hex(): "kept" for each in made})
    channel = Channel(sessions.Silent(edits.apply(data, [_stated(made)])))
    use, found = fetched(channel, model.terms.program, Hints().make(model), keep)
    assert found == "kept" and use in [each.use for each in made]


@target(ProtocolError)
def hint_wanted(data: bytes) -> None:
    """Of a client that wants what it has, with edits."""
    _, made = _sets()
    assert send(Channel(sessions.Silent(edits.apply(data, [HEADER.pack(b"want", 0, 2) + b"\0\1"]))), made) in made


@target()
def hint_file(data: bytes) -> None:
    """A client's kept set, with edits: it is taken whole, or not at all."""
    model, made = _sets()
    body = b"".join(made[0].body())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{made[0].digest.hex()}.hints"
        file.write_bytes(edits.apply(data, [body]))
        coming = [HEADER.pack(b"hint", 1 + n, len(chunk)) + chunk for n, chunk in enumerate(made[0].body())]
        channel = Channel(sessions.Silent(b"".join([_stated(made), *coming])))
        fetched(channel, model.terms.program, Hints().make(model), Keep(folder=Path(folder)))
        assert file.read_bytes() == body


def _register_session(name: str, party: str) -> None:
    def run(data: bytes) -> None:
        sessions.meet(party, name, data)

    TARGETS[f"{party}_{name}"] = Target(run, (ProtocolError, UserError), seconds=20.0)


for _name in sessions.SETTINGS:
    for _party in ("client", "server"):
        _register_session(_name, _party)


# What lies on the disk


@target(ValueError)
def material(data: bytes) -> None:
    codec.dump(codec.load(data))


@target(KeyError, UserError)
def stock_file(data: bytes) -> None:
    """The first byte chooses: a piece of a stock, or its key."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stock"
        if data[:1] == b"\1":
            path.with_name("stock.key").write_bytes(data[1:])
        stock = ClientStocks(path).of("fuzz")
        name = bytes(NAME_BYTES)
        stock.folder.mkdir()
        (stock.folder / name.hex()).write_bytes(data[1:])
        assert stock.names() == [name]
        stock.take(name)
        raise AssertionError("a piece that nobody put there was taken")


@target(UserError)
def checkpoint(data: bytes) -> None:
    """Of torch or safetensors, as `--weights` takes it."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        weights = read_weights(Path(file.name))
    assert all(isinstance(name, str) and tensor.float().isfinite().all() for name, tensor in weights.items())


@target(UserError)
def calibration_file(data: bytes) -> None:
    """As `--calibration` takes it; with the first byte 1 its digest is made again, so that what it guards is read."""
    body = data[1:]
    if data[:1] == b"\1":
        with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError):
            value = json.loads(body)
            value.pop("sha256", None)
            body = json.dumps({**value, "sha256": storage.digest(value)}).encode()
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(body)
        found = Calibration.load(Path(file.name))
    assert Calibration.from_json(found.to_json()) == found
    assert len(f"{found.machine} {found.made}") < 1000
    for phase in {point.phase for point in found.points}:
        low, high = spread(found.points, phase)
        assert 0 <= low <= 1 <= high


@target(UserError)
def onnx_file(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        found = read_onnx(Path(file.name))
    assert found.module(torch.zeros(1, *found.input)).shape == (1, found.classes)


@target(ProtocolError, UserError)
def ledger_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        path.write_bytes(data)
        with contextlib.closing(Ledger(path, inferences=3)) as ledger:
            account = ledger.account("somebody")
            account.phase()
            account.opened(answered=True)
            account.infer(1)
            assert account.left in (0, 1, 2) and account.name in [record.name for record in ledger.records()]
            assert ledger.forget(account.name)


def _with_header(data: bytes, kind: str, read: Callable[[Path], object]) -> None:
    """A file of two parts, as somebody who writes matching digests would write it; the length of the header first."""
    size = int.from_bytes(data[:4], "little")
    header, tensors = data[4 : 4 + size], data[4 + size :]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{kind}.safetensors").write_bytes(tensors)
        try:
            value = json.loads(header)
            value.pop("sha256", None)
            if "tensors_sha256" in value:
                value["tensors_sha256"] = hashlib.sha256(tensors).hexdigest()
            header = json.dumps({**value, "sha256": storage.digest(value)}).encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass  # it is refused as it is
        (folder / f"{kind}.json").write_bytes(header)
        read(folder)


@target(UserError)
def program_file(data: bytes) -> None:
    _with_header(data, "program", Lowered.load)


@target(UserError)
def plan_file(data: bytes) -> None:
    _with_header(data, "plan", Plan.load)


@target(UserError)
def candidate_file(data: bytes) -> None:
    _with_header(data, "candidate", Candidate.load)


@target(SafetensorError)
def tensors(data: bytes) -> None:
    load(data)


@target(UserError)
def images_of_idx(data: bytes) -> None:
    """The first byte chooses how many dimensions, and whether it is compressed."""
    first = data[0] if data else 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{'.gz' if first & 4 else ''}"
        path.write_bytes(data[1:])
        fashion.read_idx(path, 3 if first & 1 else 1)


@target(UserError)
def images_of_cifar(data: bytes) -> None:
    cifar._records(Path("data_batch_1.bin"), data, cifar._TEN)


@target(UserError)
def images_of_cifar_in_python(data: bytes) -> None:
    cifar._batch(Path("data_batch_1"), data, cifar._TEN)
