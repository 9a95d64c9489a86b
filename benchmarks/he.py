"""What a polynomial of the homomorphic offline phase costs: the figures that `parelu.fusion.packing` weighs.

    python benchmarks/he.py --repeat 200

A product is the number-theoretic transform of a layer's weights, the multiplication and the addition; an upload is
encryption, bytes at 1 Gb/s and the server's checks; a download is the server's flooded answer with its encryption of
zero, its bytes and decryption. Medians in microseconds of CPU, both parties together, beside the constants in use; and
what a query costs once, and what an audit costs, which are weighed nowhere.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from parelu.fusion.packing import PRICES
from parelu.private.crypto import he
from parelu.private.crypto.prg import Stream, fresh_seed

NORM, COEFFICIENTS = 1 << 22, 200_000  # of a block of weights, and sent in an inference: ResNet20
BYTE = 8e-3  # microseconds at 1 Gb/s


def median(action: Callable[[], object], repeat: int) -> float:
    """Microseconds."""
    times = []
    for _ in range(repeat):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return 1e6 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=200)
    repeat = parser.parse_args().repeat
    parameters, stream = he.parameters(NORM, COEFFICIENTS), Stream(fresh_seed(), "benchmark")
    client = he.Client(parameters, stream)
    key = np.frombuffer(client.public_key(), np.uint8)
    server = he.Server(parameters, key, stream)
    rng = np.random.default_rng(0)
    polynomial = rng.integers(0, 1 << he.BITS, he.DEGREE, np.uint64)
    weight = rng.integers(-4, 5, he.DEGREE)
    needed = np.arange(he.DEGREE // 2)

    up = np.frombuffer(client.encrypt(polynomial), np.uint8)
    opened, total = server.open(up), server.blank()
    answer = lambda: server.answer(server.blank(), polynomial[needed], needed)  # noqa: E731
    down = np.frombuffer(answer(), np.uint8)
    secret = np.frombuffer(client.show(), np.uint8)
    audit = he.Audit(parameters, secret)
    found = {
        "product": median(lambda: server.accumulate(total, opened, server.weight(weight)), repeat),
        "upload": median(lambda: server.open(np.frombuffer(client.encrypt(polynomial), np.uint8)), repeat)
        + BYTE * len(up),
        "download": median(answer, repeat) + median(lambda: client.decrypt(down, needed), repeat) + BYTE * len(down),
    }
    once = {
        "keys": median(
            lambda: he.Server(parameters, np.frombuffer(start(parameters, stream), np.uint8), stream), repeat
        )
        + BYTE * len(key),
        "audit, an upload": median(lambda: audit.is_fresh(up), repeat),
        "audit, a query": median(lambda: he.Audit(parameters, secret), repeat) + BYTE * len(secret),
    }
    for name, microseconds in found.items():
        print(f"{name:<18}{microseconds:>9,.0f} µs   in use {getattr(PRICES, name):>7,}")
    for name, microseconds in once.items():
        print(f"{name:<18}{microseconds:>9,.0f} µs")


def start(parameters: he.Parameters, stream: Stream) -> bytes:
    return he.Client(parameters, stream).public_key()


if __name__ == "__main__":
    main()
