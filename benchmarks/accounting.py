"""What the answers of offline mode `hints` tell of the weights, for each plan of a network: log2 of a distance.

    python benchmarks/accounting.py                                       # ResNet20, and ResNet18 with 50,000 ReLUs
    python benchmarks/accounting.py --model resnet18 --classes 100 --keep 0.09 --inferences 20

Networks have fresh weights. The three readings are those of `parelu.private.crypto.lattice.accounting`: a client draws
all that is to be drawn; it chooses r; it chooses all that an audit lets pass. Beside them the largest Σ|w| of a row.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from parelu.fusion.hint_layout import Reader
from parelu.fusion.hint_plan import Plan, plans
from parelu.network.spec import spec_of
from parelu.private.crypto.lattice.accounting import Shift, distance, row
from parelu.private.fresh import noise, untrained
from parelu.private.lowering.layers import layers
from parelu.private.lowering.lower import Lowered, lower

INPUT, IMAGES = (3, 32, 32), 16
NETWORKS = [("resnet20", 10, 0.1), ("resnet20", 10, 1.0), ("resnet18", 100, 0.09)]


def shift(plan: Plan, lowered: Lowered) -> tuple[Shift, int]:
    """Of an inference's answers, and the largest Σ|w|: all outputs of a row add to each other's noise."""
    total, largest = Shift(), 1
    for reader in plan.readers.values():
        for norm, squares, outputs in _rows(reader, lowered.weights[reader.number - 1]["weight"]):
            total, largest = total + row(norm, squares, outputs), max(largest, norm)
    return total, largest


def _rows(reader: Reader, weight: np.ndarray) -> list[tuple[int, int, int]]:
    """(Σ|w|, Σw², outputs) of each row."""
    taps = np.abs(weight.reshape(len(weight), -1))
    norms, squares = (np.append(found, 0)[reader.row_outputs].sum(1) for found in (taps.sum(1), (taps**2).sum(1)))
    return [*zip(norms.tolist(), squares.tolist(), reader.used.sum((1, 2)).tolist(), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--keep", type=float, default=1.0, help="the share of ReLUs that stays")
    parser.add_argument("--inferences", type=int, default=30, help="log2 of their number")
    options = parser.parse_args()
    networks = [(options.model, options.classes, options.keep)] if options.model else NETWORKS
    print(f"{'':<22}{'plan':>5}{'outputs':>10}{'hints':>7}{'log2 Σ|w|':>11}{'drawn':>8}{'r chosen':>10}{'worst':>8}")
    for model, classes, keep in networks:
        candidate = untrained(spec_of(model, INPUT, classes), keep, seed=0)
        lowered = lower(candidate.network(), noise(IMAGES, INPUT, seed=1), candidate.preprocessing)
        for number, plan in enumerate(plans(layers(lowered.program))):
            total, largest = shift(plan, lowered)
            name = f"{model}, {lowered.program.relus:,}"
            found = [distance(x, 1 << options.inferences) for x in (total.drawn, total.chosen, total.worst)]
            outputs = sum(reader.count for reader in plan.readers.values())
            print(
                f"{name:<22}{number:>5}{outputs:>10,}{plan.rows:>7,}{math.log2(largest):>11.2f}"
                f"{found[0]:>8.1f}{found[1]:>10.1f}{found[2]:>8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
