"""What a linear layer takes of a query, by a calibration: what fusion weighs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from parelu.errors import UserError
from parelu.fusion.composition import Convolution
from parelu.private.cost.calibration import Calibration
from parelu.private.cost.predict import estimate, query
from parelu.private.engines.base import Options
from parelu.private.lowering.ops import Conv, Op, Reshape, Truncate
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import ring_for

WEIGHED = "lan"  # the link that programs are made for: one program serves them all


def layer_cost(calibration: Calibration, offline: str) -> Callable[[Convolution], float]:
    """A layer's seconds online and offline over `WEIGHED`: by how much a second one like it makes a query longer.

    So what all layers of a query share is in none of them. A map that is too wide for the offline mode costs infinitely
    much. Raises UserError where the calibration lacks what the mode does.
    """
    options = Options(offline=offline, link=WEIGHED)

    def seconds(layer: Convolution, copies: int) -> float:
        asked = query(_program(layer, copies, offline), options)
        return sum(estimate(phase, asked, calibration).seconds for phase in ("online", "offline"))

    @functools.lru_cache(maxsize=4096)
    def cost(layer: Convolution) -> float:
        try:
            return seconds(layer, 2) - seconds(layer, 1)
        except (ValueError, UserError):
            return math.inf

    seconds(Convolution(1, 1, (1, 1)), 1)  # raises what is not the layer's fault
    return cost


def _program(layer: Convolution, copies: int, offline: str) -> Program:
    """So many layers side by side, each on a value of its own, as a truncation makes it."""
    run, shape = layer.expanded, (layer.inputs, *layer.size)
    ops: list[Op] = []
    for _ in range(copies):
        ops.append(Truncate(0, len(ops) + 1))
        ops.append(Conv(len(ops), run.outputs, run.kernel, run.stride, run.padding, run.groups))
    ops.append(Reshape(len(ops), (run.outputs * math.prod(run.output_size),)))
    described = {"mean": [0.0] * layer.inputs, "std": [1.0] * layer.inputs, "image": list(shape)}
    return Program(
        input_shape=shape,
        fraction=10,
        low=-1,
        high=1,
        output_unit=1.0,
        output_bits=16,
        ops=tuple(ops),
        layers=tuple(f"{number}" for number in range(len(ops))),
        preprocessing=described,
        ring=ring_for(offline),
    )
