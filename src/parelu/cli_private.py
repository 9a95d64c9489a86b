"""The commands of private inference: bench, serve, infer, certs."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from parelu import study
from parelu.errors import UserError
from parelu.models import spec_of
from parelu.plan import Candidate
from parelu.progress import say

if TYPE_CHECKING:
    from torch import Tensor

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure private inference between two processes: seconds, bytes and rounds, per layer and in total.

    parelu bench resnet20 --keep 0.1
    parelu bench runs/quickstart/candidates/teacher --relu full --network wan --json
    """

    network_or_candidate: tyro.conf.Positional[str]
    """a candidate's folder, or a network's name, which gets fresh weights and a random mask"""
    keep: float = 1.0
    """of a network's name: the fraction of its ReLUs that stays"""
    input: str = "3x32x32"
    """of a network's name: channels x height x width"""
    classes: int = 10
    engine: Literal["delphi"] = "delphi"
    relu: Literal["sign", "full"] = "sign"
    """sign: a garbled sign and two oblivious transfers; full: the whole ReLU garbled, as in the papers"""
    offline: Literal["dealer", "ot"] = "dealer"
    """dealer: a trusted dealer in the server's process; ot: garbled circuits by the two parties, the rest dealt"""
    network: Literal["loopback", "lan", "wan"] = "loopback"
    """lan: 1 Gb/s and 0.5 ms round trip; wan: 100 Mb/s and 40 ms; shaped on this machine"""
    images: int = 5
    """inferences, after one that warms up; the medians are reported"""
    seed: int = 0
    """of fresh weights and the mask"""
    json: bool = False
    """print JSON: a list with one row"""

    def __call__(self) -> None:
        from parelu.private import measure
        from parelu.private.bench import bench
        from parelu.private.lower import lower
        from parelu.report.private import bench_text

        if not 1 <= self.images <= 10_000:
            raise UserError(f"--images {self.images}: give 1 to 10000")
        folder = Path(self.network_or_candidate)
        if (folder / "candidate.json").exists():
            candidate = Candidate.load(folder)
            lowered = measure.lowered(folder, candidate)
            images = measure.fit(candidate, measure.dataset_of(candidate).test.images[: self.images])
        else:
            spec = spec_of(self.network_or_candidate, study.parse_input(self.input), self.classes)
            candidate = measure.untrained(spec, self.keep, self.seed)
            images = measure.noise(self.images, spec.input, self.seed + 1)
            lowered = lower(candidate.network(), images, candidate.preprocessing)
        row = bench(lowered, candidate, images, relu=self.relu, offline=self.offline, network=self.network)
        print(json.dumps([row], indent=1) if self.json else bench_text(row))


@dataclasses.dataclass(frozen=True)
class Serve:
    """Serve a candidate to clients that keep their images secret.

    parelu certs certs && parelu serve runs/quickstart/candidates/teacher --port 7000 --tls certs --stock 4
    """

    candidate: tyro.conf.Positional[Path]
    """the candidate's folder"""
    port: int = 7000
    host: str = "127.0.0.1"
    """the address to listen on; 0.0.0.0 for all"""
    tls: Path | None = None
    """folder with ca.pem, server.pem and server.key; needed unless the address is this machine's own"""
    reveal: Literal["logits", "label"] = "logits"
    """what a client learns"""
    relu: Literal["sign", "full"] = "sign"
    offline: Literal["dealer", "ot"] = "dealer"
    stock: int = 0
    """inferences whose offline material is prepared ahead"""
    clients: int = 16
    """served at once"""
    data_folder: Path | None = None
    """where the data set's files are, for the calibration at the first start"""

    def __call__(self) -> None:
        from parelu.private import measure
        from parelu.private.activations.base import relus
        from parelu.private.engines.delphi import Model
        from parelu.private.offline.base import modes
        from parelu.private.reveal import REVEALS
        from parelu.private.serve import Server

        if self.tls is None and self.host not in LOOPBACK:
            raise UserError(f"--host {self.host} is reached from other machines: give --tls DIR (parelu certs DIR)")
        if not (0 <= self.stock <= 10_000 and 1 <= self.clients <= 1_000 and 0 <= self.port <= 65535):
            raise UserError("give --stock from 0 to 10000, --clients from 1 to 1000, --port from 0 to 65535")
        lowered = measure.lowered(self.candidate, Candidate.load(self.candidate), self.data_folder)
        model, mode = Model(lowered, relus()[self.relu], REVEALS[self.reveal]), modes()[self.offline]
        server = Server(model, mode, (self.host, self.port), self.tls, stock=self.stock, clients=self.clients, log=say)
        say(f"program {lowered.program.digest}: publish it, clients pin it (--pin)")
        say(f"{lowered.program.relus:,} ReLUs; {mode.threat_model}")
        say(f"listening on {self.host}:{server.port}" + ("" if self.tls else ", without TLS"))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            server.run()
        except KeyboardInterrupt:
            say("parelu: stopping")
        finally:
            server.close()


@dataclasses.dataclass(frozen=True)
class Infer:
    """Classify images by a server that does not see them.

    parelu infer localhost:7000 shirt.png shoe.png --tls certs --pin 1f3a…
    """

    address: tyro.conf.Positional[str]
    """HOST:PORT"""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """image files"""
    tls: Path | None = None
    """folder with ca.pem, client.pem and client.key"""
    pin: str | None = None
    """the program's hash, as the operator publishes it"""
    json: bool = False
    """print JSON: a row for each image"""

    def __call__(self) -> None:
        from parelu.private.client import Client

        host, port = parse_address(self.address)
        if not self.images:
            raise UserError("no image given; name one or more image files")
        if self.tls is None and host not in LOOPBACK:
            raise UserError(f"{host} is another machine: give --tls DIR with ca.pem, client.pem and client.key")
        with Client(host, port, self.tls, self.pin) as client:
            images = [read_image(path, client.program.input_shape[0]) for path in self.images]
            ready = [client.fit(image) for image in images]
            started = time.perf_counter()
            client.prepare(len(ready))
            offline = time.perf_counter() - started
            rows = [self._row(client, path, image) for path, image in zip(self.images, ready, strict=True)]
        if self.json:
            print(json.dumps(rows, indent=1))
            return
        for row in rows:
            top = "" if row["logits"] is None else f"   logit {max(row['logits']):.3f}"
            print(f"{row['image']}: class {row['label']}{top}   {1000 * row['seconds']:.0f} ms online")
        say(f"{len(rows)} prepared in {offline:.2f} s; {client.session.mode.threat_model}")

    def _row(self, client: Any, path: Path, image: Tensor) -> dict[str, Any]:
        started = time.perf_counter()
        (result,) = client.predict(image)
        seconds = time.perf_counter() - started
        is_label = result.ndim == 0
        return {"image": str(path), "label": int(result if is_label else result.argmax()),
                "logits": None if is_label else result.tolist(), "seconds": seconds}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Certs:
    """Make certificates for tests: an authority, a server and a client that trust each other.

    parelu certs certs --hosts localhost 127.0.0.1
    """

    folder: tyro.conf.Positional[Path]
    hosts: tuple[str, ...] = LOOPBACK
    """names and addresses that clients reach the server by"""

    def __call__(self) -> None:
        from parelu.private.tls import make_certificates

        make_certificates(self.folder, self.hosts)
        say(f"{self.folder}: ca.pem, server.pem and .key, client.pem and .key; a party needs ca.pem and its own two")


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) from "host:port" or "[::1]:port"."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise UserError(f"address {text!r} is not HOST:PORT; write localhost:7000")
    return host.strip("[]"), int(port)


def read_image(path: Path, channels: int) -> Tensor:
    """An image file as uint8 (1, C, H, W), grey for one channel, else RGB."""
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            array = np.array(image.convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such image") from None
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not an image that can be read ({' '.join(str(error).split())})") from error
    return torch.from_numpy(array).reshape(1, *array.shape[:2], channels).permute(0, 3, 1, 2).contiguous()


COMMANDS: dict[str, type[Any]] = {"bench": Bench, "serve": Serve, "infer": Infer, "certs": Certs}
