"""One party of the SPU benchmark; `spu_peer.py` starts two of them in SPU's own environment.

    python spu_party.py RANK CASE.json

Rank 0 is the client and owns the image, rank 1 the server and owns the weights. Rank 0 writes one JSON object to the
case's `out`. It also rebuilds the weights from their seed, for the float logits alone.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import network
import numpy as np
import spu
import spu.utils.frontend as frontend
from spu import libspu

CLIENT, SERVER = 0, 1
SETTINGS = {"auto": [False, True], "off": [False], "on": [True]}
HOPELESS = 1.5
TRAFFIC = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+)")


class SpuOps:
    """The network's operations in jax, as SPU traces them. Only the kept elements of a site go through its ReLU."""

    def __init__(self, kept: dict[str, np.ndarray]):
        self.kept = kept

    def conv(self, x: jax.Array, weight: jax.Array, bias: jax.Array, stride: int) -> jax.Array:
        """A convolution with the padding that keeps the size."""
        pad = weight.shape[0] // 2
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, weight, (stride, stride), [(pad, pad)] * 2, dimension_numbers=layout)
        return y + bias

    def relu(self, x: jax.Array, site: str) -> jax.Array:
        """Gather the kept elements, ReLU, and gather everything back: scattering would be a loop over elements."""
        flags = self.kept[site].ravel()
        if flags.all():
            return jnp.maximum(x, 0)
        if not flags.any():
            return x
        flat = x.ravel()
        rectified = jnp.maximum(jnp.take(flat, np.flatnonzero(flags), mode="clip"), 0)
        source = np.where(flags, flags.size + np.cumsum(flags) - 1, np.arange(flags.size))
        return jnp.take(jnp.concatenate([flat, rectified]), source, mode="clip").reshape(x.shape)

    def add(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The sum of a block."""
        return x + y

    def head(self, x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
        """Average pool and the linear layer."""
        return x.mean(axis=(1, 2)) @ weight + bias


class Party:
    """A runtime of one setting, with the weights shared and the network compiled."""

    def __init__(self, link: Any, protocol: str, keep: float, colocated: bool):
        config = libspu.RuntimeConfig(
            protocol=getattr(libspu.ProtocolKind, protocol.upper()), field=libspu.FieldType.FM64
        )
        config.enable_pphlo_profile = True
        config.experimental_enable_colocated_optimization = colocated
        self.link, self.sent, self.received = link, 0, 0
        self.io = spu.Io(2, config)
        started = time.perf_counter()
        self.executable = _compile(keep)
        self.compile_seconds = time.perf_counter() - started
        self.runtime = spu.Runtime(link, config)
        for name, array in _flat(network.parameters()).items():
            self._set(name, array if link.rank == SERVER else None, SERVER)

    def infer(self, x: np.ndarray | None) -> np.ndarray | None:
        """Share the image, run, and open the logits to the client alone."""
        self.sent = self._set("image", x, CLIENT)
        self.runtime.run(self.executable)
        own = self.runtime.get_var("logits")
        if self.link.rank == SERVER:
            _send(self.link, CLIENT, own)
            return None
        other, self.received = _receive(self.link, SERVER)
        return self.io.reconstruct([own, other])

    def _set(self, name: str, array: np.ndarray | None, owner: int) -> int:
        """Give both parties their share of the owner's array; the bytes of the share that goes over."""
        if self.link.rank != owner:
            share, size = _receive(self.link, owner)
            self.runtime.set_var(name, share)
            return size
        shares = self.io.make_shares(array, libspu.Visibility.VIS_SECRET, owner)
        self.runtime.set_var(name, shares[owner])
        return _send(self.link, 1 - owner, shares[1 - owner])


def _send(link: Any, to: int, share: Any) -> int:
    """Send a share; its bytes."""
    link.send(to, share.meta)
    link.send(to, str(len(share.share_chunks)))
    for chunk in share.share_chunks:
        link.send(to, chunk)
    return _size(share)


def _receive(link: Any, source: int) -> tuple[Any, int]:
    """A share that the other party sent, and its bytes."""
    share = libspu.Share()
    share.meta = link.recv(source)
    share.share_chunks = [link.recv(source) for _ in range(int(link.recv(source)))]
    return share, _size(share)


def _size(share: Any) -> int:
    return len(share.meta) + sum(map(len, share.share_chunks))


def _flat(weights: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Weights and biases by names of their own."""
    return {f"{name}.{part}": array for name, pair in weights.items() for part, array in enumerate(pair)}


def _compile(keep: float) -> Any:
    """SPU's program for the network; image and weights are its secret inputs."""
    weights, ops = network.parameters(), SpuOps(network.masks(keep))
    arrays = _flat(weights)

    def logits(x: jax.Array, *flat: jax.Array) -> jax.Array:
        pairs = dict(zip(weights, zip(flat[::2], flat[1::2], strict=True), strict=True))
        return network.forward(ops, pairs, x)

    inputs = ["image", *arrays]
    secret = [libspu.Visibility.VIS_SECRET] * len(inputs)
    kind, values = frontend.Kind.JAX, [network.image(), *arrays.values()]
    return frontend.compile(kind, logits, values, {}, inputs, secret, lambda _: ["logits"])[0]


def _connect(rank: int, ports: list[int], timeout: float) -> Any:
    """The link between the two parties."""
    description = libspu.link.Desc()
    description.recv_timeout_ms = int(timeout * 1000)
    description.http_timeout_ms = int(timeout * 1000)
    for party, port in enumerate(ports):
        description.add_party(f"party{party}", f"127.0.0.1:{port}")
    return libspu.link.create_brpc(description, rank)


def _log_to(path: Path) -> None:
    options = libspu.logging.LogOptions()
    options.enable_console_logger = False
    options.system_log_path = str(path)
    libspu.logging.setup_logging(options)


def _traffic(path: Path) -> list[tuple[int, int]]:
    """The bytes sent and received in each run so far, from the profile's log."""
    return [(int(sent), int(received)) for sent, received in TRAFFIC.findall(path.read_text())]


class Trial:
    """One setting of a case: its party, and what was measured so far."""

    def __init__(self, link: Any, case: dict[str, Any], colocated: bool):
        self.link, self.setting = link, f"colocated {'on' if colocated else 'off'}"
        self.party = Party(link, case["protocol"], case["keep"], colocated)
        self.image = network.image() if link.rank == CLIENT else None
        self.expected = network.reference(case["keep"])
        self.seconds: list[float] = []
        self.errors: list[float] = []

    def run(self) -> None:
        """One inference, timed on the client from the image to the logits."""
        self.link.barrier()
        started = time.perf_counter()
        logits = self.party.infer(self.image)
        self.seconds.append(time.perf_counter() - started)
        if logits is not None:
            self.errors.append(float(np.abs(logits - self.expected).max()))

    @property
    def warm(self) -> list[float]:
        """The seconds of all runs but the first."""
        return self.seconds[1:]

    def row(self, traffic: list[tuple[int, int]]) -> dict[str, Any]:
        """What the client reports; `traffic` has the bytes of each run of this trial."""
        return {
            "seconds": self.warm,
            "median": statistics.median(self.warm),
            "bytes_to_client": statistics.median_low(received for _, received in traffic[1:]) + self.party.received,
            "bytes_to_server": statistics.median_low(sent for sent, _ in traffic[1:]) + self.party.sent,
            "max_error": max(self.errors),
            "max_logit": float(np.abs(self.expected).max()),
            "compile_seconds": self.party.compile_seconds,
            "cold_seconds": self.seconds[0],
            "setting": self.setting,
        }


def _agree(link: Any, value: bool) -> bool:
    """The client's value, at both parties."""
    return link.broadcast(str(int(value)), CLIENT) in ("1", b"1")


def measure(link: Any, case: dict[str, Any], log: Path) -> dict[str, Any] | None:
    """The row of the faster setting, at the client. Settings run in turn; one that is far slower is dropped early."""
    trials = [Trial(link, case, setting) for setting in SETTINGS[case["colocated"]]]
    racing, order = trials, []
    for turn in range(1 + case["repeat"]):
        for trial in racing:
            trial.run()
            order.append(trial)
        best = min(trials, key=lambda trial: statistics.median(trial.warm or trial.seconds))
        if turn == 1:
            racing = [trial for trial in trials if _agree(link, trial.warm[0] < HOPELESS * best.warm[0])]
    if link.rank == SERVER:
        return None
    best = min(racing, key=lambda trial: statistics.median(trial.warm))
    lines = _traffic(log)
    traffic = [line for trial, line in zip(order, lines, strict=True) if trial is best]
    return {**best.row(traffic), "medians": {trial.setting: statistics.median(trial.warm) for trial in trials}}


def main() -> None:
    rank, case = int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    log = Path(f"{case['out']}.{rank}.log")
    _log_to(log)
    link = _connect(rank, case["ports"], case["timeout"])
    row = measure(link, case, log)
    if row is not None:
        Path(case["out"]).write_text(json.dumps(row))
    link.stop_link()


if __name__ == "__main__":
    main()
