"""One party of private inference by SPU; the engine starts two or three of them, in SPU's own environment.

    python party.py FOLDER

The folder has case.json and program.json; the client's also images.npy, the server's weights.npz. Rank 0 is the
client, rank 1 the server, rank 2 helps where the protocol has three parties. Each writes row.json: what each query
took, as this party saw it, and at the client the last values.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import spu
import spu.utils.frontend as frontend
from evaluate import PRECISION, evaluate, numbers
from spu import libspu

CLIENT, SERVER = 0, 1
IMAGES, LAST = "images", "last"
# "actions" are messages of SPU's link
TRAFFIC = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+), recv actions (\d+)")


class Party:
    """A runtime that has its share of the weights, and the program compiled for a batch."""

    def __init__(self, link: Any, case: dict[str, Any], program: dict[str, Any], weights: dict[str, Any] | None):
        config = libspu.RuntimeConfig(
            protocol=getattr(libspu.ProtocolKind, case["protocol"]), field=libspu.FieldType.FM64
        )
        config.fxp_fraction_bits = PRECISION
        config.enable_pphlo_profile = True  # logs what the link has carried
        config.experimental_enable_colocated_optimization = case["colocated"]
        self.link, self.io = link, spu.Io(link.world_size, config)
        self.sent = self.received = 0
        started = time.perf_counter()
        self.executable = _compile(program, case)
        self.compile_seconds = time.perf_counter() - started
        self.runtime = spu.Runtime(link, config)
        for name in case["weights"]:
            self._set(name, None if weights is None else weights[name], SERVER)

    def infer(self, images: np.ndarray | None) -> np.ndarray | None:
        """Share the images, run, and open the last value to the client alone."""
        self.sent = self.received = 0
        self._set(IMAGES, images, CLIENT)
        self.runtime.run(self.executable)
        own = self.runtime.get_var(LAST)
        if self.link.rank != CLIENT:
            self._send(CLIENT, own)
            return None
        others = [self._receive(rank) for rank in range(1, self.link.world_size)]
        return self.io.reconstruct([own, *others])

    def _set(self, name: str, array: np.ndarray | None, owner: int) -> None:
        """Give each party its share of the owner's array."""
        if self.link.rank != owner:
            self.runtime.set_var(name, self._receive(owner))
            return
        shares = self.io.make_shares(array, libspu.Visibility.VIS_SECRET, owner)
        for rank, share in enumerate(shares):
            if rank != owner:
                self._send(rank, share)
        self.runtime.set_var(name, shares[owner])

    def _send(self, to: int, share: Any) -> None:
        self.link.send(to, share.meta)
        self.link.send(to, str(len(share.share_chunks)))
        for chunk in share.share_chunks:
            self.link.send(to, chunk)
        self.sent += _size(share)

    def _receive(self, source: int) -> Any:
        share = libspu.Share()
        share.meta = self.link.recv(source)
        share.share_chunks = [self.link.recv(source) for _ in range(int(self.link.recv(source)))]
        self.received += _size(share)
        return share


def _size(share: Any) -> int:
    return len(share.meta) + sum(map(len, share.share_chunks))


def _convolve(x: Any, weight: Any, stride: tuple[int, int], padding: tuple[int, int], groups: int) -> Any:
    pads, layout = [(side, side) for side in padding], ("NCHW", "OIHW", "NCHW")
    convolution = jax.lax.conv_general_dilated
    return convolution(x, weight, stride, pads, dimension_numbers=layout, feature_group_count=groups)


def _compile(program: dict[str, Any], case: dict[str, Any]) -> Any:
    """SPU's executable; images and weights are its secret inputs."""
    shapes = {IMAGES: case["images"], **case["weights"]}

    def last(images: Any, *weights: Any) -> Any:
        return evaluate(program, dict(zip(case["weights"], weights, strict=True)), images, jnp, _convolve)

    blank = [np.zeros(shape, np.float32) for shape in shapes.values()]
    secret = [libspu.Visibility.VIS_SECRET] * len(shapes)
    return frontend.compile(frontend.Kind.JAX, last, blank, {}, list(shapes), secret, lambda _: [LAST])[0]


def _connect(case: dict[str, Any]) -> Any:
    description = libspu.link.Desc()
    description.recv_timeout_ms = description.http_timeout_ms = int(1000 * case["timeout"])
    for rank, port in enumerate(case["ports"]):
        description.add_party(f"party{rank}", f"127.0.0.1:{port}")
    return libspu.link.create_brpc(description, case["rank"])


def _log_to(path: Path) -> None:
    options = libspu.logging.LogOptions()
    options.enable_console_logger = False
    options.system_log_path = str(path)
    libspu.logging.setup_logging(options)


def _end_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def measured(link: Any, queries: int, infer: Callable[[int], np.ndarray | None]) -> tuple[list[Any], list[Any]]:
    """The results of all queries, and wall and CPU seconds of each as this party saw them."""
    results, seconds = [], []
    for query in range(queries):
        link.barrier()
        started, cpu = time.perf_counter(), time.process_time()
        results.append(infer(query))
        seconds.append((time.perf_counter() - started, time.process_time() - cpu))
    return results, seconds


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(sys.argv[1])
    case, program = (json.loads((folder / f"{name}.json").read_bytes()) for name in ("case", "program"))
    _log_to(folder / "spu.log")
    images = np.load(folder / "images.npy", allow_pickle=False) if case["rank"] == CLIENT else None
    weights = None
    if case["rank"] == SERVER:
        with np.load(folder / "weights.npz", allow_pickle=False) as integers:
            weights = {name: array.astype(np.float32) for name, array in numbers(program, integers).items()}
    link = _connect(case)
    party = Party(link, case, program, weights)
    results, seconds = measured(
        link, case["queries"], lambda query: party.infer(None if images is None else images[query])
    )
    lines = [tuple(map(int, line)) for line in TRAFFIC.findall((folder / "spu.log").read_text())]
    runs = [
        {
            "seconds": wall,
            "cpu": cpu,
            "sent": sent + party.sent,
            "received": received + party.received,
            "messages_sent": out,
            "messages_received": into,
        }
        for (wall, cpu), (sent, received, out, into) in zip(seconds, lines, strict=True)
    ]
    values = [] if images is None else np.concatenate(results).tolist()
    row = {"runs": runs, "last": values, "compile_seconds": party.compile_seconds}
    (folder / "row.json").write_text(json.dumps(row))
    link.stop_link()


if __name__ == "__main__":
    main()
