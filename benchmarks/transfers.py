"""What an oblivious transfer costs: SoftSpokenOT for each k, beside the passively secure IKNP, and the base transfers.

    python benchmarks/transfers.py --repeat 15

Nanoseconds of CPU a transfer, each party's, for correlated transfers and with the hash that makes them random; bytes a
transfer, all of them the receiver's. All variants in turn, so many times; the median, and the range. Then what a byte
costs both ends' processors by TLS on this machine, and what a connection pays once: base transfers and trees.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto import base_ot
from parelu.private.crypto.garbling import chunks
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.kernels import kernels
from parelu.private.crypto.ot_extension import (
    BASE,
    STEP,
    ExtensionReceiver,
    ExtensionSender,
    random_ot_receiver,
    random_ot_sender,
)
from parelu.private.crypto.prg import SEED_BYTES, Blocks, Stream, fresh_seed
from parelu.private.transport import tls
from parelu.private.transport.channel import Channel

CONTEXT = bytes(32)


class Iknp:
    """The baseline, secure where nobody deviates: IKNP as in Asharov, Lindell, Schneider, Zohner 2013, section 5.1."""

    def __init__(self, pairs: NDArray[np.uint8], choices: NDArray[np.uint8]) -> None:
        self._pairs = [[Stream(seed.tobytes()) for seed in pair] for pair in pairs]
        self._chosen = [Stream(pair[bit].tobytes()) for pair, bit in zip(pairs, choices, strict=True)]
        self._masks = np.uint8(0) - choices

    def receive(self, choices: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Blocks]:
        """choices: (n,), n a multiple of 128 → the message and t."""
        message, rows = np.empty(BASE * len(choices) // 8, np.uint8), np.empty((len(choices), 2), np.uint64)
        for step in chunks(len(choices), STEP):
            packed = np.packbits(choices[step], bitorder="little")
            columns, sent = np.empty((BASE, len(packed)), np.uint8), _part(message, step)
            for column, out, (zero, one) in zip(columns, sent, self._pairs, strict=True):
                column[:] = zero.bytes(len(packed))
                np.bitwise_xor(column, packed, out=out)
                out ^= one.bytes(len(packed))
            kernels.transpose_bits(columns.view(np.uint64), rows[step])
        return message, rows

    def send(self, message: NDArray[np.uint8], count: int) -> Blocks:
        """q."""
        rows = np.empty((count, 2), np.uint64)
        for step in chunks(count, STEP):
            received = _part(message, step)
            columns = np.empty_like(received)
            for column, sent, stream, mask in zip(columns, received, self._chosen, self._masks, strict=True):
                column[:] = stream.bytes(len(column))
                column ^= sent & mask
            kernels.transpose_bits(columns.view(np.uint64), rows[step])
        return rows


def _part(message: NDArray[np.uint8], step: slice) -> NDArray[np.uint8]:
    return message[BASE // 8 * step.start : BASE // 8 * step.stop].reshape(BASE, -1)


class Case:
    """Both ends of one variant: what each costs, in seconds, run by run."""

    def __init__(self, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        self.receive, self.send, self.bytes = receive, send, 0.0
        self.seconds: dict[str, list[float]] = {name: [] for name in ("receiver", "sender", "+ hash", "+ hashes")}

    def run(self, bits: NDArray[np.uint8], delta: Blocks, hash: Hash) -> None:
        message, t = self._timed("receiver", lambda: self.receive(bits))
        q = self._timed("sender", lambda: self.send(message, len(bits)))
        assert np.array_equal(q, t ^ bits[:, None] * delta)
        self._timed("+ hash", lambda: random_ot_receiver(t, hash, 0))
        self._timed("+ hashes", lambda: random_ot_sender(q, delta, hash, 0))
        self.bytes = len(message) / len(bits)

    def _timed(self, name: str, action: Callable[[], Any]) -> Any:
        started = time.process_time()
        found = action()
        self.seconds[name].append(time.process_time() - started)
        return found


def extensions(count: int, repeat: int, widths: list[int]) -> None:
    pairs = np.frombuffer(os.urandom(BASE * 2 * SEED_BYTES), np.uint8).reshape(BASE, 2, SEED_BYTES)
    choices = Stream(fresh_seed(), "choices").bits(BASE)
    choices[-1] = 1
    seeds, iknp = pairs[np.arange(BASE), choices], Iknp(pairs, choices)
    cases = {"IKNP": Case(iknp.receive, iknp.send)}
    delta = np.packbits(choices, bitorder="little").view(np.uint64)
    for width in widths:
        receiver = ExtensionReceiver(pairs, CONTEXT, width)
        sender = ExtensionSender(choices, seeds, CONTEXT, receiver.trees, width)
        cases[f"k = {width}"] = Case(receiver.extend, sender.extend)
    bits, hash = Stream(fresh_seed(), "bits").bits(count), Hash(fresh_seed())
    for _ in range(repeat + 1):  # the first is left out
        for case in cases.values():
            case.run(bits, delta, hash)
    print(f"{count:,} transfers at a time, ns a transfer")
    for name, case in cases.items():
        times = {what: [1e9 * each / count for each in found[1:]] for what, found in case.seconds.items()}
        shown = (f"{what} {statistics.median(t):6.1f} ({min(t):.1f}–{max(t):.1f})" for what, t in times.items())
        print(f"{name:<6} {case.bytes:6.2f} bytes   {'   '.join(shown)}")


def once(repeat: int, widths: list[int]) -> None:
    """Base transfers, then trees."""
    choices, times = Stream(fresh_seed(), "choices").bits(BASE), []
    choices[-1] = 1
    for _ in range(repeat):
        started = time.process_time()
        sender, receiver = base_ot.Sender(BASE, CONTEXT), base_ot.Receiver(choices, CONTEXT)
        response = receiver.respond(sender.message())
        half = time.process_time()
        pairs = sender.seeds(response)
        times.append((half - started, time.process_time() - half))
    size = base_ot.POINT_BYTES + len(response)
    theirs, ours = (_milliseconds(found) for found in zip(*times, strict=True))
    print(f"{BASE} base transfers: {size:,} bytes, ms: receiver {theirs}, sender {ours}")
    for width in widths:
        times = []
        for _ in range(repeat):
            started = time.process_time()
            own = ExtensionReceiver(pairs, sender.transcript, width)
            half = time.process_time()
            ExtensionSender(choices, receiver.seeds(), receiver.transcript, own.trees, width)
            times.append((half - started, time.process_time() - half))
        theirs, ours = (_milliseconds(found) for found in zip(*times, strict=True))
        print(f"trees, k = {width}: {len(own.trees):,} bytes, ms: receiver {theirs}, sender {ours}")


def wire(repeat: int, size: int = 1 << 24) -> None:
    """A message by TLS over loopback, from one thread to another."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        certificates = Path(folder) / "certs"
        tls.make_certificates(certificates)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            accepted = pool.submit(lambda: tls.handshake(tls.server_context(certificates), listener.accept()[0]))
            connection = socket.create_connection(listener.getsockname())
            client = Channel(tls.handshake(tls.client_context(certificates), connection, "127.0.0.1"))
            server = Channel(accepted.result())
    body, times = os.urandom(size), []
    for _ in range(repeat):
        started = time.process_time()
        sending = threading.Thread(target=client.send, args=("data", body))
        sending.start()
        server.receive("data", size)
        sending.join()
        times.append(1e9 * (time.process_time() - started) / size)
    for end in (client, server):
        end.close()
    print(f"a byte by TLS, both ends: {statistics.median(times):.2f} ns ({min(times):.2f}–{max(times):.2f})")


def _milliseconds(times: Any) -> str:
    return f"{1e3 * statistics.median(times):.1f} ({1e3 * min(times):.1f}–{1e3 * max(times):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--count", type=int, nargs="+", default=[1 << 10, 1 << 14, 1 << 17, 1 << 20])
    parser.add_argument("--widths", type=int, nargs="+", default=list(range(1, 9)), metavar="K")
    arguments = parser.parse_args()
    for count in arguments.count:
        extensions(count, arguments.repeat, arguments.widths)
    wire(arguments.repeat)
    once(arguments.repeat, arguments.widths)


if __name__ == "__main__":
    main()
