"""The public part β of a client's secrets, of which a server knows that it is honest but for one chance in eight.

A β that is not M·s + ε with small s and ε would bring the server's u into its answers, and u opens the weights. So a
client commits to several, each of a seed; the server names the one to use, and is shown the seeds of all others. Who
is asked and stops is counted as one who did not answer an audit.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from parelu.errors import ProtocolError
from parelu.private.crypto.lattice.parameters import DEGREE, PRIMES, RANK
from parelu.private.crypto.lattice.residues import pack, packed_bytes
from parelu.private.crypto.lattice.scheme import Secrets
from parelu.private.crypto.prg import SEED_BYTES, Stream, derive
from parelu.private.offline.ahead import ahead
from parelu.private.offline.hint_sets import Use
from parelu.private.offline.mode import Deviation, Unanswered
from parelu.private.transport.channel import Channel

CANDIDATES = 8
HASH_BYTES = 32


def _made(use: Use, seed: bytes) -> tuple[Secrets, bytes]:
    secrets = use.secrets(seed)
    return secrets, public_part(secrets)


def public_part(secrets: Secrets) -> bytes:
    """β as it is sent."""
    return pack(np.stack(secrets.beta()).reshape(len(PRIMES), -1), PRIMES)


def offer(channel: Channel, use: Use, seed: bytes) -> tuple[bytes, Secrets]:
    """The client's end: the seed of the secrets of this query, and these. seed: of this query alone."""
    seeds = [derive(seed, "secrets", number) for number in range(CANDIDATES)]
    made = [found.result() for found in [ahead(_made, use, each) for each in seeds]]
    channel.send("cmit", *(hashlib.sha256(part).digest() for _, part in made))
    chosen = int(channel.receive("chos", 1)[0])
    if chosen >= CANDIDATES:
        raise ProtocolError(f"the server chooses secrets {chosen} of {CANDIDATES}")
    channel.send("open", *(each for number, each in enumerate(seeds) if number != chosen))
    secrets, part = made[chosen]
    channel.send("beta", part)
    return seeds[chosen], secrets


class Chosen:
    """The server's end. body: β of the chosen secrets; `check` once before anything is answered.

    seed: of the server's own randomness in this query. Raises Deviation where it is not what was committed to, and
    Unanswered where the client stops when it was asked.
    """

    def __init__(self, channel: Channel, use: Use, seed: bytes) -> None:
        commitments = channel.receive("cmit", HASH_BYTES * CANDIDATES).reshape(CANDIDATES, -1)
        chosen = int(Stream(seed, "chosen secrets").bytes(1)[0]) % CANDIDATES
        channel.send("chos", bytes([chosen]))
        count = DEGREE * RANK * len(use.plan.public_parts)
        try:
            seeds = channel.receive("open", SEED_BYTES * (CANDIDATES - 1)).reshape(CANDIDATES - 1, -1)
            self.body: NDArray[np.uint8] = channel.receive("beta", packed_bytes(PRIMES, count))
        except (ProtocolError, OSError) as error:
            raise Unanswered(str(error)) from error
        _compare(self.body.tobytes(), commitments[chosen])
        others = np.delete(commitments, chosen, axis=0)
        self._checks: list[Future[None]] = [
            ahead(_check, use, shown.tobytes(), other) for shown, other in zip(seeds, others, strict=True)
        ]

    def check(self) -> None:
        """Wait until all others were made again; safe to call again."""
        while self._checks:
            self._checks.pop().result()


def _check(use: Use, seed: bytes, commitment: NDArray[np.uint8]) -> None:
    _compare(_made(use, seed)[1], commitment)


def _compare(part: bytes, commitment: NDArray[np.uint8]) -> None:
    if hashlib.sha256(part).digest() != commitment.tobytes():
        raise Deviation("the public part of a client's secrets is not the one that it committed to")
