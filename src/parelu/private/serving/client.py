"""The client's side of a deployed pair.

with Client("host", 7000, Path("certs")) as client:
    labels = client.predict(images).argmax(1)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parelu.errors import NoResult, UserError
from parelu.network import cache
from parelu.network.images import fit, read_image
from parelu.private.lowering.encode import encode_images
from parelu.private.offline.mode import Keep
from parelu.private.serving.greeting import Accepted
from parelu.private.serving.session import Session
from parelu.private.serving.stock import ClientStocks
from parelu.private.transport import tls
from parelu.private.transport.channel import TIMEOUT, Channel, address_text, connect
from parelu.private.transport.link import LINKS, Link, shaped


def hints_folder() -> Path | None:
    """Where a client keeps hints: in the cache folder; None, in memory alone, for a user who has no place for one."""
    try:
        return cache.folder() / "hints"
    except UserError:
        return None


class Client:
    """A connection to `parelu serve`.

    Attributes:
        program: its shape, ops and preprocessing, as the server states them.
    """

    def __init__(
        self,
        host: str,
        port: int,
        certificates: Path | None = None,
        pin: str | None = None,
        *,
        offline: str | None = None,
        relu: str | None = None,
        reveal: str | None = None,
        truncation: str | None = None,
        model: str | None = None,
        stock: Path | None = None,
        queries: int = 1,
        keep: Keep | None = None,
        link: Link = LINKS["loopback"],
        timeout: float = TIMEOUT,
        waiting: Callable[[int], None] = lambda before: None,
    ) -> None:
        """Connect, wait for a turn and shake hands.

        Args:
            certificates: folder with ca.pem, client.pem and client.key; None for a plain connection on this machine.
            pin: what the operator publishes: SHA-256 of the program, a commitment to the weights, and the names below.
            offline, relu, reveal, truncation: names that the server must offer; None leaves the choice to it, but an
                offline mode that trusts a third party, and a ReLU protocol other than `sign`, by its name alone.
            model: which of the server's, where it has several.
            stock: folder of this client's offline material; inferences take from it first.
            queries: inferences that are expected, of this and later connections: where a server sends hints once,
                more of them make each cheaper.
            keep: that number and where hints are kept; left out, the cache folder.
            link: what the connection is shaped to, where the server's is too.
            waiting: told how many clients go before this one, every few seconds while the server is busy.

        Raises:
            UserError: nobody answers, a certificate is refused, or the pin is none.
            ProtocolError: the server breaks the protocol, or offers what is not accepted; then nothing was sent.
        """
        accepted = Accepted(pin, relu, offline, reveal, truncation, model)
        tls.check_plain(host, certificates)
        self._address, self._link, self._timeout = (host, port), link, timeout
        self._waiting, self._model = waiting, model
        self._stocks = ClientStocks(stock) if stock else None
        self._keep = keep or Keep(queries, hints_folder())
        self._tls = tls.client_context(certificates) if certificates else None
        self.session = self._connected(accepted)
        self.program = self.session.terms.program

    def _connected(self, accepted: Accepted) -> Session:
        host, port = self._address
        connection = connect(host, port)
        try:
            wrapped = tls.handshake(self._tls, connection, host) if self._tls else connection
        except OSError as error:
            raise UserError(f"{address_text(host, port)}: no TLS connection ({tls.reason(error)})") from error
        channel = Channel(shaped(wrapped, self._link), self._timeout)
        try:
            peer = tls.peer_of(wrapped)
            return Session(channel, accepted, stocks=self._stocks, peer=peer, keep=self._keep, waiting=self._waiting)
        except BaseException:
            channel.close()
            raise

    def renew(self) -> None:
        """Connect again, to the very same offer, where the server ended the connection since the last query.

        It does so after a while of silence, and when it is started anew. What was prepared is gone with the connection
        and is made anew; what is in stock is not.
        """
        why = self.session.channel.ended()
        if not why:
            return
        self.session.close()
        lost, offer = len(self.session.prepared), self.session.offer
        same = Accepted(offer.pin, offer.relu, offer.offline, offer.reveal, offer.truncation, self._model)
        self.session = self._connected(same)
        self._keep.notice(f"connected again: {why}" + (f"; {lost} inferences are prepared anew" if lost else ""))
        if lost:
            self.session.prepare(lost)

    def prepare(self, count: int = 1) -> None:
        """Run the offline phase of `count` inferences, so that `predict` is as fast as the online phase.

        Raises:
            UserError: more than a connection may hold, `session.terms.most_prepared`.
        """
        self.renew()
        self.session.prepare(count)

    def predict(
        self, images: ArrayLike, batch: int = 1, progress: Callable[[int], None] = lambda done: None
    ) -> NDArray[np.generic]:
        """Run uint8 images (N, C, H, W), an array or a tensor; `batch` of them a query share its rounds.

        So they are more a second, each later. Images of the size that the data set has are brought to the network's, as
        in training. Returns float64 logits (N, classes), in steps unless the server reveals them exactly, or int64
        labels (N,) where it reveals only these: `session.terms.reveal`.

        Raises:
            UserError: images of another type or size; a batch larger than `session.terms.most_prepared`.
            ProtocolError: the server breaks the protocol; NoResult after the last image, where one of the answers
                cannot be the network's.
        """
        encoded = encode_images(self.program, self.fit(images))
        self.renew()
        results = [np.zeros((0, 1), np.int64)] if not len(encoded) else []
        refused: NoResult | None = None
        for start in range(0, len(encoded), batch):
            try:
                results.append(self.program.ring.decode(self.session.infer(encoded[start : start + batch])))
                progress(len(results[-1]))
            except NoResult as error:  # to stop here would tell the server what the answer was
                refused = refused or error
        if refused:
            raise refused
        joined = np.concatenate(results)
        if self.session.terms.reveal.name == "label":
            return joined[:, 0]
        return joined.reshape(-1, self.program.classes) * self.program.output_unit

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the data set's images: what an image file is read as."""
        channels, height, width = self.program.preprocessing["image"]
        return channels, height, width

    def read(self, path: Path) -> NDArray[np.uint8]:
        """An image file as the network takes it, (1, C, H, W): as a training or test image was read.

        Raises UserError where it is missing or no image.
        """
        return self.fit(read_image(path, self.image_shape, self.program.preprocessing.get("middle"))[None])

    def fit(self, images: ArrayLike) -> NDArray[np.uint8]:
        """uint8 (N, C, H, W) at the network's size; raises `UserError` where they cannot be brought to it."""
        found, takes, native = np.asarray(images), self.program.input_shape, self.image_shape
        if found.dtype != np.uint8 or found.ndim != 4:
            raise UserError(f"images are {found.dtype} of shape {found.shape}, not uint8 (N, C, H, W)")
        if found.shape[1:] not in (takes, native):
            sizes = " or ".join(dict.fromkeys("x".join(map(str, size)) for size in (native, takes)))
            raise UserError(f"an image is {'x'.join(map(str, found.shape[1:]))}; the network takes {sizes}")
        return found if found.shape[1:] == takes or not len(found) else np.stack([fit(one, takes) for one in found])

    def close(self) -> None:
        """Safe to call again."""
        self.session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
