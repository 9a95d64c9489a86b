"""BFV with a power-of-two plaintext modulus, by Microsoft SEAL: W·r − s on encrypted r, and nothing else learnt of W.

The client encrypts polynomials under its secret key; c1 of a fresh ciphertext travels as a seed. The server multiplies
by plaintext polynomials, adds, and answers: it subtracts a mask s, adds an encryption of zero under the client's
public key and noise that drowns the product's, drops a prime, and sends c1 and the coefficients of c0 that are asked
for. Why the answer tells nothing of W stands in docs/threat-model.md.

SEAL's objects come in and go out in its own serialised form, through anonymous memory; what the wire carries are plain
residues, whose number and range are checked.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import struct
import threading
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import tenseal.sealapi as seal
import zstandard
from numpy.typing import NDArray

from parelu.errors import ProtocolError, UserError
from parelu.fusion.packing import DEGREE
from parelu.private.crypto.prg import Stream
from parelu.private.crypto.ring import BITS, MASK, Ring

STATISTICAL = 40  # bits: an answer is within 2^−40 of one that is independent of W
FRESH = 22  # |error| of a fresh ciphertext: SEAL's centred binomial of ±21, and a rounding
ZERO = 2 * DEGREE * 21 + 21  # |error| of an encryption of zero under the public key
SEED_BYTES = 64  # of SEAL's generator
HEADER = struct.Struct("<HBBBBHQ")  # magic, its own size, version, mode of compression, nothing, all bytes
MAGIC = 0xA15E
CIPHERTEXT = struct.Struct("<4Q?3QdQ")  # parameters, NTT form, polynomials, N, primes, scale, correction
PLAINTEXT = struct.Struct("<4QQd")  # parameters, coefficients, scale

Residues = NDArray[np.uint64]  # (polynomials, primes, N)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """bits of the primes that an answer keeps, and of the prime that it drops; a fresh ciphertext has all three."""

    kept: int
    dropped: int

    @property
    def bits(self) -> tuple[int, ...]:
        return self.kept, self.kept, self.dropped

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes of a residue on the wire, of each prime."""
        return tuple(-(-bits // 8) for bits in self.bits)

    @property
    def upload_bytes(self) -> int:
        """Of a fresh ciphertext."""
        return DEGREE * sum(self.widths) + SEED_BYTES

    @property
    def key_bytes(self) -> int:
        """Of a public key."""
        return 2 * 4 * 8 * DEGREE

    def answer_bytes(self, coefficients: int) -> int:
        return (DEGREE + coefficients) * sum(self.widths[:2])

    def holds(self, norm: int) -> bool:
        """Whether an answer decrypts rightly, whatever r, as long as no row of W has Σ|w| > norm.

        c0 + c1·s = q/t·(W·r) + v before the answer's own noise, |v| ≤ FRESH·norm (the scaling by q/t is of rationals,
        so a sum that wraps modulo t costs nothing). Flooding adds at most 2^flood, the encryption of zero ZERO, the
        mask 1. Dropping p divides that by p and adds at most (1 + N)/2 by rounding, for a ternary secret. It decrypts
        rightly below q'/2t, q' the product of the kept primes.
        """
        noise = FRESH * norm + (1 << flood_bits(norm)) + ZERO + 1
        first, second, dropped = _primes(self)
        return 2 * (1 << BITS) * (noise + dropped * (1 + DEGREE)) < first * second * dropped


CHOICES = Parameters(40, 56), Parameters(40, 60), Parameters(48, 60)


def flood_bits(norm: int) -> int:
    """log2 of the flooding noise: the worst product noise, 40 bits, and one for each of a polynomial's coefficients."""
    return (FRESH * norm).bit_length() + STATISTICAL + DEGREE.bit_length() - 1


def parameters(norm: int) -> Parameters:
    """The smallest parameters for rows of W with Σ|w| ≤ norm; raises UserError where none is secure and exact."""
    for choice in CHOICES:
        if choice.holds(norm):
            return choice
    raise UserError(
        f"weights with rows of Σ|w| = {norm} leave no room for noise at 128 bits of security; "
        "lower with fewer bits of fraction"
    )


@functools.cache
def _context(parameters: Parameters) -> Any:
    """SEAL's context, with a last prime for keys only; it refuses what is below 128 bits of security."""
    wanted = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    wanted.set_poly_modulus_degree(DEGREE)
    wanted.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, [*parameters.bits, parameters.kept]))
    wanted.set_plain_modulus(seal.Modulus(1 << BITS))
    context = seal.SEALContext(wanted, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise UserError(f"SEAL refuses {parameters}: {context.parameters_error_message()}")
    return context


@functools.cache
def _primes(parameters: Parameters) -> tuple[int, ...]:
    modulus = _context(parameters).get_context_data(_context(parameters).first_parms_id()).parms().coeff_modulus()
    return tuple(prime.value() for prime in modulus)


class _Memory:
    """A file that is nowhere but in memory: what SEAL reads and writes."""

    def __init__(self) -> None:
        self.file = os.memfd_create("seal")
        self.path = f"/proc/self/fd/{self.file}"

    def __del__(self) -> None:
        os.close(self.file)


_threads = threading.local()


def _memory() -> _Memory:
    """This thread's."""
    if not hasattr(_threads, "memory"):
        _threads.memory = _Memory()
    return _threads.memory


def _load(target: Any, context: Any, body: Iterable[bytes]) -> Any:
    """The target, filled from its serialised form without the header."""
    memory, parts = _memory(), [b"", *body]
    parts[0] = _header(sum(map(len, parts)) + HEADER.size)
    os.ftruncate(memory.file, 0)
    os.lseek(memory.file, 0, os.SEEK_SET)
    os.writev(memory.file, parts)
    target.load(context, memory.path)
    return target


def _save(source: Any) -> bytes:
    """The serialised form without its header."""
    source.save(_memory().path)
    file = _memory().file
    content = os.pread(file, os.fstat(file).st_size, 0)
    mode = HEADER.unpack_from(content)[4]
    body = content[HEADER.size :]
    if mode == 2:
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return zlib.decompress(body) if mode == 1 else body


def _header(size: int) -> bytes:
    return HEADER.pack(MAGIC, HEADER.size, *_version(), 0, 0, size)


@functools.cache
def _version() -> tuple[int, int]:
    """Of SEAL's format, major and minor."""
    seal.Plaintext(1).save(_memory().path)
    return HEADER.unpack_from(os.pread(_memory().file, HEADER.size, 0))[2:4]


def _array(data: Residues) -> list[bytes]:
    """SEAL's serialised array of words."""
    size = HEADER.size + 8 + data.nbytes
    return [_header(size) + struct.pack("<Q", data.size), data.tobytes()]


def _words(body: bytes, offset: int, *shape: int) -> Residues:
    start = offset + HEADER.size + 8
    return np.frombuffer(body, np.uint64, int(np.prod(shape)), start).reshape(shape)


def _ciphertext(context: Any, parms: Any, residues: Residues, primes: int, seed: bytes = b"") -> Any:
    """residues: (2, primes, N), or c0 alone, (1, primes, N), with the seed of c1."""
    header = CIPHERTEXT.pack(*parms, False, 2, DEGREE, primes, 1.0, 1)
    tail = _header(HEADER.size + 1 + SEED_BYTES) + b"\1" + seed  # SEAL's first generator, Blake2xb
    return _load(seal.Ciphertext(), context, [header, *_array(residues), tail if seed else b""])


def _plaintext(context: Any, values: NDArray[np.uint64]) -> Any:
    return _load(seal.Plaintext(), context, [PLAINTEXT.pack(0, 0, 0, 0, DEGREE, 1.0), *_array(values)])


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
    """A client's keys, for one connection."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters, self.context = parameters, _context(parameters)
        generator = seal.KeyGenerator(self.context)
        self._public = seal.PublicKey()
        generator.create_public_key(self._public)
        self._encryptor = seal.Encryptor(self.context, generator.secret_key())
        self._decryptor = seal.Decryptor(self.context, generator.secret_key())

    def public_key(self) -> bytes:
        body = _save(self._public)
        return _words(body, CIPHERTEXT.size, 2, 4, DEGREE).tobytes()

    def encrypt(self, values: Ring) -> bytes:
        """values: (N,) → `upload_bytes`."""
        body = _save(self._encryptor.encrypt_symmetric(_plaintext(self.context, values)))
        return _pack(_words(body, CIPHERTEXT.size, 3, DEGREE), self.parameters.widths) + body[-SEED_BYTES:]

    def decrypt(self, answer: NDArray[np.uint8], coefficients: NDArray[np.int64]) -> Ring:
        """answer: `answer_bytes` of the server's; returns W·r − s at the coefficients."""
        primes, widths = _primes(self.parameters)[:2], self.parameters.widths[:2]
        residues = np.zeros((2, 2, DEGREE), np.uint64)
        residues[1] = _unpack(answer, widths, primes, DEGREE)
        residues[0][:, coefficients] = _unpack(answer[DEGREE * sum(widths) :], widths, primes, len(coefficients))
        found = seal.Plaintext()
        self._decryptor.decrypt(_ciphertext(self.context, self.context.last_parms_id(), residues, 2), found)
        body = _save(found)
        size = struct.unpack_from("<Q", body, 32)[0]
        out = np.zeros(DEGREE, np.uint64)
        out[:size] = _words(body, PLAINTEXT.size, size)
        return out[coefficients]


class Server:
    """What a server does with one client's ciphertexts.

    norm: no row of the weights that it multiplies with has a larger Σ|w|.
    """

    def __init__(self, parameters: Parameters, norm: int, public_key: NDArray[np.uint8]) -> None:
        self.parameters, self.norm, self.context = parameters, norm, _context(parameters)
        assert parameters.holds(norm)
        self.evaluator = seal.Evaluator(self.context)
        primes = self.context.get_context_data(self.context.key_parms_id()).parms().coeff_modulus()
        residues = public_key.view(np.uint64).reshape(2, 4, DEGREE)
        if any(int(residues[:, row].max()) >= prime.value() for row, prime in enumerate(primes)):
            raise ProtocolError("a residue of the public key is not below its prime")
        header = CIPHERTEXT.pack(*self.context.key_parms_id(), True, 2, DEGREE, 4, 1.0, 1)
        key = _load(seal.PublicKey(), self.context, [header, *_array(residues)])
        self._encryptor = seal.Encryptor(self.context, key)

    def open(self, upload: NDArray[np.uint8]) -> Any:
        """A ciphertext in NTT form."""
        residues = _unpack(upload, self.parameters.widths, _primes(self.parameters), DEGREE)
        parms = self.context.first_parms_id()
        fresh = _ciphertext(self.context, parms, residues[None], 3, upload[-SEED_BYTES:].tobytes())
        self.evaluator.transform_to_ntt_inplace(fresh)
        return fresh

    def weight(self, coefficients: NDArray[np.int64]) -> Any:
        """(N,) signed integers as a plaintext in NTT form; None for zero, which SEAL refuses to multiply by."""
        if not coefficients.any():
            return None
        plain = _plaintext(self.context, coefficients.view(np.uint64) & MASK)
        self.evaluator.transform_to_ntt_inplace(plain, self.context.first_parms_id())
        return plain

    def accumulate(self, total: Any, ciphertext: Any, weight: Any) -> Any:
        """total + ciphertext·weight; a total of None is 0."""
        if weight is None:
            return total
        product = seal.Ciphertext()
        self.evaluator.multiply_plain(ciphertext, weight, product)
        if total is None:
            return product
        self.evaluator.add_inplace(total, product)
        return total

    def answer(self, total: Any, mask: Ring, coefficients: NDArray[np.int64], noise: Stream) -> bytes:
        """mask: what is subtracted at the coefficients; returns `answer_bytes`."""
        evaluator, context = self.evaluator, self.context
        result = seal.Ciphertext()
        self._encryptor.encrypt_zero(result)
        if total is not None:
            evaluator.transform_from_ntt_inplace(total)
            evaluator.add_inplace(result, total)
        masks = np.zeros(DEGREE, np.uint64)
        masks[coefficients] = mask
        evaluator.sub_plain_inplace(result, _plaintext(context, masks))
        flood = np.zeros((2, 3, DEGREE), np.uint64)
        flood[0] = flooding(self.parameters, flood_bits(self.norm), noise)
        evaluator.add_inplace(result, _ciphertext(context, context.first_parms_id(), flood, 3))
        evaluator.mod_switch_to_next_inplace(result)
        residues = _words(_save(result), CIPHERTEXT.size, 2, 2, DEGREE)
        widths = self.parameters.widths[:2]
        return _pack(residues[1], widths) + _pack(residues[0][:, coefficients], widths)


def flooding(parameters: Parameters, bits: int, noise: Stream) -> Residues:
    """Uniform in [−2^bits, 2^bits), as residues (primes, N)."""
    words = noise.blocks(DEGREE)
    high, low = words[:, 0] >> np.uint64(64 - (bits + 1 - 56)), words[:, 1] >> np.uint64(8)  # 56 bits in `low`
    rows = []
    for prime in _primes(parameters):
        p = np.uint64(prime)
        value = high % p
        for _ in range(56 // 4):
            value = (value << np.uint64(4)) % p
        rows.append((value + low % p + np.uint64(prime - (1 << bits) % prime)) % p)
    return np.stack(rows)
