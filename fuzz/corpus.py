"""Makes the samples that fuzzing starts from, of real objects: fuzz/corpus/TARGET/NAME.

    make fuzz-corpus

Small ones only. Those of whole sessions and of ciphertexts are edits of what is made afresh in each run. What fuzzing
finds and is worth keeping is put beside them by hand, and stays.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hand_programs import Hand
from nacl import bindings
from onnx_models import make, model_of
from safetensors.torch import save
from two_parties import Residual, lowered_of, ready, without_relus_at

from fuzz import sessions
from fuzz.edits import edit
from fuzz.targets import TARGETS
from parelu.network.candidate import Candidate
from parelu.network.metrics import Metrics, SearchMetrics
from parelu.network.spec import spec_of
from parelu.network.storage import write
from parelu.private.cost.calibration import Calibration, Machine, Point
from parelu.private.cost.fit import Fit
from parelu.private.crypto.codec import FORMAT, dump
from parelu.private.crypto.dcf import Key, correction_blocks
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.lattice.parameters import KEPT, PRIMES
from parelu.private.crypto.lattice.residues import pack, packed_bytes
from parelu.private.fresh import untrained
from parelu.private.lowering.lower import Lowered
from parelu.private.serving.ledger import Ledger
from parelu.private.transport.channel import HEADER

FOLDER = Path(__file__).parent / "corpus"
ONE = torch.ones(1)
Samples = Iterator[tuple[str, str, bytes]]  # target, name, content


def lowered() -> Iterator[tuple[str, Lowered]]:
    """Programs that have every op between them."""
    yield "relus", lowered_of(ready(Residual(), sessions.SHAPE, lambda u: u < 0.3))
    yield "squares", lowered_of(ready(Residual(), sessions.SHAPE, lambda u: u < 0.1, lambda c: torch.ones(3, c) / 4))
    yield "lines", lowered_of(without_relus_at(ready(Residual(), sessions.SHAPE), "relu2"))
    hand = Hand((1, 4, 4))
    value = hand.concat(0, hand.scale(hand.select(0, 1, 4), -1), 2)
    value = hand.resample(hand.permute(value, 2, 0, 1), 1, 3)
    hand.linear(hand.activation(hand.shift(hand.reshape(value, 8, 12)), 0.3), 3)
    yield "moves", hand.lowered()


def of_the_wire() -> Samples:
    for name, model in lowered():
        yield "program", name, model.program.to_bytes()
    ours, theirs = (messages[0][HEADER.size :] for messages in sessions.honest("dealer_sign"))
    yield from (("greeting", "client", b"\0" + ours), ("greeting", "server", b"\1" + theirs))
    two = HEADER.pack(b"kind", 0, 5) + b"hello" + HEADER.pack(b"kind", 1, 9) + b"good-bye!"
    yield "messages", "two", bytes([2, 0, 5, 1, 20, 0, 0, 0, 0]) + two
    yield "messages", "reason", bytes([1, 0, 5, 0, 0, 0, 0, 0, 0]) + HEADER.pack(b"fail", 0, 4) + b"busy"
    yield "ring_elements", "five", np.arange(5, dtype=np.uint64).tobytes()
    yield "packed_bits", "thirteen", b"\x0d\xff\x1f"
    points = [bindings.crypto_scalarmult_ed25519_base_noclamp(k.to_bytes(32, "little")) for k in (2, 3, 5)]
    yield "base_points_of_a_sender", "one", points[0]
    yield "base_points_of_a_receiver", "three", b"\3" + b"".join(2 * points)
    for name, primes in (("kept", KEPT), ("all", PRIMES)):
        ends = np.array([[0, prime // 2, -(prime // 2)] for prime in primes], np.float64)
        yield f"residues_{name}", "three", b"\3" + pack(ends, primes)
        yield f"residues_{name}", "the prime", b"\1" + b"".join(prime.to_bytes(4, "little") for prime in primes)
        yield f"residues_{name}", "padding", b"\1" + b"\xff" * packed_bytes(primes, 1)
    yield "pin", "one", b"0123456789abcdef" * 4
    yield "pin", "long", b"ABCDEF" * 40
    for name in ("label", "logits 2^17", "label 2^3", "exact", "logits", "logits 2^09", "exact 2^3"):
        yield "reveal_of", name, name.encode()


def of_edits() -> Samples:
    for name in TARGETS:
        first = b"\7" if name == "extension" else b""
        if not name.startswith(("extension", "he_", "hint_", "client_", "server_")):
            continue
        yield name, "honest", first
        yield name, "another header", first + edit("replace", 2, 0, b"fail\0\0\0\0\4\0\0\0")
        yield name, "elements", first + edit("replace", 3, 16, b"\xff" * 8) + edit("replace", 7, 16, b"\xff" * 200)
        yield name, "longer and shorter", first + edit("insert", 4, 50, bytes(16)) + edit("delete", 5, 16, size=9)
        if not name.startswith(("client_seal", "server_seal")):
            yield name, "another byte", first + edit("replace", 1, 20, b"\xff")
            yield name, "out of order", first + edit("swap", 3, 4) + edit("double", 2) + edit("drop", 6)
    for mode, what in (("seal", "key"), ("hints", "seed")):
        kinds = [message[:4] for message in sessions.honest(f"{mode}_opened")[0]]
        shown = edit("replace", kinds.index(b"show"), HEADER.size, b"\xaa" * 9)
        yield f"server_{mode}_opened", f"another {what}", shown
    kinds = [message[:4] for message in sessions.honest("hints_sign")[0]]
    for kind in (b"want", b"cmit", b"open", b"beta", b"upld"):
        for name, body in (("no residue", b"\xff" * 9), ("another residue", b"\1\2\3")):
            at = edit("replace", kinds.index(kind), HEADER.size, body)
            yield "server_hints_sign", f"{name} in {kind.decode()}", at
    kinds = [message[:4] for message in sessions.honest("hints_sign")[1]]
    for kind in (b"sets", b"hint", b"answ"):
        for name, body in (("no residue", b"\xff" * 9), ("another residue", b"\1\2\3")):
            at = edit("replace", kinds.index(kind), HEADER.size, body)
            yield "client_hints_sign", f"{name} in {kind.decode()}", at


def of_the_disk() -> Samples:
    zeros = np.zeros((3, 2), np.uint64)
    key = Key(bytes(16), 0, 4, zeros, np.zeros((correction_blocks(4, 3), 2), np.uint64))
    yield (
        "material",
        "all kinds",
        dump({1: key, 2: Hash(bytes(16)), 3: {4: b"bytes", 5: None, 6: zeros[:0], 7: "text"}}),
    )
    yield "calibration_file", "as written", b"\0" + _calibrated()
    yield "calibration_file", "digest anew", b"\1" + _calibrated()
    yield "stock_file", "piece", b"\0" + bytes(60)
    yield "stock_file", "key", b"\1" + bytes(32)
    yield "stock_file", "no key", b"\1" + bytes(5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        with contextlib.closing(Ledger(path)) as ledger:
            ledger.account("somebody").infer(2)
        yield "ledger_file", "one client", path.read_bytes()
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE clients SET phases = 'many'")
            database.commit()
        yield "ledger_file", "words for numbers", path.read_bytes()
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("ALTER TABLE clients ADD COLUMN more")
            database.execute("UPDATE clients SET phases = 2")
            database.commit()
        yield "ledger_file", "another column", path.read_bytes()
    yield "ledger_file", "nothing", b""
    for name, model in lowered():
        yield "program_file", name, _packed("program", model.save)
    candidate = untrained(spec_of("resnet10 m=2", (1, 8, 8), 10), 0.3, seed=0)
    few = {name: tensor for name, tensor in candidate.weights.items() if tensor.numel() < 5}
    searched = SearchMetrics(3, 1.5, 40, 2, 71.5)
    counts = ("relus", "relus_without_stem", "squares", "macs", "flops", "params", "depth", "seed")
    figures = dict.fromkeys(counts, 1)
    trained = Metrics(
        method="snl",
        budget=40,
        role="candidate",
        **figures,  # pyright: ignore[reportArgumentType]
        stages={},
        sites={"relu": 1},
        relus_full=2,
        stages_full={"S1": 2},
        validation_accuracy=70.0,
        test_accuracy=69.5,
        epochs=2,
        seconds=1.5,
        job="0",
        ranges={"relu": (-1.0, 2.0)},
    )
    for name, metrics in (("trained", trained), ("searched", searched), ("fresh", None)):
        kept = Candidate(candidate.spec, candidate.plan, few, metrics, candidate.preprocessing)
        yield "candidate_file", name, _packed("candidate", kept.save)
    yield "plan_file", "resnet10", _packed("plan", candidate.plan.save)
    for name, options in (("zip", {}), ("before 1.6", {"_use_new_zipfile_serialization": False})):
        yield "checkpoint", name, _saved({"epoch": 1, "state_dict": {"module.a": torch.ones(2)}}, options)
    yield "checkpoint", "safetensors", save({"a": torch.zeros(2, 3)})
    yield "onnx_file", "two layers", _exported()
    yield "tensors", "two", save({"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.int64)})
    images = struct.pack(">4I", 0x803, 2, 2, 3) + bytes(12)
    yield "images_of_idx", "images", b"\1" + images
    yield "images_of_idx", "labels", b"\0" + struct.pack(">2I", 0x801, 4) + bytes(4)
    yield "images_of_idx", "compressed", b"\5" + gzip.compress(images, mtime=0)
    yield "images_of_cifar", "one", b"\3" + bytes(3072)
    yield "images_of_cifar_in_python", "one", _pickled_image()


def _pickled_image() -> bytes:
    """{"data": one image as numpy pickled it in Python 2, "labels": [3]}."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\1btR"
    dtype = b"cnumpy\ndtype\nU\2u1K\0K\1\x87R(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    state = b"(K\1K\1M\0\x0c\x86" + dtype + b"\x89T" + struct.pack("<I", 3072) + bytes(3072) + b"tb"
    return b"\x80\2}(U\4data" + array + state + b"U\6labels]K\3au."


def of_old_failures() -> Samples:
    """What once ended in another error than the documented one."""
    text = json.dumps({"format": FORMAT, "value": {"array": "uint8", "shape": [1 << 70]}}).encode()
    for name, skeleton in (("nested deeply", b"[" * 30_000), ("a huge shape", text)):
        yield "material", name, len(skeleton).to_bytes(8, "little") + skeleton
    model = next(lowered())[1]
    yield "program_file", "another tensor", _packed("program", lambda folder: write(folder, "program", {}, {"a": ONE}))
    yield "program_file", "no digest", _packed("program", model.save).replace(b'"tensors_sha256"', b'"tensors_sha257"')
    client = (FOLDER / "ledger_file" / "one-client").read_bytes()
    yield "ledger_file", "a name that is no text", client.replace(b"tableclients", b"tableclient\xac")
    yield "plan_file", "no sites", _packed("plan", lambda folder: write(folder, "plan", {}, {"a": ONE}))


def _saved(value: Any, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def _exported() -> bytes:
    nodes = [
        make("Conv", ["x", "w"], ["a"], name="/conv/Conv", pads=[0, 0, 1, 1]),
        make("Clip", ["a", "zero"], ["b"]),
        make("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], ceil_mode=1),
        make("Shape", ["c"], ["s"]),
        make("Reshape", ["c", "sizes"], ["d"]),
        make("Softmax", ["d"], ["y"]),
    ]
    known = {"w": np.ones((2, 1, 2, 2), np.float32), "zero": np.float32(0), "sizes": np.array([0, -1])}
    return model_of(nodes, ("n", 1, 4, 4), **known).SerializeToString()


def _calibrated() -> bytes:
    fit = Fit({"macs": 1e-9, "sign": 2e-7}, {"macs": 1e-11, "sign": 1e-9})
    points = Point("relus 100", "online", 0.002, 0.0019, 1.1), Point("relus 100", "offline", 0.01, 0.012, 0.8)
    machine, memory = Machine("a processor", 2, "numba", "0.1"), {("hints", "client"): 3e8, ("hints", "server"): 4e8}
    made = Calibration(machine, "2026-11-28", {("online", "client"): fit}, {"online": fit}, memory, points)
    return json.dumps(made.to_json()).encode()


def _packed(kind: str, write: Callable[[Path], None]) -> bytes:
    """Both files of a folder as one input: the length of the header, the header, the tensors."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        header, tensors = ((Path(folder) / f"{kind}.{end}").read_bytes() for end in ("json", "safetensors"))
    return len(header).to_bytes(4, "little") + header + tensors


def samples(name: str) -> list[bytes]:
    """The corpus of a target."""
    return [path.read_bytes() for path in sorted((FOLDER / name).iterdir())]


def main() -> None:
    for source in (of_the_wire, of_edits, of_the_disk, of_old_failures):
        for target, name, content in source():
            path = FOLDER / target / name.replace(" ", "-")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


if __name__ == "__main__":
    main()
