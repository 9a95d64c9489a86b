"""A second client of `parelu serve`, written from docs/wire-format.md alone: numpy and the standard library.

    python examples/second_client/client.py HOST:PORT image.npy --offline dealer --tls certs

It runs ReLU protocol `sign` with the offline modes of `MODES`, and takes exact logits; it has no stocks. image.npy:
uint8 (C, H, W) or (N, C, H, W), of the network's own size.
"""

import argparse
import hashlib
import json
import os
import socket
import ssl
import struct
import sys
from pathlib import Path

import numpy as np
from hints import Hints
from primitives import Hash, Stream
from program import SECRET, Program, local
from sign import Sign

HEADER, COMMAND = struct.Struct("<4sIQ"), struct.Struct("<4sI")
VERSIONS, ENGINE = ("5",), "delphi"
OFFER = ("program", "weights", "hints", "relu", "offline", "reveal", "truncation")


class Refused(Exception):
    """The server, or what it sent, cannot be worked with."""


class Channel:
    """Framed messages."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.sent, self.received = connection, 0, 0

    def send(self, kind: str, body: bytes) -> None:
        self.connection.sendall(HEADER.pack(kind.encode().ljust(4), self.sent, len(body)) + body)
        self.sent += 1

    def receive(self, kind: str, length: int | None = None, most: int = 0) -> bytes:
        got, number, size = HEADER.unpack(self._exactly(HEADER.size))
        if got == b"fail" and size <= 300:
            raise Refused(f"the server ended the connection: {self._exactly(size).decode(errors='replace')!r}")
        if (
            got != kind.encode().ljust(4)
            or number != self.received
            or (size > most if length is None else size != length)
        ):
            raise Refused(f"message {number}, {got!r} of {size} bytes, where {kind!r} of {length or most} was due")
        self.received += 1
        return self._exactly(size)

    def _exactly(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            part = self.connection.recv(min(count - len(found), 1 << 20))
            if not part:
                raise Refused("the server closed the connection")
            found += part
        return bytes(found)


class Dealt:
    """The client's half of an inference by `dealer`: all of it is drawn from one seed."""

    audits = False

    def __init__(self, channel: Channel, context: bytes, program: Program, offer: dict[str, str]) -> None:
        self._channel = channel

    def begin(self) -> None:
        body = self._channel.receive("deal", 32)
        self._seed, self.hash, self.first = body[:16], Hash(body[16:]), 0

    def stream(self, what: str, number: int) -> Stream:
        return Stream(self._seed, "client", what, number)

    def linear(self, number: int, op: dict, share: np.ndarray, count: int) -> np.ndarray:
        return self.stream("linear", number).elements(count)

    def labels(self, number: int, bits: np.ndarray) -> np.ndarray:
        return self.stream("labels", number).blocks(*bits.shape)

    def random_transfer(self, number: int, first: int, choices: np.ndarray) -> np.ndarray:
        return self.stream("random ot", number).elements(len(choices))

    def product(self, number: int, first: int, values: np.ndarray) -> np.ndarray:
        return self.stream("product", number).elements(len(values))

    def square(self, number: int, share: np.ndarray) -> np.ndarray:
        return self.stream("square", number).elements(2 * len(share)).reshape(2, -1)


MODES = {"dealer": Dealt, "hints": Hints}
RENEWED = 1000  # phases of one set-up


class Material:
    """One inference's: the walk over the program with the client's shares."""

    def __init__(self, program: Program, truncation: str, offline) -> None:
        self.program, self.exact, self.offline = program, truncation == "exact", offline
        self.relus: dict[int, Sign] = {}
        self.squares: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self.mask = offline.stream("mask", 0).elements(int(np.prod(program.shapes[0])))
        values = [self.mask.reshape(program.shapes[0])]
        for number, op in enumerate(program.ops, start=1):
            values.append(self._share(number, op, values).reshape(program.shapes[number]))
        self.last = program.reduced(values[-1])

    def _share(self, number: int, op: dict, values: list[np.ndarray]) -> np.ndarray:
        source = values[op["source"]]
        if op["kind"] in SECRET:
            return self.offline.linear(number, op, source, int(np.prod(self.program.shapes[number])))
        if op["kind"] == "truncate":
            return self.program.reduced(source) >> np.uint64(op["bits"])
        if op["kind"] == "activation":
            return self._activation(number, op, values)
        return local(op, source, values[op.get("other", 0)])

    def _activation(self, number: int, op: dict, values: list[np.ndarray]) -> np.ndarray:
        out = values[op["source"]].reshape(-1).copy()
        before = self.program.ops[op["source"] - 1] if op["source"] else {"kind": ""}
        read, f = (
            (before["source"], before["bits"]) if self.exact and before["kind"] == "truncate" else (op["source"], 0)
        )
        share, squared = values[read].reshape(-1)[op["relus"]], out[op["squares"]]
        if len(share):
            self.relus[number] = Sign(self.offline, number, share, op["bits"], f, self.program.ring)
            out[op["relus"]] = self.relus[number].mask
        if len(squared):
            mask = self.offline.stream("square mask", number).elements(len(squared))
            self.squares[number] = (mask, *self.offline.square(number, squared))
            out[op["squares"]] = mask
        return out


class Client:
    """Attributes: program; offer, what the server states.

    offline: the mode that the user goes along with; pin: what the operator published, or "".
    """

    def __init__(self, connection: socket.socket, offline: str, pin: str = "") -> None:
        self.channel = Channel(connection)
        hello = {"format": "parelu-session", "versions": " ".join(VERSIONS), "nonce": os.urandom(16).hex()}
        ours = json.dumps({**hello, "pin": pin, "stock": ""}).encode()
        self.channel.send("helo", ours)
        theirs = self.channel.receive("helo", most=4096)
        reply = json.loads(theirs)
        self.offer = {name: reply[name] for name in OFFER}
        self._check(reply, offline, pin)
        body = self.channel.receive("prog", most=32 << 20)
        if hashlib.sha256(body).hexdigest() != self.offer["program"]:
            raise Refused("the program is not the one that is offered")
        self.program = Program(body)
        said = b"".join(len(part).to_bytes(4, "little") + part for part in (ours, theirs, body))
        self.context = hashlib.sha256(said).digest()
        self.channel.send("redy", self.context)
        self._mode, self._phases = MODES[offline], 0

    def _check(self, reply: dict[str, str], offline: str, pin: str) -> None:
        if reply["format"] != "parelu-session" or reply["version"] not in VERSIONS or reply["engine"] != ENGINE:
            raise Refused(f"the server speaks version {reply['version']} of {reply['engine']}")
        wanted = {"relu": ("sign",), "offline": (offline,), "reveal": ("exact",), "truncation": ("local", "exact")}
        for name, known in wanted.items():
            if self.offer[name] not in known:
                raise Refused(f"the server offers {name} {self.offer[name]!r}; this client takes {' or '.join(known)}")
        pinned = json.dumps({"format": "parelu-offer-1", "engine": ENGINE, **self.offer}, sort_keys=True)
        if pin and hashlib.sha256(pinned.encode()).hexdigest() != pin:
            raise Refused("the server's offer is not the pinned one")

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Logits, (classes,), of a uint8 image (C, H, W)."""
        encoded = self.program.encode(image)
        self.channel.send("comd", COMMAND.pack(b"prep", 1))
        material = self._fetched()
        self.channel.send("comd", COMMAND.pack(b"infr", 1))
        self.channel.send("inpt", (encoded - material.mask).tobytes())
        for number, op in enumerate(self.program.ops, start=1):
            if op["kind"] == "activation":
                self.channel.send("mask", self._answer(number, op, material))
        shares = np.frombuffer(self.channel.receive("outp", 8 * self.program.classes), "<u8")
        last = self.program.signed(material.last + shares)
        largest = max(-int(last.min()), int(last.max()))
        if self.program.bits < self.program.ring and largest > 1 << self.program.bits - 2:
            raise Refused("the answer is out of the network's range: it is no result")
        return last * self.program.unit

    def _fetched(self) -> Material:
        """Of a phase that the server does not open."""
        while True:
            if self._phases % RENEWED == 0:
                context = hashlib.sha256(self.context + self._phases.to_bytes(8, "little")).digest()
                self._state = self._mode(self.channel, context, self.program, self.offer)
            self._phases += 1
            self._state.begin()
            material = Material(self.program, self.offer["truncation"], self._state)
            if not self._state.audits or not self.channel.receive("chck", 1)[0]:
                return material
            self.channel.send("show", self._state.show())

    def _answer(self, number: int, op: dict, material: Material) -> bytes:
        answer = b""
        if number in material.relus:
            relus = material.relus[number]
            answer += relus.answer(self.channel.receive("sign", relus.opened_bytes))
        if number in material.squares:
            mask, u, v = material.squares[number]
            opened = np.frombuffer(self.channel.receive("sqre", 8 * len(mask)), "<u8")
            truncated = self.program.reduced(opened * u + v) >> np.uint64(op["truncation"])
            answer += (truncated - mask).tobytes()
        return answer

    def close(self) -> None:
        self.channel.send("comd", COMMAND.pack(b"end ", 0))
        self.channel.connection.close()


def connected(host: str, port: int, certificates: Path | None) -> socket.socket:
    """TLS 1.3 with certificates on both sides, or plain."""
    connection = socket.create_connection((host, port), 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if certificates is None:
        return connection
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    return context.wrap_socket(connection, server_hostname=host)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("images", type=Path)
    parser.add_argument("--offline", choices=[*MODES], required=True)
    parser.add_argument("--pin", default="")
    parser.add_argument("--tls", type=Path, help="folder with ca.pem, client.pem and client.key")
    options = parser.parse_args()
    host, _, port = options.address.rpartition(":")
    try:
        images = np.load(options.images, allow_pickle=False)
        client = Client(connected(host, int(port), options.tls), options.offline, options.pin)
        for image in images.reshape(-1, *images.shape[-3:]):
            print(int(client.infer(image).argmax()))
        client.close()
    except (Refused, OSError, ValueError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
