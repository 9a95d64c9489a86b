"""BFV with a power-of-two plaintext modulus: W·r − s on encrypted r, and nothing else learnt of W.

A client has a fresh key a query. It encrypts polynomials under it, one of them zero, which is its public key; c1 of
each is stretched from a seed, so that nobody can choose it. The server multiplies by plaintext polynomials, adds, and
answers: it adds the public key times a fresh ternary u and noise that drowns the product's, subtracts a mask s, drops
a prime, and sends c1 and the coefficients of c0 that are asked for. Why the answer tells nothing of W stands in
docs/threat-model.md. A client that shows its secret key afterwards shows thereby that its messages were honest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parelu.errors import ProtocolError, UserError
from parelu.fusion.packing import DEGREE
from parelu.private.crypto import noise
from parelu.private.crypto.noise import ETA
from parelu.private.crypto.prg import Stream
from parelu.private.crypto.ring import Elements
from parelu.private.crypto.seal import BITS, SEED_BYTES, Context

FRESH = ETA + 1  # |error| of a fresh ciphertext: the binomial's, and a rounding
ZERO = 2 * DEGREE * ETA  # |error| of the public key times u with an error added to c1, for ternary u and secret
UNUSED = 20  # bits of SEAL's last prime, under which nothing is encrypted
REPEATED = 8  # of N residues modulo 40 bits more than 8 are repeated with probability below 2^−150
SECRET_BYTES = DEGREE // 4  # two bits a coefficient
BLINDED = 56  # bits of a weight and of the blinding: their sum is positive for SEAL, which has t/2 = 2^58


@dataclasses.dataclass(frozen=True)
class Parameters:
    """bits of the two primes that an answer keeps, and of the prime that it drops; a fresh ciphertext has all three."""

    kept: tuple[int, int]
    dropped: int

    @property
    def bits(self) -> tuple[int, ...]:
        return *self.kept, self.dropped

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes of a residue on the wire, of each prime."""
        return tuple(-(-bits // 8) for bits in self.bits)

    @property
    def upload_bytes(self) -> int:
        """Of a fresh ciphertext, and of a public key."""
        return DEGREE * sum(self.widths) + SEED_BYTES

    def answer_bytes(self, coefficients: int) -> int:
        return (DEGREE + coefficients) * sum(self.widths[:2])

    @property
    def room(self) -> int:
        """Noise below which an answer decrypts rightly before its prime is dropped.

        Dropping p divides noise by it and adds at most (1 + N)/2 by rounding, for a ternary secret; noise must stay
        below q'/2t, q' the product of the kept primes.
        """
        first, second, dropped = context(self).primes
        return first * second * dropped // (2 << BITS) - dropped * (1 + DEGREE)

    @property
    def flood_bits(self) -> int:
        """Of each of the three uniforms in the flooding: as many as there is room for, so that they tell nothing."""
        return (self.room // noise.TERMS).bit_length()

    def holds(self, norm: int, coefficients: int) -> bool:
        """Whether every answer decrypts rightly and is hidden by the flooding, whatever r and the errors are.

        norm: Σ|w| over the polynomials that are multiplied for one answer, at most; coefficients: that an inference
        sends. c0 + c1·s = q/t·(W·r − s) + v and the flooding, |v| ≤ FRESH·norm + ZERO + 1, the last for the mask's
        rounding. (The scaling by q/t is of rationals, so that a sum which wraps modulo t costs nothing.)
        """
        shift = FRESH * norm + ZERO + 1
        largest = noise.TERMS << (self.flood_bits - 1)
        return shift + largest < self.room and noise.covers(self.flood_bits, shift, coefficients)


CHOICES = (
    Parameters((40, 40), 60),
    Parameters((40, 48), 60),
    Parameters((48, 48), 56),
    Parameters((48, 48), 60),
    Parameters((48, 56), 60),
    Parameters((56, 56), 60),
)
USUAL = CHOICES[2]  # of networks of the zoo


def parameters(norm: int, coefficients: int) -> Parameters:
    """The smallest that hold; raises UserError where none does."""
    for choice in CHOICES:
        if choice.holds(norm, coefficients):
            return choice
    raise UserError(
        f"weights of Σ|w| = {norm} in a polynomial's product leave no room for noise at 128 bits of security; "
        "lower with fewer bits of fraction"
    )


@functools.cache
def context(parameters: Parameters) -> Context:
    """SEAL's; it refuses what is below 128 bits of security."""
    return Context((*parameters.bits, UNUSED))


def _pack(rows: NDArray[np.uint64], widths: Iterable[int]) -> bytes:
    """rows: (primes, n) residues → the low bytes of each, prime after prime."""
    return b"".join(row[:, None].view(np.uint8)[:, :width].tobytes() for row, width in zip(rows, widths, strict=True))


def _unpack(body: NDArray[np.uint8], widths: Iterable[int], primes: Iterable[int], count: int) -> NDArray[np.uint64]:
    """The inverse, (primes, count); raises ProtocolError where a residue is not below its prime."""
    rows, start = [], 0
    for width, prime in zip(widths, primes, strict=True):
        words = np.zeros((count, 8), np.uint8)
        words[:, :width] = body[start : start + width * count].reshape(-1, width)
        rows.append(words.view(np.uint64)[:, 0])
        if count and int(rows[-1].max()) >= prime:
            raise ProtocolError("a residue of a ciphertext is not below its prime")
        start += width * count
    return np.stack(rows)


class Client:
    """A client's key, of one query, and what it draws: from the stream."""

    def __init__(self, parameters: Parameters, stream: Stream) -> None:
        self.parameters, self.context, self._stream = parameters, context(parameters), stream
        self.secret = noise.ternary(stream, DEGREE)
        self._factor, self._decryptor = self.context.factor(self.secret), self.context.decryptor(self.secret)

    def encrypt(self, values: Elements) -> bytes:
        """values: (N,) modulo t → `upload_bytes`: round(q/t·values) + e − c1·secret in NTT form, the seed of c1."""
        context, seed = self.context, self._stream.bytes(SEED_BYTES).tobytes()
        message = np.zeros((2, len(context.primes), DEGREE), np.uint64)
        message[0] = context.residues(noise.binomial(self._stream, DEGREE))
        message[1, :, 0] = 1  # SEAL wants a c1
        total = context.ciphertext(message)
        context.evaluator.add_plain_inplace(total, context.plaintext(values))
        context.evaluator.transform_to_ntt_inplace(total)
        c0 = (context.words(total)[0] + context.moduli - _times(context, seed, self._factor)) % context.moduli
        return _pack(c0, self.parameters.widths) + seed

    def public_key(self) -> bytes:
        """`upload_bytes`: an encryption of zero."""
        return self.encrypt(np.zeros(DEGREE, np.uint64))

    def decrypt(self, answer: NDArray[np.uint8], coefficients: NDArray[np.int64]) -> Elements:
        """answer: `answer_bytes` of the server's; returns W·r − s at the coefficients."""
        primes, widths = self.context.primes[:2], self.parameters.widths[:2]
        residues = np.zeros((2, 2, DEGREE), np.uint64)
        residues[1] = _unpack(answer, widths, primes, DEGREE)
        residues[0][:, coefficients] = _unpack(answer[DEGREE * sum(widths) :], widths, primes, len(coefficients))
        return self.context.decrypt(self._decryptor, self.context.ciphertext(residues))[coefficients]

    def show(self) -> bytes:
        """`SECRET_BYTES`: the secret key."""
        codes = (self.secret + 1).astype(np.uint8).reshape(-1, 4)
        return (codes << np.array([0, 2, 4, 6], np.uint8)).sum(1, dtype=np.uint8).tobytes()


class Server:
    """What a server does with the ciphertexts of one query; everything that it draws is of the stream.

    SEAL's time depends on a polynomial that it makes ready: on signs, by a branch, and on zeros. Weights are blinded by
    a uniform positive polynomial of the query, whose product is taken away again.
    """

    def __init__(self, parameters: Parameters, public_key: NDArray[np.uint8], stream: Stream) -> None:
        self.parameters, self.context, self._stream = parameters, context(parameters), stream
        self.public_key = public_key
        self._key = self._opened(public_key)
        self._blinding = ((stream.elements(DEGREE) >> np.uint64(64 - BLINDED)) + np.uint64(1 << BLINDED)).view(np.int64)
        self._factor = self.context.factor(self._blinding)

    def open(self, upload: NDArray[np.uint8]) -> tuple[Any, Any]:
        """A ciphertext in NTT form, and what the blinding adds to its products.

        Raises ProtocolError where it is malformed or cannot be honest.
        """
        ciphertext = self._opened(upload)
        return ciphertext, self.context.product(ciphertext, self._factor)

    def _opened(self, upload: NDArray[np.uint8]) -> Any:
        found = _received(self.parameters, upload)
        if len(np.unique(found[0, 0])) < DEGREE - REPEATED:
            raise ProtocolError("a ciphertext or public key is degenerate: its residues repeat")
        return self.context.ciphertext(found, upload[-SEED_BYTES:].tobytes(), ntt=True)

    def weight(self, coefficients: NDArray[np.int64]) -> Any:
        """(N,) signed integers below 2^`BLINDED` in magnitude as a plaintext in NTT form, blinded."""
        return self.context.factor(coefficients + self._blinding)

    def blank(self) -> Any:
        """An encryption of zero in NTT form, without the errors that `answer` adds: the public key times u."""
        return self.context.product(self._key, self.context.factor(noise.ternary(self._stream, DEGREE)))

    def accumulate(self, total: Any, opened: tuple[Any, Any], weight: Any) -> None:
        """total += ciphertext·weight."""
        ciphertext, added = opened
        self.context.evaluator.add_inplace(total, self.context.product(ciphertext, weight))
        self.context.evaluator.sub_inplace(total, added)

    def answer(self, total: Any, mask: Elements, coefficients: NDArray[np.int64]) -> bytes:
        """mask: what is subtracted at the coefficients; returns `answer_bytes`."""
        context, parameters = self.context, self.parameters
        context.evaluator.transform_from_ntt_inplace(total)
        drowned = np.zeros((2, len(context.primes), DEGREE), np.uint64)
        bits, count = parameters.flood_bits, len(coefficients)
        drowned[0][:, coefficients] = noise.flooding(self._stream, bits, count, context.primes)
        drowned[1] = context.residues(noise.binomial(self._stream, DEGREE))
        context.evaluator.add_inplace(total, context.ciphertext(drowned))
        masks = np.zeros(DEGREE, np.uint64)
        masks[coefficients] = mask
        context.evaluator.sub_plain_inplace(total, context.plaintext(masks))
        context.evaluator.mod_switch_to_next_inplace(total)
        residues, widths = context.words(total), parameters.widths[:2]
        return _pack(residues[1], widths) + _pack(residues[0][:, coefficients], widths)


class Audit:
    """Whether ciphertexts are what an honest client with this secret key sends.

    secret: `SECRET_BYTES`; raises ProtocolError where it is not ternary.
    """

    def __init__(self, parameters: Parameters, secret: NDArray[np.uint8]) -> None:
        codes = ((secret[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)).reshape(-1)
        if (codes > 2).any() or not (codes != 1).any():
            raise ProtocolError("what the client shows as its secret key is none")
        self.parameters, self.context = parameters, context(parameters)
        values = codes.astype(np.int64) - 1
        self._factor, self._decryptor = self.context.factor(values), self.context.decryptor(values)

    def is_fresh(self, upload: NDArray[np.uint8], *, is_key: bool = False) -> bool:
        """Whether c0 + c1·secret − round(q/t·values) is an error of a fresh ciphertext, modulo every prime the same.

        The values may be any, but are zero in a public key.
        """
        context, seed = self.context, upload[-SEED_BYTES:].tobytes()
        opened = np.ones((2, len(context.primes), DEGREE), np.uint64)  # c1 = 1: SEAL wants one
        opened[0] = (_received(self.parameters, upload)[0] + _times(context, seed, self._factor)) % context.moduli
        total = context.ciphertext(opened, ntt=True)
        context.evaluator.transform_from_ntt_inplace(total)
        values = context.decrypt(self._decryptor, total)
        context.evaluator.sub_plain_inplace(total, context.plaintext(values))
        error = context.words(total)[0]
        signed = np.where(error > context.moduli // 2, error - context.moduli, error).view(np.int64)
        is_small = np.abs(signed[0]).max() <= ETA and (signed == signed[0]).all()
        return bool(is_small and not (is_key and values.any()))


def _received(parameters: Parameters, upload: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """c0 of a fresh ciphertext, (1, primes, N)."""
    return _unpack(upload, parameters.widths, context(parameters).primes, DEGREE)[None]


def _times(context: Context, seed: bytes, secret: Any) -> NDArray[np.uint64]:
    """(primes, N) residues of c1·secret in NTT form, c1 stretched from the seed."""
    nothing = np.zeros((1, len(context.primes), DEGREE), np.uint64)
    return context.words(context.product(context.ciphertext(nothing, seed, ntt=True), secret))[1]
