"""The first messages of a connection: what the server offers, what the client accepts, and what both are bound to.

client                            server
helo: versions, nonce, pin, stock →
                                  ←    (wait: place, again and again, where the client said that it waits)
                                  ←    helo: version, nonce, the offer, room in the stock, inferences left
                                  ←    prog: the program
redy: the hash of all three       →

A client that does not accept the offer ends here: it has sent nothing but its nonce and the names of what it wants.
docs/wire-format.md has every byte. A version of it is never changed; what both know is chosen here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import string
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from parelu.errors import ProtocolError, UserError
from parelu.private.crypto.prg import SEED_BYTES, fresh_seed
from parelu.private.lowering.program import LARGEST_PROGRAM, Program
from parelu.private.offline.mode import Mode, modes
from parelu.private.protocol.delphi import Model, Terms
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.transport.channel import Before, Channel
from parelu.private.transport.messages import Messages, to_client, to_server

FORMAT, PINNED = "parelu-session", "parelu-offer-1"
VERSION = 5  # of the wire format, the newest that is spoken
SPOKEN = (VERSION,)
MOST_VERSIONS = 16  # that a client may name
ENGINE = "delphi"
LARGEST_HELLO = 4096
HASH_BYTES = 32  # SHA-256
PIN_DIGITS = 2 * HASH_BYTES
NO_LIMIT = 999_999_999  # inferences, where the server has no budget
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")  # of a model
PLACE, WAITS = struct.Struct("<I"), "1"
CHOICES = ("relu", "offline", "reveal", "truncation")


@dataclasses.dataclass(frozen=True)
class Offer:
    """What a server offers, and is pinned to; all fields are text.

    program: SHA-256 of the program; weights: `Lowered.commitment`; hints: digest of what the offline mode made once,
    "" for nothing; relu, offline, reveal, truncation: names.
    """

    program: str
    weights: str
    hints: str
    relu: str
    offline: str
    reveal: str
    truncation: str

    @classmethod
    def of(cls, model: Model, mode: Mode) -> Offer:
        terms = model.terms
        return cls(
            program=terms.program.digest,
            weights=model.lowered.commitment,
            hints=mode.make(model),
            relu=terms.relu.name,
            offline=mode.name,
            reveal=terms.reveal.text,
            truncation=terms.truncation,
        )

    @property
    def pin(self) -> str:
        """SHA-256 of the offer: what an operator publishes and a client pins."""
        value = {"format": PINNED, "engine": ENGINE, **dataclasses.asdict(self)}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_model_name(name: object) -> None:
    """Raises UserError where a model cannot have this name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{str(name)[:80]!r} is no name of a model: letters, digits, and - _ . between them, up to 64")


@dataclasses.dataclass(frozen=True)
class Accepted:
    """What a client goes along with; None where it leaves the choice to the server.

    It does not leave to it what an image is safe by: an offline mode that trusts a third party, or a ReLU protocol that
    is not safe against a server that deviates, is accepted by its name alone.

    pin: `Offer.pin`, as the operator publishes it; model: which of the server's, by its name there; relu, offline,
    reveal, truncation: as the offer has them, or the first word. Raises UserError for a pin or a name that is none.
    """

    pin: str | None = None
    relu: str | None = None
    offline: str | None = None
    reveal: str | None = None
    truncation: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pin", self.pin and self.pin.lower())  # as digits are copied from elsewhere
        if self.pin is not None and (len(self.pin) != PIN_DIGITS or not set(self.pin) <= set(string.hexdigits.lower())):
            raise UserError(
                f"pin {self.pin[:80]!r} is not the {PIN_DIGITS} hexadecimal digits that `parelu serve` prints"
            )
        if self.model is not None:
            check_model_name(self.model)

    def check(self, offer: Offer) -> None:
        """Raises ProtocolError where the offer is another."""
        for name in CHOICES:
            wanted, offered = getattr(self, name), getattr(offer, name)
            if wanted is not None and wanted not in (offered, offered.partition(" ")[0]):
                raise ProtocolError(
                    f"the server offers {name} {offered[:40]!r}, and {wanted!r} was asked for; nothing was sent"
                )
        mode, relu = _named(modes(), "offline", offer.offline), _named(relus(), "relu", offer.relu)
        if self.offline is None and mode.third_party:
            raise _unasked("offline", offer.offline, "trusts a third party")
        if self.relu is None and not relu.resists:
            raise _unasked("relu", offer.relu, "a server that deviates can read an image by")
        if self.pin is not None and offer.pin != self.pin:
            raise ProtocolError(
                f"the server's offer {offer.pin[:16]}… is not the pinned {self.pin[:16]}…; nothing was sent: "
                "ask the operator for the published pin"
            )


TWO_PARTIES = Accepted()  # what a client accepts that was told nothing


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a server says to one client.

    room: inferences that it keeps for this client's stock; left: those that the budget has left; server: identity of
    its stocks, "" for none.
    """

    room: int = 0
    left: int = 0
    server: str = ""


@dataclasses.dataclass(frozen=True)
class Greeted:
    """What a connection starts from.

    context: hash of all that both saw, which base OTs and the garbling hash are bound to.
    """

    offer: Offer
    terms: Terms
    mode: Mode
    context: bytes
    standing: Standing

    @property
    def use(self) -> str:
        """What material of this connection is for."""
        return use(self.standing.server, self.offer)


@dataclasses.dataclass(frozen=True)
class Hello:
    """The client's first message. body: its bytes; model: "" for whichever the server has; waits: whether the client
    knows what a server says to one that waits for its turn."""

    body: bytes
    pin: str
    stock: str
    model: str
    waits: bool


def read_hello(channel: Channel) -> Hello:
    """Raises ProtocolError where it is none, or the client speaks no version that is spoken here."""
    body = channel.receive_up_to("helo", LARGEST_HELLO)
    fields = _load(body, ("versions", "nonce", "pin", "stock"), {"model": "", "waits": ""})
    _common(fields["versions"])
    return Hello(body, fields["pin"], fields["stock"], fields["model"], fields["waits"] == WAITS)


def tell_place(channel: Channel, place: int) -> None:
    """To a client that waits: how many go before it, and that it is not forgotten."""
    channel.send("wait", PLACE.pack(place))


def greet_server(
    channel: Channel, accepted: Accepted, stock: str, waiting: Callable[[int], None] | None = None
) -> Greeted:
    """The client's end; stock: the identity of its stock. Raises ProtocolError where the offer is not accepted.

    waiting: told how many clients go before this one, while it waits; None for a client that does not.
    """
    ours = _client_hello(fresh_seed().hex(), accepted.pin or "", stock, accepted.model or "", waiting is not None)
    channel.send("helo", ours)
    told = Before("wait", PLACE.size, lambda body: waiting(*PLACE.unpack(body))) if waiting else None
    theirs = channel.receive_up_to("helo", LARGEST_HELLO, told)
    offer_fields = tuple(field.name for field in dataclasses.fields(Offer))
    reply = _load(theirs, ("version", "nonce", "engine", *offer_fields, "room", "left", "server"))
    if reply["version"] not in map(str, SPOKEN):
        raise ProtocolError(f"the server chose wire version {reply['version'][:20]!r}, which was not offered")
    if reply["engine"] != ENGINE:
        raise ProtocolError(f"the server runs engine {reply['engine'][:20]!r}, this version knows {ENGINE}")
    offer = Offer(**{name: reply[name] for name in offer_fields})
    accepted.check(offer)
    body = channel.receive_up_to("prog", LARGEST_PROGRAM)
    if hashlib.sha256(body).hexdigest() != offer.program:
        raise ProtocolError("the server's program is not the one that it offers")
    try:
        program = Program.from_bytes(body)
    except ValueError as error:
        raise ProtocolError(f"the server's program is refused: {error}") from error
    terms, mode = _terms(program, offer)
    context = _context(ours, theirs, body)
    channel.send("redy", context)
    standing = Standing(_number(reply["room"]), _number(reply["left"]), reply["server"])
    return Greeted(offer, terms, mode, context, standing)


def greet_client(
    channel: Channel, hello: Hello, model: Model, mode: Mode, standing: Callable[[str], Standing]
) -> Greeted:
    """The server's end, from the client's hello on; standing: of a client whose stock has this identity."""
    offer, own = Offer.of(model, mode), standing(hello.stock)
    ours = _server_hello(fresh_seed().hex(), offer, own)
    channel.send("helo", ours)
    if hello.pin not in ("", offer.pin):
        raise ProtocolError(f"the client pins {hello.pin[:16]!r}, this server offers {offer.pin[:16]}")
    body = model.terms.program.to_bytes()
    channel.send("prog", body)
    context = _context(hello.body, ours, body)
    if channel.receive("redy", len(context)).tobytes() != context:
        raise ProtocolError("the client read another greeting than the server sent")
    return Greeted(offer, model.terms, mode, context, own)


def traffic(terms: Terms, mode: Mode, digest: str) -> Iterator[Messages]:
    """What both ends send, without a stock, a pin and a budget; digest: of `Mode.make`, or as long."""
    nonce, hashed = "0" * 2 * SEED_BYTES, "0" * 2 * HASH_BYTES
    offer = Offer(hashed, hashed, digest, terms.relu.name, mode.name, terms.reveal.text, terms.truncation)
    yield to_server(len(_client_hello(nonce, "", "")))
    yield to_client(len(_server_hello(nonce, offer, Standing(left=NO_LIMIT))))
    yield to_client(len(terms.program.to_bytes()))
    yield to_server(HASH_BYTES)


def use(server: str, offer: Offer) -> str:
    """What material of a server with this identity is for."""
    return f"{FORMAT} {VERSION} {server} {offer.pin}"


def _unasked(what: str, name: str, why: str) -> ProtocolError:
    return ProtocolError(
        f"the server offers {what} {name!r}, which {why}; nothing was sent (--{what} {name} accepts it)"
    )


def _terms(program: Program, offer: Offer) -> tuple[Terms, Mode]:
    relu, mode = _named(relus(), "relu", offer.relu), _named(modes(), "offline", offer.offline)
    try:
        terms = Terms(program, relu, reveal_of(offer.reveal), offer.truncation)
        mode.check_terms(program, relu)
    except (UserError, ValueError) as error:
        raise ProtocolError(f"the server's terms do not go together: {error}") from error
    return terms, mode


def _context(*parts: bytes) -> bytes:
    """SHA-256 of the parts, each with its length."""
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in parts)).digest()


def _client_hello(nonce: str, pin: str, stock: str, model: str = "", waits: bool = False) -> bytes:
    """What a client does not ask for is left out."""
    versions = " ".join(map(str, SPOKEN))
    asked = {"model": model, "waits": WAITS if waits else ""}
    more = {name: value for name, value in asked.items() if value}
    return _dump({"format": FORMAT, "versions": versions, "nonce": nonce, "pin": pin, "stock": stock, **more})


def _server_hello(nonce: str, offer: Offer, standing: Standing) -> bytes:
    fields = {name: str(value) for name, value in dataclasses.asdict(standing).items()}
    header = {"format": FORMAT, "version": str(VERSION), "nonce": nonce, "engine": ENGINE}
    return _dump({**header, **dataclasses.asdict(offer), **fields})


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _common(versions: str) -> int:
    """The newest version that both speak; raises ProtocolError where there is none."""
    named = versions.split(" ")[:MOST_VERSIONS]
    common = [version for version in SPOKEN if str(version) in named]
    if not common:
        raise ProtocolError(
            f"the client speaks wire version {versions[:40]!r}, this server {' '.join(map(str, SPOKEN))}: "
            "install one release of parelu on both sides"
        )
    return max(common)


def _load(body: bytes, fields: tuple[str, ...], more: Mapping[str, str] = {}) -> dict[str, str]:
    """These fields of a greeting, and more that may be left out; others, of later releases, are passed over."""
    try:
        value = json.loads(body)
        if value["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        found = {name: value[name] for name in fields} | {
            name: value.get(name, unsaid) for name, unsaid in more.items()
        }
        if not all(isinstance(v, str) and len(v) <= 200 for v in found.values()):
            raise ValueError("its fields are others")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"the peer's greeting is not of this version of parelu ({str(error)[:80]})") from error
    return found


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _named(known: Mapping[str, Any], what: str, name: str) -> Any:
    if name not in known:
        raise ProtocolError(f"the server offers {what} {name[:20]!r}, this version knows {', '.join(known)}")
    return known[name]
