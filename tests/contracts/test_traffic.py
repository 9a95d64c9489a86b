"""Every ReLU protocol, offline mode, reveal and truncation: what is said of its messages is what the meter counts."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from hand_programs import Hand
from two_parties import NARROW, Ends

from parelu.private.cost.memory import material
from parelu.private.cost.traffic import once, total, traffic
from parelu.private.crypto.codec import LENGTH, dump
from parelu.private.lowering.ops import Activation
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import TRUNCATIONS, Model, Terms
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import REVEALS
from parelu.private.serving import session
from parelu.private.serving.greeting import Accepted

BATCHES = (1, 3)  # images of queries; the first has a new connection
CUT = 5  # of reveals
BITS = 5, 7  # of ReLUs: keys of comparisons take work that doubles with each


def lowered_of(made):
    """With ReLUs of few bits."""
    lowered, bits = made.lowered(), itertools.cycle(BITS)
    ops = [dataclasses.replace(op, bits=next(bits)) if isinstance(op, Activation) else op for op in lowered.program.ops]
    return dataclasses.replace(lowered, program=dataclasses.replace(lowered.program, ops=tuple(ops)))


@functools.cache
def small():
    """ReLUs and squares at some positions, behind a truncation and not."""
    made = Hand((1, 4, 3), ring=NARROW)
    first = made.activation(made.truncate(made.conv(0, 2)), relus=0.5, squares=0.3)
    made.linear(made.activation(first, relus=0.7), 5)
    return lowered_of(made)


@functools.cache
def residual():
    """Layers that read one value, groups, single factors, an activation of squares alone."""
    made = Hand((2, 7, 6), ring=NARROW)
    stem = made.truncate(made.conv(0, 4, stride=2))
    first = made.activation(stem, relus=0.5, squares=0.3)
    left, right = made.conv(first, 4), made.conv(first, 4, kernel=1, padding=0)
    both = made.activation(made.truncate(made.add(left, right)), relus=0.7)
    scaled = made.truncate(made.multiply(both))
    last = made.activation(made.add(scaled, first), relus=0.0, squares=0.9)
    made.linear(made.truncate(made.conv(last, 2, groups=2)), 5)
    return lowered_of(made)


@functools.cache
def large():
    """Maps of several polynomials."""
    made = Hand((1, 100, 90), ring=NARROW)
    first = made.activation(made.truncate(made.conv(0, 2)), relus=0.001)
    made.linear(made.pool(made.conv(first, 3, stride=3), kernel=30, stride=30), 3)
    return lowered_of(made)


def arrays(materials) -> list[int]:
    """Bytes of each one's arrays."""
    bodies = [dump(material._content) for material in materials]
    return [len(body) - LENGTH.size - LENGTH.unpack_from(body)[0] for body in bodies]


class Queries:
    """What the client's meter counted of each query, and the parties' material, as they used it."""

    def __init__(self, model, mode, queries, batches, monkeypatch) -> None:
        self.counted, self.materials = [], {"client": [], "server": []}
        for party in self.materials:
            self._note(party, monkeypatch)
        ends = Ends(
            lambda channel: self._client(channel, model.terms, mode, queries, batches),
            lambda channel: session.serve(channel, model, mode, session.Service()),
        )
        assert ends.results == {"client": None, "server": sum(batches)}

    def _note(self, party, monkeypatch) -> None:
        infer = getattr(session, f"infer_{party}")

        def noting(channel, terms, materials, *images):
            self.materials[party] += arrays(materials)
            return infer(channel, terms, materials, *images)

        monkeypatch.setattr(session, f"infer_{party}", noting)

    def _client(self, channel, terms, mode, queries, batches) -> None:
        accepted = Accepted(relu=terms.relu.name, offline=mode.name)
        asking = session.Session(channel, accepted, keep=Keep(queries))
        for batch in batches:
            asking.prepare(batch)
            asking.infer(np.zeros((batch, *terms.program.input_shape), np.int64))
            self.counted.append(dict(channel.traffic))
            channel.traffic.clear()
        asking.close()


def sums(counted):
    """(phase, layer) → bytes to the client and to the server, where there are any."""
    found = {}
    for layers in counted:
        for phase, layer, down, up, *_ in layers:
            before = found.get((phase, layer), (0, 0))
            found[phase, layer] = before[0] + down, before[1] + up
    return found


def metered(counted):
    return [
        (*key, each.received, each.sent, each.turns / 2) for key, each in counted.items() if each.received + each.sent
    ]


def check(lowered, relu, name, reveal, truncation, monkeypatch, batches=BATCHES, queries=1000) -> None:
    model, mode = Model(lowered, relus()[relu], reveal, truncation), modes()[name]
    model.made = made_of(lowered)
    mode.make(model)
    measured = Queries(model, mode, queries, batches, monkeypatch)
    first, *later = measured.counted
    for batch, counted in zip(batches[1:], later, strict=True):
        told = traffic(model.terms, mode, batch, queries, lowered)
        assert sorted(layer[:-1] for layer in told) == sorted(metered(counted))
        rounds = sum(each.turns for (phase, _), each in counted.items() if phase == "online") / 2
        assert total(told, "online").rounds == rounds
    connection = once(model.terms, mode, queries, lowered)
    assert sums([connection, traffic(model.terms, mode, batches[0], queries, lowered)]) == sums([metered(first)])
    setup = [layer for layer in connection if layer.phase == "setup"]
    assert sorted(layer[:-1] for layer in setup) == sorted(layer for layer in metered(first) if layer[0] == "setup")
    expected = material(model.terms)
    assert measured.materials == {party: [size] * sum(batches) for party, size in expected.items()}


@functools.cache
def made_of(lowered) -> dict:
    """What offline modes made of it once, for all tests."""
    return {}


TERMS = [
    (relu, truncation)
    for relu, protocol in relus().items()
    for truncation in TRUNCATIONS
    if truncation == "local" or protocol.truncates
]


def reveals():
    """For every mode, with all terms and all reveals; what is left of each with each."""
    kinds = list(REVEALS.values())
    for (at, (relu, truncation)), kind, (number, name) in itertools.product(
        enumerate(TERMS), kinds, enumerate(modes())
    ):
        marks = [] if kinds[(at + number) % len(kinds)] is kind else [pytest.mark.long]
        reveal = kind(0 if kind.name == "exact" else CUT)
        yield pytest.param(relu, truncation, reveal, name, marks=marks, id=f"{relu}-{truncation}-{reveal.name}-{name}")


@pytest.mark.parametrize(("relu", "truncation", "reveal", "name"), list(reveals()))
def test_messages_are_as_they_are_said(relu, truncation, reveal, name, monkeypatch):
    check(small(), relu, name, reveal, truncation, monkeypatch)


@pytest.mark.parametrize("network", [residual, large])
@pytest.mark.parametrize("name", modes())
def test_messages_of_linear_layers(name, network, monkeypatch):
    check(network(), "sign", name, REVEALS["exact"](), "exact", monkeypatch, batches=(1, 1))


def test_messages_of_a_client_that_asks_once(monkeypatch):
    """It takes another set of hints than who asks often."""
    made = Hand((8, 8, 8), ring=NARROW)
    made.linear(made.pool(made.conv(0, 64), kernel=8), 5)
    lowered, mode = made.lowered(), modes()["hints"]
    terms = Terms(lowered.program, relus()["sign"], REVEALS["exact"]())
    assert total(once(terms, mode, 1), "setup") != total(once(terms, mode, 1000), "setup")
    check(lowered, "sign", "hints", REVEALS["exact"](), "local", monkeypatch, batches=(1, 1), queries=1)
