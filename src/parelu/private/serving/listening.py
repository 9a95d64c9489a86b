"""The sockets that a server listens at; the processes of one share them, and nobody else can have the port."""

from __future__ import annotations

import errno
import socket

from parelu.errors import UserError
from parelu.private.transport.channel import address_text

BACKLOG = 64  # connections that wait to be accepted
LACKING = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}  # a machine without IPv6 has localhost all the same


def listen(host: str, port: int) -> list[socket.socket]:
    """At all addresses of a name, `::` for all of this machine's of IPv4 too; port 0 takes a free one.

    Raises UserError where another process listens there, or the host is no address of this machine.
    """
    found: list[socket.socket] = []
    lacking: OSError | None = None
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, (address, *_) in dict.fromkeys(places):
            try:
                found.append(_listener(family, str(address), found[0].getsockname()[1] if found else port))
            except OSError as error:
                if error.errno not in LACKING:
                    raise
                lacking = error
        if lacking and not found:
            raise lacking
    except (OSError, OverflowError, UnicodeError) as error:
        for listener in found:
            listener.close()
        raise UserError(f"{address_text(host, port)}: cannot listen ({error}); give another --port") from error
    return found


def _listener(family: int, address: str, port: int) -> socket.socket:
    dual = family == socket.AF_INET6 and address == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server((address, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    listener.setblocking(False)
    return listener
