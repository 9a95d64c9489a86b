"""What the parties hold in memory: bytes of arrays that stay, of a program alone.

Not what a layer needs while it is computed, nor the interpreter, its libraries and the code of kernels: of these a
calibration has what some program of the same offline mode took.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from parelu.private.lowering.ops import Activation, Conv, Linear, Shift
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import Mode
from parelu.private.protocol.delphi import Terms
from parelu.private.rows import QUERIES

PARTIES = ("client", "server")


def memory(terms: Terms, mode: Mode, batch: int = 1, queries: int = QUERIES) -> dict[str, int]:
    """Party → bytes at the most: of the model, of what comes once, of `batch` images' material, and of their values.

    queries: as `Mode.traffic` takes it, which may raise ValueError.
    """
    held, kept = mode.traffic(terms.program, queries).held(), material(terms)
    values = 8 * _live(terms.program)  # the client's are of one image, offline
    client = held[0] + batch * kept["client"] + values
    server = held[1] + batch * (kept["server"] + values) + _weights(terms.program)
    return dict(zip(PARTIES, (client, server), strict=True))


def material(terms: Terms) -> dict[str, int]:
    """Party → bytes of `protocol.delphi.Material`'s arrays, of one inference: what waits between the phases."""
    return dict(zip(PARTIES, map(sum, zip(*_material(terms), strict=True)), strict=True))


def _material(terms: Terms) -> Iterator[tuple[int, int]]:
    """Of the input and the linear layers, of activations, and of what is revealed."""
    program = terms.program
    secret = (shape for op, shape in zip(program.ops, program.shapes[1:], strict=True) if op.is_secret)
    yield 8 * math.prod(program.input_shape), 8 * sum(map(math.prod, secret))
    for op in program.ops:
        if isinstance(op, Activation):
            squares = 3 * 8 * len(op.squares)
            yield squares, squares
            if len(op.relus):
                _, cut = terms.reads(op)
                yield terms.relu.material_bytes(len(op.relus), op.bits, cut, program.ring)
    yield terms.reveal.material_bytes(program.classes, program.output_bits)


def _live(program: Program) -> int:
    """Elements of the values that are there at once, at the most, as `protocol.delphi` walks the program."""
    sizes = [math.prod(shape) for shape in program.shapes]
    now = most = sizes[0]
    for number, done in enumerate(program.done_after, start=1):
        now += sizes[number]
        most = max(most, now)
        now -= sum(sizes[value] for value in done)
    return most


def _weights(program: Program) -> int:
    """Bytes of the server's integers, and of the two other forms in which layers are applied."""
    found = 0
    for number, op in enumerate(program.ops, start=1):
        if isinstance(op, Conv | Linear):
            found += 8 * (3 * math.prod(op.weight_shape(program.shapes[op.source])) + op.outputs)
        elif op.is_secret or isinstance(op, Shift):
            found += (1 + op.is_secret) * 8 * math.prod(program.shapes[number])
        elif isinstance(op, Activation):
            found += 3 * 8 * len(op.squares)
    return found
