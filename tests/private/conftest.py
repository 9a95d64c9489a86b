"""What the tests of private inference start from, and what those of hints share."""

import hashlib
from typing import Any

import numpy as np
import pytest

from parelu.fusion.hint_plan import OFTEN, ONCE, plan
from parelu.private.crypto.base_ot import POINT_BYTES, RESPONSE_BYTES
from parelu.private.crypto.ot_extension import BASE
from parelu.private.crypto.prg import Stream
from parelu.private.offline import hint_exchange, hint_sets, transfers


@pytest.fixture(scope="session", autouse=True)
def _compiled(compiled: None) -> None: ...


@pytest.fixture
def two_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers offer both plans, and who asks more than once takes the second, also where so small a network gains
    nothing by it."""
    monkeypatch.setattr(hint_sets, "plans", lambda layers: (plan(layers, ONCE), plan(layers, OFTEN)))
    monkeypatch.setattr(hint_exchange, "best", lambda plans, queries: len(plans) - 1 if queries > 1 else 0)


class Known:
    """Either end of base transfers whose seeds follow from the context: what takes most of a connection's time."""

    def __init__(self, choices: Any, context: bytes) -> None:
        self.transcript = hashlib.sha256(context).digest()
        self._choices, self._pairs = choices, Stream(self.transcript, "pairs").bytes(BASE * 2 * 16)

    def message(self) -> bytes:
        return bytes(POINT_BYTES)

    def respond(self, message: bytes) -> bytes:
        return bytes(RESPONSE_BYTES * BASE)

    def seeds(self, points: bytes = b"") -> Any:
        pairs = self._pairs.reshape(BASE, 2, 16)
        return pairs if points else pairs[np.arange(BASE), self._choices]


@pytest.fixture
def known_base_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "Sender", Known)
    monkeypatch.setattr(transfers, "Receiver", Known)
