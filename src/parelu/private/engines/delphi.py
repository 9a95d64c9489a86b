"""The `delphi` engine as it is measured: two processes, the deployed server's and client's code.

Every byte is counted off the wire. Seconds are the client's wall time from its first byte to its last. A round is one
message there and one back.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parelu.errors import UserError
from parelu.network import storage
from parelu.private.engines.base import Engine, Measurement, Options
from parelu.private.engines.parties import Parties
from parelu.private.lowering.lowered import Lowered
from parelu.private.lowering.ops import Activation
from parelu.private.lowering.program import Program
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import check_truncation
from parelu.private.protocol.relu import relus
from parelu.private.rows import LINEAR, RELU, Cost, Costs, LayerCost, Part
from parelu.private.transport.link import link_of

PHASES = ("offline", "online")
CLOCKS = {"offline": "client", "online": "server"}  # by whose clock the parts of a phase are told apart


class Delphi(Engine):
    name = "delphi"

    def check(self, options: Options) -> None:
        choices = (
            ("ReLU protocol", options.relu, relus()),
            ("offline mode", options.offline, modes()),
        )
        for what, name, known in choices:
            if name not in known:
                raise UserError(f"unknown {what} {name!r}; known are {', '.join(known)}")
        link_of(options.link)
        if options.batch < 1:
            raise UserError(f"a batch of {options.batch} images; it should be 1 or more")
        check_truncation(options.truncation, relus()[options.relu])

    def described(self, options: Options) -> dict[str, str]:
        mode = modes()[options.offline]
        return {
            "relu": options.relu,
            "offline_mode": options.offline,
            "threat_model": mode.trust(relus()[options.relu]),
            "truncation": options.truncation,
        }

    def run(self, lowered: Lowered, images: Tensor, options: Options) -> Measurement:
        with Parties() as parties:
            return self.measure(parties, lowered, images, options)

    def measure(self, parties: Parties, lowered: Lowered, images: Tensor, options: Options) -> Measurement:
        """As `run`, by processes that others were measured by. Their peak memory is that of all so far."""
        modes()[options.offline].check_terms(lowered.program, relus()[options.relu])
        with tempfile.TemporaryDirectory(prefix="parelu-") as name:
            folder = Path(name)
            lowered.save(folder)
            warm = torch.cat([images[: options.batch], images])
            storage.write(folder, "images", {"batch": options.batch}, {"images": warm})
            server, client = parties.run(folder, options)
        runs = client["runs"][1:], server["runs"][1:]
        # A dealer makes all of a query's material at once.
        clocks = {"online": "server"} if modes()[options.offline].third_party else CLOCKS
        costs = Costs(
            offline=_cost(("offline",), *runs),
            online=_cost(("online",), *runs),
            total=_cost(PHASES, *runs),
            setup=_cost(("setup",), client["runs"][:1], server["runs"][:1]),
            hints_bytes=_hints_bytes(client["runs"][0]),
            peak_mb=client["peak_mb"] + server["peak_mb"],
            peak_mb_client=client["peak_mb"],
            peak_mb_server=server["peak_mb"],
            layers=_layers(*runs),
            parts=_parts(lowered.program, clocks, *runs),
        )
        return Measurement(np.array(client["logits"])[len(warm) - len(images) :], costs)


Runs = Sequence[Sequence[Mapping[str, Any]]]  # for each inference, the traffic of each phase and layer


def _cost(phases: Sequence[str], client: Runs, server: Runs) -> Cost:
    """Medians over the inferences of the sums over the layers of these phases."""

    def total(runs: Runs, what: str) -> float:
        return statistics.median(sum(t[what] for t in run if t["phase"] in phases) for run in runs)

    return Cost(
        seconds=total(client, "seconds"),
        sent={"client": total(client, "received"), "server": total(client, "sent")},
        rounds=total(client, "rounds"),
        cpu={"client": total(client, "cpu"), "server": total(server, "cpu")},
    )


def _parts(program: Program, clocks: Mapping[str, str], client: Runs, server: Runs) -> dict[str, dict[str, Part]]:
    """Of each phase the activations, by the clock of this party, and the rest; nothing where a layer is both.

    Online the client waits in an activation for the linear layers before it; the server does not: there an activation
    lasts from its message to the client's answer.
    """
    named = list(zip(program.ops, program.layers, strict=True))
    activations = {layer for op, layer in named if isinstance(op, Activation)}
    if any(op.is_secret and layer in activations for op, layer in named):
        return {}

    def split(phase: str, clock: Runs, what: str) -> dict[str, float]:
        whole = [sum(t[what] for t in run if t["phase"] == phase) for run in client]
        within = [
            sum(t[what] for t in run if (t["phase"], t["layer"] in activations) == (phase, True)) for run in clock
        ]
        within = [min(of_whole) for of_whole in zip(within, whole, strict=True)]  # two clocks, on a busy machine
        rest = [all_ - part for all_, part in zip(whole, within, strict=True)]
        return {LINEAR: statistics.median(rest), RELU: statistics.median(within)}

    found = {}
    for phase, party in clocks.items():
        seconds = split(phase, client if party == "client" else server, "seconds")
        received, sent = split(phase, client, "received"), split(phase, client, "sent")
        found[phase] = {
            part: Part(seconds[part], {"client": received[part], "server": sent[part]}) for part in (LINEAR, RELU)
        }
    return found


def _hints_bytes(first: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the setup, what the client keeps; None where the offline mode has no hints."""
    return sum(t["received"] for t in first if (t["phase"], t["layer"]) == ("setup", "hints")) or None


def _layers(client: Runs, server: Runs) -> tuple[LayerCost, ...]:
    """Of each phase and layer, the medians over the inferences."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for party, runs in (("client", client), ("server", server)):
        for entry in itertools.chain(*runs):
            layer = found.setdefault((entry["phase"], entry["layer"]), {})
            layer.setdefault(f"cpu_{party}", []).append(entry["cpu"])
            layer.setdefault(f"seconds_{party}", []).append(entry["seconds"])
            if party == "client":
                layer.setdefault("bytes_to_client", []).append(entry["received"])
                layer.setdefault("bytes_to_server", []).append(entry["sent"])
    return tuple(
        LayerCost(phase, layer, **{name: statistics.median(values) for name, values in lists.items()})
        for (phase, layer), lists in found.items()
        if phase in PHASES
    )
