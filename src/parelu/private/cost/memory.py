"""What the parties keep of an inference between its phases: exact bytes of the arrays, of a program alone."""

from __future__ import annotations

import math

from parelu.private.lowering.ops import Activation
from parelu.private.protocol.delphi import Terms


def material(terms: Terms) -> dict[str, int]:
    """Party → bytes of `protocol.delphi.Material`'s arrays, of one inference."""
    program, ring = terms.program, terms.program.ring
    secret = (shape for op, shape in zip(program.ops, program.shapes[1:], strict=True) if op.is_secret)
    parts = [(8 * math.prod(program.input_shape), 8 * sum(map(math.prod, secret)))]
    for op in program.ops:
        if isinstance(op, Activation):
            squares = 3 * 8 * len(op.squares)
            parts.append((squares, squares))
            if len(op.relus):
                _, cut = terms.reads(op)
                parts.append(terms.relu.material_bytes(len(op.relus), op.bits, cut, ring))
    parts.append(terms.reveal.material_bytes(program.classes, program.output_bits))
    client, server = map(sum, zip(*parts, strict=True))
    return {"client": client, "server": server}
