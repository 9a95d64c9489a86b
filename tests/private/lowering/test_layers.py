"""A program's linear layers, planned for the hints, against the ops themselves."""

import math

import numpy as np
from two_parties import WIDE, Residual, lowered_of, ready

from parelu.fusion.hint_plan import plans
from parelu.private.lowering.encode import linear_map
from parelu.private.lowering.layers import layers
from parelu.private.lowering.ops import Conv, Linear


def test_each_linear_op_of_a_program_is_planned_and_computed():
    lowered = lowered_of(ready(Residual(), (1, 6, 6)))
    program = lowered.program
    linear = {number for number, op in enumerate(program.ops, start=1) if isinstance(op, Conv | Linear)}
    rng = np.random.default_rng(0)
    for plan in plans(layers(program)):
        assert set(plan.readers) == linear
        for number, reader in plan.readers.items():
            op, weights = program.ops[number - 1], lowered.weights[number - 1]
            values = rng.integers(0, 1 << 20, math.prod(program.shapes[op.source])).astype(np.uint64)
            packed = reader.upload.pack(values).astype(np.int64)
            matrix = reader.matrix(weights["weight"]).astype(np.int64)
            sums = [matrix[g] @ reader.gather(packed, g).reshape(reader.columns, -1) for g in range(reader.groups)]
            rows = np.concatenate(sums).reshape(reader.rows, reader.upload.tiles, reader.slots)
            wanted = linear_map(op, weights, WIDE)(values.reshape(1, *program.shapes[op.source]))[0]
            assert np.array_equal(reader.outputs(rows), wanted.astype(np.int64).reshape(-1))
