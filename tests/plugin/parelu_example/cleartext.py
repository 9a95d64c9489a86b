"""An engine, without any privacy: the program's integers in this process."""

import time
from typing import ClassVar

from parelu.private.engines.base import Engine, Measurement
from parelu.private.lowering import reference
from parelu.private.rows import Cost, Costs


class Cleartext(Engine):
    name: ClassVar[str] = "cleartext"

    def described(self, options):
        return {"relu": "cleartext", "offline_mode": "none", "threat_model": "no privacy"}

    def run(self, lowered, images, options):
        started = time.perf_counter()
        logits = reference.run(lowered, images).logits
        seconds = time.perf_counter() - started
        return Measurement(logits, Costs(total=Cost(seconds, sent={}, rounds=0, cpu={"client": seconds})))
