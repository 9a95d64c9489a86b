"""Messages as they are told before they are sent: direction and length. A list of them is in the client's order."""

from __future__ import annotations

from typing import NamedTuple

from parelu.private.transport.channel import HEADER


class Messages(NamedTuple):
    """One or several after another in one direction. bytes: with their headers, as a `Meter` counts them."""

    to_client: bool
    bytes: int


def to_client(length: int, count: int = 1) -> Messages:
    """length: of all bodies."""
    return Messages(True, length + count * HEADER.size)


def to_server(length: int, count: int = 1) -> Messages:
    """As `to_client`."""
    return Messages(False, length + count * HEADER.size)
