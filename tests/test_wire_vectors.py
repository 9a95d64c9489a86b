"""docs/wire-vectors: this package sends and reads these bytes, and the second client, of code of its own, does too."""

import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import wire_vectors
from wire_vectors import FOLDER, SESSIONS, image

from parelu.private.serving.greeting import VERSION

ROOT = Path(__file__).parent.parent
CONSTRUCTIONS, OF_SESSIONS = (
    json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in ("constructions", "sessions")
)
MODULES = ("primitives", "program", "sign", "client")


@pytest.fixture(scope="module")
def second():
    """The second client's modules, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples/second_client")
        found = {name: importlib.import_module(name) for name in MODULES}
        yield found
        for name in MODULES:
            patch.delitem("sys.modules", name, raising=False)


def test_constructions():
    assert json.loads(json.dumps(wire_vectors.of_constructions())) == CONSTRUCTIONS


@pytest.mark.parametrize("setting", SESSIONS, ids=" ".join)
def test_a_session_has_these_bytes(setting):
    """Another one needs another version of the wire: see the promise in docs/wire-format.md."""
    ours, theirs, answer = wire_vectors.recorded(*setting)
    expected = OF_SESSIONS[" ".join(setting)]
    assert [*map(wire_vectors.shown, ours)] == expected["client"]
    assert [*map(wire_vectors.shown, theirs)] == expected["server"]
    assert answer == expected["answer"]


def test_the_page_is_of_this_version():
    assert (ROOT / "docs/wire-format.md").read_text().startswith(f"# The wire format, version {VERSION}\n")


# The second client


def blocks(text, *shape):
    return np.frombuffer(bytes.fromhex(text), "<u8").reshape(*shape, 2)


def test_the_second_clients_constructions(second):
    primitives, vectors = second["primitives"], CONSTRUCTIONS["streams"]
    seed = bytes.fromhex(vectors["seed"])
    assert primitives.derive(seed, "text", 7).hex() == vectors["derive(seed, text, 7)"]
    stream = primitives.Stream(seed, "text", 7)
    assert b"".join(map(stream.bytes, (3, 0, 20, 17))).hex() == vectors["Stream(seed, text, 7), 40 bytes"]
    vector = vectors["hash"]
    hashed = primitives.Hash(bytes.fromhex(vector["key"]))(blocks(vector["block"], 1), *vector["tweak"])
    assert hashed.tobytes().hex() == vector["H"]


class Replayed:
    """A connection whose server sends what it once sent."""

    def __init__(self, messages):
        numbered = enumerate(messages)
        bodies = [(n, kind.encode().ljust(4), bytes.fromhex(body)) for n, (kind, body) in numbered]
        headers = [kind + n.to_bytes(4, "little") + len(body).to_bytes(8, "little") for n, kind, body in bodies]
        self.left = b"".join(itertools.chain(*zip(headers, (body for *_, body in bodies), strict=True)))
        self.sent = b""

    def recv(self, count):
        part, self.left = self.left[:count], self.left[count:]
        return part

    def sendall(self, data):
        self.sent += data

    def close(self):
        pass


def test_the_second_client_repeats_a_session(second, monkeypatch):
    """All that a client with a dealer sends follows from what it is sent, its nonce and the image."""
    vector, module = OF_SESSIONS["dealer sign exact local"], second["client"]
    hello = json.loads(bytes.fromhex(vector["client"][0][1]))
    monkeypatch.setattr(module.os, "urandom", lambda count: bytes.fromhex(hello["nonce"]))
    connection = Replayed(vector["server"])
    client = module.Client(connection, "dealer")
    monkeypatch.setattr(client.program, "encode", lambda encoded: encoded.astype(np.int64).view(np.uint64).reshape(-1))
    assert client.infer(image()[0]).tolist() == vector["answer"]
    client.close()
    assert connection.left == b"" and connection.sent == Replayed(vector["client"]).left
