"""A server that deviates, in any message: what the client sends, and where it stops, does not depend on its image.

Of `sign` with the homomorphic offline phase. The image enters by one message, x − r; all else that the client sends is
a ciphertext, a message of the extension, or under a fresh uniform mask.
"""

import contextlib
import hashlib
import os
import threading

import numpy as np
import pytest
import torch
from base_transfers import deal
from torch import nn
from two_parties import Pair, lowered_of, ready

from parelu.errors import NoResult, ProtocolError
from parelu.private.serving.session import COMMAND, END
from parelu.private.transport.channel import HEADER


class Tiny(nn.Module):
    """Every kind of message: a convolution, ReLUs beside squares and identities, a matrix, an arg-max."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.fc = nn.Conv2d(1, 2, 3, 1, 1), nn.ReLU(), nn.Linear(32, 3)

    def forward(self, x):
        return self.fc(torch.flatten(self.relu(self.conv(x)), 1))


LOWERED = lowered_of(
    ready(Tiny(), (1, 4, 4), lambda u: u < 0.5, lambda c: torch.tensor([[0.1, 0.0], [0.5, 1.0], [0.2, 0.0]]))
)
GOOD_BYE = ("comd", COMMAND.pack(END, 0))
IMAGES = [torch.full((1, 4, 4), 255, dtype=torch.uint8), torch.zeros((1, 4, 4), dtype=torch.uint8)]


@pytest.fixture
def still(monkeypatch):
    """Each thread draws the same bytes in every run."""
    drawn = threading.local()

    def urandom(count):
        name = "server" if threading.current_thread() is not threading.main_thread() else "client"
        drawn.number = getattr(drawn, "number", 0) + 1
        return hashlib.shake_256(f"{name} {drawn.number}".encode()).digest(count)

    def restart():
        drawn.number = 0

    monkeypatch.setattr(os, "urandom", urandom)
    return restart


class Deviating:
    """The client's socket, in which messages of the server's arrive changed: one by its number, or all of a kind; both
    directions are kept."""

    def __init__(self, socket, which, change):
        self.socket, self.which, self.change = socket, which, change
        self.sent, self.kinds, self.waiting = bytearray(), [], b""

    def sendall(self, data):
        self.sent += data
        self.socket.sendall(data)

    def _next(self):
        header = self._exactly(HEADER.size)
        kind, _, size = HEADER.unpack(header)
        body = self._exactly(size)
        self.kinds.append(kind.decode().strip())
        if self.which in (len(self.kinds) - 1, self.kinds[-1]):
            body = self.change(body)
        return header + body

    def _exactly(self, count):
        body = b""
        while len(body) < count:
            part = self.socket.recv(count - len(body))
            if not part:
                raise ConnectionResetError("closed")
            body += part
        return body

    def recv_into(self, buffer):
        if not self.waiting:
            self.waiting = self._next()
        count = min(len(buffer), len(self.waiting))
        buffer[:count] = self.waiting[:count]
        self.waiting = self.waiting[count:]
        return count

    def __getattr__(self, name):
        return getattr(self.socket, name)


def one_bit(body):
    return bytes([body[0] ^ 1]) + body[1:]


def zeros(body):
    return bytes(len(body))


def noise(body):
    return (
        hashlib.shake_256(body).digest(len(body)) if len(body) < 16 else bytes(len(body) // 2) + body[len(body) // 2 :]
    )


def talk(image, which, change, queries=1):
    """(how it ended for the client, messages' kinds and bytes that it sent)."""
    sockets = []

    def wrap(socket):
        sockets.append(Deviating(socket, which, change))
        return sockets[0]

    end = "an answer"
    try:
        pair = Pair(LOWERED, "sign", "seal", "label", wrap=wrap, timeout=5)
    except ProtocolError as error:
        return str(error), sockets[0]
    try:
        for _ in range(queries):
            pair.client.prepare()
            with contextlib.suppress(NoResult):  # found when all was sent: to the server it is an answer
                pair.client.infer(pair.encoded(image))
    except ProtocolError as error:
        end = str(error)
    finally:
        pair.client.close()
        pair.thread.join()
    return end, sockets[0]


def frames(sent):
    """Kind and body of each message that was sent whole."""
    found, position = [], 0
    while position + HEADER.size <= len(sent):
        kind, _, size = HEADER.unpack_from(sent, position)
        position += HEADER.size + size
        if position <= len(sent):
            found.append((kind.decode().strip(), bytes(sent[position - size : position])))
    return found


@pytest.mark.slow
def test_where_a_client_stops_does_not_depend_on_its_image(still):
    """With equal randomness and any one message changed: the same end, the same messages but those under a mask."""
    still()
    end, socket = talk(IMAGES[0], -1, zeros)
    assert end == "an answer"
    ends = set()
    for number in range(len(socket.kinds)):
        results, change = [], (one_bit, zeros, noise)[number % 3]
        with pytest.MonkeyPatch.context() as patch:
            if socket.kinds[number] != "base":
                deal(patch)
            for image in IMAGES:
                still()
                results.append(talk(image, number, change))
        (first, ours), (second, theirs) = results
        name = f"{number}, {socket.kinds[number]}"
        assert first == second or all("the peer" in end or "broke" in end for end in (first, second)), name
        ends.add(first)
        sent = [[frame for frame in frames(socket.sent) if frame != GOOD_BYE] for socket in (ours, theirs)]
        # Where it is the server that stops, how much the client still sends before it sees that is chance.
        for (kind, body), (other, its) in zip(*sent, strict="the peer" not in first and "broke" not in first):
            assert kind == other and len(body) == len(its), name
            assert body == its or kind in ("inpt", "mask"), f"{name}: {kind} depends on the image"
    assert len(ends) > 5 and "an answer" in ends


@pytest.mark.slow
def test_what_a_client_sends_to_a_deviating_server_looks_uniform():
    """The messages that the image enters, when the circuits that come are garbage: no bit leans."""
    masked, flips, relus = [], [], len(LOWERED.program.ops[2].relus)
    end, socket = talk(IMAGES[0], "tabl", zeros, queries=25)
    assert end == "an answer" and socket.kinds.count("tabl") >= 25
    for kind, body in frames(socket.sent):
        if kind == "inpt":
            masked.append(np.frombuffer(body, np.uint64))
        if kind == "mask":
            masked.append(np.frombuffer(body[: 8 * relus], np.uint64))
            flips.append(np.unpackbits(np.frombuffer(body[8 * relus :], np.uint8), count=relus, bitorder="little"))
    elements, chosen = np.concatenate(masked), np.concatenate(flips)
    bits = (elements[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert len(elements) > 600 and np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(elements))
    assert abs(chosen.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(chosen))
