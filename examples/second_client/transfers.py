"""Set-up without a third party, of docs/wire-format.md: base transfers, their extension, and what the walk asks for.

The group is computed in Python's integers, whose time tells of them: a client for secrets that matter takes a library.
"""

import hashlib
import secrets

import numpy as np
from primitives import Aes, Hash, Stream, counters, derive

P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)  # of −1
Point = tuple[int, int, int, int]  # X, Y, Z, T with x = X/Z, y = Y/Z, T = X·Y/Z
IDENTITY: Point = (0, 1, 1, 0)
BASE, GROUPS, STEP, SACRIFICED = 128, 32, 1 << 17, 128
RANDOM, BITS, INTEGERS = ((1 << 63) + i for i in range(3))  # the second half of a tweak


def square_root(x: int) -> int | None:
    root = pow(x, (P + 3) // 8, P)
    root = root if root * root % P == x % P else root * ROOT % P
    return root if root * root % P == x % P else None


def add(a: Point, b: Point) -> Point:
    """Complete, for edwards25519 (Hisil and others 2008, section 3.1)."""
    m, n = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    c, d = 2 * D * a[3] * b[3] % P, 2 * a[2] * b[2] % P
    e, f, g, h = n - m, d - c, d + c, n + m
    return e * f % P, g * h % P, f * g % P, e * h % P


def double(a: Point) -> Point:
    """As `add` of a to itself (there, section 3.3)."""
    b, c = a[0] * a[0], a[1] * a[1]
    h = b + c
    e, g = h - (a[0] + a[1]) * (a[0] + a[1]), b - c
    f = g + 2 * a[2] * a[2]
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(scalar: int, point: Point) -> Point:
    multiples, total = [IDENTITY, point], IDENTITY
    for _ in range(14):
        multiples.append(add(multiples[-1], point))
    for digit in f"{scalar:x}":
        for _ in range(4):
            total = double(total)
        total = add(total, multiples[int(digit, 16)])
    return total


def packed_point(point: Point) -> bytes:
    inverse = pow(point[2], -1, P)
    return (point[1] * inverse % P | (point[0] * inverse % P & 1) << 255).to_bytes(32, "little")


def point_of(body: bytes) -> Point:
    """Raises ValueError for what is not canonical, not of prime order, or the identity."""
    number = int.from_bytes(body, "little")
    y, sign = number & (1 << 255) - 1, number >> 255
    x = square_root((y * y - 1) * pow(D * y * y + 1, -1, P) % P)
    if y >= P or x is None or (x == 0 and sign):
        raise ValueError("a point that is none")
    x = x if x & 1 == sign else P - x
    point = (x, y, 1, x * y % P)
    if packed_point(point) == packed_point(IDENTITY) or packed_point(times(ORDER, point)) != packed_point(IDENTITY):
        raise ValueError("a point that is not of prime order")
    return point


GENERATOR = (lambda y: point_of(y.to_bytes(32, "little")))(4 * pow(5, -1, P) % P)


POWERS = [GENERATOR]  # times 2^i
for _ in range(252):
    POWERS.append(double(POWERS[-1]))


def times_generator(scalar: int) -> Point:
    total = IDENTITY
    for i, power in enumerate(POWERS):
        total = add(total, power) if scalar >> i & 1 else total
    return total


def from_uniform(body: bytes) -> Point:
    """Elligator 2 (Bernstein and others 2013, section 5) to curve25519, to edwards25519, times 8."""
    number, a = int.from_bytes(body, "little"), 486662
    r, sign = number & (1 << 255) - 1, number >> 255
    u = -a * pow(1 + 2 * r * r, -1, P) % P
    if square_root(u * u * u + a * u * u + u) is None:
        u = (-a - u) % P
    v = square_root(u * u * u + a * u * u + u)
    scale = square_root(-486664)
    assert v and scale, "but for two values of 2^255"
    x, y = scale * u * pow(v, -1, P) % P, (u - 1) * pow(u + 1, -1, P) % P
    x = x if x & 1 == sign else P - x
    return times(8, (x, y, 1, x * y % P))


class Base:
    """Of 128 transfers under one context: h, F and the transcript."""

    def __init__(self, context: bytes) -> None:
        self._key = hashlib.sha256(context).digest()

    def digest(self, size: int, person: bytes, *parts: bytes) -> bytes:
        return hashlib.blake2b(b"".join(parts), digest_size=size, key=self._key, person=person).digest()

    def h(self, i: int, choice: int, point: bytes) -> Point:
        both = self.digest(64, b"parelu-point", i.to_bytes(4, "little"), bytes([choice]), point)
        return add(from_uniform(both[:32]), from_uniform(both[32:]))

    def f(self, i: int, choice: int, a: bytes, points: bytes, shared: Point) -> bytes:
        where = i.to_bytes(4, "little"), bytes([choice])
        return self.digest(16, b"parelu-baseOT", *where, a, points, packed_point(shared))

    def transcript(self, a: bytes, responses: bytes) -> bytes:
        return self.digest(32, b"parelu-baseOT-t", a, responses)

    def pairs(self, secret: int, a: bytes, responses: bytes) -> list[list[bytes]]:
        """The sender's seeds."""
        found = []
        for i in range(BASE):
            sent = responses[64 * i : 64 * i + 64]
            each = [sent[:32], sent[32:]]
            keys = [add(point_of(each[j]), self.h(i, j, each[1 - j])) for j in (0, 1)]
            found.append([self.f(i, j, a, sent, times(secret, keys[j])) for j in (0, 1)])
        return found

    def respond(self, choices: np.ndarray, a: bytes) -> tuple[bytes, list[bytes]]:
        """The receiver's responses and seeds."""
        theirs, responses, seeds = point_of(a), b"", []
        for i, c in enumerate(choices.tolist()):
            b, other = secrets.randbelow(ORDER), packed_point(times_generator(secrets.randbelow(ORDER)))
            x, y, z, t = self.h(i, c, other)
            own = packed_point(add(times_generator(b), (-x % P, y, z, -t % P)))
            sent = other + own if c else own + other
            responses += sent
            seeds.append(self.f(i, c, a, sent, times(b, theirs)))
        return responses, seeds


def xored(parts: list[bytes], size: int = 16) -> bytes:
    total = 0
    for part in parts:
        total ^= int.from_bytes(part, "little")
    return total.to_bytes(size, "little")


def node(value: bytes, size: int, person: bytes, context: bytes, tree: int) -> bytes:
    salt = tree.to_bytes(16, "little")
    return hashlib.blake2b(value, digest_size=size, key=context, salt=salt, person=person).digest()


def grown(level: dict[int, bytes], context: bytes, tree: int) -> dict[int, bytes]:
    """The children of the nodes that are there, by number."""
    below = {}
    for y, value in level.items():
        both = node(value, 32, b"parelu-node", context, tree)
        below[2 * y], below[2 * y + 1] = both[:16], both[16:]
    return below


def side(level: dict[int, bytes], which: int) -> list[bytes]:
    return [value for y, value in level.items() if y % 2 == which]


class Ghash:
    """Of rows, each with a block of zeros behind it, as big-endian integers."""

    def __init__(self, key: bytes) -> None:
        h = int.from_bytes(Aes(np.frombuffer(key, np.uint8))(np.zeros((1, 16), np.uint8)).tobytes(), "big")
        self._multiples = []  # of h, by the bit of the other factor from the highest on
        for _ in range(128):
            self._multiples.append(h)
            h = h >> 1 ^ (0xE1 << 120) * (h & 1)

    def __call__(self, row: np.ndarray) -> int:
        data, total = row.tobytes() + bytes(16), 0
        for start in range(0, len(data), 16):
            bits = f"{total ^ int.from_bytes(data[start : start + 16], 'big'):0128b}"
            total = 0
            for bit, multiple in zip(bits, self._multiples, strict=True):
                if bit == "1":
                    total ^= multiple
        return total


class Extension:
    """What both sides do. leaves: of each group those that are had, by number."""

    def __init__(self, leaves: list[dict[int, bytes]], context: bytes) -> None:
        self._context, self._steps, self._read = context, 0, 0
        self._numbers = [[*group] for group in leaves]
        keys = [derive(leaf, "extension") for group in leaves for leaf in group.values()]
        self._aes = Aes(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 1, 16))

    def rows(self, length: int) -> list[dict[int, np.ndarray]]:
        """The next bytes of every leaf."""
        found = self._aes(counters(self._read, length // 16)[None]).reshape(-1, length)
        self._read += length // 16
        each = iter(found)
        return [{y: next(each) for y in numbers} for numbers in self._numbers]

    def key(self, corrections: np.ndarray) -> bytes:
        self._steps += 1
        number = self._steps.to_bytes(8, "little")
        return hashlib.sha256(self._context + number + corrections.tobytes()).digest()[:16]


def columns(rows: list[dict[int, np.ndarray]], missing: list[int]) -> np.ndarray:
    """(128, bytes): of each group, for each bit, the sum of the rows whose number ⊕ the missing one has it."""
    out = np.zeros((BASE, len(next(iter(rows[0].values())))), np.uint8)
    for g, group in enumerate(rows):
        for y, row in group.items():
            for j in range(4):
                if (y ^ missing[g]) >> j & 1:
                    out[4 * g + j] ^= row
    return out


def blocks_of(found: np.ndarray, count: int) -> np.ndarray:
    """Columns of bits → (count, 2) blocks."""
    bits = np.unpackbits(found, axis=1, bitorder="little")
    return np.packbits(np.ascontiguousarray(bits.T), axis=1, bitorder="little").view("<u8")[:count]


def parts_of(count: int) -> list[tuple[int, int]]:
    """(transfers, bytes of a row) of each step."""
    sizes = [min(STEP, count - start) for start in range(0, count, STEP)]
    return [(n, (-(-n // BASE) * BASE + SACRIFICED) // 8) for n in sizes]


def message_bytes(count: int) -> int:
    return sum(GROUPS * length + 48 for _, length in parts_of(count))


class Choosing(Extension):
    """Who was the sender of the base transfers. Attribute: trees."""

    def __init__(self, pairs: list[list[bytes]], transcript: bytes) -> None:
        leaves, checks, self.trees = [], b"", b""
        for g in range(GROUPS):
            level = {0: pairs[4 * g + 3][1], 1: pairs[4 * g + 3][0]}
            for i in (4 * g + 2, 4 * g + 1, 4 * g):
                level = grown(level, transcript, g)
                self.trees += b"".join(xored([*side(level, which), pairs[i][1 - which]]) for which in (0, 1))
            last = {y: node(value, 48, b"parelu-leaf", transcript, g) for y, value in level.items()}
            self.trees += xored([each[:32] for each in last.values()], 32)
            checks += b"".join(each[:32] for each in last.values())
            leaves.append({y: each[32:] for y, each in last.items()})
        self.trees += hashlib.sha256(checks).digest()
        super().__init__(leaves, hashlib.sha256(transcript + self.trees).digest())

    def extend(self, choices: np.ndarray) -> tuple[bytes, np.ndarray]:
        """The message, and t, (n, 2)."""
        message, found, start = b"", [], 0
        for n, length in parts_of(len(choices)):
            rows = self.rows(length)
            sums = [np.bitwise_xor.reduce([*group.values()]) for group in rows]
            row = np.packbits(choices[start : start + n], bitorder="little")
            row = np.concatenate([row, np.zeros(length - len(row), np.uint8)])
            row[-16:] = sums[0][-16:]
            corrections, t = np.stack(sums) ^ row, columns(rows, [0] * GROUPS)
            key = self.key(corrections)
            of = Ghash(key)
            hashes = b"".join(of(column).to_bytes(16, "big") for column in t)
            own = of(row).to_bytes(16, "big")
            message += corrections.tobytes() + own + hashlib.sha256(key + hashes).digest()
            found.append(blocks_of(t, n))
            start += n
        return message, np.concatenate(found)


class Offering(Extension):
    """Who has Δ. choices: its bits; raises ValueError where the other side is found to deviate."""

    def __init__(self, choices: np.ndarray, seeds: list[bytes], transcript: bytes, trees: bytes) -> None:
        self._bits, self.delta = choices, np.packbits(choices, bitorder="little").view("<u8")
        self._missing = [int(sum(int(choices[4 * g + j]) << j for j in range(4))) for g in range(GROUPS)]
        leaves, checks = [], b""
        for g in range(GROUPS):
            sent, c = trees[128 * g : 128 * g + 128], int(choices[4 * g + 3])
            path, level = c, {1 - c: seeds[4 * g + 3]}
            for at, i in enumerate((4 * g + 2, 4 * g + 1, 4 * g)):
                level, c = grown(level, transcript, g), int(choices[i])
                which = 1 - c
                offered = sent[32 * at + 16 * which : 32 * at + 16 * which + 16]
                level[2 * path + which] = xored([*side(level, which), offered, seeds[i]])
                path = 2 * path + c
            last = {y: node(value, 48, b"parelu-leaf", transcript, g) for y, value in sorted(level.items())}
            every = {y: each[:32] for y, each in last.items()}
            every[path] = xored([*every.values(), sent[96:]], 32)
            checks += b"".join(every[y] for y in range(16))
            leaves.append({y: each[32:] for y, each in last.items()})
        if hashlib.sha256(checks).digest() != trees[128 * GROUPS :]:
            raise ValueError("the server's trees are not consistent")
        super().__init__(leaves, hashlib.sha256(transcript + trees).digest())

    def extend(self, message: bytes, count: int) -> np.ndarray:
        """q, (n, 2)."""
        found, at = [], 0
        for n, length in parts_of(count):
            corrections = np.frombuffer(message, np.uint8, GROUPS * length, at).reshape(GROUPS, length)
            at += GROUPS * length + 48
            theirs, digest = int.from_bytes(message[at - 48 : at - 32], "big"), message[at - 32 : at]
            q = columns(self.rows(length), self._missing)
            q ^= np.repeat(corrections, 4, 0) * self._bits[:, None]
            key = self.key(corrections)
            of = Ghash(key)
            each = [of(column) ^ theirs * int(bit) for column, bit in zip(q, self._bits, strict=True)]
            if hashlib.sha256(key + b"".join(x.to_bytes(16, "big") for x in each)).digest() != digest:
                raise ValueError("the server's choices are not consistent")
            found.append(blocks_of(q, n))
        return np.concatenate(found)


class Transfers:
    """The client's half of what is made by transfers; a mode adds linear layers, and sets `width`."""

    width: int
    audits = True
    first = 0  # the counter of instances

    def __init__(self, channel, context: bytes, ring: int) -> None:
        self.channel, self.ring, self._begun, self._used = channel, ring, 0, 0
        of_labels, of_products = Base(context + b"labels"), Base(context + b"products")
        secret = secrets.randbelow(ORDER - 1) + 1
        a = packed_point(times_generator(secret))
        channel.send("base", a)
        body = channel.receive("base", 64 * BASE + 32)
        responses, theirs = body[: 64 * BASE], body[64 * BASE :]
        ours = of_labels.transcript(a, responses)
        self._choosing = Choosing(of_labels.pairs(secret, a, responses), ours)
        delta = np.frombuffer(secrets.token_bytes(BASE), np.uint8) & 1
        delta[-1] = 1
        answer, seeds = of_products.respond(delta, theirs)
        channel.send("base", answer + self._choosing.trees)
        transcript = of_products.transcript(theirs, answer)
        self._offering = Offering(delta, seeds, transcript, channel.receive("tree", 128 * GROUPS + 32))
        self._transcripts = ours + transcript

    def begin(self) -> None:
        """A phase."""
        self._seed = secrets.token_bytes(16)
        self.hash = Hash(derive(self._transcripts, "garbling", self._begun))
        self._begun += 1

    def stream(self, what: str, number: int) -> Stream:
        return Stream(self._seed, what, number)

    def labels(self, number: int, bits: np.ndarray) -> np.ndarray:
        message, t = self._choosing.extend(bits.reshape(-1))
        self.channel.send("labl", message)
        return t.reshape(*bits.shape, 2)

    def random_transfer(self, number: int, first: int, choices: np.ndarray) -> np.ndarray:
        message, t = self._choosing.extend(choices)
        self.channel.send("rand", message)
        return self.hash(t, first, RANDOM)[:, 0]

    def product(self, number: int, first: int, values: np.ndarray, use: int = BITS) -> np.ndarray:
        q = self._offering.extend(self.channel.receive("prod", message_bytes(len(values))), len(values))
        zero, one = (self.hash(q ^ self._offering.delta * np.uint64(j), first, use)[:, 0] for j in (0, 1))
        self.channel.send("prod", (zero - one + values).tobytes())
        return np.uint64(0) - zero

    def integers(self, values: np.ndarray, width: int) -> np.ndarray:
        """Shares of the server's integers of so many bits times the values."""
        powers = np.uint64(1) << np.arange(width, dtype=np.uint64)
        powers[-1:] = np.uint64(0) - powers[-1:]  # the sign
        out, step = [], max(1, (1 << 18) // width)
        for start in range(0, len(values), step):
            offered = (powers[:, None] * values[start : start + step]).reshape(-1)
            shares = self.product(0, self._used, offered, INTEGERS)
            self._used += len(offered)
            out.append(shares.reshape(width, -1).sum(0, dtype=np.uint64))
        return np.concatenate(out)

    def square(self, number: int, share: np.ndarray) -> np.ndarray:
        whole = self.integers(share, self.ring)
        both = self.integers(np.concatenate([np.uint64(2) * share, share * share]), self.width)
        return np.stack([both[: len(share)], whole + both[len(share) :]])
