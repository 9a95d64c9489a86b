"""The public part β of a client's secrets, of which a server knows that it is honest but for one chance in eight.

A β that is not M·s + ε with small s and ε would bring the server's u into its answers, and u opens the weights. So a
client commits to several, each of a seed; the server names the one to use, and is shown the seeds of all others. Who
is asked and stops is counted as one who did not answer an audit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

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
from parelu.private.transport.messages import Messages, to_client, to_server

CANDIDATES = 8
HASH_BYTES = 32


def _made(use: Use, seed: bytes) -> tuple[Secrets, bytes]:
    secrets = use.secrets(seed)
    return secrets, public_part(secrets)


def public_part(secrets: Secrets) -> bytes:
    """β as it is sent."""
    return pack(np.stack(secrets.beta()).reshape(len(PRIMES), -1), PRIMES)


def traffic(use: Use) -> Iterator[Messages]:
    """What the two ends send each other."""
    yield to_server(HASH_BYTES * CANDIDATES)
    yield to_client(1)
    yield to_server(SEED_BYTES * (CANDIDATES - 1))
    yield to_server(_part_bytes(use))


def _part_bytes(use: Use) -> int:
    return packed_bytes(PRIMES, DEGREE * RANK * len(use.plan.public_parts))


def offer(channel: Channel, use: Use, seed: bytes) -> tuple[bytes, Secrets]:
    """The client's end: the seed of the secrets of this query, and these. seed: of this query alone."""
    seeds = [derive(seed, "secrets", number) for number in range(CANDIDATES)]
    made = [found.result() for found in [ahead(_made, use, each) for each in seeds]]
    channel.send("cmit", *(hashlib.sha256(part).digest() for _, part in made))
    which = int(channel.receive("chos", 1)[0])
    if which >= CANDIDATES:
        raise ProtocolError(f"the server chooses secrets {which} of {CANDIDATES}")
    channel.send("open", *(each for number, each in enumerate(seeds) if number != which))
    secrets, part = made[which]
    channel.send("beta", part)
    return seeds[which], secrets


def chosen(channel: Channel, use: Use, seed: bytes, asking: AbstractContextManager[None]) -> NDArray[np.uint8]:
    """The server's end: β of one of the secrets, when all others were made again.

    seed: of the server's own randomness in this query; asking: as `Mode.serve` takes it. Raises Deviation where they
    are not what was committed to, and Unanswered where the client stops when it was asked.
    """
    commitments = channel.receive("cmit", HASH_BYTES * CANDIDATES).reshape(CANDIDATES, -1)
    which = int(Stream(seed, "chosen secrets").bytes(1)[0]) % CANDIDATES
    with asking:
        channel.send("chos", bytes([which]))
        try:
            seeds = channel.receive("open", SEED_BYTES * (CANDIDATES - 1)).reshape(CANDIDATES - 1, -1)
        except (ProtocolError, OSError) as error:
            raise Unanswered(str(error)) from error
        others = np.delete(commitments, which, axis=0)
        checks = [ahead(_check, use, shown.tobytes(), other) for shown, other in zip(seeds, others, strict=True)]
        for check in checks:  # before β: who has seen what was chosen, and goes away now, is found out as well
            check.result()
    body = channel.receive("beta", _part_bytes(use))
    _compare(body.tobytes(), commitments[which])
    return body


def _check(use: Use, seed: bytes, commitment: NDArray[np.uint8]) -> None:
    _compare(_made(use, seed)[1], commitment)


def _compare(part: bytes, commitment: NDArray[np.uint8]) -> None:
    if hashlib.sha256(part).digest() != commitment.tobytes():
        raise Deviation("the public part of a client's secrets is not the one that it committed to")
