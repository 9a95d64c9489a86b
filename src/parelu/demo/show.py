"""What the page shows: networks that are prepared and asked by a thread, and the events that it tells of."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import queue
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu.client import make_certificates
from parelu.demo.parties import Answer, Client, ServerProcess
from parelu.errors import NoResult, ProtocolError, UserError
from parelu.network.images import fit
from parelu.private.lowering.ops import Activation
from parelu.private.lowering.program import Program
from parelu.private.transport.link import Link
from parelu.private.transport.traffic import Traffic

MOST_LISTENERS = 16  # pages that are open at once
WAITING = 10_000  # events that a page which does not read them may have waiting

Event = tuple[str, dict[str, Any]]  # its name, and JSON values


class Events:
    """Told to every page; one that comes late is told first what is still true."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: set[queue.Queue[Event]] = set()
        self._kept: dict[tuple[str, str], Event] = {}

    def tell(self, name: str, *, network: str = "", keeps: bool = False, **content: Any) -> None:
        """keeps: until the next of this name and network."""
        event = name, {"network": network, **content} if network else content
        with self._lock:
            if keeps:
                self._kept.pop((name, network), None)  # the order is that in which they were told
                self._kept[name, network] = event
            for listener in list(self._listeners):
                try:
                    listener.put_nowait(event)
                except queue.Full:
                    self._listeners.discard(listener)

    @contextlib.contextmanager
    def listening(self) -> Iterator[queue.Queue[Event]]:
        """A queue of what is told from now on, after what is kept. Raises UserError where too many listen."""
        own: queue.Queue[Event] = queue.Queue(WAITING)
        with self._lock:
            if len(self._listeners) >= MOST_LISTENERS:
                raise UserError(f"{MOST_LISTENERS} pages are open; close one")
            for event in self._kept.values():
                own.put_nowait(event)
            self._listeners.add(own)
        try:
            yield own
        finally:
            with self._lock:
                self._listeners.discard(own)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A network of the demonstration. accuracy: of the test set, in percent; shape: (C, H, W) of images it takes."""

    title: str
    folder: Path
    accuracy: float
    shape: tuple[int, int, int]


class Demonstration:
    """Two processes, and the thread that runs the client's.

    Attributes:
        events: `state` (stage: starting, warming, preparing, ready, asking, failed), `network`, `prepared`, `layer`,
            `wire`, `answer`, `refused`.
    """

    def __init__(self, networks: Mapping[str, Shown], link: Link, folder: Path) -> None:
        """networks: by key, in the order in which they are asked. folder: an empty one, for certificates, hints and the
        server's files.
        """
        self.networks, self.link, self.events = networks, link, Events()
        self._folder = folder
        self._images: queue.Queue[NDArray[np.uint8] | None] = queue.Queue()
        self._busy = threading.Lock()  # held from an image to the moment when the next one is welcome
        self._busy.acquire()
        self._phase = ""  # that is told of; "" while what is asked is no image of anybody
        self._thread = threading.Thread(target=self._run, name="demonstration", daemon=True)
        self._thread.start()

    def ask(self, image: NDArray[np.uint8]) -> bool:
        """Have the networks classify it, uint8 (3, H, W); False while they cannot yet."""
        if not self._busy.acquire(blocking=False):
            return False
        self._images.put(image)
        return True

    def close(self) -> None:
        """End the server's process, and the thread as soon as it does not wait for that."""
        self._images.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        self._stage("starting")
        try:
            self._between_parties()
        except (UserError, ProtocolError, OSError) as error:
            self._stage("failed", message=str(error))

    def _between_parties(self) -> None:
        folder, certificates = self._folder, self._folder / "certificates"
        make_certificates(certificates)
        folders = {key: _copied(shown.folder, folder / key) for key, shown in self.networks.items()}
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(ServerProcess(folders, certificates, self.link))
            clients: dict[str, Client] = {}
            for key, shown in self.networks.items():
                client = Client(server.places[key], certificates, folder / "hints" / key, self.link, self._told(key))
                clients[key] = stack.enter_context(client)
                self.events.tell("network", network=key, keeps=True, **_described(shown, client))
            self._stage("warming")
            for key, client in clients.items():  # what is compiled for the first query, and sent before it once
                client.prepare()
                with contextlib.suppress(NoResult):
                    client.ask(np.zeros(self.networks[key].shape, np.uint8))
            self._serve(clients)

    def _serve(self, clients: Mapping[str, Client]) -> None:
        while True:
            self._stage("preparing")
            for key, client in clients.items():
                self._phase = "offline"
                prepared = client.prepare()
                self.events.tell("prepared", network=key, keeps=True, **dataclasses.asdict(prepared))
            self._stage("ready")
            self._busy.release()
            image = self._images.get()
            if image is None:
                return
            self._stage("asking")
            for key, client in clients.items():
                self._phase = "online"
                try:
                    self._answered(key, client.ask(fit(image, self.networks[key].shape)))
                except NoResult as error:  # of an image unlike those that the network was calibrated on
                    self.events.tell("refused", network=key, message=str(error))

    def _stage(self, stage: str, message: str = "") -> None:
        self._phase = ""
        self.events.tell("state", keeps=True, stage=stage, message=message, link=str(self.link))

    def _told(self, key: str) -> Any:
        def told(phase: str, layer: str, traffic: Traffic) -> None:
            if phase == self._phase:
                passed = {"seconds": traffic.seconds, "bytes": traffic.sent + traffic.received}
                self.events.tell("layer", network=key, phase=phase, layer=layer, **passed)

        return told

    def _answered(self, key: str, answer: Answer) -> None:
        self.events.tell("wire", network=key, body=base64.b64encode(answer.received).decode())
        certain = np.exp(answer.logits - answer.logits.max())
        self.events.tell(
            "answer",
            network=key,
            label=int(answer.logits.argmax()),
            shares=(certain / certain.sum()).tolist(),
            **dataclasses.asdict(answer.online),
        )


def _copied(candidate: Path, folder: Path) -> Path:
    """A candidate's own files alone: the server writes beside them, which is to leave no trace."""
    folder.mkdir()
    for name in ("candidate.json", "candidate.safetensors"):
        shutil.copy(candidate / name, folder)
    return folder


def _described(shown: Shown, client: Client) -> dict[str, Any]:
    program = client.program
    return {
        "title": shown.title,
        "accuracy": shown.accuracy,
        "relus": program.relus,
        "layers": _layers(program),
        "trust": client.trust,
    }


def _layers(program: Program) -> list[dict[str, Any]]:
    """The layers that cost something online, in order: the input, those with ReLUs or squares, the output."""
    found = [
        {"name": layer, "relus": len(op.relus)}
        for op, layer in zip(program.ops, program.layers, strict=True)
        if isinstance(op, Activation) and len(op.relus) + len(op.squares)
    ]
    return [{"name": "input", "relus": 0}, *found, {"name": "output", "relus": 0}]
