"""Base transfers without their points, for tests of what comes after them."""

import numpy as np
import pytest

from parelu.private.crypto.ot_extension import BASE
from parelu.private.crypto.prg import Stream
from parelu.private.offline import transfers


class Sender:
    """Seeds that both ends have of the context."""

    def __init__(self, count, context):
        self.count, self.context, self.transcript = count, context, bytes(32)

    def message(self):
        return bytes(32)

    def seeds(self, response):
        return Stream(bytes(16), self.context.hex()).bytes(32 * self.count).reshape(self.count, 2, 16)


class Receiver:
    def __init__(self, choices, context):
        self.choices, self.context, self.transcript = choices, context, bytes(32)

    def respond(self, message):
        return bytes(64 * len(self.choices))

    def seeds(self):
        return Sender(BASE, self.context).seeds(b"")[np.arange(BASE), self.choices]


def deal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every session that starts these."""
    monkeypatch.setattr(transfers, "Sender", Sender)
    monkeypatch.setattr(transfers, "Receiver", Receiver)
