"""The command that shows private inference on a page."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from pathlib import Path
from typing import Any

import tyro

from parelu.cli.output import say
from parelu.errors import UserError


def resolve() -> None:
    """No type of its options is read off a registry."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Show private inference on a page for the browser: draw an image, see what the server receives of it, the answer,
    and what it took, with all ReLUs and with few. Both parties are processes of this machine.

    parelu demo

    parelu demo runs/quickstart --link lan
    """

    run: tyro.conf.Positional[Path | None] = None
    """a run folder, whose full-ReLU network and frontier's knee are shown; left out, two that come with parelu"""
    link: str = "wan"
    """that the connection between the processes is shaped to: loopback, lan, wan, or as 8Gb/s,0.3ms"""
    port: int = 0
    """of the page, on this machine's loopback; 0: a free one"""

    def __call__(self) -> None:
        from parelu import api, demo

        if not 0 <= self.port <= 65535:
            raise UserError("give --port from 0 to 65535")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        link = api.link_of(self.link)
        with demo.page(self.run, link, self.port) as page:
            print(page.address, flush=True)
            say("open this address in a browser of this machine; Ctrl-C ends the demonstration")
            with contextlib.suppress(KeyboardInterrupt):
                page.serve_forever()


COMMANDS: dict[str, type[Any]] = {"demo": Demo}
