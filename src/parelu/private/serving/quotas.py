"""Who may be served, and how much: a list of the clients of a server, by the names in their certificates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from parelu.errors import Refused, UserError
from parelu.network.mapping import checked, read_mapping

PERIODS = {"minute": 60, "hour": 3600, "day": 86400}  # seconds
MOST = 1_000_000_000  # of a number in the list


@dataclasses.dataclass(frozen=True)
class Quota:
    """Of one client, beside the server's budget. inferences: in each `per`, a minute, an hour or a day of UTC, None for
    no limit; prepared: inferences in its stock on the server, None for as many as the server keeps."""

    inferences: int | None = None
    per: Annotated[str, "minute, hour or day"] = "day"
    prepared: int | None = None

    @property
    def seconds(self) -> int:
        return PERIODS[self.per]


NO_QUOTA = Quota()


@dataclasses.dataclass(frozen=True)
class _List:
    clients: Annotated[dict, 'a mapping such as {"CN=Ada,O=Clinic": {inferences: 100, per: day, prepared: 20}}']


class Allowed:
    """The clients of a list: name → quota. A name is the subject of a certificate, or that and its authority as
    `parelu clients` shows them."""

    def __init__(self, quotas: Mapping[str, Quota]) -> None:
        self._quotas = dict(quotas)

    @classmethod
    def read(cls, path: Path) -> Allowed:
        """From a YAML file; raises UserError with what is wrong in it."""
        try:
            entries = _List(**checked(read_mapping(path), _List)).clients
            return cls({_name(name): _quota(str(name), entry) for name, entry in entries.items()})
        except UserError as error:
            text = str(error)
            raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from error

    def quota(self, client: str) -> Quota:
        """Raises Refused where the client is not in the list."""
        for name in (client, client.partition("; by ")[0]):
            if name in self._quotas:
                return self._quotas[name]
        raise Refused("this certificate is not among those that this server serves; ask its operator")

    def __len__(self) -> int:
        return len(self._quotas)


class Everybody(Allowed):
    """Whoever has a certificate of the authority."""

    def __init__(self) -> None:
        super().__init__({})

    def quota(self, client: str) -> Quota:
        return NO_QUOTA


def _name(name: object) -> str:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise UserError(f"clients has {name!r}; a client is named by its certificate, such as CN=Ada,O=Clinic")
    return name


def _quota(name: str, entry: object) -> Quota:
    if not isinstance(entry, dict | None):
        raise UserError(f"clients.{name} is {entry!r}; it should be a mapping such as {{inferences: 100, per: day}}")
    found = Quota(**checked(entry or {}, Quota, key=f"clients.{name}."))
    if found.per not in PERIODS:
        raise UserError(f"clients.{name}.per is {found.per!r}; it should be one of {', '.join(PERIODS)}")
    for what in ("inferences", "prepared"):
        number = getattr(found, what)
        if number is not None and not 0 <= number <= MOST:
            raise UserError(f"clients.{name}.{what} is {number}; it should be from 0 to {MOST}")
    return found
