"""Microsoft SEAL's objects from residues and back: what it is used for are transforms, products, sums and decryption.

They come in and go out in SEAL's own serialised form, through anonymous memory. Its parser reads only headers that are
written here; the residues in them are checked by who took them from the wire. SEAL draws nothing at random.
"""

from __future__ import annotations

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

from parelu.errors import UserError
from parelu.fusion.packing import DEGREE
from parelu.private.crypto.ring import Elements, encode

BITS = 59  # of the plaintext modulus t: the largest power of two that SEAL takes is below 2^60
SEED_BYTES = 64  # of SEAL's generator, Blake2xb
HEADER = struct.Struct("<HBBBBHQ")  # magic, its own size, version, mode of compression, nothing, all bytes
MAGIC = 0xA15E
CIPHERTEXT = struct.Struct("<4Q?3QdQ")  # parameters, NTT form, polynomials, N, primes, scale, correction
PLAINTEXT = struct.Struct("<4QQd")  # parameters, coefficients, scale
NOWHERE = (0, 0, 0, 0)  # parameters of a plaintext that is not in NTT form

Residues = NDArray[np.uint64]  # (…, primes, N)


class Context:
    """SEAL's parameters for primes of these bits, the last of which serves keys only and never encrypts anything.

    Attributes:
        primes: those of a fresh ciphertext.
        first, last, keys: SEAL's names of the levels of a fresh ciphertext, of one that lost a prime, of keys.

    Raises:
        UserError: less than 128 bits of security by SEAL's table (218 bits of all primes together at N = 8192).
    """

    def __init__(self, bits: tuple[int, ...]) -> None:
        wanted = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        wanted.set_poly_modulus_degree(DEGREE)
        wanted.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, list(bits)))
        wanted.set_plain_modulus(seal.Modulus(1 << BITS))
        self.seal = seal.SEALContext(wanted, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.seal.parameters_set():
            raise UserError(f"SEAL refuses primes of {bits} bits: {self.seal.parameters_error_message()}")
        self.evaluator = seal.Evaluator(self.seal)
        self.first, self.last, self.keys = (
            self.seal.first_parms_id(),
            self.seal.last_parms_id(),
            self.seal.key_parms_id(),
        )
        modulus = self.seal.get_context_data(self.first).parms().coeff_modulus()
        self.primes = tuple(prime.value() for prime in modulus)
        self.moduli = np.array(self.primes, np.uint64)[:, None]

    def residues(self, values: NDArray[np.int64]) -> Residues:
        """Small signed integers (N,) modulo each prime."""
        return (values.view(np.uint64) + self.moduli * (values < 0)).astype(np.uint64)

    def ciphertext(self, residues: Residues, seed: bytes = b"", *, ntt: bool = False) -> Any:
        """residues: (2, primes, N), or c0 alone, (1, primes, N), with the seed of c1; all primes, or all but the last.
        ntt: whether they are in NTT form."""
        primes = residues.shape[1]
        level = self.first if primes == len(self.primes) else self.last
        header = CIPHERTEXT.pack(*level, ntt, 2, DEGREE, primes, 1.0, 1)
        tail = _header(HEADER.size + 1 + SEED_BYTES) + b"\1" + seed  # SEAL's first generator
        return _load(seal.Ciphertext(), self.seal, [header, *_array(residues), tail if seed else b""])

    def plaintext(self, values: Elements) -> Any:
        """(N,) coefficients, of which the lowest `BITS` bits count."""
        header = PLAINTEXT.pack(*NOWHERE, DEGREE, 1.0)
        return _load(seal.Plaintext(), self.seal, [header, *_array(values & np.uint64((1 << BITS) - 1))])

    def factor(self, values: NDArray[np.int64], level: Any = None) -> Any:
        """(N,) signed integers, not all zero, as a plaintext in NTT form."""
        plain = self.plaintext(encode(values))
        self.evaluator.transform_to_ntt_inplace(plain, level or self.first)
        return plain

    def decryptor(self, secret: NDArray[np.int64]) -> Any:
        """secret: (N,) of −1, 0 and 1."""
        body = _save(self.factor(secret, self.keys))
        return seal.Decryptor(self.seal, _load(seal.SecretKey(), self.seal, [body]))

    def product(self, ciphertext: Any, factor: Any) -> Any:
        """Both in NTT form."""
        out = seal.Ciphertext()
        self.evaluator.multiply_plain(ciphertext, factor, out)
        return out

    def words(self, ciphertext: Any) -> Residues:
        """(2, primes, N) residues, in whatever form they are."""
        return _words(_save(ciphertext), CIPHERTEXT.size, 2, ciphertext.coeff_modulus_size(), DEGREE)

    def decrypt(self, decryptor: Any, ciphertext: Any) -> Elements:
        """(N,) coefficients."""
        found = seal.Plaintext()
        decryptor.decrypt(ciphertext, found)
        body, out = _save(found), np.zeros(DEGREE, np.uint64)
        size = struct.unpack_from("<Q", body, 32)[0]
        out[:size] = _words(body, PLAINTEXT.size, size)
        return out


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
        return zstandard.decompress(body)
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
