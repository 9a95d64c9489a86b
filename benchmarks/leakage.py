"""Queries until a client that follows the protocol has read the last layer: for each reveal, as it was served.

    python benchmarks/leakage.py runs/quickstart/candidates/teacher --seeds 3 --json leakage.json
    python benchmarks/leakage.py toy --reveals exact --most 100000
    python benchmarks/leakage.py runs/quickstart/candidates/teacher --deviating

A truncation of shares is off by [u < x mod 2^f], u the low bits of the client's share of x, which it knows. It asks
for the same images again and again, and regresses the answers on what it knows of the truncations before the last
layer. Two attackers:

    shares   knows u alone: an attack as anybody could run it
    told     is also told the bits and what they change of the last layer's inputs. Where the noise of an answer is
             nearly all dither, as in the steps served, that bounds every attack that reads the last layer from these
             truncations; of exact logits and plain labels, an attacker could explain more of the noise, which comes
             from the truncations before

`logits` are read for all classes at once. Of labels images are used that bisection has brought to a tie of two
classes, where an answer is one bit of the noise; they give the difference of two rows of the layer, and a whole layer
takes (classes − 1) times as many. Queries are those until the cosine with the truth is 0.99. `law` is what theory says
of the second attacker: in a direction in which the numbers that it knows have the variance g, N queries find the share
N·g/(N·g + λ) of the weights' square, λ the variance of what is not explained over that of a weight. Where more than
--most are needed, it is the law, scaled to give the cosine at the last query (marked ~).

Inferences are simulated (leakage_simulation.py); --check compares them with `reference.replay`, to the bit, and the
moments of logits whose upstream values are drawn from --pool kept runs with those of whole runs.

--deviating is another attack, by a client that adds numbers to its last answers, which nobody notices.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from leakage_attackers import ATTACKERS, Real, inverse
from leakage_simulation import Inferences, Signed, Tail, toy
from torch import Tensor

from parelu.network.candidate import Candidate
from parelu.private.lowering import reference
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Activation, Truncate, local, sources
from parelu.private.offline.mode import DEFAULT, ring_for
from parelu.private.protocol.reveal import Exact, Label, Logits, Reveal, reveal_for, reveal_of
from parelu.runs import measurement

COSINE = 0.99
CHUNK = 4096
LABELLED = 200  # images of which the attacker asks the label
BUDGET = 10_000  # queries that a server answers a certificate unless told otherwise
VOTES = 9  # queries that decide a step of a bisection
Answer = Callable[[Signed], Real]  # last values (n, classes) → what is regressed, (n, outputs)


def revealed(reveal: Reveal, z: Signed, rng: np.random.Generator) -> Signed:
    """What a client gets of last values (n, classes): logits, or labels (n, 1)."""
    if reveal.cut:
        z = z + rng.integers(0, 1 << reveal.cut, (2, *z.shape)).sum(0) - (1 << reveal.cut >> 1)
    if isinstance(reveal, Label):
        return z.argmax(1)[:, None]
    return z >> reveal.cut << reveal.cut


@dataclasses.dataclass
class Found:
    """Queries that an attacker needed; None where more than were made, and then an estimate by the last cosine."""

    attacker: str
    cosine: float
    asked: int
    queries: int | None
    estimate: float | None
    law: float | None
    after_budget: float | None  # the cosine to expect after BUDGET queries


def cosine(a: Real, b: Real) -> float:
    return float((a * b).sum() / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300))


def attack(
    tails: Sequence[Tail], attackers: Sequence[Any], answer: Answer, truth: Real, most: int, rng: Any
) -> list[Found]:
    """Ask until every attacker's weights are at the cosine with `truth`, (inputs, outputs), or `most` times."""
    waiting, found, count, check = list(attackers), [], 0, 128
    while waiting:
        for image, tail in enumerate(tails):
            low, moved, z = tail.draw(min(CHUNK, max(64, check // 4)), rng)
            y = answer(z)
            for attacker in waiting:
                attacker.see(image, tail, low, moved, y)
            count += len(z)
        if count < min(check, most):
            continue
        check = math.ceil(1.2 * count)
        for attacker in list(waiting):
            angle = cosine(attacker.weights(), truth)
            if angle >= COSINE or count >= most:
                waiting.remove(attacker)
                expected = attacker.expected(truth)
                law, after = (inverse(expected, COSINE), expected(BUDGET)) if expected else (None, None)
                queries, estimate = count if angle >= COSINE else None, None
                if expected and law and not queries and angle > 0.3:
                    estimate = law * count / inverse(expected, angle)
                found.append(Found(attacker.name, angle, count, queries, estimate, law, after))
        print(f"    {count:>12,} queries", end="\r", file=sys.stderr, flush=True)
    return found


def ties(
    inferences: Inferences, images: Tensor, reveal: Reveal, count: int, rng: Any
) -> tuple[list[Tensor], int, int, int]:
    """Images where the same two classes tie, the two, and the queries it took: by bisection between images of each."""
    asked = 0

    def label(image: Tensor, votes: int = VOTES) -> int:
        nonlocal asked
        asked += votes
        seen = revealed(reveal, inferences.logits(image, votes, rng), rng)
        return int(np.bincount(seen[:, 0]).argmax())

    labels = np.array([label(image, 1) for image in images[:LABELLED]])
    ours, other = np.bincount(labels).argsort()[:-3:-1]
    found: list[Tensor] = []
    for _ in range(20 * count):
        first, second = (images[int(rng.choice(np.flatnonzero(labels == c)))].double() for c in (ours, other))
        low, high, behind = 0.0, 1.0, -1
        for _ in range(18):
            middle = (low + high) / 2
            seen = label(_mixed(first, second, middle))
            low, high, behind = (middle, high, behind) if seen == ours else (low, middle, seen)
        if behind == other:
            found.append(_mixed(first, second, high))
        if len(found) == count:
            return found, int(ours), int(other), asked
    raise SystemExit("no two classes tie between the images")


def _mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    return ((1 - share) * first + share * second).round().to(torch.uint8)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, images that the attacker has, and how much of the attack is run."""

    lowered: Lowered
    images: Tensor
    repeated: int
    pool: int
    most: int
    attackers: Sequence[str]

    def measure(self, reveal: Reveal, truncation: str, seed: int) -> list[Found]:
        rng = np.random.default_rng(seed)
        inferences = Inferences(self.lowered, truncation)
        truth, spent = inferences.last_weight.T, 0
        if isinstance(reveal, Label):
            asked, ours, other, spent = ties(inferences, self.images, reveal, self.repeated, rng)
            tails = [inferences.tail(image, self.pool, rng) for image in asked]
            truth = truth[:, [ours]] - truth[:, [other]]
            answer: Answer = lambda z: (revealed(reveal, z, rng) == ours).astype(np.float64)  # noqa: E731
        else:
            chosen = rng.choice(len(self.images), self.repeated, replace=False)
            tails = [inferences.tail(self.images[int(i)], self.pool, rng) for i in chosen]
            answer = lambda z: revealed(reveal, z, rng).astype(np.float64)  # noqa: E731
        if not any(tail.moves for tail in tails):
            return [Found(name, 0.0, 0, None, math.inf, None, 0.0) for name in self.attackers]
        attackers = [ATTACKERS[name](tails, truth.shape[1], reveal) for name in self.attackers]
        found = attack(tails, attackers, answer, truth, self.most, rng)
        return [dataclasses.replace(f, queries=f.queries + spent if f.queries else None) for f in found]


def deviating(case: Case, reveal: Reveal, seed: int) -> tuple[int, float]:
    """Queries of a client that adds to inputs of the last layer, and the cosine of what it read: all rows of the layer,
    or of labels the difference of two."""
    rng = np.random.default_rng(seed)
    inferences, program = Inferences(case.lowered, "local"), case.lowered.program
    weight = inferences.last_weight.T
    if isinstance(reveal, Label):
        return _deviating_by_labels(case, inferences, reveal, rng)
    size = 1 << (30 if isinstance(reveal, Exact) else program.output_bits - 2 - int(abs(weight).max()).bit_length())
    tail = inferences.tail(case.images[int(rng.integers(len(case.images)))], 16, rng)
    asked = tail.draw(1 + len(weight), rng)[2]
    asked[1:] += weight.astype(np.int64) * size
    seen = revealed(reveal, asked, rng)
    read = np.rint((seen[1:] - seen[0]) / size) if isinstance(reveal, Exact) else (seen[1:] - seen[0]) / size
    return len(asked), 1.0 if np.array_equal(read, weight) else cosine(read, weight)


def _deviating_by_labels(case: Case, inferences: Inferences, reveal: Reveal, rng: Any) -> tuple[int, float]:
    """At a tie of two classes, a number at one input makes the first win by a margin; which number at another input
    restores the tie says how the two weights' differences compare."""
    (image,), ours, other, asked = ties(inferences, case.images, reveal, 1, rng)
    tail, weight = inferences.tail(image, 64, rng), inferences.last_weight.T.astype(np.int64)
    votes = VOTES if reveal.cut else 3

    def wins(added: dict[int, int]) -> bool:
        nonlocal asked
        asked += votes
        z = tail.draw(votes, rng)[2] + sum(weight[i] * number for i, number in added.items())
        return int((revealed(reveal, z, rng) == ours).sum()) > votes // 2

    unit = max(1 << 15, 1 << reveal.cut) * 8 // 512
    known = next(i for i in rng.permutation(len(weight)) if wins({i: unit}) != wins({i: -unit}))
    base = unit if wins({known: unit}) else -unit
    found = np.zeros(len(weight))
    found[known] = 1 / base
    for i in range(len(weight)):
        if i == known:
            continue
        for sign in (1, -1):
            if wins({known: base, i: sign * 16 * unit}):
                continue
            low, high = 0, 16 * unit
            for _ in range(8):
                middle = (low + high) // 2
                low, high = (middle, high) if wins({known: base, i: sign * middle}) else (low, middle)
            found[i] = -sign / max(high, 1)
            break
    return asked, cosine(found, (weight[:, ours] - weight[:, other]).astype(np.float64))


def check(case: Case, runs: int = 50) -> None:
    """Raises AssertionError where the simulation is not `reference.replay`, or pooled runs are not whole ones."""
    rng, program = np.random.default_rng(0), case.lowered.program
    inferences = Inferences(case.lowered, "local")
    for image, truncation in itertools.product(case.images[:runs], ("local", "exact")):
        shares, given = _client(case.lowered, rng)
        low = lambda n, shape, bits: shares[program.ops[n - 1].source] & ((1 << bits) - 1)  # noqa: B023, E731
        simulated = Inferences(case.lowered, truncation).whole(image, 1, low)[len(program.ops)][0]
        replayed = reference.replay(case.lowered, image, given, "sign", truncation)
        assert np.array_equal(program.ring.reduce(simulated.view(np.uint64)), replayed), "not the replayed reference"
    whole, tail = inferences.logits(case.images[0], 4000, rng), inferences.tail(case.images[0], case.pool, rng)
    pooled = tail.draw(100_000, rng)[2]
    apart = abs(whole.mean(0) - pooled.mean(0)) / whole.std(0)
    print(f"{runs} inferences are the replayed reference; pooled and whole runs: means up to {apart.max():.2f} ")
    ratio = pooled.std(0) / whole.std(0)
    print(
        f"deviations apart; deviations of pooled over whole {ratio.min():.2f} to {ratio.max():.2f}, in the mean "
        f"{whole.std(0).mean():,.0f} units"
    )


def _client(lowered: Lowered, rng: np.random.Generator) -> tuple[list[Signed], dict[int, Signed]]:
    """A client's shares of all values, (1, *shape), and those of them that `reference.replay` takes."""
    program = lowered.program
    drawn = lambda *shape: rng.integers(0, 1 << 64, shape, np.uint64).view(np.int64)  # noqa: E731
    shares = [drawn(1, *program.input_shape)]
    given = {0: shares[0].reshape(-1)}
    for number, op in enumerate(program.ops, start=1):
        share = shares[op.source].copy()
        if op.is_secret:
            share = drawn(1, *program.shapes[number])
            given[number] = share.reshape(-1)
        elif isinstance(op, Truncate):
            share = program.ring.truncate_client(share.view(np.uint64), op.bits).view(np.int64)
        elif isinstance(op, Activation):
            given[number] = share.reshape(-1)[op.relus] = drawn(len(op.relus))
        else:
            share = local(op, *(shares[n] for n in sources(op)))  # pyright: ignore[reportArgumentType]
        shares.append(share)
    return shares, given


def changes(case: Case, seeds: int) -> list[dict[str, Any]]:
    """Prints which share of the images has another label, for several steps."""
    program = case.lowered.program
    z = np.rint(reference.run(case.lowered, case.images).logits / program.output_unit).astype(np.int64)
    rows = []
    for cut, kind in itertools.product(range(program.output_bits - 15, program.output_bits - 5), (Label, Logits)):
        reveal = kind(cut)
        seen = [revealed(reveal, z, np.random.default_rng(seed)) for seed in range(seeds)]
        labels = [s[:, 0] if kind is Label else s.argmax(1) for s in seen]
        shares = [float(100 * (label != z.argmax(1)).mean()) for label in labels]
        rows.append({"reveal": reveal.text, "step": reveal.step(program), "changed": shares})
        print(f"{reveal.text:<13} step {reveal.step(program):<8.3g} {min(shares):.2f} to {max(shares):.2f} % change")
    return rows


def described(found: Sequence[Found]) -> str:
    """Of one attacker, over seeds."""
    numbers = [f.queries or f.estimate for f in found]
    if any(number is None for number in numbers):
        return f"more than {max(f.asked for f in found):,} (cosine {max(f.cosine for f in found):.3f})"
    low, middle, high = (pick([n for n in numbers if n]) for pick in (min, statistics.median, max))
    if middle == math.inf:
        return "never: the last truncations leave nothing to chance"
    theory = ""
    if all(f.law and f.after_budget for f in found):
        law, after = (statistics.median(getattr(f, n) for f in found) for n in ("law", "after_budget"))
        theory = f"; law {law:.2g}; cosine after {BUDGET:,}: {after:.2f}"
    return f"{'' if all(f.queries for f in found) else '~'}{middle:.3g} ({low:.2g} to {high:.2g}{theory})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a candidate's folder, or toy: three convolutions with fresh weights")
    parser.add_argument(
        "--reveals", nargs="+", help='"exact", "label", "label 2^17", "logits 2^17"; as served if left out'
    )
    parser.add_argument("--truncations", nargs="+", default=["local"], choices=["local", "exact"])
    parser.add_argument("--attackers", nargs="+", default=list(ATTACKERS), choices=list(ATTACKERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8, help="that are asked again and again")
    parser.add_argument("--pool", type=int, default=256)
    parser.add_argument("--most", type=int, default=200_000)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--deviating", action="store_true")
    parser.add_argument("--changes", action="store_true", help="the share of the images whose label a step changes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lowered, images = toy() if options.network == "toy" else _trained(Path(options.network))
    case = Case(lowered, images, options.images, options.pool, options.most, options.attackers)
    served = [reveal_for(name, lowered.program) for name in ("logits", "label")]
    reveals = [reveal_of(text) for text in options.reveals] if options.reveals else [Exact(), Label(), *served]
    if options.check:
        check(case)
        return
    rows = changes(case, options.seeds) if options.changes else []
    for reveal in [] if options.changes else reveals:
        step = f", step {reveal.step(lowered.program):.3g}" if reveal.cut else ""
        if options.deviating:
            results = [deviating(case, reveal, seed) for seed in range(options.seeds)]
            rows.append({"reveal": reveal.text, "deviating": results})
            print(
                f"{reveal.text}{step}: " + "; ".join(f"{n:,} queries, cosine {c:.4f}" for n, c in results), flush=True
            )
            continue
        for truncation in options.truncations:
            started = time.perf_counter()
            found = [f for seed in range(options.seeds) for f in case.measure(reveal, truncation, seed)]
            rows.append(
                {"reveal": reveal.text, "truncation": truncation, "found": list(map(dataclasses.asdict, found))}
            )
            for name in options.attackers:
                text = described([f for f in found if f.attacker == name])
                print(f"{reveal.text:<13}{step} {truncation:<6} {name:<7} {text}", flush=True)
            print(f"  {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options) | {"json": None}, "rows": rows}, indent=1))


def _trained(folder: Path) -> tuple[Lowered, Tensor]:
    """The program of a candidate, and images of its test set."""
    candidate = Candidate.load(folder)
    dataset = measurement.dataset_of(candidate)
    lowered = measurement.lowered(folder, candidate, ring_for(DEFAULT), dataset)
    return lowered, measurement.fit(candidate, dataset.test.images[:2000])


if __name__ == "__main__":
    main()
