"""An offline mode: the dealer's, under a name of its own."""

from typing import ClassVar

from parelu.private.offline.dealer import Dealt
from parelu.private.offline.mode import Mode


class Again(Mode):
    name: ClassVar[str] = "again"
    threat_model: ClassVar[str] = Dealt.threat_model
    third_party: ClassVar[bool] = True
    comparisons: ClassVar[str] = Dealt.comparisons

    def __init__(self):
        self.dealer = Dealt()

    def traffic(self, program, queries, lowered=None):
        return self.dealer.traffic(program, queries, lowered)

    def server(self, channel, context, model):
        return self.dealer.server(channel, context, model)

    def client(self, channel, context, terms, digest, keep):
        return self.dealer.client(channel, context, terms, digest, keep)

    def serve(self, channel, state, model, *, audited=False, asking=None):
        return self.dealer.serve(channel, state, model, audited=audited)

    def fetch(self, channel, state):
        return self.dealer.fetch(channel, state)
