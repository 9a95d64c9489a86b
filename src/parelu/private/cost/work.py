"""What the parties have to do for one query, as amounts of kinds of work: the features that seconds are fitted on.

All of it follows from a program's shapes, masks and widths; no weight is read. Online each layer stands for itself, in
order; offline, where a party works ahead of its turn on other threads, a phase is one piece of work.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

from parelu.private.crypto.kernels import kernels
from parelu.private.lowering.layers import convolution
from parelu.private.lowering.ops import Activation, Conv, Linear, Op
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import Features, Mode
from parelu.private.protocol.delphi import INPUT, LOCAL, OUTPUT, Terms

ALL, RELUS = "all", "all ReLUs"  # the layers of an offline phase


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one layer in one phase, both parties' amounts.

    together: whether both are at work at once; else one waits for the other. beside: the activation during whose round
    the server does it, "" where the client waits for it.
    """

    phase: str
    layer: str
    client: Features
    server: Features
    together: bool = False
    beside: str = ""


def work(terms: Terms, mode: Mode, batch: int = 1, queries: int = 1) -> list[Work]:
    """Of a query of `batch` images; queries: as `engines.base.Options` has them."""
    return [*_offline(terms, mode, batch, queries), *(_times(each, batch) for each in _online(terms))]


def _times(work: Work, batch: int) -> Work:
    client, server = ({name: batch * n for name, n in of.items()} for of in (work.client, work.server))
    return dataclasses.replace(work, client=client, server=server)


def _offline(terms: Terms, mode: Mode, batch: int, queries: int) -> Iterator[Work]:
    """All but the ReLUs, and these."""
    program = terms.program
    client, server = (dict(features) for features in mode.work(program, queries))
    layers = sum(op.is_secret or isinstance(op, Activation) for op in program.ops)
    query = {f"{mode.name}: query": 1, f"{mode.name}: layer": layers}
    walked = {"value": sum(map(math.prod, program.shapes)), "op": len(program.ops)}
    client |= query | walked
    server |= query | (walked if mode.third_party else {})  # a dealer walks as the client will
    yield _times(Work("offline", ALL, client, server, together=not mode.third_party), batch)
    relus = defaultdict[str, float](float)
    maker = mode.relus_by or mode.name
    for op in program.ops:
        if isinstance(op, Activation) and len(op.relus):
            for name, amount in _relus(terms, op).items():
                relus[f"{maker}: {name}"] += amount
            if terms.relu.compares and not mode.third_party:  # both parties grow whole trees
                relus[f"{maker}: node"] += len(op.relus) * 2.0**op.bits
    if relus:
        yield _times(Work("offline", RELUS, relus, relus, together=not mode.third_party), batch)


def _relus(terms: Terms, op: Activation) -> dict[str, float]:
    """A site of ReLUs and its bits, which protocols walk one by one, how many ReLUs there are, and bytes that the
    protocol says it sends and keeps for them: seconds of a ReLU grow with its bits as these do."""
    count, (_, cut), ring = len(op.relus), terms.reads(op), terms.program.ring
    name = terms.relu.name + (", exact" if cut else "")
    kept = terms.relu.material_bytes(count, op.bits, cut, ring)
    opened = terms.relu.open_bytes(count, op.bits, cut, ring)
    walks = kept != terms.relu.material_bytes(count, op.bits + 1, cut, ring)  # a circuit over the ring's bits does not
    site = {f"{name}, site": 1, f"{name}, bit of a site": walks * min(op.bits + cut, ring.bits)}
    return {**site, name: count, f"{name}, byte opened": opened, f"{name}, byte kept": sum(kept)}


def _online(terms: Terms) -> list[Work]:
    program = terms.program
    beside = _beside(program)
    elements = math.prod(program.input_shape)
    found = [Work("online", INPUT, {"message": 1, "input": elements}, {"message": 1, "input": elements})]
    for number, (op, layer) in enumerate(zip(program.ops, program.layers, strict=True), start=1):
        if isinstance(op, Activation):
            count, positions = len(op.squares), math.prod(program.shapes[number])
            amounts = {"message": 1, "squares": count > 0, "square": count, "position": positions}
            relus = _relus(terms, op) if len(op.relus) else {}
            client = {name: n for name, n in amounts.items() if name != "position"}
            found.append(Work("online", layer, {**client, **relus}, {**amounts, **relus}, together=True))
        elif op.is_secret:
            near = beside.get(number)
            of = {"layer": 1, **_linear(program, number, op), **_again(program, op, near)}
            found.append(Work("online", layer, {}, of, beside=program.layers[near - 1] if near else ""))
    local = sum(
        math.prod(program.shapes[number])
        for number, op in enumerate(program.ops, start=1)
        if not (op.is_secret or isinstance(op, Activation))
    )
    found.append(Work("online", LOCAL, {}, {"value": local, "op": len(program.ops)}))
    found.append(Work("online", OUTPUT, {"message": 1}, {"message": 1}))
    return found


def _beside(program: Program) -> dict[int, int]:
    """A convolution → the sparse activation before it, in whose round the server applies most of it."""
    sparse = {
        number
        for number, op in enumerate(program.ops, start=1)
        if isinstance(op, Activation)
        and len(op.relus) + len(op.squares) <= kernels.SPARSE * math.prod(program.shapes[number])
    }
    numbered = enumerate(program.ops, start=1)
    return {n: op.source for n, op in numbered if isinstance(op, Conv) and op.groups == 1 and op.source in sparse}


def _linear(program: Program, number: int, op: Op) -> dict[str, float]:
    outputs = math.prod(program.shapes[number])
    if not isinstance(op, Conv | Linear):
        return {"single": outputs}
    shape = convolution(op, program.shapes[op.source])
    columns = math.prod(shape.kernel) * math.prod(shape.output_size) * shape.inputs
    return {"multiply-add": shape.macs, "column": columns, "output": outputs}


def _again(program: Program, op: Op, near: int | None) -> Mapping[str, float]:
    """What a convolution that was applied before its sparse input was there adds for the rest of it."""
    if near is None:
        return {}
    activation = program.ops[near - 1]
    assert isinstance(activation, Activation) and isinstance(op, Conv), "they are chosen so"
    positions = len(activation.relus) + len(activation.squares)
    return {"sparse multiply-add": positions * op.outputs * math.prod(op.kernel) / math.prod(op.stride)}
