"""An engine, without any privacy: the program's integers in this process."""

import time
from typing import ClassVar

from parelu.private.engines.base import Engine, Measurement
from parelu.private.lowering import reference


class Cleartext(Engine):
    name: ClassVar[str] = "cleartext"

    def described(self, options):
        return {"relu": "cleartext", "offline_mode": "none", "threat_model": "no privacy"}

    def run(self, lowered, images, options):
        started = time.perf_counter()
        logits = reference.run(lowered, images).logits
        cost = {"seconds": time.perf_counter() - started, "cpu_client": 0.0, "cpu_server": 0.0}
        return Measurement(logits, {"total": {**cost, "bytes_to_client": 0, "bytes_to_server": 0, "rounds": 0}})
