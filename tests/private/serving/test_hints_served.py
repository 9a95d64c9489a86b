"""Hints between `parelu serve` and its clients: fetched once, opened phases, clients that leave, many at once."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from deployed import deployed
from two_parties import WIDE, Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError
from parelu.private.lowering import reference
from parelu.private.offline import hints
from parelu.private.offline.hints import Hints
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import Material, Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.serving import session
from parelu.private.serving.client import Client
from parelu.private.serving.server import Server

LOWERED = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.1), ring=WIDE)
pytestmark = pytest.mark.usefixtures("two_sets")
IMAGES = images_of(8, (1, 6, 6))
EXPECTED = reference.run(LOWERED, IMAGES).logits


def serving(keep: Keep | None = None, lowered=LOWERED, **options):
    return deployed(lowered, offline="hints", keep=keep, **options)


def client(server: Server, keep: Keep, **more: Any) -> Client:
    return Client("127.0.0.1", server.port, offline="hints", relu="sign", keep=keep, pin=server.offer.pin, **more)


def fetched(each: Client) -> int:
    """Bytes of the set-up."""
    return sum(t.received for (phase, layer), t in each.session.channel.traffic.items() if layer == "hints")


def test_hints_are_fetched_once_and_inferences_are_right(tmp_path):
    with serving(Keep(folder=tmp_path / "server")) as (server, lines):
        sizes = [made.use.bytes for made in server.model.made["hints"]]
        for number, expected in enumerate((True, False, False)):
            with client(server, Keep(1000, tmp_path / "client")) as each:
                logits = each.predict(IMAGES[number : number + 1])
                assert (fetched(each) > sizes[1]) == expected
            assert np.abs(logits - EXPECTED[number]).max() < 0.05
        with client(server, Keep(1)) as each:
            each.predict(IMAGES[:1])
            assert sizes[0] < fetched(each) < sizes[1]
    assert not [line for line in lines if "error" in line]
    before = {file.name: file.read_bytes() for file in (tmp_path / "server").iterdir()}
    with serving(Keep(folder=tmp_path / "server")) as (again, _), client(again, Keep(9, tmp_path / "client")) as each:
        each.predict(IMAGES[:1])
        assert fetched(each) < 1000 and again.offer == server.offer
    assert {file.name: file.read_bytes() for file in (tmp_path / "server").iterdir()} == before


def test_inferences_are_right_where_half_of_the_phases_are_opened(monkeypatch):
    """And what was opened is in no inference."""
    tosses, opened, taken = iter([True, False, True, True, False] + 20 * [True, False]), [], []
    monkeypatch.setattr(session, "_toss", lambda share: share == 0.5 and next(tosses))
    audit, take = Hints.audit, Material.take
    monkeypatch.setattr(Hints, "audit", lambda self, *given: (opened.append(len(taken)), audit(self, *given))[1])
    monkeypatch.setattr(Material, "take", lambda self: (taken.append(self), take(self))[1])
    with serving(audit=0.5) as (server, lines), client(server, Keep()) as each:
        each.prepare(4)
        logits = each.predict(IMAGES[:4], batch=2)
        assert np.abs(logits - EXPECTED[:4]).max() < 0.05
    assert len(opened) == 5
    assert len(taken) == len({id(material) for material in taken}) == 2 * (4 + 5), "each end's, used or opened"
    assert "4 inferences, 9 offline phases, 5 opened" in lines[-1]


def test_a_client_that_deviates_is_barred(monkeypatch):
    monkeypatch.setattr(session, "_toss", lambda share: True)
    show = Hints.show
    with serving(audit=0.5) as (server, _), client(server, Keep()) as each:
        monkeypatch.setattr(Hints, "show", lambda self, channel, state: channel.send("show", bytes(16)))
        with pytest.raises(ProtocolError, match="an audit: the client's β is not that of its seed"):
            each.predict(IMAGES[:1])
        monkeypatch.setattr(Hints, "show", show)
        with pytest.raises(ProtocolError, match="β is not that of its seed"), client(server, Keep()) as again:
            again.predict(IMAGES[:1])


def test_sessions_of_many_clients_at_once(tmp_path):
    """Of one folder, some with hints and some without; all with other masks."""
    results: dict[int, Any] = {}
    with serving() as (server, _):

        def run(number: int) -> None:
            with client(server, Keep(1 + number % 2 * 99, tmp_path if number % 3 else None)) as each:
                results[number] = each.predict(IMAGES[number : number + 1])

        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == [*range(6)]
    assert all(np.abs(found - EXPECTED[number]).max() < 0.05 for number, found in results.items())


def test_a_client_that_leaves_before_its_phase_begins_has_no_mark(monkeypatch):
    def leave(*given: Any) -> None:
        raise ProtocolError("left")

    monkeypatch.setattr(session, "_toss", lambda share: True)
    monkeypatch.setattr(hints, "fetched", leave)
    with serving(timeout=5.0) as (server, lines):
        with pytest.raises(ProtocolError, match="left"), client(server, Keep()) as each:
            each.predict(IMAGES[:1])
        end = time.monotonic() + 10
        while not lines and time.monotonic() < end:
            time.sleep(0.01)
        assert "1 offline phases" in lines[0] and "opened" not in lines[0]


def test_a_client_that_leaves_in_the_middle_of_the_hints_harms_nobody(tmp_path):
    class Left(Exception):
        pass

    def leave(done: int, total: int) -> None:
        raise Left

    with serving(timeout=5.0) as (server, lines):
        with pytest.raises(Left), client(server, Keep(100, tmp_path, progress=leave)) as each:
            each.predict(IMAGES[:1])
        end = time.monotonic() + 10
        while not lines and time.monotonic() < end:
            time.sleep(0.01)
        assert "internal error" not in lines[0] and not [*tmp_path.iterdir()]
        with client(server, Keep(100, tmp_path)) as each:
            assert np.abs(each.predict(IMAGES[:2]) - EXPECTED[:2]).max() < 0.05


def test_a_client_with_another_pin_gets_nothing():
    with serving() as (server, _):
        other = Model(
            type(LOWERED)(LOWERED.program, LOWERED.weights, (), bytes(32)), relus()["sign"], reveal_of("exact")
        )
        pin = session.Offer.of(other, modes()["hints"]).pin
        with pytest.raises(ProtocolError, match="is not the pinned"):
            Client("127.0.0.1", server.port, offline="hints", pin=pin)


def test_stocks_hold_material_of_hints(tmp_path):
    with serving(stock=tmp_path / "server", ahead=3) as (server, _):
        for _ in range(2):
            with client(server, Keep(), stock=tmp_path / "client") as each:
                each.session.add_to_stock()
        with client(server, Keep(), stock=tmp_path / "client") as each:
            assert each.session.in_stock == 2
            assert np.abs(each.predict(IMAGES[:2]) - EXPECTED[:2]).max() < 0.05
            assert each.session.in_stock == 0 and fetched(each) == 0
