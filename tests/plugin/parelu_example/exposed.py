"""A ReLU protocol, without any privacy: the client sends its shares, and the server computes in the clear."""

import dataclasses
from typing import ClassVar

import numpy as np

from parelu.private.crypto.codec import Encodable
from parelu.private.crypto.ring import Elements, Ring, encode
from parelu.private.protocol.relu import Relu
from parelu.private.transport.channel import elements_of


@dataclasses.dataclass(frozen=True, eq=False)
class _Client(Encodable, kind="exposed, client"):
    share: Elements
    mask: Elements


@dataclasses.dataclass(frozen=True, eq=False)
class _Server(Encodable, kind="exposed, server"):
    ring: Ring


class Exposed(Relu):
    name: ClassVar[str] = "exposed"

    def prepare_client(self, offline, number, first, share, bits, cut, ring):
        return _Client(share, offline.stream(number, "mask").elements(len(share)))

    def prepare_server(self, offline, number, first, count, bits, cut, ring):
        return _Server(ring)

    def prepare_traffic(self, offline, count, bits, cut, ring):
        return []

    def material_bytes(self, count, bits, cut, ring):
        return 2 * 8 * count, 0

    def open(self, channel, material, share):
        channel.send("xpos")
        return share

    def open_bytes(self, count, bits, cut, ring):
        return 0

    def answer(self, channel, material):
        channel.receive("xpos", 0)
        return material.share, material.mask

    def answer_bytes(self, count, cut):
        return 2 * 8 * count

    def close(self, material, opened, answer):
        share, mask = np.split(elements_of(answer), 2)
        return encode(np.maximum(material.ring.decode(opened + share), 0)) - mask
