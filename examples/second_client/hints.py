"""Offline mode `hints` of docs/wire-format.md, the client's side: module-LWE in numpy's 64-bit integers."""

import hashlib
import json
import math
import secrets

import numpy as np
from layout import DEGREE, Layer, Reader, Upload, plan
from primitives import Stream, derive
from program import Program
from transfers import Transfers

RANK, CANDIDATES, AT_ONCE, MOST_SETS = 3, 8, 32, 8
KEPT, DROPPED = (67104769, 67084289, 67043329), (23719937, 23715841, 23703553)
PRIMES = KEPT + DROPPED
ROOTS = (14983530, 51217155, 43517220, 22704280, 16532761, 15772065)
Q_KEPT, Q = math.prod(KEPT), math.prod(PRIMES)
DESCRIPTION = (
    f"module-LWE rank 3 degree 2048 kept {KEPT} dropped {DROPPED} roots {ROOTS} message 64 ternary binomial 21 "
    "flood 3 uniforms 84 matrices 8 norm 268435456"
)
TURNED = np.array([int(f"{i:011b}"[::-1], 2) for i in range(DEGREE)])


def powers(k: int, sign: int) -> np.ndarray:
    """ψ^(±i), by i with its bits reversed."""
    root, p = pow(ROOTS[k], sign, PRIMES[k]), PRIMES[k]
    found = [1]
    for _ in range(DEGREE - 1):
        found.append(found[-1] * root % p)
    return np.array(found)[TURNED]


FORWARD, BACK = ([powers(k, sign) for k in range(6)] for sign in (1, -1))


def transform(x: np.ndarray, k: int) -> np.ndarray:
    """(2048, …) modulo prime k."""
    x, p, groups = x % PRIMES[k], PRIMES[k], 1
    while groups < DEGREE:
        pairs = x.reshape(groups, 2, DEGREE // groups // 2, *x.shape[1:])
        factor = FORWARD[k][groups : 2 * groups].reshape(-1, *[1] * x.ndim)
        even, odd = pairs[:, 0], pairs[:, 1] * factor % p
        x = np.stack([(even + odd) % p, (even - odd) % p], 1).reshape(x.shape)
        groups *= 2
    return x


def inverse(x: np.ndarray, k: int) -> np.ndarray:
    p, groups = PRIMES[k], DEGREE // 2
    while groups:
        pairs = x.reshape(groups, 2, DEGREE // groups // 2, *x.shape[1:])
        factor = BACK[k][groups : 2 * groups].reshape(-1, *[1] * x.ndim)
        x = np.stack([(pairs[:, 0] + pairs[:, 1]) % p, (pairs[:, 0] - pairs[:, 1]) % p * factor % p], 1).reshape(
            x.shape
        )
        groups //= 2
    return x * pow(DEGREE, -1, p) % p


def packed(rows: list[np.ndarray], primes: tuple[int, ...]) -> bytes:
    out = b""
    for row, p in zip(rows, primes, strict=True):
        bits = (row.reshape(-1, 1) >> np.arange(p.bit_length()) & 1).astype(np.uint8)
        out += np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    return out


def packed_bytes(count: int, primes: tuple[int, ...]) -> int:
    return sum(-(-count * p.bit_length() // 8) for p in primes)


def unpacked(body: bytes, count: int, primes: tuple[int, ...]) -> list[np.ndarray]:
    out, at = [], 0
    for p in primes:
        size = packed_bytes(count, (p,))
        bits = np.unpackbits(np.frombuffer(body[at : at + size], np.uint8), bitorder="little")
        words = bits[: count * p.bit_length()].reshape(count, -1).astype(np.int64)
        out.append((words << np.arange(p.bit_length())).sum(1))
        if bits[count * p.bit_length() :].any() or (out[-1] >= p).any():
            raise ValueError("residues that are none")
        at += size
    return out


def uniform(stream: Stream, k: int, *shape: int) -> np.ndarray:
    count, p, found = math.prod(shape), PRIMES[k], np.zeros(0, np.int64)
    while len(found) < count:
        words = np.frombuffer(stream.bytes(4 * (count - len(found))), "<u4").astype(np.int64)
        found = np.concatenate([found, words[words < (1 << 32) // p * p] % p])
    return found.reshape(shape)


def ternary(stream: Stream, *shape: int) -> np.ndarray:
    count, found = math.prod(shape), np.zeros(0, np.uint8)
    while len(found) < count:
        drawn = np.frombuffer(stream.bytes(count - len(found)), np.uint8)
        found = np.concatenate([found, drawn[drawn < 255]])
    return (found % 3).astype(np.int64).reshape(shape) - 1


def binomial(stream: Stream, *shape: int) -> np.ndarray:
    words, ones = stream.elements(math.prod(shape)), np.uint64((1 << 21) - 1)
    counts = [np.bitwise_count(words >> np.uint64(low) & ones).astype(np.int64) for low in (0, 21)]
    return (counts[0] - counts[1]).reshape(shape)


class Secrets:
    """Of one query, from a seed. Attribute: beta, packed."""

    def __init__(self, mode: "Hints", seed: bytes) -> None:
        self.seed = seed
        s = ternary(Stream(seed, "secret"), DEGREE, RANK, len(mode.counts))
        self.transforms = [transform(s, k) for k in range(6)]
        errors = binomial(Stream(seed, "beta"), DEGREE, sum(mode.counts), RANK)
        rows = []
        for k, matrices in enumerate(mode.matrices):
            each = []
            for t, count in enumerate(mode.counts):
                own = self.transforms[k][:, :, t]
                products = matrices[:, :, :count] * own[:, :, None, None] % PRIMES[k]
                each.append(products.sum(1))  # [place, g, column]
            found = (inverse(np.concatenate(each, 1) % PRIMES[k], k) + errors) % PRIMES[k]
            rows.append(found.transpose(0, 2, 1))
        self.beta = packed(rows, PRIMES)


class Hints(Transfers):
    """A connection's; `begin` is a phase."""

    def __init__(self, channel, context: bytes, program: Program, offer: dict[str, str]) -> None:
        super().__init__(channel, context, program.ring)
        self.width = channel.receive("size", 1)[0]
        self._layers = [self._layer(number, op, program) for number, op in enumerate(program.ops, start=1)]
        self._layers = [layer for layer in self._layers if layer]
        self._choose(offer)
        public = derive(self._identity, "public")
        self._public = [
            [uniform(Stream(public, "polynomials", at, k), k, DEGREE, RANK, upload.polynomials) for k in range(6)]
            for at, upload in enumerate(self._uploads)
        ]
        self.matrices = [uniform(Stream(public, "matrices", k), k, DEGREE, RANK, 8, RANK) for k in range(6)]
        readers = [reader for upload in self._uploads for reader in upload.readers]
        tiles = max(upload.tiles for upload in self._uploads)
        self.counts = [max(r.matrices for r in readers if r.upload.tiles > t) for t in range(tiles)]
        self._hints = {reader.layer.number: self._received(reader) for reader in readers}
        if self._hashed.digest() != self._digest:
            raise ValueError("the hints are not those of the offer")

    @staticmethod
    def _layer(number: int, op: dict, program: Program) -> Layer | None:
        source = program.shapes[op["source"]]
        if op["kind"] == "linear":
            return Layer(number, op["source"], source[0], op["outputs"], (1, 1))
        if op["kind"] == "conv":
            pairs = [tuple(op[name]) for name in ("kernel", "stride", "padding")]
            return Layer(number, op["source"], source[0], op["outputs"], (source[1], source[2]), *pairs, op["groups"])
        return None

    def _choose(self, offer: dict[str, str]) -> None:
        """The first set: that of the fewest hints."""
        size = 32 + 8 * len(self._layers)
        body = self.channel.receive("sets", most=32 + MOST_SETS * size)
        if hashlib.sha256(body).hexdigest() != offer["hints"] or body[:32].hex() != offer["weights"]:
            raise ValueError("the sets of hints are not those of the offer")
        stated = np.frombuffer(body, "<u4", 2 * len(self._layers), 64).reshape(-1, 2).astype(np.int64)
        self._digest, self._uploads = body[32:64], plan(self._layers, stated)
        header = {"format": "parelu-hint-plan-1", "degree": DEGREE, "matrices": 8}
        uploads = [upload.text for upload in self._uploads]
        text = json.dumps({**header, "uploads": uploads}, sort_keys=True, separators=(",", ":"))
        lines = "parelu-hints-1", DESCRIPTION, offer["program"], offer["weights"], text
        self._identity = hashlib.sha256("\n".join(lines).encode()).digest()
        self._hashed = hashlib.sha256(self._identity)
        self.channel.send("want", bytes([0, 0]))

    def _received(self, reader: Reader) -> list[np.ndarray]:
        """Transforms (2048, 3, rows), of each kept prime."""
        parts = []
        for first in range(0, reader.rows, AT_ONCE):
            count = DEGREE * RANK * min(AT_ONCE, reader.rows - first)
            body = self.channel.receive("hint", packed_bytes(count, KEPT))
            self._hashed.update(body)
            parts.append([row.reshape(DEGREE, RANK, -1) for row in unpacked(body, count, KEPT)])
        return [transform(np.concatenate(each, 2), k) for k, each in enumerate(zip(*parts, strict=True))]

    def begin(self) -> None:
        super().begin()
        made = [Secrets(self, secrets.token_bytes(16)) for _ in range(CANDIDATES)]
        self.channel.send("cmit", b"".join(hashlib.sha256(each.beta).digest() for each in made))
        which = self.channel.receive("chos", 1)[0]
        self._secrets = made.pop(which)
        self.channel.send("open", b"".join(each.seed for each in made))
        self.channel.send("beta", self._secrets.beta)
        self._sent: set[int] = set()

    def show(self) -> bytes:
        return self._secrets.seed

    def linear(self, number: int, op: dict, share: np.ndarray, count: int) -> np.ndarray:
        if op["kind"] == "multiply":
            return self.integers(share.reshape(-1), self.width)
        at, reader = next(
            (at, reader)
            for at, upload in enumerate(self._uploads)
            for reader in upload.readers
            if reader.layer.number == number
        )
        if at not in self._sent:
            self._sent.add(at)
            self._upload(at, reader.upload, share.reshape(reader.layer.inputs, *reader.layer.size))
        body = self.channel.receive("answ", packed_bytes(count, KEPT))
        row, tile, position, place = reader.slots.T
        rest = []
        for k, answer in enumerate(unpacked(body, count, KEPT)):
            s = self._secrets.transforms[k][:, :, : reader.upload.tiles]
            products = self._hints[number][k][:, :, None] * s[..., None] % PRIMES[k]
            taken = inverse(products.sum(1) % PRIMES[k], k)[reader.upload.classes * position, tile, row]
            rest.append((answer - taken) % PRIMES[k])
        out = np.empty(count, np.uint64)
        out[place] = decoded(rest)
        return out

    def _upload(self, at: int, upload: Upload, share: np.ndarray) -> None:
        message = upload.pack(share).astype(object)
        errors = binomial(Stream(self._secrets.seed, "errors", at), DEGREE, upload.tiles, upload.polynomials)
        lifted, rows = (Q * message + (1 << 63)) >> 64, []
        for k, p in enumerate(PRIMES):
            s = self._secrets.transforms[k][:, :, : upload.tiles]
            products = self._public[at][k][:, :, None] * s[..., None] % p
            masks = (inverse(products.sum(1) % p, k) + errors) % p  # [coefficient, tile, polynomial]
            masks = masks.reshape(upload.points, upload.classes, upload.tiles, upload.polynomials)[upload.sent]
            masks = masks.transpose(2, 3, 1, 0).reshape(upload.tiles, -1, len(upload.sent))[:, : upload.parts]
            rows.append((masks + (lifted % p).astype(np.int64)) % p)
        self.channel.send("upld", packed(rows, PRIMES))


def decoded(residues: list[np.ndarray]) -> np.ndarray:
    """round(2^64·x/q') modulo 2^64, by the Chinese remainder theorem."""
    x = 0
    for p, row in zip(KEPT, residues, strict=True):
        other = Q_KEPT // p
        x = x + row.astype(object) * (other * pow(other, -1, p))
    found = ((x % Q_KEPT << 65) + Q_KEPT) // (2 * Q_KEPT) % (1 << 64)
    return np.array(found.tolist(), np.uint64)
