"""`parelu demo`: a page on which a person sees private inference happen, between two processes of this machine."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from parelu.demo import networks
from parelu.demo.show import Demonstration
from parelu.demo.web import Page
from parelu.network.preprocessing import fit
from parelu.private.transport.link import Link

__all__ = ["page"]

CHOICES = 400  # images that the page offers


@contextlib.contextmanager
def page(run: Path | None, link: Link, port: int = 0) -> Iterator[Page]:
    """A page that listens, of a run's networks or of the two that come with parelu; `.serve_forever()` answers.

    Raises UserError where there is no such run, its images are missing, or the port is in use.
    """
    shown, dataset = networks.shown(networks.packaged() if run is None else networks.of_run(run))
    ((pixels, labels),) = dataset.test.take(min(len(dataset.test), CHOICES)).in_order(CHOICES)
    _, *size = dataset.input_shape
    with tempfile.TemporaryDirectory(prefix="parelu-demo-", ignore_cleanup_errors=True) as folder:
        show = Demonstration(shown, link, Path(folder))
        try:
            with contextlib.closing(Page(show, fit(pixels, (3, *size)), labels, port)) as found:
                yield found
        finally:
            show.close()
