"""A connection from its first message to its last: handshake, offline material on request, inferences.

client                          server
helo: nonce, pinned hash   →
                           ←    helo: nonce, engine, protocols, hash; prog: the program
redy: hash of what came    →
the offline mode's own set-up, both ways
comd: prepare n            →    n times the offline phase
comd: infer                →    the online phase
comd: end                  →
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu.errors import UserError
from parelu.private.activations.base import relus
from parelu.private.channel import Channel, Traffic
from parelu.private.engines.delphi import Material, Model, Terms, infer_client, infer_server
from parelu.private.errors import ProtocolError
from parelu.private.offline.base import Mode, Package, modes
from parelu.private.primitives.prg import fresh_seed
from parelu.private.program import LARGEST_PROGRAM, Program
from parelu.private.reveal import REVEALS
from parelu.private.ring import Ring

FORMAT = "parelu-session-1"
LARGEST_HELLO = 4096
COMMAND = struct.Struct("<4sI")
PREPARE, INFER, END = b"prep", b"infr", b"end "


class Session:
    """The client's end. Not for two threads at once.

    Attributes:
        terms: program and protocols, as the server stated them.
        mode: the offline mode.
        prepared: inferences whose offline phase is done.
    """

    def __init__(self, channel: Channel, pin: str | None = None, *, keep_shares: bool = False) -> None:
        """Shake hands.

        pin: SHA-256 of the program, as the operator publishes it. Raises ProtocolError where the server has another.
        """
        self.channel, self.keep_shares = channel, keep_shares
        self.prepared: deque[Material] = deque()
        hello = {"format": FORMAT, "nonce": fresh_seed().hex(), "pin": pin or ""}
        with channel.measured("setup", "handshake"):
            ours = _dump(hello)
            channel.send("helo", ours)
            theirs = channel.receive_up_to("helo", LARGEST_HELLO)
            reply = _load(theirs, ("nonce", "engine", "relu", "offline", "reveal", "digest"))
            body = channel.receive_up_to("prog", LARGEST_PROGRAM)
            digest = hashlib.sha256(body).digest()
            if pin and digest.hex() != pin:
                raise ProtocolError(f"the server's program {digest.hex()[:16]}… is not the pinned {pin[:16]}…; "
                                    "ask the operator for the published hash")  # fmt: skip
            try:
                program = Program.from_bytes(body)
            except ValueError as error:
                raise ProtocolError(f"the server's program is refused: {error}") from error
            channel.send("redy", digest)
        self.terms = Terms(program, _named(relus(), reply, "relu"), _named(REVEALS, reply, "reveal"))
        self.mode: Mode = _named(modes(), reply, "offline")
        try:
            self.mode.check_relu(self.terms.relu)
        except UserError as error:
            raise ProtocolError(f"the server's terms do not go together: {error}") from error
        self._state = self.mode.client(channel, _context(ours, theirs, digest), self.terms)

    def prepare(self, count: int = 1) -> None:
        """Run the offline phase of `count` inferences; with those that wait, at most `terms.most_prepared`."""
        most = self.terms.most_prepared - len(self.prepared)
        if not 1 <= count <= most:
            raise UserError(f"{count} inferences cannot be prepared: a connection may have {most} more")
        self.channel.send("comd", COMMAND.pack(PREPARE, count))
        for _ in range(count):
            material = self.mode.fetch(self.channel, self._state, self.terms, keep_shares=self.keep_shares)
            self.prepared.append(material)

    def infer(self, image: NDArray[np.int64]) -> Ring:
        """One inference on integers (C, H, W), with prepared material or, where there is none, after making some."""
        program = self.terms.program
        if image.shape != program.input_shape:
            raise UserError(f"the image is {image.shape}, the network takes {program.input_shape}")
        if image.min() < program.low or image.max() > program.high:
            raise UserError(f"the image has values outside of its range, {program.low} to {program.high}")
        if not self.prepared:
            self.prepare()
        material = self.prepared.popleft()
        with self.channel.measured("online", "request"):
            self.channel.send("comd", COMMAND.pack(INFER, 1))
        return infer_client(self.channel, self.terms, material, image)

    def close(self) -> None:
        """Say good-bye and close; safe to call again, also on a broken connection."""
        try:
            self.channel.send("comd", COMMAND.pack(END, 0))
        except (ProtocolError, AssertionError):
            pass
        finally:
            self.channel.close()


def serve(channel: Channel, model: Model, mode: Mode, package: Callable[[], Package | None] = lambda: None,
          finished: Callable[[Mapping[tuple[str, str], Traffic]], None] = lambda traffic: None) -> int:  # fmt: skip
    """The server's end, until the client ends it; returns the number of inferences.

    package: takes material that was made ahead. finished: called with the traffic since the last
    inference. Raises ProtocolError where the client breaks the protocol.
    """
    context = _greet(channel, model, mode)
    state = mode.server(channel, context, model)
    prepared: deque[Material] = deque()
    done = 0
    while True:
        command, count = COMMAND.unpack(channel.receive("comd", COMMAND.size).tobytes())
        if command == PREPARE and 1 <= count <= model.terms.most_prepared - len(prepared):
            for _ in range(count):
                ready = package()
                material = ready.deliver(channel) if ready else mode.serve(channel, state, model)
                prepared.append(material)
        elif command == INFER and count == 1 and prepared:
            infer_server(channel, model, prepared.popleft())
            done += 1
            finished(channel.traffic)
            channel.traffic.clear()
        elif command == END and not count:
            return done
        else:
            raise ProtocolError(f"command {command!r} {count} with {len(prepared)} inferences prepared")


def _greet(channel: Channel, model: Model, mode: Mode) -> bytes:
    terms = model.terms
    with channel.measured("setup", "handshake"):
        theirs = channel.receive_up_to("helo", LARGEST_HELLO)
        hello = _load(theirs, ("nonce", "pin"))
        digest = terms.program.digest
        ours = _dump({"format": FORMAT, "nonce": fresh_seed().hex(), "engine": "delphi", "relu": terms.relu.name,
                      "offline": mode.name, "reveal": terms.reveal.name, "digest": digest})  # fmt: skip
        channel.send("helo", ours)
        channel.send("prog", terms.program.to_bytes())
        if hello["pin"] not in ("", digest):
            raise ProtocolError(f"the client pins program {hello['pin'][:16]!r}, this server has {digest[:16]}")
        if channel.receive("redy", 32).tobytes().hex() != digest:
            raise ProtocolError("the client read another program than the server sent")
    return _context(theirs, ours, bytes.fromhex(digest))


def _context(client_hello: bytes, server_hello: bytes, digest: bytes) -> bytes:
    """What both parties saw: base OTs and the garbling hash are bound to it."""
    parts = (client_hello, server_hello, digest)
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in parts)).digest()


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _load(body: bytes, fields: tuple[str, ...]) -> dict[str, str]:
    try:
        value = json.loads(body)
        if value.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if sorted(value) != sorted(fields) or not all(isinstance(v, str) and len(v) <= 200 for v in value.values()):
            raise ValueError("its fields are others")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"the peer's greeting is not of this version of parelu ({str(error)[:80]})") from error
    return value


def _named(known: Any, reply: dict[str, str], what: str) -> Any:
    if reply[what] not in known:
        raise ProtocolError(f"the server uses {what} {reply[what][:20]!r}, this version knows {', '.join(known)}")
    return known[reply[what]]
