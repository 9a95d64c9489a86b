"""Makes docs/wire-vectors: what docs/wire-format.md says, in bytes.

    PYTHONPATH=src:tests:. python tests/wire_vectors.py

sessions.json has whole sessions of one network. What a party draws at random comes of a stream of its own there, so
that the same code sends the same bytes. A message is its kind and its body, in hexadecimal where it is short, or else
its length and SHA-256. constructions.json has each construction by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
from hand_programs import Hand
from two_parties import NARROW

from fuzz import sessions
from parelu.private.crypto import base_ot, carries
from parelu.private.crypto.dcf import Key, correct
from parelu.private.crypto.garbling import Evaluator, Garbler, argmax, masked_relu, sign, total, with_colour
from parelu.private.crypto.hash import Hash, linear_hash
from parelu.private.crypto.prg import Stream, derive
from parelu.private.lowering.lowered import Lowered
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import planes, relus, table_blocks, words
from parelu.private.protocol.reveal import reveal_of
from parelu.private.serving import greeting
from parelu.private.serving.greeting import Accepted
from parelu.private.serving.ledger import Ledger
from parelu.private.serving.session import Service, Session, serve
from parelu.private.transport.channel import HEADER, Channel

FOLDER = Path(__file__).parent.parent / "docs/wire-vectors"
LONGEST = 4096  # bytes of a body that stands there as it is
SEED = bytes(range(16))
# offline, relu, reveal, truncation
SESSIONS = (
    ("dealer", "sign", "exact", "local"),
    ("dealer", "sign", "label 2^2", "exact"),
    ("dealer", "full", "logits 2^2", "exact"),
    ("dealer", "fss", "label", "local"),
    ("hints", "sign", "exact", "local"),
    ("seal", "sign", "exact", "local"),
)


def network() -> Lowered:
    """A convolution, ReLUs and squares, a matrix: integers alone, the same wherever they are made."""
    hand = Hand((1, 4, 4), NARROW, seed=3)
    x = hand.activation(hand.truncate(hand.conv(0, 2)), relus=0.4, squares=0.1)
    hand.linear(hand.pool(x), 3)
    return hand.lowered()


def image() -> np.ndarray:
    """The input's integers, (1, C, H, W)."""
    return np.arange(-16, 16, 2).reshape(1, 1, 4, 4) * 4


def recorded(offline: str, relu: str, reveal: str, truncation: str) -> tuple[list[bytes], list[bytes], list[int]]:
    """The client's messages, the server's, and the answer, of one inference."""
    model, mode = Model(network(), relus()[relu], reveal_of(reveal), truncation), modes()[offline]
    mode.make(model, Keep())
    ours, theirs = map(sessions.Recorded, socket.socketpair())

    def server() -> None:
        sessions.draw_from(offline, relu, "server")
        with contextlib.closing(Ledger(inferences=10)) as ledger:
            serve(Channel(theirs), model, mode, Service(account=ledger.account("somebody"), audit=0.0))

    with sessions.repeated():
        thread = threading.Thread(target=server)
        thread.start()
        sessions.draw_from(offline, relu, "client")
        client = Session(Channel(ours), Accepted(offline=offline, relu=relu))
        answer = model.terms.program.ring.decode(client.infer(image()))[0].tolist()
        client.close()
        thread.join()
    theirs.connection.close()
    return sessions.messages(bytes(ours.sent)), sessions.messages(bytes(theirs.sent)), answer


def shown(message: bytes) -> list[Any]:
    """[kind, the body] or [kind, its length, its SHA-256]."""
    kind, body = message[:4].decode().strip(), message[HEADER.size :]
    if len(body) <= LONGEST:
        return [kind, body.hex()]
    return [kind, len(body), hashlib.sha256(body).hexdigest()]


def of_sessions() -> dict[str, Any]:
    lowered = network()
    found: dict[str, Any] = {
        "program": lowered.program.to_bytes().decode(),
        "integers": {
            f"{op}/{name}": values.reshape(-1).tolist()
            for op, integers in sorted(lowered.weights.items())
            for name, values in integers.items()
        },
        "input": image().reshape(-1).tolist(),
    }
    for setting in SESSIONS:
        ours, theirs, answer = recorded(*setting)
        name = " ".join(setting)
        found[name] = {"client": [*map(shown, ours)], "server": [*map(shown, theirs)], "answer": answer}
    return found


def drawn(*labels: str | int) -> Stream:
    return Stream(SEED, "vectors", *labels)


def hexed(array: np.ndarray) -> str:
    return np.ascontiguousarray(array).tobytes().hex()


def of_streams() -> dict[str, Any]:
    key, block = derive(SEED, "key"), drawn("block").blocks(1)
    return {
        "seed": SEED.hex(),
        "derive(seed, text, 7)": derive(SEED, "text", 7).hex(),
        "Stream(seed, text, 7), 40 bytes": hexed(Stream(SEED, "text", 7).bytes(40)),
        "hash": {"key": key.hex(), "block": hexed(block), "tweak": [5, 9], "H": hexed(Hash(key)(block, 5, 9))},
        "linear hash": {
            "key": key.hex(),
            "row": hexed(drawn("row").bytes(48)),
            "hash": hexed(linear_hash(key, drawn("row").bytes(48)[None])),
        },
    }


def of_circuits() -> dict[str, Any]:
    """Each circuit on 4 instances: what the evaluator has, and the colours that it gets, lowest wire first."""
    found = {}
    circuits: dict[str, tuple[Any, int]] = {
        "total": (total, 5),
        "sign": (sign, 5),
        "argmax": (argmax, 6),
        "relu, f = 2": (lambda machine, a, b: masked_relu(machine, a[:6], b, a[6:], 2), 6),
    }
    for name, (circuit, width) in circuits.items():
        wires = width * (2 if name.startswith("relu") else 1)
        key, delta = derive(SEED, name), with_colour(drawn("delta").blocks())
        zeros = [drawn(name, which).blocks(count, 4) for which, count in (("client", wires), ("server", width))]
        tables = np.empty((table_blocks(circuit, wires, width, 4, 4), 2), np.uint64)
        circuit(Garbler(Hash(key), delta, 100, tables), list(zeros[0]), list(zeros[1]))
        values = [drawn(name, "bits", n).elements(4) >> np.uint64(64 - len(each)) for n, each in enumerate(zeros)]
        bits = [planes(value, len(each)) for value, each in zip(values, zeros, strict=True)]
        labels = [z ^ delta * b[:, :, None].astype(np.uint64) for z, b in zip(zeros, bits, strict=True)]
        out = circuit(Evaluator(Hash(key), 100, tables), list(labels[0]), list(labels[1]))
        found[name] = {
            "key": key.hex(),
            "first": 100,
            "client's labels": hexed(labels[0]),
            "server's labels": hexed(labels[1]),
            "tables": hexed(tables),
            "output labels": [hexed(label) for label in out],
        }
    return found


def of_sign() -> dict[str, Any]:
    """The rows of `sign` for 3 instances, and what the client reads."""
    found = {}
    for bits, cut in ((5, 0), (6, 0), (7, 3)):
        key, delta = derive(SEED, "sign", bits), with_colour(drawn("delta").blocks())
        client, server = (drawn("sign", who, bits).elements(3) for who in ("client", "server"))
        zeros = drawn("sign", "labels", bits).blocks(carries.wires(bits, cut), 3)
        chosen = planes(client, bits)
        labels = zeros ^ delta * chosen[: len(zeros), :, None].astype(np.uint64)
        outputs = np.packbits(drawn("names").bits(6 if cut else 3).reshape(-1, 3), axis=1, bitorder="little")
        pads = carries.server_pads(Hash(key), 20, zeros, delta, bits, cut)
        (message,) = carries.encode(server, pads, outputs, drawn("rows"), bits, cut)
        packed = np.packbits(chosen, axis=1, bitorder="little")
        ours = carries.client_pads(Hash(key), 20, labels, bits, cut)
        read = np.unpackbits(carries.decode([message], packed, ours, bits, cut), axis=1, count=3, bitorder="little")
        found[f"M = {bits}, f = {cut}"] = {
            "key": key.hex(),
            "first": 20,
            "client's numbers": [int(words(chosen[:, i : i + 1])[0]) for i in range(3)],
            "client's labels": hexed(labels),
            "rows": hexed(message),
            "read": read.tolist(),
        }
    return found


def of_comparison() -> dict[str, Any]:
    levels, permutation = 5, derive(SEED, "comparison")
    roots = drawn("root", 0).blocks(2), drawn("root", 1).blocks(2)
    betas, alphas = drawn("betas").elements(2, 2), np.array([11, 30], np.uint64)
    corrections = correct(permutation, levels, alphas, betas, roots)
    key = Key(permutation, 0, levels, roots[0], corrections)
    return {
        "key": permutation.hex(),
        "levels": levels,
        "roots": hexed(roots[0]),
        "corrections": hexed(corrections),
        "points": [10, 30],
        "client's values": key.evaluate(np.array([10, 30], np.uint64)).tolist(),
    }


def of_base_transfers() -> dict[str, Any]:
    """One of a sender that draws a, and of a receiver's points."""
    context, a = drawn("context").bytes(32).tobytes(), base_ot.hash_to_group(b"a", 0, 0, bytes(32))
    points = [base_ot.hash_to_group(b"point", n, 0, bytes(32)) for n in range(2)]
    shared = base_ot.hash_to_group(b"shared", 0, 0, bytes(32))
    return {
        "context": context.hex(),
        "number": 3,
        "points": [point.hex() for point in points],
        "H_0 of the second": base_ot.hash_to_group(context, 3, 0, points[1]).hex(),
        "H_1 of the first": base_ot.hash_to_group(context, 3, 1, points[0]).hex(),
        "A": a.hex(),
        "shared": shared.hex(),
        "F_1": hexed(base_ot._seed(context, 3, 1, a, b"".join(points), shared)),
        "transcript": base_ot._transcript(context, a, b"".join(points)).hex(),
    }


def of_turns() -> dict[str, Any]:
    """What a client says that names a model and knows how to wait, and what it is told meanwhile."""
    ours, theirs = map(sessions.Recorded, socket.socketpair())
    greeting.tell_place(Channel(theirs), 3)
    with contextlib.closing(ours.connection), contextlib.closing(theirs.connection):
        return {
            "helo": json.loads(greeting._client_hello("0" * 32, "", "", "shirts", True)),
            "wait, as the first message": bytes(theirs.sent).hex(),
            "clients before": 3,
        }


def of_constructions() -> dict[str, Any]:
    return {
        "streams": of_streams(),
        "circuits": of_circuits(),
        "sign": of_sign(),
        "comparison": of_comparison(),
        "base transfers": of_base_transfers(),
        "turns": of_turns(),
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, content in (("constructions", of_constructions()), ("sessions", of_sessions())):
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
