"""ReLU protocol `fss`: the sign by a distributed comparison function, 16 bytes online.

Both parties learn x̂ = x + r for a random r that neither knows. Cut r at bit m − 1: r_t is that bit, r_0 the m − 1 bits
below it; likewise x̂_t and x̂_0. Subtraction without what is above gives bit m − 1 of x = x̂ − r,

    s = x̂_t ⊕ v    v = r_t ⊕ [x̂_0 < r_0] = r_t + (1 − 2·r_t)·[x̂_0 < r_0]

the bracket being the borrow. s = 1 where x is negative, for |x| < 2^(m − 1). v is affine in the comparison: a key with
the payload (1 − 2·r_t)·(1, r), and shares of r_t·(1, r), give shares of v and v·r. x̂_t is public, so s and s·r are
affine in these, and with all bits of x̂ and r

    s·(1, r) = x̂_t·(1, r) + (1 − 2·x̂_t)·v·(1, r)
    relu(x) = x − s·(x̂ − r) = x − x̂·s + s·r

holds as it stands: no bit above m needs a correction of its own. One comparison a ReLU, as in Boyle et al. 2021 and
LLAMA (Gupta et al. 2022). Orca (Jawalkar et al. 2024) and SIGMA (Gupta et al. 2024) share s alone, by shorter keys, and
take another round for the product.

The client's share of x is known offline, and so the server has x_c + r. Online: server → client x̂, 8 bytes; both
evaluate their keys; client → server its share less its new mask, 8 bytes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from parelu.private.crypto.codec import Encodable
from parelu.private.crypto.dcf import Key, correction_blocks
from parelu.private.crypto.ring import Elements, Ring
from parelu.private.protocol.correlations import ClientOffline, OfflineTraffic, ServerOffline
from parelu.private.protocol.relu import Relu
from parelu.private.transport.channel import Channel, elements_of
from parelu.private.transport.messages import Messages


@dataclasses.dataclass(frozen=True, eq=False)
class _Client(Encodable, kind="fss, client"):
    share: Elements
    mask: Elements
    key: Key
    r: Elements
    top: Elements  # of r_t·(1, r), (n, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class _Server(Encodable, kind="fss, server"):
    shift: Elements
    key: Key
    r: Elements
    top: Elements


def _relu(party: int, key: Key, r: Elements, top: Elements, opened: Elements, share: Elements) -> Elements:
    """A party's share of relu(x), (n,), modulo 2^64; r, top, share: its shares of r, r_t·(1, r) and x; opened: x̂."""
    above = opened >> np.uint64(key.levels) & np.uint64(1)  # x̂_t
    v, v_r = (key.evaluate(opened) + top).T
    kept = np.uint64(1) - np.uint64(2) * above
    s, s_r = kept * v, above * r + kept * v_r
    if party == 1:
        s += above
    return share - opened * s + s_r


class Fss(Relu):
    name: ClassVar[str] = "fss"
    compares: ClassVar[bool] = True

    def prepare_client(
        self, offline: ClientOffline, number: int, first: int, share: Elements, bits: int, cut: int, ring: Ring
    ) -> _Client:
        mask = offline.stream(number, "mask").elements(len(share))
        return _Client(share, mask, *offline.comparison(number, share, bits))

    def prepare_server(
        self, offline: ServerOffline, number: int, first: int, count: int, bits: int, cut: int, ring: Ring
    ) -> _Server:
        return _Server(*offline.comparison(number, count, bits))

    def prepare_traffic(self, offline: OfflineTraffic, count: int, bits: int, cut: int, ring: Ring) -> list[Messages]:
        return [*offline.comparison(count, bits)]

    def material_bytes(self, count: int, bits: int, cut: int, ring: Ring) -> tuple[int, int]:
        key = 16 * (count + correction_blocks(bits - 1, count))
        return key + 40 * count, key + 32 * count

    def open(self, channel: Channel, material: _Server, share: Elements) -> Elements:
        opened = share + material.shift
        channel.send("open", opened)
        return _relu(1, material.key, material.r, material.top, opened, share)

    def open_bytes(self, count: int, bits: int, cut: int, ring: Ring) -> int:
        return 8 * count

    def answer(self, channel: Channel, material: _Client) -> tuple[Any, ...]:
        opened = elements_of(channel.receive("open", 8 * len(material.share)))
        output = _relu(0, material.key, material.r, material.top, opened, material.share)
        return (output - material.mask,)

    def answer_bytes(self, count: int, cut: int) -> int:
        return 8 * count

    def close(self, material: _Server, opened: Elements, answer: NDArray[np.uint8]) -> Elements:
        return opened + elements_of(answer)
