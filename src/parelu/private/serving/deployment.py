"""What a server is to serve, and how: what each of its processes loads, and what a reload replaces."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path

from parelu.private.serving.quotas import Allowed
from parelu.private.serving.served import Served
from parelu.private.serving.server import DEFAULTS, EVERYBODY, ServerOptions


@dataclasses.dataclass(frozen=True)
class Deployment(abc.ABC):
    """Handed from a server to the processes that it starts.

    certificates: folder with ca.pem, server.pem and server.key; None for plain connections on this machine.
    allow: the list of those that are served, as `Allowed.read` has it; None for all that have a certificate.
    """

    certificates: Path | None = None
    options: ServerOptions = DEFAULTS
    allow: Path | None = None

    def allowed(self) -> Allowed:
        """Raises UserError where the list is none."""
        return Allowed.read(self.allow) if self.allow else EVERYBODY

    @abc.abstractmethod
    def load(self) -> dict[str, Served]:
        """Name → model, read from disk. Raises UserError where one cannot be served."""

    @abc.abstractmethod
    def since(self, before: Deployment) -> Deployment:
        """The same, without what was made once when `before` was loaded."""
