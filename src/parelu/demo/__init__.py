"""`parelu demo`: a page on which a person sees private inference happen, between two processes of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from parelu.demo import networks
from parelu.demo.show import Demonstration
from parelu.demo.web import Page
from parelu.private.transport.link import Link

__all__ = ["page"]

CHOICES = 400  # images that the page offers


@contextlib.contextmanager
def page(run: Path | None, link: Link, port: int = 0) -> Iterator[Page]:
    """A page that listens, of a run's networks or of the two that come with parelu; `.serve_forever()` answers.

    Raises UserError where there is no such run, its images are missing, or the port is in use.
    """
    shown, dataset = networks.shown(networks.packaged() if run is None else networks.of_run(run))
    images = dataset.test.take(min(len(dataset.test), CHOICES))
    ((pixels, labels),) = images.in_order(CHOICES)
    show = Demonstration(shown, dataset.input_shape, link)
    try:
        with contextlib.closing(Page(show, pixels, labels, port)) as found:
            yield found
    finally:
        show.close()
