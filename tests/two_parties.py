"""Small networks, and both parties of an inference in one process."""

import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parelu.network.instrument import instrument
from parelu.network.sites import Network
from parelu.private.crypto.ring import Ring
from parelu.private.lowering.encode import encode_images
from parelu.private.lowering.lower import Lowered, lower
from parelu.private.lowering.ops import Activation
from parelu.private.offline.mode import Keep, modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of
from parelu.private.serving.greeting import Accepted
from parelu.private.serving.session import Service, Session, serve
from parelu.private.transport.channel import Channel, elements_of

SERVICE = Service()
NARROW, WIDE = Ring(59), Ring(64)  # every offline mode computes in the first
MODES = [(name, ring) for ring in (NARROW, WIDE) for name, mode in modes().items() if ring.bits <= mode.ring_bits]
PREPROCESSING = {"mean": [0.5], "std": [0.25]}


def images_of(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def preprocessing_of(channels: int) -> dict[str, list[float]]:
    return {name: values * channels for name, values in PREPROCESSING.items()}


def ready(
    module: nn.Module,
    shape: tuple[int, ...],
    masks: Callable[[Tensor], Tensor] | None = None,
    coefficients: Callable[[int], Tensor] | None = None,
) -> Network:
    """The module as a network in evaluation mode, its batch-norms set by data."""
    network = instrument(module, shape)
    for site in network.sites.values():
        mask = torch.ones(site.shape, dtype=torch.bool) if masks is None else masks(torch.rand(site.shape))
        site.assign(mask, (0.0, 1.0, 0.0) if coefficients is None else coefficients(site.shape[0]))
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network((images_of(16, shape).float() / 255 - 0.5) * 4)
    return network.eval()


def lowered_of(network: Network, count: int = 16, **options: Any) -> Lowered:
    """In the ring that every offline mode computes in, unless told otherwise."""
    shape = network.input_shape
    return lower(network, images_of(count, shape), preprocessing_of(shape[0]), **{"ring": NARROW, **options})


def without_relus_at(network: Network, *names: str) -> Network:
    """The same network with the identity at these sites."""
    for name in names:
        network.sites[name].assign(torch.zeros(network.sites[name].shape, dtype=torch.bool))
    return network


class Residual(nn.Module):
    """Every op that can be lowered, for 6 × 6 pixels: forks, sums of two units, pools, groups, a late batch-norm."""

    def __init__(self, channels: int = 1, width: int = 4, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(channels, width, 3, 1, 1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(width, width, 3, 2, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.late = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        y = self.relu2(self.bn2(self.depthwise(x))) + self.pool(x)
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(self.relu3(self.late(y)), 1), 1))


class Recorded:
    """A client's correlations that note what `linear` gave: value → the client's share."""

    def __init__(self, offline: Any) -> None:
        self.offline, self.linears = offline, {}

    def linear(self, number: int, op: Any, share: Any, count: int) -> Any:
        self.linears[number] = result = self.offline.linear(number, op, share, count)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.offline, name)


class Recording:
    """An offline mode whose inferences are noted, in order."""

    def __init__(self, mode: Any) -> None:
        self.mode, self.fetched = mode, []

    def fetch(self, channel: Any, state: Any) -> Any:
        self.fetched.append(Recorded(self.mode.fetch(channel, state)))
        return self.fetched[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mode, name)


class RecordingChannel(Channel):
    """A channel that keeps what was opened for squares."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.opened: list[Any] = []

    def receive(self, kind: str, length: int) -> Any:
        body = super().receive(kind, length)
        if kind == "sqre":
            self.opened.append(elements_of(body))
        return body


class Ends:
    """Both ends of a connection in two threads; an end that fails closes it. Results are what they return or raise."""

    def __init__(
        self, client: Callable[[Channel], Any], server: Callable[[Channel], Any], timeout: float = 30.0
    ) -> None:
        ours, theirs = socket.socketpair()
        self.results: dict[str, Any] = {}

        def run(name: str, party: Callable[[Channel], Any], end: socket.socket) -> None:
            try:
                self.results[name] = party(Channel(end, timeout))
            except Exception as error:
                self.results[name] = error
            finally:
                end.close()

        thread = threading.Thread(target=run, args=("server", server, theirs))
        thread.start()
        run("client", client, ours)
        thread.join()


class Pair:
    """A session between two threads: `client` is the client's end; `server_error` what ended the server."""

    def __init__(
        self,
        lowered: Lowered,
        relu: str = "sign",
        offline: str = "dealer",
        reveal: str = "exact",
        accepted: Accepted | None = None,
        timeout: float = 60.0,
        wrap: Callable[[Any], Any] = lambda s: s,
        service: Service = SERVICE,
        truncation: str = "local",
        keep: Keep | None = None,
    ) -> None:
        self.model = Model(lowered, relus()[relu], reveal_of(reveal), truncation)
        modes()[offline].make(self.model)
        ours, theirs = socket.socketpair()
        self.server_channel = Channel(theirs, timeout=timeout)
        self.server_error: Exception | None = None
        self.done: int | None = None
        self.thread = threading.Thread(target=self._serve, args=(modes()[offline], service))
        self.thread.start()
        try:
            self.client = Session(
                RecordingChannel(wrap(ours), timeout=timeout),
                accepted or Accepted(offline=offline, relu=relu),
                keep=keep,
            )
            self.client.mode = self.recording = Recording(self.client.mode)
        except BaseException:
            ours.close()
            self.thread.join()
            raise

    def _serve(self, mode: Any, service: Service) -> None:
        try:
            self.done = serve(self.server_channel, self.model, mode, service)
        except Exception as error:
            self.server_error = error
        finally:
            self.server_channel.close()

    def encoded(self, image: Tensor) -> Any:
        """A uint8 image (C, H, W) as a query."""
        return encode_images(self.client.terms.program, image[None])

    def infer(self, image: Tensor) -> tuple[Any, dict[int, Any]]:
        """What is revealed of a uint8 image (C, H, W), and the client's shares for a replay."""
        (result,), (shares,) = self.infer_all(image[None])
        return result, shares

    def infer_all(self, images: Tensor) -> tuple[Any, list[dict[int, Any]]]:
        """The same of (N, C, H, W) in one query."""
        program, channel = self.client.terms.program, self.client.channel
        self.client.prepare(len(images))
        contents = [material._content for material in self.client.prepared]
        channel.opened.clear()
        result = self.client.infer(encode_images(program, images))
        opened = iter(channel.opened)
        shares = [
            {0: content.mask.reshape(-1), **recorded.linears}
            for content, recorded in zip(contents, self.recording.fetched[-len(images) :], strict=True)
        ]
        for number, op in enumerate(program.ops, start=1):
            for content, own in zip(contents, shares, strict=True) if isinstance(op, Activation) else ():
                empty = np.zeros(0, np.uint64)
                own[number] = content.relus[number].mask if len(op.relus) else empty
                if len(op.squares):
                    square = content.squares[number]
                    own[number] = np.concatenate([own[number], square.offset])
                    own[-number] = next(opened) * square.u + square.v
        return result, shares

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.thread.join()
