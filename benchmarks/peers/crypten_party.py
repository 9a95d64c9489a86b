"""One party of the CrypTen benchmark; `crypten_peer.py` starts two of them in CrypTen's own environment.

    python crypten_party.py RANK CASE.json

Rank 0 is the client and owns the image, rank 1 the server and owns the weights. Rank 0 writes one JSON object to the
case's `out`. It also rebuilds the weights from their seed, for the float logits alone.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import statistics
import struct
import sys
import time
import types
from pathlib import Path
from typing import Any

import network
import numpy as np
import torch

for absent in ("onnx", "onnx.numpy_helper", "torch.onnx.symbolic_registry"):
    sys.modules[absent] = types.ModuleType(absent)  # CrypTen imports them for its converter, which is not used here
sys.modules["onnx"].numpy_helper = sys.modules["onnx.numpy_helper"]
import crypten  # noqa: E402

CLIENT, SERVER = 0, 1
BYTES_ACKED_AND_RECEIVED = struct.Struct("=120xQQ")  # where they stand in Linux's struct tcp_info


class CryptenOps:
    """The network's operations on CrypTen's tensors, channels × height × width."""

    def __init__(self, kept: dict[str, np.ndarray]):
        flags = {site: mask.transpose(2, 0, 1).ravel() for site, mask in kept.items()}
        self.gathers = {site: _gathers(each) for site, each in flags.items()}

    def conv(self, x: Any, weight: Any, bias: Any, stride: int) -> Any:
        """A convolution with the padding that keeps the size."""
        return x.conv2d(weight, padding=weight.size()[-1] // 2, stride=stride) + bias.view(1, -1, 1, 1)

    def relu(self, x: Any, site: str) -> Any:
        """Gather the kept elements, ReLU, and gather everything back."""
        kept, source = self.gathers[site]
        if len(kept) == len(source):
            return x.relu()
        if not len(kept):
            return x
        flat = x.flatten()
        return crypten.cat([flat, flat[kept].relu()])[source].view(*x.size())

    def add(self, x: Any, y: Any) -> Any:
        """The sum of a block."""
        return x + y

    def head(self, x: Any, weight: Any, bias: Any) -> Any:
        """Average pool and the linear layer."""
        return x.mean(dim=3).mean(dim=2).matmul(weight) + bias


def _gathers(flags: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the kept elements are, and where each element is in everything followed by the rectified."""
    source = np.where(flags, flags.size + np.cumsum(flags) - 1, np.arange(flags.size))
    return torch.from_numpy(np.flatnonzero(flags)), torch.from_numpy(source)


def _connect(rank: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "RENDEZVOUS": f"tcp://127.0.0.1:{port}",
        "DISTRIBUTED_BACKEND": "gloo",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    crypten.init()


def _traffic() -> tuple[int, int]:
    """The bytes that this process's TCP connections have sent and received, as the kernel counts them."""
    sent = received = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            descriptor = os.dup(int(entry.name))
        except OSError:
            continue  # the listing's own, closed by now
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            continue
        with socket.socket(fileno=descriptor) as connection:
            if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            acknowledged, got = BYTES_ACKED_AND_RECEIVED.unpack_from(information)
            sent, received = sent + acknowledged, received + got
    return sent, received


def _shared_weights(rank: int) -> dict[str, tuple[Any, Any]]:
    """The server's weights as secret shares; the client knows their shapes alone."""

    def share(array: np.ndarray) -> Any:
        axes = (3, 2, 0, 1) if array.ndim == 4 else tuple(range(array.ndim))
        tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(axes)))
        return crypten.cryptensor(tensor if rank == SERVER else torch.zeros_like(tensor), src=SERVER)

    return {name: (share(weight), share(bias)) for name, (weight, bias) in network.parameters().items()}


def infer(rank: int, ops: CryptenOps, weights: dict[str, tuple[Any, Any]]) -> np.ndarray | None:
    """Share the image, run, and open the logits to the client alone."""
    image = torch.from_numpy(network.image().transpose(0, 3, 1, 2).copy())
    x = crypten.cryptensor(image if rank == CLIENT else torch.zeros_like(image), src=CLIENT)
    logits = network.forward(ops, weights, x).get_plain_text(dst=CLIENT)
    return logits.numpy() if rank == CLIENT else None


def measure(rank: int, case: dict[str, Any]) -> dict[str, Any]:
    """One cold run and the warm ones: the row of results, complete at the client alone."""
    expected, seconds, errors, traffic = network.reference(case["keep"]), [], [], []
    ops, weights = CryptenOps(network.masks(case["keep"])), _shared_weights(rank)
    for _ in range(1 + case["repeat"]):
        crypten.comm.get().barrier()
        before, started = _traffic(), time.perf_counter()
        logits = infer(rank, ops, weights)
        seconds.append(time.perf_counter() - started)
        traffic.append([after - earlier for after, earlier in zip(_traffic(), before, strict=True)])
        if logits is not None:
            errors.append(float(np.abs(logits - expected).max()))
    return {
        "seconds": seconds[1:],
        "median": statistics.median(seconds[1:]),
        "bytes_to_client": statistics.median_low(received for _, received in traffic[1:]),
        "bytes_to_server": statistics.median_low(sent for sent, _ in traffic[1:]),
        "max_error": max(errors, default=0.0),
        "max_logit": float(np.abs(expected).max()),
        "cold_seconds": seconds[0],
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    rank, case = int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(case["threads"])
    _connect(rank, case["port"])
    with torch.no_grad():
        row = measure(rank, case)
    if rank == CLIENT:
        Path(case["out"]).write_text(json.dumps(row))
    crypten.comm.get().barrier()


if __name__ == "__main__":
    main()
