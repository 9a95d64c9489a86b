"""What the lattice of the hints costs: transforms, dots, samplers, answers and the wire, in nanoseconds.

    OMP_NUM_THREADS=1 python benchmarks/hints.py --repeat 20
    python benchmarks/hints.py --kernels numba

CPU time of one thread, the median over repetitions with the least and the most. Beside the transforms, SEAL's own of
the homomorphic offline phase, in the same run: per coefficient and prime, of 8192 coefficients and 3 primes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from parelu.private.crypto import he, kernels
from parelu.private.crypto.lattice import residues, sampling, transforms
from parelu.private.crypto.lattice.parameters import DEGREE, KEPT, MATRICES, PRIMES, RANK
from parelu.private.crypto.prg import Stream, fresh_seed

COUNT = 1 << 15  # outputs, or entries, that are measured at once
BATCHES = ((2048, 64), (2048, 16), (2048, 1), (256, 64), (64, 512), (16, 512))  # points, polynomials
# Points, outputs, vectors; the sums are of RANK·2048/points products. Of a client's hints and of a server's u.
DOTS = ((2048, 16, 1), (256, 64, 1), (64, 256, 1), (2048, 2, MATRICES), (256, 8, MATRICES), (64, 32, MATRICES))

draw = np.random.default_rng(0)  # of inputs; no secret of anybody
Measured = tuple[str, str, int, Callable[[], object]]  # name, unit, how many of it, what is timed


def residue(shape: tuple[int, ...], k: int) -> np.ndarray:
    half = PRIMES[k] // 2
    return draw.integers(-half, half + 1, shape).astype(np.float64)


def of_transforms() -> Iterator[Measured]:
    for points, batch in BATCHES:
        x = residue((points, batch), 0)
        for name, action in (("forward", transforms.forward), ("inverse", transforms.inverse)):
            yield f"{name} {points} × {batch}", "point", x.size, lambda x=x, action=action: action(x, 0)
    for points, outputs, vectors in DOTS:
        terms = RANK * DEGREE // points
        h, s = residue((points, terms, outputs), 0).astype(np.int32), residue((points, terms, vectors), 0)
        name = f"dot {points} × {terms}, {outputs} by {vectors}"
        yield name, "product", h.size * vectors, lambda h=h, s=s: transforms.dot(h, s, 0)


def of_residues() -> Iterator[Measured]:
    stream, rows = Stream(fresh_seed(), "benchmark"), np.stack([residue((COUNT,), k) for k in range(len(PRIMES))])
    values = draw.integers(0, 1 << 64, COUNT, np.uint64)
    sent, answered = (np.frombuffer(residues.pack(rows[: len(p)], p), np.uint8) for p in (PRIMES, KEPT))
    side, channels = 32, 32
    b = np.stack([residue((channels, side * side + 2 * side + 2), k) for k in range(len(PRIMES))])
    index = (np.arange(9)[:, None] // 3 * side + np.arange(9)[:, None] % 3 + np.arange(side * side)).astype(np.int32)
    parts, taps = (axis.reshape(-1).astype(np.int32) for axis in np.indices((channels, 9)))
    yield "uniform", "residue", COUNT, lambda: sampling.uniform(stream, (COUNT,), 0)
    yield "ternary", "value", COUNT, lambda: sampling.ternary(stream, (COUNT,))
    yield "binomial", "value", COUNT, lambda: sampling.binomial(stream, (COUNT,))
    yield "ciphertext", "entry", COUNT, lambda: residues.ciphertext(rows, values)
    yield "pack a ciphertext", "entry", COUNT, lambda: residues.pack(rows, PRIMES)
    yield "unpack a ciphertext", "entry", COUNT, lambda: residues.unpack(sent, PRIMES, COUNT)
    yield "columns", "entry", 9 * side * side * channels * len(PRIMES), lambda: residues.columns(b, parts, taps, index)
    yield "answer", "output", COUNT, lambda: residues.answer(rows, rows, values, stream)
    yield "pack an answer", "output", COUNT, lambda: residues.pack(rows[:3], KEPT)
    yield "unpack an answer", "output", COUNT, lambda: residues.unpack(answered, KEPT, COUNT)
    yield "decode", "output", COUNT, lambda: residues.decode(rows[:3])


def of_seal() -> Iterator[Measured]:
    parameters = he.parameters(1 << 22, 200_000)
    context, values = he.context(parameters), draw.integers(-2000, 2001, he.DEGREE)
    polynomial = values.astype(np.uint64) & np.uint64((1 << 59) - 1)
    plains = iter([context.plaintext(polynomial) for _ in range(1000)])
    level, size = context.first, he.DEGREE * len(context.primes)
    yield "SEAL: forward", "point", size, lambda: context.evaluator.transform_to_ntt_inplace(next(plains), level)


def nanoseconds(action: Callable[[], object], count: int, repeat: int) -> list[float]:
    """Of each repetition, after one that is not counted; for each of `count`."""
    times = []
    for _ in range(repeat + 1):
        started = time.thread_time_ns()
        action()
        times.append((time.thread_time_ns() - started) / count)
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--kernels", choices=kernels.NAMES, help="those alone")
    arguments = parser.parse_args()
    for name in [arguments.kernels] if arguments.kernels else kernels.NAMES:
        for module, loops in ((residues, "residues_"), (sampling, "residues_"), (transforms, "transforms_")):
            module.kernels = kernels.load(name, loops)  # pyright: ignore[reportAttributeAccessIssue]
        print(f"{name} kernels")
        for what, unit, count, action in (*of_transforms(), *of_residues()):
            report(what, unit, nanoseconds(action, count, arguments.repeat))
    for what, unit, count, action in of_seal():
        report(what, unit, nanoseconds(action, count, arguments.repeat))


def report(what: str, unit: str, times: list[float]) -> None:
    print(f"{what:<28}{statistics.median(times):>9.2f} ns a {unit:<9}{min(times):>9.2f} – {max(times):.2f}", flush=True)


if __name__ == "__main__":
    main()
