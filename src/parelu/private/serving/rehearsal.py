"""An inference before the first: what is compiled is loaded and linked, so that no client waits for it.

A server with a stock answers a query in milliseconds, but for the first that takes half a second: loops are read from
numba's cache when they are first called, and numba itself prepares then.
"""

from __future__ import annotations

import socket
import threading

import numpy as np

from parelu.errors import ProtocolError, UserError
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Activation, Conv, Linear, Op, Reshape, Truncate
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import Model
from parelu.private.serving.greeting import Accepted
from parelu.private.serving.session import Session, serve
from parelu.private.transport.channel import Channel

DEALER = "dealer"  # which costs least
SIDE, CHANNELS, CUT, BITS = 4, 2, 8, 16


def rehearse(model: Model) -> bool:
    """Run an inference of a small network with the model's protocols, both parties in this process.

    Returns whether it could: a ReLU protocol of a plugin may not go with a dealer; then the first client waits.
    """
    terms = model.terms
    small = Model(_lowered(terms.program), terms.relu, terms.reveal, terms.truncation)
    ours, theirs = (Channel(end) for end in socket.socketpair())
    server = threading.Thread(target=_serve, args=(theirs, small), name="rehearsal")
    server.start()
    try:
        session = Session(ours, Accepted(relu=terms.relu.name, offline=DEALER))
        session.infer(np.zeros((1, *small.terms.program.input_shape), np.int64))
        session.close()
    except (ProtocolError, UserError):
        return False
    finally:
        ours.close()
        server.join()
    return True


def _serve(channel: Channel, model: Model) -> None:
    try:
        serve(channel, model, modes()[DEALER])
    except (ProtocolError, UserError):
        pass  # as the client's end says
    finally:
        channel.close()


def _lowered(program: Program) -> Lowered:
    """Two convolutions with an activation of few positions between, and a matrix; of a program's ring and output."""
    pair, positions = (3, 3), np.arange(0, CHANNELS * SIDE * SIDE, 8)
    ops: list[Op] = [
        Conv(0, CHANNELS, pair, (1, 1), (1, 1), 1),
        Truncate(1, CUT),
        Activation(2, positions, BITS, positions + 1, CUT),
        Conv(3, CHANNELS, pair, (1, 1), (1, 1), 1),
        Reshape(4, (CHANNELS * SIDE * SIDE,)),
        Linear(5, CHANNELS),
    ]
    shapes = {0: (CHANNELS, 1, *pair), 3: (CHANNELS, CHANNELS, *pair), 5: (CHANNELS, CHANNELS * SIDE * SIDE)}
    weights = {
        number: {"weight": np.ones(shape, np.int64), "bias": np.zeros(shape[0], np.int64)}
        for number, shape in shapes.items()
    }
    weights[2] = {name: np.zeros(len(positions), np.int64) for name in ("c0", "c1", "c2")}
    small = Program(
        input_shape=(1, SIDE, SIDE),
        fraction=6,
        low=-256,
        high=256,
        output_unit=1.0,
        output_bits=program.output_bits,
        ops=tuple(ops),
        layers=("rehearsal",) * len(ops),
        preprocessing={"mean": [0.5], "std": [0.25], "image": [1, SIDE, SIDE]},
        ring=program.ring,
    )
    return Lowered(small, weights, ())
