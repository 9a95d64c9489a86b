"""Whether secure inference is its replayed reference to the bit, by each offline mode, on a network's test images.

    python benchmarks/equal.py runs/quickstart/candidates/teacher --images 200

Both parties in one process, ReLU `sign`, all bits revealed. One program, in the ring of 59 bits that all modes compute
in, and the same images. The reference replays an inference from the client's shares of it, truncations included: it is
the same numbers, or something is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from parelu.network.candidate import Candidate
from parelu.private.lowering import reference
from parelu.private.offline.mode import Keep, ring_for
from parelu.runs import measurement

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from two_parties import Pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("candidate", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--offline", nargs="+", default=["hints", "seal", "dealer"])
    arguments = parser.parse_args()
    candidate = Candidate.load(arguments.candidate)
    lowered = measurement.lowered(arguments.candidate, candidate, ring_for("seal"))
    test = measurement.dataset_of(candidate).test
    images = measurement.fit(candidate, test.images[: arguments.images])
    labels = {}
    for mode in arguments.offline:
        start, same, found = time.perf_counter(), 0, []
        with Pair(lowered, "sign", mode, timeout=600, keep=Keep(len(images))) as pair:
            for image in images:
                result, shares = pair.infer(image)
                same += np.array_equal(result, reference.replay(lowered, image, shares, "sign"))
                found.append(int(lowered.program.ring.decode(result).argmax()))
        labels[mode] = found
        right = np.mean(np.array(found) == test.labels[: len(images)].numpy())
        print(
            f"{mode:<8}{same} of {len(images)} inferences are the replayed reference to the bit; "
            f"{100 * right:.1f} % of the labels right; {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    first = labels[arguments.offline[0]]
    alike = [sum(map(int.__eq__, first, other)) for other in labels.values()]
    counts = ", ".join(f"{count} by {mode}" for mode, count in zip(labels, alike, strict=True))
    print(f"labels as by {arguments.offline[0]}: {counts}")


if __name__ == "__main__":
    main()
