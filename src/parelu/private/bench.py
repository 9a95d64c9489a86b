"""Measure private inference: a row for an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parelu.network.candidate import Candidate
from parelu.network.preprocessing import normalise
from parelu.private.engines.base import Options, chosen
from parelu.private.lowering import reference
from parelu.private.lowering.lowered import Lowered
from parelu.private.rows import Difference, Row
from parelu.private.transport.link import link_of

DEFAULTS = Options()
Logits = NDArray[np.float64]


def bench(
    lowered: Lowered,
    candidate: Candidate,
    images: Tensor,
    options: Options = DEFAULTS,
    engine: str = "delphi",
) -> Row:
    """Run private inference of uint8 images (N, C, H, W), and return a row.

    The first query is run once more beforehand, to warm up. Errors of the logits are against the float network's and
    the ring reference's. Raises UserError where the engine is not known or cannot run this, or a party fails.
    """
    (runner,) = chosen([engine], options)
    measured = runner.run(lowered, images, options)
    logits, program = measured.logits, lowered.program
    # The engines of others look at all bits of a ReLU's input.
    ring = reference.run(lowered, images, relu=options.relu if engine == "delphi" else "full").logits
    expected = _float_logits(candidate, images)
    return Row(
        engine=engine,
        **runner.described(options),
        link=str(link_of(options.link)),
        relus=program.relus,
        squares=program.squares,
        images=len(images),
        batch=options.batch,
        queries=options.queries,
        costs=measured.costs,
        max_error=float(np.abs(logits - expected).max()),
        agreement=float((logits.argmax(1) == expected.argmax(1)).mean()),
        ring=difference([logits, ring]),
        labels=tuple(logits.argmax(1).tolist()),
        logits=tuple(map(tuple, logits.tolist())),
    )


def difference(results: Sequence[Logits]) -> Difference:
    """How far several logits of the same images, (N, classes), are apart."""
    stacked = np.stack(results)
    largest = float((stacked.max(0) - stacked.min(0)).max())
    best = np.sort(stacked[0], axis=1)
    is_clear = best[:, -1] - best[:, -2] > largest if best.shape[1] > 1 else np.ones(len(best), bool)
    is_same = (stacked.argmax(2) == stacked[0].argmax(1)).all(0)
    return Difference(largest, int(is_clear.sum()), int((is_clear & is_same).sum()), int(is_same.sum()))


def _float_logits(candidate: Candidate, images: Tensor) -> Logits:
    mean, std = (tuple(candidate.preprocessing[name]) for name in ("mean", "std"))
    with torch.no_grad():
        return candidate.network()(normalise(images, mean, std)).double().numpy()
