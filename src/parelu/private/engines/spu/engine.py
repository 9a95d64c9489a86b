"""SPU's engines: a maintained framework that runs our programs, an independent check of `delphi`'s results.

SPU (Ma et al., USENIX ATC 2023) lives in a virtual environment of its own: it needs numpy before 2, on Python 3.10 or
3.11. `party.py` and `evaluate.py` run there: the program as jax traces it, on numbers of 64 bits with 18 behind the
point. Weights stay secret with the server and the image with the client; architecture and masks are public. Correlated
randomness is made as it is needed, so there is no offline phase: a row's `total` is all there is.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from parelu.errors import UserError
from parelu.private.engines import environment
from parelu.private.engines.base import Engine, Measurement, Options
from parelu.private.engines.spu.evaluate import LARGEST, exponents
from parelu.private.lowering.encode import encode_images
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Activation, Truncate
from parelu.private.rows import Cost, Costs

RECIPE = environment.Recipe(
    "spu",
    ("3.11", "3.10"),
    (("spu==0.9.5", "jax==0.4.34", "jaxlib==0.4.34", "numpy<2"),),  # the dependency group `spu`
    "import jax, spu.libspu, spu.utils.frontend",
)
SCRIPT = Path(__file__).with_name("party.py")
PARTIES = ("client", "server", "helper")
TIMEOUT = 600.0  # seconds of silence


class Spu(Engine):
    """protocol: SPU's name of it; parties: how many; trust: the threat model; colocated: whether what one party owns
    stays with it in the clear until a secret meets it, SPU's experimental_enable_colocated_optimization."""

    protocol: ClassVar[str]
    parties: ClassVar[int] = 2
    trust: ClassVar[str]
    colocated: ClassVar[bool] = True

    def described(self, options: Options) -> dict[str, str]:
        return {"relu": "native", "offline_mode": "none, the seconds are the whole cost", "threat_model": self.trust}

    def check(self, options: Options) -> None:
        if options.link != "loopback":
            raise UserError(f"{self.name} cannot shape a link; leave --link at loopback")
        environment.interpreter(RECIPE)

    def run(self, lowered: Lowered, images: Tensor, options: Options) -> Measurement:
        program = json.loads(lowered.program.to_bytes())
        check_range(self.name, lowered, exponents(program))
        python = environment.interpreter(RECIPE)
        with tempfile.TemporaryDirectory(prefix="parelu-") as name:
            folders = {party: Path(name) / party for party in PARTIES[: self.parties]}
            self._write(folders, lowered, images, options.batch)
            environment.run(
                {f"{self.name}, {party}": (python, SCRIPT, folder) for party, folder in folders.items()},
                {"JAX_PLATFORMS": "cpu"},
            )
            rows = {party: json.loads((folder / "row.json").read_text()) for party, folder in folders.items()}
        last = np.array(rows["client"]["last"])[options.batch :]
        unit = lowered.program.output_unit * 2.0 ** exponents(program)[-1]
        return Measurement(
            last * unit,
            _costs({party: row["runs"] for party, row in rows.items()}, rows["client"]["compile_seconds"]),
        )

    def _write(self, folders: Mapping[str, Path], lowered: Lowered, images: Tensor, batch: int) -> None:
        """Each party's files: what it may know."""
        encoded = encode_images(lowered.program, torch.cat([images[:batch], images]))
        queries = (encoded / 2.0**lowered.program.fraction).astype(np.float32)
        queries = queries.reshape(-1, batch, *lowered.program.input_shape)
        integers = {f"{op}/{name}": array for op, own in lowered.weights.items() for name, array in own.items()}
        case = {
            "protocol": self.protocol,
            "colocated": self.colocated,
            "timeout": TIMEOUT,
            "queries": len(queries),
            "images": queries.shape[1:],
            "weights": {name: array.shape for name, array in integers.items()},
            "ports": _free_ports(self.parties),
        }
        for rank, folder in enumerate(folders.values()):
            folder.mkdir()
            (folder / "case.json").write_text(json.dumps({**case, "rank": rank}))
            (folder / "program.json").write_bytes(lowered.program.to_bytes())
        np.save(folders["client"] / "images.npy", queries)
        np.savez(folders["server"] / "weights.npz", **integers)  # pyright: ignore[reportArgumentType]


class Semi2k(Spu):
    name = "spu-semi2k"
    protocol = "SEMI2K"
    trust = "semi-honest; rank 0, here the client, deals the correlated randomness: no privacy against it"


class Cheetah(Spu):
    name = "spu-cheetah"
    protocol = "CHEETAH"
    trust = "semi-honest; no third party"


class Aby3(Spu):
    name = "spu-aby3"
    protocol = "ABY3"
    parties = 3
    colocated = False  # more bytes and rounds with it
    trust = "semi-honest; a third party computes with the two, and no two of the three may collude"


def check_range(name: str, lowered: Lowered, e: Sequence[int]) -> None:
    """Raises UserError where 64 bits are too few: twice the largest value of calibration must stay below `LARGEST`."""
    ops = list(enumerate(lowered.program.ops))
    truncated = [e[op.source] for _, op in ops if isinstance(op, Truncate)]
    squared = [e[i + 1] + op.truncation for i, op in ops if isinstance(op, Activation) and len(op.squares)]
    rectified = [e[i + 1] for i, op in ops if isinstance(op, Activation) and len(op.relus)]
    for kind, exponents_ in (("truncate", truncated), ("square", squared), ("relu", rectified)):
        for seen, exponent in zip((r for r in lowered.ranges if r.kind == kind), exponents_, strict=True):
            if 2 * seen.largest / seen.unit / 2.0**exponent >= LARGEST:
                raise UserError(f"{seen.layer}: activations reach {seen.largest:.3g}, too large for {name}")


def _costs(runs: Mapping[str, Sequence[Mapping[str, float]]], compile_seconds: float) -> Costs:
    """Of each party's queries, the first of which warms up."""

    def median(party: str, what: str) -> float:
        return statistics.median(run[what] for run in runs[party][1:])

    total = Cost(
        seconds=median("client", "seconds"),
        sent={party: median(party, "received") for party in runs},
        rounds=min(median("client", "messages_sent"), median("client", "messages_received")) + 1,
        cpu={party: median(party, "cpu") for party in runs},
    )
    cold, *seconds = (run["seconds"] for run in runs["client"])
    return Costs(total=total, seconds=tuple(seconds), cold_seconds=cold, compile_seconds=compile_seconds)


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
