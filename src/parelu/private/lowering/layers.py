"""The linear ops of a program as convolutions: what the offline modes that pack them into polynomials go by."""

from __future__ import annotations

from parelu.fusion.composition import Convolution
from parelu.fusion.hint_layout import Layer
from parelu.private.lowering.ops import Conv, Linear, Shape
from parelu.private.lowering.program import Program


def convolution(op: Conv | Linear, source: Shape) -> Convolution:
    """An op on a source of this shape; a matrix is a convolution of a 1×1 map."""
    if isinstance(op, Linear):
        return Convolution(source[0], op.outputs, (1, 1))
    inputs, rows, columns = source
    return Convolution(inputs, op.outputs, (rows, columns), op.kernel, op.stride, op.padding, op.groups)


def layers(program: Program) -> list[Layer]:
    """All convolutions and matrices, in order of the values that they make."""
    return [
        Layer(number, op.source, convolution(op, program.shapes[op.source]))
        for number, op in enumerate(program.ops, start=1)
        if isinstance(op, (Conv, Linear))
    ]
