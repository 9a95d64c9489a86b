"""A model as a server offers it: its terms, what each client has used of it, and material that was made ahead.

Where material can be made without a client, it waits prepared in memory; where it cannot, clients fill stocks on disk
(`stock.py`), while others are served.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from pathlib import Path

from parelu.errors import UserError
from parelu.private.offline.mode import Mode, Package
from parelu.private.protocol.delphi import Model
from parelu.private.serving.greeting import Offer
from parelu.private.serving.ledger import Ledger
from parelu.private.serving.stock import ServerStocks

BUDGET, PLAIN_BUDGET = 10_000, 300  # inferences of a client where what is revealed is dithered, and where it is not
AUDIT, MOST_AUDITED = 0.1, 0.5  # of the offline phases


@dataclasses.dataclass(frozen=True)
class ServedOptions:
    """How one model is served.

    ahead: inferences prepared ahead: in memory, or with `stock`, a folder, on disk for each client.
    budget: inferences of each client, by the name in its certificate; 0 for no limit, None for 10,000 where what is
    revealed is dithered and 300 where it is not (benchmarks/leakage.py). ledger: the file that counts them
    and the offline phases; None counts in memory. audit: the share of offline phases that are opened.
    """

    ahead: int = 0
    stock: Path | None = None
    budget: int | None = None
    ledger: Path | None = None
    audit: float = AUDIT

    def check(self, mode: Mode) -> None:
        """Raises UserError where the offline mode cannot do this."""
        if self.ahead and not mode.packages and not self.stock:
            raise UserError(f"offline mode {mode.name} needs the client: give --stock-dir, or leave --stock out")
        if self.stock and not self.ahead:
            raise UserError("--stock-dir needs --stock N, the inferences kept for each client")
        if not 0 <= self.audit <= MOST_AUDITED:
            raise UserError(f"--audit {self.audit:g} is not a share from 0 to {MOST_AUDITED:g}")
        if self.budget is not None and self.budget < 0:
            raise UserError(f"--budget {self.budget} is not a number of inferences, or 0 for no limit")


DEFAULTS = ServedOptions()


class Served:
    """A model with all that its sessions share.

    Attributes:
        budget: inferences of each client; 0 for no limit.
        prepared: what was made ahead in memory; `prepared.start` begins to make it.
    """

    def __init__(self, model: Model, mode: Mode, options: ServedOptions = DEFAULTS) -> None:
        """Raises UserError where the mode does not go with the model or the options."""
        mode.check_terms(model.terms.program, model.terms.relu)
        mode.check(model)
        options.check(mode)
        self.model, self.mode, self.options = model, mode, options
        self.stocks = ServerStocks(options.stock, options.ahead) if options.stock else None
        default = BUDGET if model.terms.reveal.cut else PLAIN_BUDGET
        self.budget = default if options.budget is None else options.budget
        self.offer, self.ledger = Offer.of(model, mode), Ledger(options.ledger, self.budget, options.audit)
        self.prepared = Prepared(model, mode, 0 if options.stock else options.ahead)

    def close(self) -> None:
        """When no session of it is left."""
        self.prepared.close()
        self.ledger.close()


class Prepared:
    """Packages made ahead by a thread of its own, each handed out once. They live in memory only: a killed server
    leaves none behind that could be used twice."""

    def __init__(self, model: Model, mode: Mode, size: int) -> None:
        self.size = size
        self._make = lambda: mode.package(model)
        self._packages: deque[Package] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._fill, name="prepare", daemon=True)

    def __len__(self) -> int:
        return len(self._packages)

    def start(self) -> None:
        """Begin to make them."""
        if self.size:
            self._thread.start()

    def take(self) -> Package | None:
        """One package, gone from here; None where there is none."""
        with self._changed:
            package = self._packages.popleft() if self._packages else None
            self._changed.notify_all()
        return package

    def wait(self, count: int, timeout: float) -> bool:
        """Until `count` packages are there."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._packages) >= count, timeout)

    def close(self) -> None:
        """Safe to call again."""
        with self._changed:
            self._closed = True
            self._packages.clear()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _fill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._packages) < self.size)
                if self._closed:
                    return
            package = self._make()
            assert package is not None
            with self._changed:
                if not self._closed:
                    self._packages.append(package)
                self._changed.notify_all()
