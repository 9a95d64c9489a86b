"""Whether the time of an operation tells its secrets apart: a fixed secret against random ones, by Welch's t-test.

    python benchmarks/timing.py --seconds 20 --repeat 3
    python benchmarks/timing.py "extension: Δ" --kernels numpy

In the manner of dudect (Reparaz, Balasch, Verbauwhede 2017): for each measurement a coin chooses the class, the secret
is written into one buffer, and the operation's CPU time is taken; both classes are cropped at common percentiles, and t
is the largest over the crops. |t| > 4.5 is suspicious, > 10 a leak, in most repetitions or in all together (Σt/√n);
what one alone shows is the chance of many tests. A control that leaks must be found, one that does not must not: exits
with 1 where a control fails or something leaks that is not expected to.

It says that no dependence of this size was found on this machine, not that there is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto import base_ot, carries, dcf, garbling, he, kernels, noise, ot_extension
from parelu.private.crypto import hash as hash_module
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.ot_extension import ExtensionReceiver, ExtensionSender
from parelu.private.crypto.prg import Stream, fresh_seed

SUSPICIOUS, LEAK = 4.5, 10.0
CROPS = (100, 99, 95, 90, 75, 50, 25, 10)  # percentiles of all times, above which they are left out
FEWEST, WARM = 400, 20  # measurements of one test, and before it
CARRIED = 16  # bits of a sum whose carries are garbled
COUNT = 2048  # transfers, labels, functions at once
USING_KERNELS: tuple[ModuleType, ...] = (carries, garbling, hash_module, ot_extension, dcf)

draw = np.random.default_rng()  # of the test's inputs; no secret of anybody

Operation = Callable[[], object]


class Secret:
    """A buffer that holds the fixed secret or a random one. Both are touched each time, so that the cache has both."""

    def __init__(self, fixed: NDArray[Any], fresh: Callable[[], NDArray[Any]]) -> None:
        self.fixed, self.fresh, self.now = fixed, fresh, fixed.copy()

    def choose(self, is_random: bool) -> None:
        both = np.stack([self.fixed, self.fresh()])
        self.now[...] = both[int(is_random)]


@dataclasses.dataclass(frozen=True)
class Subject:
    """begin: the secret, and what makes the operation to be timed of what the secret now is.

    kernels: whether it runs compiled or numpy loops. leaks: what is known and accepted of it; None where it must not.
    """

    name: str
    begin: Callable[[], tuple[Secret, Callable[[], Operation]]]
    kernels: bool = False
    leaks: str | None = None


def bits(count: int) -> Secret:
    """Choices: all 0, or random."""
    return Secret(np.zeros(count, np.uint8), lambda: draw.integers(0, 2, count, np.uint8))


def blocks(*shape: int) -> Secret:
    """16-byte blocks: all 0, or random."""
    return Secret(np.zeros((*shape, 2), np.uint64), lambda: draw.integers(0, 1 << 64, (*shape, 2), np.uint64))


def elements(*shape: int) -> Secret:
    """Ring elements: all 0, or random."""
    return Secret(np.zeros(shape, np.uint64), lambda: draw.integers(0, 1 << 64, shape, np.uint64))


def early_exit() -> tuple[Secret, Callable[[], Operation]]:
    secret, reference = bits(64), bytes(64)

    def compare() -> bool:
        return all(one == other for one, other in zip(secret.now.tobytes(), reference, strict=True))

    return secret, lambda: compare


def masked() -> tuple[Secret, Callable[[], Operation]]:
    secret, others = blocks(COUNT), draw.integers(0, 1 << 64, (COUNT, 2), np.uint64)
    return secret, lambda: lambda: secret.now & others ^ others


def base_choices() -> tuple[Secret, Callable[[], Operation]]:
    secret, message = bits(4), base_ot.Sender(4, b"timing").message()

    def ready() -> Operation:
        receiver = base_ot.Receiver(secret.now, b"timing")
        return lambda: receiver.respond(message)

    return secret, ready


def base_scalar() -> tuple[Secret, Callable[[], Operation]]:
    """The sender's secret: a small one, or random ones."""
    sender = base_ot.Sender(2, b"timing")
    response = base_ot.Receiver(np.array([0, 1], np.uint8), b"timing").respond(sender.message())
    small = np.frombuffer((2).to_bytes(32, "little"), np.uint8).copy()
    secret = Secret(small, lambda: np.frombuffer(base_ot._scalar(), np.uint8))

    def ready() -> Operation:
        sender._secret = secret.now.tobytes()
        return lambda: sender.seeds(response)

    return secret, ready


def base_seeds() -> NDArray[np.uint8]:
    """Both seeds of each base transfer."""
    return draw.integers(0, 256, (ot_extension.BASE, 2, 16), np.uint8)


def extension_choices() -> tuple[Secret, Callable[[], Operation]]:
    secret, receiver = bits(COUNT), ExtensionReceiver(base_seeds(), CONTEXT)
    return secret, lambda: lambda: receiver.extend(secret.now)


def extension_delta(*, trees: bool) -> Callable[[], tuple[Secret, Callable[[], Operation]]]:
    """The sender's choices, which are Δ, where the trees are received, or at each extension."""

    def begin() -> tuple[Secret, Callable[[], Operation]]:
        pairs, numbers, secret = base_seeds(), np.arange(ot_extension.BASE), bits(ot_extension.BASE)
        receiver = ExtensionReceiver(pairs, CONTEXT)
        message = receiver.extend(draw.integers(0, 2, COUNT, np.uint8))[0]

        def ready() -> Operation:
            secret.now[-1] = 1
            seeds = pairs[numbers, secret.now]

            def sender() -> ExtensionSender:
                return ExtensionSender(secret.now, seeds, CONTEXT, receiver.trees)

            if trees:
                return sender
            made = sender()
            return lambda: made.extend(message, COUNT)

        return secret, ready

    return begin


def hashed() -> tuple[Secret, Callable[[], Operation]]:
    secret, hash = blocks(COUNT), Hash(bytes(16))
    return secret, lambda: lambda: hash(secret.now, 0, 0)


def selected_labels() -> tuple[Secret, Callable[[], Operation]]:
    zeros, delta = draw.integers(0, 1 << 64, (20, COUNT, 2), np.uint64), draw.integers(0, 1 << 64, 2, np.uint64)
    secret, out = elements(COUNT), np.empty((20, COUNT, 2), np.uint64)
    return secret, lambda: lambda: garbling.kernels.select_labels(zeros, delta, secret.now, out)


def carries_encoded() -> tuple[Secret, Callable[[], Operation]]:
    """The server's message of `sign`, by its numbers."""
    secret, pads = elements(COUNT), draw.integers(0, 256, (256, COUNT // 8), np.uint8)
    outputs = draw.integers(0, 256, (1, COUNT // 8), np.uint8)
    return (
        secret,
        lambda: lambda: list(carries.encode(secret.now, pads, outputs, Stream(bytes(16), "carries"), CARRIED, 0)),
    )


def carries_decoded() -> tuple[Secret, Callable[[], Operation]]:
    """The client's reading of it, by its numbers and what it could open before."""
    (length,) = carries.part_bytes(COUNT, CARRIED, 0)
    message, pads = draw.integers(0, 256, length, np.uint8), draw.integers(0, 256, (72, COUNT // 8), np.uint8)
    secret = bits(CARRIED * COUNT)

    def ready() -> Operation:
        chosen = np.packbits(secret.now.reshape(CARRIED, -1), axis=1, bitorder="little")
        return lambda: carries.decode([message], chosen, pads, CARRIED, 0)

    return secret, ready


def gate(machine: Callable[[Hash, NDArray[np.uint64]], Any]) -> Callable[[], tuple[Secret, Callable[[], Operation]]]:
    """A majority of three labels, whose colours are secret to who does not have them."""

    def begin() -> tuple[Secret, Callable[[], Operation]]:
        secret, hash, tables = blocks(3, COUNT), Hash(bytes(16)), draw.integers(0, 1 << 64, (2 * COUNT, 2), np.uint64)

        def ready() -> Operation:
            run = machine(hash, tables)
            return lambda: run.majority(*secret.now)

        return secret, ready

    return begin


def comparison_key() -> tuple[Secret, Callable[[], Operation]]:
    """Evaluation under keys of fixed or random roots, at the same points."""
    levels, points = 15, draw.integers(0, 1 << 64, COUNT, np.uint64)
    corrections = draw.integers(0, 1 << 64, (dcf.correction_blocks(levels, COUNT), 2), np.uint64)
    secret = blocks(COUNT)

    def ready() -> Operation:
        key = dcf.Key(bytes(16), 1, levels, secret.now, corrections)
        return lambda: key.evaluate(points)

    return secret, ready


def comparison_threshold() -> tuple[Secret, Callable[[], Operation]]:
    """The making of keys for fixed or random thresholds."""
    roots = tuple(draw.integers(0, 1 << 64, (2, COUNT, 2), np.uint64))
    secret, betas = elements(COUNT), draw.integers(0, 1 << 64, (COUNT, 2), np.uint64)
    return secret, lambda: lambda: dcf.correct(bytes(16), 15, secret.now, betas, (roots[0], roots[1]))


def keys() -> tuple[he.Client, he.Server]:
    client = he.Client(PARAMETERS, Stream(fresh_seed(), "timing"))
    key = np.frombuffer(client.public_key(), np.uint8)
    return client, he.Server(PARAMETERS, key, Stream(fresh_seed(), "timing"))


def upload() -> tuple[Secret, Callable[[], Operation]]:
    secret, client = elements(he.DEGREE), keys()[0]
    return secret, lambda: lambda: client.encrypt(secret.now)


def decryption(fixed: NDArray[np.uint64]) -> Callable[[], tuple[Secret, Callable[[], Operation]]]:
    """Of answers that say fixed or random values at half of the coefficients."""

    def begin() -> tuple[Secret, Callable[[], Operation]]:
        (client, server), needed = keys(), np.arange(len(fixed))
        secret = Secret(fixed, lambda: draw.integers(0, 1 << 59, len(fixed), np.uint64))

        def ready() -> Operation:
            answer = np.frombuffer(server.answer(server.blank(), secret.now, needed), np.uint8)
            return lambda: client.decrypt(answer, needed)

        return secret, ready

    return begin


def weights(fixed: NDArray[np.int64], least: int) -> Callable[[], tuple[Secret, Callable[[], Operation]]]:
    """A product with a polynomial of weights, added to an answer: fixed ones, or random from `least` on."""

    def begin() -> tuple[Secret, Callable[[], Operation]]:
        server, secret = keys()[1], Secret(fixed, lambda: draw.integers(least, 100, he.DEGREE))
        total, opened = server.blank(), server.open(server.public_key)
        return secret, lambda: lambda: server.accumulate(total, opened, server.weight(secret.now))

    return begin


def secret_key() -> tuple[Secret, Callable[[], Operation]]:
    """A client's key made ready."""
    context, secret = he.context(PARAMETERS), Secret(ternary(), ternary)
    return secret, lambda: lambda: context.factor(secret.now)


def ternary() -> NDArray[np.int64]:
    return draw.integers(-1, 2, he.DEGREE)


def flood() -> tuple[Secret, Callable[[], Operation]]:
    """The flooding noise of an answer, of fixed or random bytes."""
    primes, secret = he.context(PARAMETERS).primes, blocks(noise.TERMS, he.DEGREE)

    class Given:
        def blocks(self, *shape: int) -> NDArray[np.uint64]:
            return secret.now

    def operation() -> object:
        return noise.flooding(Given(), PARAMETERS.flood_bits, he.DEGREE, primes)  # pyright: ignore[reportArgumentType]

    return secret, lambda: operation


COMPRESSED = "what decrypts is saved compressed; it is uniform but for a choice like this one"
PARAMETERS = he.CHOICES[2]
CONTEXT = bytes(32)
DELTA = np.array([3, 1 << 63], np.uint64)
POSITIVE = np.ones(he.DEGREE, np.int64)
SUBJECTS = (
    Subject("control: early exit", early_exit, leaks="on purpose"),
    Subject("control: masks", masked),
    Subject("base OT: choices", base_choices),
    Subject("base OT: sender's scalar", base_scalar),
    Subject("extension: choices", extension_choices, kernels=True),
    Subject("extension: Δ", extension_delta(trees=False), kernels=True),
    Subject("extension: trees", extension_delta(trees=True)),
    Subject("hash: blocks", hashed, kernels=True),
    Subject("labels: bits that select", selected_labels, kernels=True),
    Subject("garbling: labels", gate(lambda h, tables: garbling.Garbler(h, DELTA, 0, tables)), kernels=True),
    Subject("evaluation: labels", gate(lambda h, tables: garbling.Evaluator(h, 0, tables)), kernels=True),
    Subject("carries: the server's numbers", carries_encoded, kernels=True),
    Subject("carries: the client's numbers", carries_decoded, kernels=True),
    Subject("comparison: key", comparison_key, kernels=True),
    Subject("comparison: threshold", comparison_threshold, kernels=True),
    Subject("he: upload", upload),
    Subject("he: decryption", decryption(draw.integers(0, 1 << 59, he.DEGREE // 2, np.uint64))),
    Subject("he: decryption of zeros", decryption(np.zeros(he.DEGREE // 2, np.uint64)), leaks=COMPRESSED),
    Subject("he: weights", weights(POSITIVE, 1)),
    Subject("he: weights of zero", weights(0 * POSITIVE, 1)),
    Subject("he: signs of weights", weights(POSITIVE, -99)),
    Subject("he: secret key", secret_key),
    Subject("he: flooding", flood),
)


def measure(subject: Subject, seconds: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """CPU nanoseconds, and the class of each; classes are drawn one by one."""
    secret, ready = subject.begin()
    times, classes, end = [], [], time.monotonic() + seconds
    while len(times) < FEWEST + WARM or time.monotonic() < end:
        is_random = bool(draw.integers(2))
        secret.choose(is_random)
        operation = ready()
        started = time.thread_time_ns()
        operation()
        times.append(time.thread_time_ns() - started)
        classes.append(is_random)
    return np.array(times[WARM:], float), np.array(classes[WARM:])


def welch(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """t of the difference of two means (Welch 1947); 0 where there is too little to say."""
    if min(len(one), len(other)) < 2:
        return 0.0
    error = np.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    return float((one.mean() - other.mean()) / error) if error else 0.0


def largest_t(times: NDArray[np.float64], classes: NDArray[np.bool_]) -> float:
    """Of all crops, with its sign: positive where random secrets take longer."""
    found = []
    for percentile in CROPS:
        kept = times <= np.percentile(times, percentile)
        found.append(welch(times[kept & classes], times[kept & ~classes]))
    return max(found, key=abs)


def verdict(ts: list[float]) -> str:
    """Of some repetitions: what most of them say, or all of them together where they agree on the sign."""
    together = abs(sum(ts)) / len(ts) ** 0.5
    largest = max(float(np.median(np.abs(ts))), together)
    return "leak" if largest > LEAK else "suspicious" if largest > SUSPICIOUS else "none found"


def cases(names: list[str], kinds: list[str]) -> Iterator[tuple[Subject, str]]:
    for subject in SUBJECTS:
        if not names or subject.name in names:
            for kind in kinds if subject.kernels else [""]:
                yield subject, kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", help="all by default")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each test")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--kernels", nargs="+", choices=kernels.NAMES, default=list(kernels.NAMES))
    options = parser.parse_args()
    gc.disable()
    good = True
    print(f"{'':<26}{'loops':<8}{'measured':>9}{'µs':>9}{'difference':>11}  t")
    for subject, kind in cases(options.subjects, options.kernels):
        for module in USING_KERNELS if kind else ():
            module.kernels = kernels.load(kind)  # pyright: ignore[reportAttributeAccessIssue]
        runs = [measure(subject, options.seconds) for _ in range(options.repeat)]
        ts = [largest_t(*run) for run in runs]
        times, classes = (np.concatenate(parts) for parts in zip(*runs, strict=True))
        middle = np.median(times[classes]), np.median(times[~classes])
        said = verdict(ts)
        good &= (said == "leak") if subject.leaks == "on purpose" else said != "leak" or subject.leaks is not None
        print(
            f"{subject.name:<26}{kind:<8}{len(times):>9}{middle[1] / 1000:>9.1f}{middle[0] / middle[1] - 1:>+11.2%}  "
            f"{said}: {' '.join(f'{t:+.1f}' for t in ts)}{f' ({subject.leaks})' if subject.leaks else ''}",
            flush=True,
        )
        gc.collect()
    sys.exit(not good)


if __name__ == "__main__":
    main()
