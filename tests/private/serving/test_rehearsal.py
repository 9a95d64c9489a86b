"""What a server does before its first client."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from deployed import deployed
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.serving import rehearsal
from parelu.private.serving.client import Client

LOWERED = lowered_of(ready(Residual(), (1, 6, 6), lambda u: u < 0.4))
# In a process of its own: a loop is loaded once.
LOADED = """
from numba.core.dispatcher import Dispatcher
import test_rehearsal as test
loaded, compile = [], Dispatcher.compile
Dispatcher.compile = lambda self, signature: loaded.append(self.py_func.__name__) or compile(self, signature)
for relu in test.relus():
    test.rehearsal.rehearse(test.model(relu))
before = len(loaded)
for relu in test.relus():
    test.infer(relu)
print(before, loaded[before:])
"""


def model(relu: str, reveal: str = "exact", truncation: str = "local") -> Model:
    return Model(LOWERED, relus()[relu], reveal_of(reveal), truncation)


def infer(relu: str) -> None:
    with (
        deployed(LOWERED, relu=relu) as (server, _),
        Client("127.0.0.1", server.port, offline="dealer", relu=relu) as client,
    ):
        client.predict(images_of(1, (1, 6, 6)))


@pytest.mark.usefixtures("compiled")
def test_no_client_waits_for_a_loop_to_be_loaded():
    pytest.importorskip("numba")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    before, _, after = done.stdout.strip().partition(" ")
    assert done.returncode == 0 and int(before) > 5, done.stderr
    assert after == "[]", after


@pytest.mark.parametrize(
    ("relu", "reveal", "truncation"),
    [
        ("sign", "label", "local"),
        ("sign", "label 2^3", "exact"),
        ("full", "logits 2^2", "exact"),
        ("fss", "exact", "local"),
    ],
)
def test_every_setting_can_be_rehearsed(relu: str, reveal: str, truncation: str):
    assert rehearsal.rehearse(model(relu, reveal, truncation))


def test_what_goes_with_no_dealer_is_left_to_the_first_client(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise ProtocolError("no")

    monkeypatch.setattr(rehearsal, "Session", refuse)
    assert not rehearsal.rehearse(model("fss"))
