"""What a polynomial of the homomorphic offline phase costs: the figures that `parelu.fusion.packing` weighs.

    python benchmarks/he.py --repeat 200

A product is the number-theoretic transform of a layer's weights, the multiplication and the addition; an upload is
encryption, bytes at 1 Gb/s and the server's transform; a download is the server's flooded answer, its bytes and
decryption. Medians in microseconds of CPU, both parties together, beside the constants in use.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from parelu.fusion import packing
from parelu.private.crypto import he
from parelu.private.crypto.prg import Stream, fresh_seed

NORM = 1 << 16  # of a row of weights
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
    client = he.Client(he.parameters(NORM))
    server = he.Server(client.parameters, NORM, np.frombuffer(client.public_key(), np.uint8))
    rng, stream = np.random.default_rng(0), Stream(fresh_seed(), "benchmark")
    polynomial = rng.integers(0, 1 << 59, he.DEGREE).astype(np.uint64)
    weight = rng.integers(-4, 5, he.DEGREE)
    needed = np.arange(he.DEGREE // 2)

    up = np.frombuffer(client.encrypt(polynomial), np.uint8)
    opened = server.open(up)
    total = server.accumulate(None, opened, server.weight(weight))
    totals = iter([server.accumulate(None, opened, server.weight(weight)) for _ in range(repeat + 1)])
    answer = lambda: server.answer(next(totals), polynomial[needed], needed, stream)  # noqa: E731
    down = np.frombuffer(answer(), np.uint8)
    found = {
        "product": median(lambda: server.accumulate(total, opened, server.weight(weight)), repeat),
        "upload": median(lambda: server.open(np.frombuffer(client.encrypt(polynomial), np.uint8)), repeat)
        + BYTE * len(up),
        "download": median(answer, repeat) + median(lambda: client.decrypt(down, needed), repeat) + BYTE * len(down),
    }
    for name, microseconds in found.items():
        print(f"{name:<9}{microseconds:>9,.0f} µs   in use {getattr(packing, name.upper()):>7,}")


if __name__ == "__main__":
    main()
