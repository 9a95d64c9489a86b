"""What a server is to serve, and how: what each of its processes loads, and what a reload replaces."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path

from parelu.private.serving.served import Served
from parelu.private.serving.server import DEFAULTS, ServerOptions


@dataclasses.dataclass(frozen=True)
class Deployment(abc.ABC):
    """Handed from a server to the processes that it starts.

    certificates: folder with ca.pem, server.pem and server.key; None for plain connections on this machine.
    """

    certificates: Path | None = None
    options: ServerOptions = DEFAULTS

    @abc.abstractmethod
    def load(self) -> dict[str, Served]:
        """Name → model, read from disk. Raises UserError where one cannot be served."""

    @abc.abstractmethod
    def since(self, before: Deployment) -> Deployment:
        """The same, without what was made once when `before` was loaded."""
